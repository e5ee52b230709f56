"""A config.json is read field by field, and what this engine does not compute is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from m3_configs import with_field
from m3_worker.config import TinySettings
from m3_worker.model.config import CheckpointError, ModelConfig
from m3_worker.model.vision_config import VisionConfig
from m3_worker.tiny import config_json

SPARSE = "text_config.sparse_attention_config"
PATCH_MERGE = {"image_token_compression_method": "patch_merge", "spatial_merge_size": 2, "temporal_patch_size": 2}


def released() -> dict[str, Any]:
    """The released MiniMax-M3's config.json, as published."""
    by_layer = [0] * 3 + [1] * 57
    return {
        "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
        "auto_map": {"AutoConfig": "configuration_minimax_m3_vl.MiniMaxM3VLConfig"},
        "model_type": "minimax_m3_vl",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.52.4",
        "image_token_index": 200025,
        "video_token_index": 200026,
        "image_seq_length": 576,
        "process_image_mode": "dynamic_res",
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "projector_hidden_size": 6144,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "num_reward_heads": 0,
        "img_token_compression_config": dict(PATCH_MERGE),
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 1280,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "intermediate_size": 5120,
            "patch_size": 14,
            "image_size": 2016,
            "projection_dim": 6144,
            "position_embedding_type": "rope",
            "rope_mode": "3d",
            "rope_theta": 10000.0,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "num_channels": 3,
            "vocab_size": 32000,
            "vision_segment_max_frames": 4,
            "img_token_compression_config": dict(PATCH_MERGE),
        },
        "text_config": {
            "hidden_size": 6144,
            "num_hidden_layers": 60,
            "num_attention_heads": 64,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "vocab_size": 200064,
            "dense_intermediate_size": 12288,
            "intermediate_size": 3072,
            "shared_intermediate_size": 3072,
            "n_shared_experts": 1,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "scoring_func": "sigmoid",
            "use_routing_bias": True,
            "routed_scaling_factor": 2.0,
            "moe_layer_freq": by_layer,
            "rope_theta": 5_000_000,
            "rotary_dim": 64,
            "partial_rotary_factor": 0.5,
            "max_position_embeddings": 1_048_576,
            "use_qk_norm": True,
            "qk_norm_type": "per_head",
            "rms_norm_eps": 1e-6,
            "use_gemma_norm": True,
            "hidden_act": "swigluoai",
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
            "attention_output_gate": False,
            "tie_word_embeddings": False,
            "num_mtp_modules": 7,
            "num_nextn_predict_layers": 1,
            "sparse_attention_config": {
                "use_sparse_attention": True,
                "sparse_index_dim": 128,
                "sparse_num_index_heads": 4,
                "sparse_topk_blocks": 16,
                "sparse_block_size": 128,
                "sparse_score_type": "max",
                "sparse_init_block": 0,
                "sparse_local_block": 1,
                "sparse_attention_freq": by_layer,
                "sparse_disable_index_value": by_layer,
            },
        },
    }


def changed(path: str, value: Any) -> dict[str, Any]:
    """The released config with one field (a dotted path) set, or taken out where value is ..."""
    return with_field(released(), path, value)


def test_the_released_config_is_read_as_it_is() -> None:
    config = ModelConfig.from_json(released(), {"eos_token_id": 200020})
    assert config == ModelConfig(
        vocab_size=200064,
        hidden_size=6144,
        heads=64,
        kv_heads=4,
        head_dim=128,
        rotary_dim=64,
        rope_theta=5e6,
        norm_eps=1e-6,
        max_position_embeddings=1_048_576,
        dense_intermediate_size=12288,
        expert_intermediate_size=3072,
        shared_intermediate_size=3072,
        experts=128,
        experts_per_token=4,
        routed_scaling_factor=2.0,
        swiglu_alpha=1.702,
        swiglu_limit=7.0,
        index_dim=128,
        sparse_block_size=128,
        topk_blocks=16,
        sparse_layers=(False,) * 3 + (True,) * 57,
        moe_layers=(False,) * 3 + (True,) * 57,
        is_mxfp8=False,
        dtype="bfloat16",
        eos_token_ids=(200020,),
        vision=VisionConfig(
            hidden_size=1280,
            layers=32,
            heads=16,
            intermediate_size=5120,
            projector_size=6144,
            patch_size=14,
            temporal_patch_size=2,
            merge_size=2,
            segment_patches=4,
            rope_theta=10000.0,
            norm_eps=1e-5,
            image_token_id=200025,
            video_token_id=200026,
        ),
    )
    assert (config.layers, config.page_tokens) == (60, 128)


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "mxfp8"},
        {"quant_method": "mxfp8", "weight_block_size": [1, 32], "activation_scheme": "dynamic"},
        {"quant_method": "fp8", "weight_block_size": [1, 32]},
    ],
)
def test_mxfp8_is_known_by_each_of_its_names(quantization: dict[str, Any]) -> None:
    assert ModelConfig.from_json(released() | {"quantization_config": quantization}).is_mxfp8


