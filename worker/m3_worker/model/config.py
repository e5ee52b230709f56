"""What a checkpoint says about its model: its `config.json`, read and checked.

Owns the meaning of every field that this engine reads, and the refusal of what it does not support: each by name, at
load, never ignored. Reads no weights and knows no device. The field names are those of the released MiniMax-M3, whose
text model is nested under `text_config`; a file that leaves out what the model needs is refused, no default is guessed.
"""

from dataclasses import dataclass
from pathlib import Path

from m3_worker.model.config_fields import ABSENT as _ABSENT
from m3_worker.model.config_fields import CheckpointError, Json, read_json
from m3_worker.model.config_fields import is_int as _is_int
from m3_worker.model.config_fields import number as _number
from m3_worker.model.config_fields import require as _require
from m3_worker.model.config_fields import section as _section
from m3_worker.model.vision_config import VisionConfig

__all__ = ["CheckpointError", "ModelConfig", "read_json"]


@dataclass(frozen=True)
class ModelConfig:
    """The shape of one M3 text model. Lists have one entry per layer."""

    vocab_size: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    norm_eps: float
    max_position_embeddings: int
    dense_intermediate_size: int
    """0 if the config does not say: then no layer has a dense MLP."""
    expert_intermediate_size: int
    shared_intermediate_size: int
    experts: int
    experts_per_token: int
    routed_scaling_factor: float
    swiglu_alpha: float
    swiglu_limit: float
    index_dim: int
    sparse_block_size: int
    topk_blocks: int
    sparse_layers: tuple[bool, ...]
    """True where attention is sparse and has an index branch."""
    moe_layers: tuple[bool, ...]
    """True where the MLP is a mixture of experts."""
    is_mxfp8: bool
    """Whether its matrices may be in MXFP8, each with its scales."""
    dtype: str
    """The dtype the checkpoint was saved in, as `config.json` writes it: bfloat16, float32 or float16."""
    eos_token_ids: tuple[int, ...]
    """Tokens that end a generation, from `generation_config.json`, else from `config.json`; may be empty."""
    vision: VisionConfig | None = None
    """None for a checkpoint that has only text."""

    @property
    def layers(self) -> int:
        return len(self.sparse_layers)

    @property
    def page_tokens(self) -> int:
        """Tokens of a page of the cache: one page is one block of selection."""
        return self.sparse_block_size

    @classmethod
    def load(cls, directory: Path) -> "ModelConfig":
        """Read `config.json` (and `generation_config.json`, if there is one). Raises CheckpointError with one line."""
        path = directory / "config.json"
        generation = directory / "generation_config.json"
        return cls.from_json(read_json(path), read_json(generation) if generation.exists() else {}, source=str(path))

    @classmethod
    def from_json(cls, config: Json, generation: Json | None = None, *, source: str = "config.json") -> "ModelConfig":
        """Build from the parsed files. Raises CheckpointError, prefixed by `source`, on the first rule broken."""
        try:
            return _parse(config, generation or {})
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from None


