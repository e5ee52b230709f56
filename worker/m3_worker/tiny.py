"""Random tiny checkpoints in the official form of MiniMax-M3, for tests, demos and trying things out.

Owns the command, and what such a directory holds: config.json, a byte-level tokenizer with M3's special tokens, a chat
template in M3's format, generation defaults; the weights are tiny_weights'. The same settings give the same bytes.
The vision tower takes M3's patches, so that images are sized and cut as for M3, and has tiny widths.
"""

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from m3_worker.byte_vocabulary import M3_TOKENS, byte_level_tokenizer
from m3_worker.config import TinySettings
from m3_worker.model.config import ModelConfig

_TOKEN_IDS = {text: 256 + number for number, (text, _) in enumerate(M3_TOKENS)}
_VOCAB_SIZE = 256 + len(M3_TOKENS)
_MXFP8_JSON = {
    "quantization_config": {
        "quant_method": "mxfp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [1, 32],
        "modules_to_not_convert": ["lm_head", "embed_tokens", "gate", "vision_tower"],
    }
}


def main() -> None:
    """`python -m m3_worker.tiny DIR --seed N ...`: write one checkpoint and say where."""
    settings = TinySettings.parse_arguments(sys.argv[1:])
    try:
        tensor_bytes = write_checkpoint(settings)
    except OSError as error:
        sys.exit(f"m3 tiny: cannot write to {settings.directory}: {error.strerror or error}")
    sys.stdout.write(f"{settings.directory}: {tensor_bytes:,} bytes of weights, seed {settings.seed}\n")


def write_checkpoint(settings: TinySettings) -> int:
    """Write the checkpoint into `settings.directory`, made if it is not there. Returns the bytes of its tensors.

    Files of the same names are replaced; raises OSError if one cannot be written.
    """
    from m3_worker.tiny_weights import write_weights  # takes torch, which help and refused flags should not wait for

    directory = settings.directory
    directory.mkdir(parents=True, exist_ok=True)
    config = config_json(settings)
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", _generation_config_json())
    _write_json(directory / "tokenizer_config.json", _tokenizer_config_json(settings))
    byte_level_tokenizer(M3_TOKENS).save(str(directory / "tokenizer.json"))
    template = resources.files("m3_worker").joinpath("chat_template.jinja").read_text(encoding="utf-8")
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return write_weights(directory, ModelConfig.from_json(config), settings.seed)


def config_json(settings: TinySettings) -> dict[str, Any]:
    """The checkpoint's config.json: the released file's fields, with the sizes of `settings`."""
    by_layer = [0] * settings.dense_layers + [1] * (settings.layers - settings.dense_layers)
    vision = _vision_json(settings) if settings.vision else {}
    return {
        "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
        "model_type": "minimax_m3_vl",
        "torch_dtype": "bfloat16" if settings.dtype == "mxfp8" else settings.dtype,
        **(_MXFP8_JSON if settings.dtype == "mxfp8" else {}),
        "image_token_index": _TOKEN_IDS["]<]image[>["],
        "video_token_index": _TOKEN_IDS["]<]video[>["],
        "tie_word_embeddings": False,
        **vision,
        "text_config": {
            "hidden_size": settings.hidden,
            "num_hidden_layers": settings.layers,
            "num_attention_heads": settings.heads,
            "num_key_value_heads": settings.kv_heads,
            "head_dim": settings.head_dim,
            "vocab_size": _VOCAB_SIZE,
            "max_position_embeddings": settings.context,
            "dense_intermediate_size": 2 * settings.intermediate,
            "intermediate_size": settings.intermediate,
            "shared_intermediate_size": settings.intermediate,
            "n_shared_experts": 1,
            "num_local_experts": settings.experts,
            "num_experts_per_tok": settings.experts_per_token,
            "scoring_func": "sigmoid",
            "use_routing_bias": True,
            "routed_scaling_factor": 2.0,
            "moe_layer_freq": by_layer,
            "rope_theta": 5_000_000,
            "rotary_dim": settings.head_dim // 2,
            "partial_rotary_factor": 0.5,
            "use_qk_norm": True,
            "qk_norm_type": "per_head",
            "rms_norm_eps": 1e-6,
            "use_gemma_norm": True,
            "hidden_act": "swigluoai",
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
            "attention_output_gate": False,
            "tie_word_embeddings": False,
            "sparse_attention_config": {
                "use_sparse_attention": True,
                "sparse_index_dim": settings.index_dim,
                "sparse_num_index_heads": settings.kv_heads,
                "sparse_topk_blocks": settings.topk,
                "sparse_block_size": settings.block,
                "sparse_score_type": "max",
                "sparse_init_block": 0,
                "sparse_local_block": 1,
                "sparse_attention_freq": by_layer,
                "sparse_disable_index_value": by_layer,
            },
        },
    }


def _vision_json(settings: TinySettings) -> dict[str, Any]:
    """The fields of config.json about vision: two heads of 20 dimensions, of which two do not rotate, as in M3."""
    compression = {
        "image_token_compression_method": "patch_merge",
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return {
        "multimodal_projector_bias": True,
        "process_image_mode": "dynamic_res",
        "projector_hidden_act": "gelu",
        "projector_hidden_size": settings.hidden,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "img_token_compression_config": compression,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 80,
            "patch_size": 14,
            "image_size": 2016,
            "projection_dim": settings.hidden,
            "num_channels": 3,
            "position_embedding_type": "rope",
            "rope_mode": "3d",
            "rope_theta": 10000.0,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "vision_segment_max_frames": 4,
            "img_token_compression_config": compression,
        },
    }


def _generation_config_json() -> dict[str, Any]:
    return {
        "bos_token_id": _TOKEN_IDS["]~!b["],
        "eos_token_id": _TOKEN_IDS["[e~["],
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 0.95,
        "top_k": 40,
    }


def _tokenizer_config_json(settings: TinySettings) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": settings.context,
        "bos_token": "]~!b[",
        "eos_token": "[e~[",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
