"""From a checkpoint directory to a model: official tensor names, each shard opened once.

Owns the names (`tensor_places`) and the reading. The files are memory-mapped and every tensor is copied once, straight
to its place among the stacked and fused weights of `model.ModelWeights`: no second copy of the model in memory.
Everything is checked from the shards' headers before a byte of weights is read.
Known and left out, with a line in the log: MTP modules (drafting layers), and vision tensors where the config has no
vision. Any other name that the config does not explain is refused.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from m3_worker.model import Attention, Experts, M3Model, Mlp, ModelWeights
from m3_worker.model_config import CheckpointError, ModelConfig, read_json
from m3_worker.vision import Affine, VisionWeights

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (bytes read, bytes needed), first with zero bytes read, last with all."""

_INDEX_FILE = "model.safetensors.index.json"
_SINGLE_FILE = "model.safetensors"
_VISION_PREFIXES = ("vision_tower.", "multi_modal_projector.", "patch_merge_mlp.")
_MTP_PREFIXES = ("mtp.", "model.mtp.", "language_model.mtp.", "language_model.model.mtp.")
_ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}


def load_model(
    directory: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device | str, progress: Progress
) -> M3Model:
    """Read the weights in `directory` to `device` in `dtype` (the router stays fp32).

    Raises CheckpointError, one line, on a missing or unreadable file, and on a tensor that is missing, unexpected, of
    another shape than `config` says, or of a dtype that is not a plain float.
    """
    with ExitStack() as stack:
        shards = {path: stack.enter_context(_open(path)) for path in _shard_paths(directory)}
        found = {name: shard for shard in shards.values() for name in shard.keys()}  # noqa: SIM118 # not a mapping
        needed_bytes = _check(found, tensor_places(ModelWeights.allocate(config, dtype, "meta"), config))
        weights = ModelWeights.allocate(config, dtype, device)
        places = tensor_places(weights, config)
        read_bytes = 0
        progress(read_bytes, needed_bytes)
        for path, shard in shards.items():
            for name in shard.keys():  # noqa: SIM118
                if name not in places:
                    continue
                try:
                    tensor = shard.get_tensor(name)
                except (SafetensorError, OSError) as error:
                    raise CheckpointError(f"{path}: cannot read {name}: {error}") from None
                places[name].copy_(tensor)
                read_bytes += tensor.nbytes
                progress(read_bytes, needed_bytes)
    return M3Model(config, weights)


def tensor_places(weights: ModelWeights, config: ModelConfig) -> dict[str, Tensor]:
    """Official tensor name -> the view of `weights` that it fills. The views cover all weights, once."""
    return dict(_model_places(weights, config))