def _parse(config: Json, generation: Json) -> ModelConfig:
    _require(config, "model_type", ("minimax_m3_vl",))
    text = _section(config, "text_config")
    sparse = _section(text, "sparse_attention_config", "text_config.")
    _refuse_unsupported(config, text, sparse)
    layers = _number(text, "num_hidden_layers", int, _TEXT)
    head_dim = _number(text, "head_dim", int, _TEXT)
    moe_layers = _layer_flags(text, "moe_layer_freq", layers, _TEXT)
    model = ModelConfig(
        vocab_size=_number(text, "vocab_size", int, _TEXT),
        hidden_size=_number(text, "hidden_size", int, _TEXT),
        heads=_number(text, "num_attention_heads", int, _TEXT),
        kv_heads=_number(text, "num_key_value_heads", int, _TEXT),
        head_dim=head_dim,
        rotary_dim=_rotary_dim(text, head_dim),
        rope_theta=_number(text, "rope_theta", float, _TEXT),
        norm_eps=_number(text, "rms_norm_eps", float, _TEXT),
        max_position_embeddings=_number(text, "max_position_embeddings", int, _TEXT),
        dense_intermediate_size=_dense_intermediate_size(text, moe_layers),
        expert_intermediate_size=_number(text, "intermediate_size", int, _TEXT),
        shared_intermediate_size=_number(text, "shared_intermediate_size", int, _TEXT),
        experts=_number(text, "num_local_experts", int, _TEXT),
        experts_per_token=_number(text, "num_experts_per_tok", int, _TEXT),
        routed_scaling_factor=_number(text, "routed_scaling_factor", float, _TEXT),
        swiglu_alpha=_number(text, "swiglu_alpha", float, _TEXT),
        swiglu_limit=_number(text, "swiglu_limit", float, _TEXT),
        index_dim=_number(sparse, "sparse_index_dim", int, _SPARSE),
        sparse_block_size=_number(sparse, "sparse_block_size", int, _SPARSE),
        topk_blocks=_number(sparse, "sparse_topk_blocks", int, _SPARSE),
        sparse_layers=_layer_flags(sparse, "sparse_attention_freq", layers, _SPARSE),
        moe_layers=moe_layers,
        is_mxfp8=_is_mxfp8(config, text),
        dtype=_dtype(config, text),
        eos_token_ids=_eos_token_ids(generation, text, config),
        vision=VisionConfig.from_json(config, _number(text, "vocab_size", int, _TEXT)),
    )
    _check_consistency(model, sparse)
    return model


_MX_BLOCK = [1, 32]
_TEXT = "text_config."
_SPARSE = "text_config.sparse_attention_config."

# Fields whose other values would mean another computation. A field that may be absent lists _ABSENT.
_TEXT_RULES: tuple[tuple[str, tuple[object, ...]], ...] = (
    ("hidden_act", ("swigluoai",)),
    ("scoring_func", ("sigmoid",)),
    ("use_routing_bias", (True,)),
    ("use_qk_norm", (True,)),
    ("qk_norm_type", ("per_head",)),
    ("use_gemma_norm", (True,)),
    ("attention_output_gate", (False, _ABSENT)),
    ("n_shared_experts", (1,)),
    ("tie_word_embeddings", (False, _ABSENT)),
    ("rope_scaling", (None, _ABSENT)),
    ("sliding_window", (None, _ABSENT)),
    ("attention_bias", (False, _ABSENT)),
    ("swiglu_beta", (1.0, _ABSENT)),
)
_SPARSE_RULES: tuple[tuple[str, tuple[object, ...]], ...] = (
    ("use_sparse_attention", (True,)),
    ("sparse_score_type", ("max",)),
    ("sparse_init_block", (0,)),
    ("sparse_local_block", (1,)),
)


def _refuse_unsupported(config: Json, text: Json, sparse: Json) -> None:
    _require(config, "tie_word_embeddings", (False, _ABSENT))
    for name, allowed in _TEXT_RULES:
        _require(text, name, allowed, _TEXT)
    for name, allowed in _SPARSE_RULES:
        _require(sparse, name, allowed, _SPARSE)
    freq, index_value_off = sparse.get("sparse_attention_freq"), sparse.get("sparse_disable_index_value")
    if index_value_off != freq:
        raise CheckpointError(
            f"{_SPARSE}sparse_disable_index_value must equal sparse_attention_freq: index values are not supported"
        )
    rope = text.get("rope_parameters")
    if rope is not None:
        raise CheckpointError(f"{_TEXT}rope_parameters is not supported: give rope_theta and partial_rotary_factor")


def _dense_intermediate_size(text: Json, moe_layers: tuple[bool, ...]) -> int:
    if all(moe_layers) and "dense_intermediate_size" not in text:
        return 0
    return _number(text, "dense_intermediate_size", int, _TEXT)