def test_a_model_of_which_all_layers_are_sparse_is_read() -> None:
    config = released()
    text = config["text_config"]
    text["moe_layer_freq"] = [1] * 60
    del text["dense_intermediate_size"]
    sparse = text["sparse_attention_config"]
    sparse["sparse_attention_freq"] = sparse["sparse_disable_index_value"] = [1] * 60
    read = ModelConfig.from_json(config)
    assert all(read.sparse_layers)
    assert all(read.moe_layers)
    assert read.dense_intermediate_size == 0


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model_type", "llama", 'model_type is "llama": only "minimax_m3_vl" is supported'),
        ("model_type", ..., 'model_type is missing: only "minimax_m3_vl" is supported'),
        ("text_config", ..., "text_config is missing: must be an object"),
        (SPARSE, None, f"{SPARSE} is missing: must be an object"),
        (f"{SPARSE}.sparse_score_type", "mean", f'{SPARSE}.sparse_score_type is "mean": only "max" is supported'),
        (f"{SPARSE}.sparse_init_block", 1, f"{SPARSE}.sparse_init_block is 1: only 0 is supported"),
        (f"{SPARSE}.sparse_local_block", 2, f"{SPARSE}.sparse_local_block is 2: only 1 is supported"),
        (f"{SPARSE}.use_sparse_attention", False, f"{SPARSE}.use_sparse_attention is false: only true is supported"),
        (
            f"{SPARSE}.sparse_num_index_heads",
            8,
            "sparse_num_index_heads is 8: must equal num_key_value_heads 4",
        ),
        (f"{SPARSE}.sparse_index_dim", 32, "sparse_index_dim is 32: must hold the 64 rotated dimensions"),
        (f"{SPARSE}.sparse_topk_blocks", 0, f"{SPARSE}.sparse_topk_blocks is 0: must be a positive integer"),
        (f"{SPARSE}.sparse_block_size", "128", f'{SPARSE}.sparse_block_size is "128": must be a positive integer'),
        (
            f"{SPARSE}.sparse_attention_freq",
            [1] * 59,
            f"{SPARSE}.sparse_disable_index_value must equal sparse_attention_freq: index values are not supported",
        ),
        (
            f"{SPARSE}.sparse_disable_index_value",
            [0] * 60,
            f"{SPARSE}.sparse_disable_index_value must equal sparse_attention_freq: index values are not supported",
        ),
        (
            "text_config.moe_layer_freq",
            [2] * 60,
            "text_config.moe_layer_freq must be a list of 60 zeros and ones, one per layer",
        ),
        ("text_config.hidden_act", "silu", 'text_config.hidden_act is "silu": only "swigluoai" is supported'),
        ("text_config.scoring_func", "softmax", 'text_config.scoring_func is "softmax": only "sigmoid" is supported'),
        ("text_config.use_routing_bias", False, "text_config.use_routing_bias is false: only true is supported"),
        ("text_config.use_qk_norm", False, "text_config.use_qk_norm is false: only true is supported"),
        (
            "text_config.qk_norm_type",
            "per_layer",
            'text_config.qk_norm_type is "per_layer": only "per_head" is supported',
        ),
        ("text_config.use_gemma_norm", False, "text_config.use_gemma_norm is false: only true is supported"),
        (
            "text_config.attention_output_gate",
            True,
            "text_config.attention_output_gate is true: only false is supported",
        ),
        ("text_config.n_shared_experts", 2, "text_config.n_shared_experts is 2: only 1 is supported"),
        ("text_config.tie_word_embeddings", True, "text_config.tie_word_embeddings is true: only false is supported"),
        ("tie_word_embeddings", True, "tie_word_embeddings is true: only false is supported"),
        (
            "text_config.rope_scaling",
            {"type": "yarn", "factor": 2},
            'text_config.rope_scaling is {"type": "yarn", "factor": 2}: only null is supported',
        ),
        (
            "text_config.rope_parameters",
            {"rope_type": "default"},
            "text_config.rope_parameters is not supported: give rope_theta and partial_rotary_factor",
        ),
        (
            "quantization_config",
            {"quant_method": "modelopt", "quant_algo": "NVFP4"},
            "quantization_config (modelopt, NVFP4) is not supported: use the bfloat16, float32 or MXFP8 release",
        ),
        (
            "text_config.quantization_config",
            {"quant_method": "fp8", "weight_block_size": [128, 128]},
            "text_config.quantization_config (fp8, blocks of [128, 128]) is not supported",
        ),
        (
            "quantization_config",
            {"quant_method": "mxfp8", "weight_block_size": [1, 16]},
            "quantization_config (mxfp8, blocks of [1, 16]) is not supported",
        ),
        ("torch_dtype", "float8_e4m3fn", 'torch_dtype is "float8_e4m3fn": only "bfloat16" or "float32" or "float16"'),
        ("torch_dtype", ..., "torch_dtype is missing: must be bfloat16, float32 or float16"),
        ("text_config.head_dim", -1, "text_config.head_dim is -1: must be a positive integer"),
        ("text_config.head_dim", True, "text_config.head_dim is true: must be a positive integer"),
        ("text_config.rms_norm_eps", ..., "text_config.rms_norm_eps is missing: must be a positive number"),
        ("text_config.swiglu_limit", None, "text_config.swiglu_limit is null: must be a positive number"),
        ("text_config.max_position_embeddings", ..., "text_config.max_position_embeddings is missing"),
        (
            "text_config.partial_rotary_factor",
            0.3,
            "text_config.partial_rotary_factor is 0.3: of head_dim 128 it must make an even number, at most all",
        ),
        (
            "text_config.rotary_dim",
            128,
            "text_config.rotary_dim is 128, but partial_rotary_factor 0.5 of head_dim 128 makes 64: they must agree",
        ),
        (
            "text_config.num_attention_heads",
            62,
            "num_attention_heads is 62: must be a multiple of num_key_value_heads 4",
        ),
        ("text_config.num_experts_per_tok", 129, "num_experts_per_tok is 129: must be at most num_local_experts 128"),
        ("text_config.eos_token_id", [200064], "eos_token_id is [200064]: must be below vocab_size 200064"),
        ("text_config.eos_token_id", "x", "eos_token_id is 'x': must be an integer or a list of them"),
    ],
)
def test_what_is_not_supported_is_refused_in_one_line_that_names_it(path: str, value: Any, message: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        ModelConfig.from_json(changed(path, value), source="dir/config.json")
    assert str(refusal.value).startswith(f"dir/config.json: {message}")
    assert "\n" not in str(refusal.value)


def test_the_context_length_is_the_files() -> None:
    config = ModelConfig.from_json(changed("text_config.max_position_embeddings", 524_288))
    assert config.max_position_embeddings == 524_288


def test_stop_tokens_come_from_the_generation_config_first() -> None:
    config = changed("text_config.eos_token_id", 7)
    assert ModelConfig.from_json(config, {"eos_token_id": [5, 6]}).eos_token_ids == (5, 6)
    assert ModelConfig.from_json(config).eos_token_ids == (7,)
    assert ModelConfig.from_json(released()).eos_token_ids == ()


def test_load_reads_a_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(released()))
    assert ModelConfig.load(tmp_path).layers == 60
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert ModelConfig.load(tmp_path).eos_token_ids == (3,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; a checkpoint directory must have it"),
        ("{", "cannot be read as JSON"),
        ("[]", "must hold a JSON object, not list"),
        ("\xff", "cannot be read as JSON"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError) as refusal:
        ModelConfig.load(tmp_path)
    assert str(refusal.value).startswith(f"{path}: {message}")


def test_a_tiny_config_has_only_fields_of_the_released_one() -> None:
    tiny, full = config_json(TinySettings(directory=Path("x"))), released()
    assert set(tiny) - {"tie_word_embeddings"} <= set(full)
    assert set(tiny["text_config"]) <= set(full["text_config"])
    assert set(tiny["text_config"]["sparse_attention_config"]) == set(full["text_config"]["sparse_attention_config"])