def _model_places(weights: ModelWeights, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    yield "language_model.model.embed_tokens.weight", weights.embedding
    for number, layer in enumerate(weights.layers):
        prefix = f"language_model.model.layers.{number}"
        yield f"{prefix}.input_layernorm.weight", layer.attention_norm
        yield f"{prefix}.post_attention_layernorm.weight", layer.mlp_norm
        yield from _attention_places(f"{prefix}.self_attn", layer.attention, config)
        if isinstance(layer.mlp, Experts):
            yield from _expert_places(f"{prefix}.block_sparse_moe", layer.mlp)
        else:
            yield from _mlp_places(f"{prefix}.mlp", layer.mlp)
    yield "language_model.model.norm.weight", weights.norm
    yield "language_model.lm_head.weight", weights.lm_head
    if weights.vision is not None:
        yield from _vision_places(weights.vision)


def _attention_places(prefix: str, attention: Attention, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    kv_width = config.kv_heads * config.head_dim
    rows = {"q_proj": config.heads * config.head_dim, "k_proj": kv_width, "v_proj": kv_width}
    norms = attention.norms
    yield f"{prefix}.q_norm.weight", norms.q
    yield f"{prefix}.k_norm.weight", norms.k
    if norms.index_q is not None and norms.index_k is not None:
        rows |= {"index_q_proj": config.kv_heads * config.index_dim, "index_k_proj": config.index_dim}
        yield f"{prefix}.index_q_norm.weight", norms.index_q
        yield f"{prefix}.index_k_norm.weight", norms.index_k
    for name, part in zip(rows, torch.split(attention.projections, list(rows.values())), strict=True):
        yield f"{prefix}.{name}.weight", part
    yield f"{prefix}.o_proj.weight", attention.output


def _mlp_places(prefix: str, mlp: Mlp) -> Iterator[tuple[str, Tensor]]:
    gate, up = mlp.gate_up.chunk(2)
    yield f"{prefix}.gate_proj.weight", gate
    yield f"{prefix}.up_proj.weight", up
    yield f"{prefix}.down_proj.weight", mlp.down


def _expert_places(prefix: str, experts: Experts) -> Iterator[tuple[str, Tensor]]:
    yield f"{prefix}.gate.weight", experts.router
    yield f"{prefix}.e_score_correction_bias", experts.bias
    for number, (gate_up, down) in enumerate(zip(experts.gate_up, experts.down, strict=True)):
        gate, up = gate_up.chunk(2)
        yield f"{prefix}.experts.{number}.w1.weight", gate
        yield f"{prefix}.experts.{number}.w3.weight", up
        yield f"{prefix}.experts.{number}.w2.weight", down
    yield from _mlp_places(f"{prefix}.shared_experts", experts.shared)


def _vision_places(vision: VisionWeights) -> Iterator[tuple[str, Tensor]]:
    tower = "vision_tower.vision_model"
    yield f"{tower}.embeddings.patch_embedding.weight", vision.patch_embedding
    yield from _affine_places(f"{tower}.pre_layrnorm", vision.pre_norm)  # spelled so in the release
    for number, layer in enumerate(vision.layers):
        prefix = f"{tower}.encoder.layers.{number}"
        yield from _affine_places(f"{prefix}.layer_norm1", layer.attention_norm)
        parts = zip("qkv", layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3), strict=True)
        for name, weight, bias in parts:
            yield from _affine_places(f"{prefix}.self_attn.{name}_proj", Affine(weight, bias))
        yield from _affine_places(f"{prefix}.self_attn.out_proj", layer.output)
        yield from _affine_places(f"{prefix}.layer_norm2", layer.mlp_norm)
        yield from _affine_places(f"{prefix}.mlp.fc1", layer.mlp_in)
        yield from _affine_places(f"{prefix}.mlp.fc2", layer.mlp_out)
    for name, pair in (("multi_modal_projector", vision.projector), ("patch_merge_mlp", vision.merge)):
        for number, affine in enumerate(pair, start=1):
            yield from _affine_places(f"{name}.linear_{number}", affine)


def _affine_places(prefix: str, affine: Affine) -> Iterator[tuple[str, Tensor]]:
    yield f"{prefix}.weight", affine.weight
    yield f"{prefix}.bias", affine.bias


def _shard_paths(directory: Path) -> list[Path]:
    """The files that hold the weights, in the order of their names."""
    index = directory / _INDEX_FILE
    if not index.exists():
        return [directory / _SINGLE_FILE]
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index}: weight_map must map tensor names to file names")
    files = sorted(set(names.values()))
    outside = [file for file in files if Path(file).name != file]
    if outside:
        raise CheckpointError(f"{index}: {outside[0]!r} must be the name of a file in the same directory")
    return [directory / file for file in files]


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; the weights must lie beside config.json") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from None


def _check(found: Mapping[str, Any], expected: Mapping[str, Tensor]) -> int:
    """Compare the shards' headers with what the model needs. Returns the bytes to read."""
    needed_bytes = 0
    for name, place in expected.items():
        if name not in found:
            raise CheckpointError(f"tensor {name} is missing: expected shape {list(place.shape)}")
        header = found[name].get_slice(name)
        shape, dtype = list(header.get_shape()), header.get_dtype()
        if shape != list(place.shape):
            raise CheckpointError(f"tensor {name} has shape {shape}: expected {list(place.shape)} by config.json")
        if dtype not in _ITEM_BYTES:
            raise CheckpointError(f"tensor {name} has dtype {dtype}: only {', '.join(_ITEM_BYTES)} are supported")
        needed_bytes += place.numel() * _ITEM_BYTES[dtype]
    extra = [name for name in found if name not in expected]
    for prefixes, kind in (
        (_VISION_PREFIXES, "vision tensors"),
        (_MTP_PREFIXES, "MTP tensors"),
    ):
        skipped = [name for name in extra if name.startswith(prefixes)]
        if skipped:
            log.info("left out %d %s: not used by this engine", len(skipped), kind)
        extra = [name for name in extra if not name.startswith(prefixes)]
    if extra:
        raise CheckpointError(f"tensor {extra[0]} is unexpected: nothing in config.json explains it")
    return needed_bytes