def _is_mxfp8(config: Json, text: Json) -> bool:
    """Whether the matrices are in MXFP8, under either of its names. Any other quantisation is refused by name."""
    sections = ((config, ""), (text, _TEXT))
    present = [(section, prefix) for section, prefix in sections if section.get("quantization_config") is not None]
    for section, prefix in present:
        quantization = _section(section, "quantization_config", prefix)
        method, block = quantization.get("quant_method", "unnamed"), quantization.get("weight_block_size")
        if (method == "mxfp8" and block in (None, _MX_BLOCK)) or (method == "fp8" and block == _MX_BLOCK):
            continue
        details = (quantization.get("quant_algo"), None if block is None else f"blocks of {block}")
        shown = ", ".join(str(word) for word in (method, *details) if word)
        raise CheckpointError(
            f"{prefix}quantization_config ({shown}) is not supported: use the bfloat16, float32 or MXFP8 release"
        )
    return bool(present)


def _rotary_dim(text: Json, head_dim: int) -> int:
    """Two fields say the same thing; they must agree, because engines differ in which of them they read."""
    factor = _number(text, "partial_rotary_factor", float, _TEXT)
    rotary_dim = head_dim * factor
    if rotary_dim != int(rotary_dim) or int(rotary_dim) % 2 or factor > 1:
        raise CheckpointError(
            f"{_TEXT}partial_rotary_factor is {factor}: of head_dim {head_dim} it must make an even number, at most all"
        )
    if "rotary_dim" in text and _number(text, "rotary_dim", int, _TEXT) != rotary_dim:
        raise CheckpointError(
            f"{_TEXT}rotary_dim is {text['rotary_dim']}, but partial_rotary_factor {factor} of head_dim {head_dim} "
            f"makes {int(rotary_dim)}: they must agree"
        )
    return int(rotary_dim)


def _check_consistency(model: ModelConfig, sparse: Json) -> None:
    index_heads = _number(sparse, "sparse_num_index_heads", int, _SPARSE)
    rules = (
        (
            model.heads % model.kv_heads == 0,
            f"num_attention_heads is {model.heads}: must be a multiple of num_key_value_heads {model.kv_heads}",
        ),
        (
            index_heads == model.kv_heads,
            f"sparse_num_index_heads is {index_heads}: must equal num_key_value_heads {model.kv_heads}",
        ),
        (
            model.rotary_dim <= model.index_dim,
            f"sparse_index_dim is {model.index_dim}: must hold the {model.rotary_dim} rotated dimensions",
        ),
        (
            model.experts_per_token <= model.experts,
            f"num_experts_per_tok is {model.experts_per_token}: must be at most num_local_experts {model.experts}",
        ),
        (
            all(0 <= token < model.vocab_size for token in model.eos_token_ids),
            f"eos_token_id is {list(model.eos_token_ids)}: must be below vocab_size {model.vocab_size}",
        ),
    )
    for holds, rule in rules:
        if not holds:
            raise CheckpointError(rule)


def _dtype(config: Json, text: Json) -> str:
    for section in (config, text):
        for name in ("torch_dtype", "dtype"):
            if section.get(name) is not None:
                _require(section, name, ("bfloat16", "float32", "float16"))
                return str(section[name])
    raise CheckpointError("torch_dtype is missing: must be bfloat16, float32 or float16")


def _eos_token_ids(generation: Json, text: Json, config: Json) -> tuple[int, ...]:
    for section in (generation, text, config):
        value = section.get("eos_token_id")
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            if not all(_is_int(token) for token in ids):
                raise CheckpointError(f"eos_token_id is {value!r}: must be an integer or a list of them")
            return tuple(ids)
    return ()


def _layer_flags(section: Json, name: str, layers: int, prefix: str) -> tuple[bool, ...]:
    value = section.get(name)
    if not isinstance(value, list) or len(value) != layers or not all(flag in (0, 1) for flag in value):
        raise CheckpointError(f"{prefix}{name} must be a list of {layers} zeros and ones, one per layer")
    return tuple(bool(flag) for flag in value)
