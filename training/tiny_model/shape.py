"""The sizes of the tiny M3, as the files that stand beside its weights say them.

Every field is the released config's; only the numbers are small. What is rounded up from M3: one dense layer and three
sparse ones, eight experts of which a token takes two, blocks of 32 tokens of which a query takes eight.
"""

from typing import Any

from tokenizers import Tokenizer

CONTEXT_TOKENS = 8192
BLOCK_TOKENS = 32
TOPK_BLOCKS = 8
LAYERS = 4
DENSE_LAYERS = 1
HIDDEN = 128
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 32
INDEX_DIM = 32
EXPERTS = 8
EXPERTS_PER_TOKEN = 2
INTERMEDIATE = 64
VISION_HIDDEN = 48
VISION_LAYERS = 2
VISION_HEADS = 2
VISION_INTERMEDIATE = 96
PATCH_PIXELS = 14
MERGE = 2
FRAMES = 2

_COMPRESSION = {
    "image_token_compression_method": "patch_merge",
    "spatial_merge_size": MERGE,
    "temporal_patch_size": FRAMES,
}


def config_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json, in the form of the release."""
    return {
        "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
        "model_type": "minimax_m3_vl",
        "torch_dtype": "bfloat16",
        "image_token_index": tokenizer.token_to_id("]<]image[>["),
        "video_token_index": tokenizer.token_to_id("]<]video[>["),
        "process_image_mode": "dynamic_res",
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "projector_hidden_size": HIDDEN,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "img_token_compression_config": _COMPRESSION,
        "tie_word_embeddings": False,
        "text_config": _text_config(tokenizer),
        "vision_config": _vision_config(),
    }


def _text_config(tokenizer: Tokenizer) -> dict[str, Any]:
    by_layer = [0] * DENSE_LAYERS + [1] * (LAYERS - DENSE_LAYERS)
    return {
        "bos_token_id": tokenizer.token_to_id("]~!b["),
        "eos_token_id": tokenizer.token_to_id("[e~["),
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": CONTEXT_TOKENS,
        "dense_intermediate_size": 4 * INTERMEDIATE,
        "intermediate_size": INTERMEDIATE,
        "shared_intermediate_size": INTERMEDIATE,
        "n_shared_experts": 1,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": EXPERTS_PER_TOKEN,
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
        "routed_scaling_factor": 2.0,
        "moe_layer_freq": by_layer,
        "rope_theta": 5_000_000,
        "rotary_dim": HEAD_DIM // 2,
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
            "sparse_index_dim": INDEX_DIM,
            "sparse_num_index_heads": KV_HEADS,
            "sparse_topk_blocks": TOPK_BLOCKS,
            "sparse_block_size": BLOCK_TOKENS,
            "sparse_score_type": "max",
            "sparse_init_block": 0,
            "sparse_local_block": 1,
            "sparse_attention_freq": by_layer,
            "sparse_disable_index_value": by_layer,
        },
    }


def _vision_config() -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": VISION_HIDDEN,
        "num_hidden_layers": VISION_LAYERS,
        "num_attention_heads": VISION_HEADS,
        "intermediate_size": VISION_INTERMEDIATE,
        "patch_size": PATCH_PIXELS,
        "image_size": 2016,
        "projection_dim": HIDDEN,
        "rope_theta": 10_000.0,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "num_channels": 3,
        "vision_segment_max_frames": 4,
        "img_token_compression_config": _COMPRESSION,
    }


def generation_config_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """generation_config.json: greedy, because answers that are known by heart have one right wording."""
    return {
        "bos_token_id": tokenizer.token_to_id("]~!b["),
        "eos_token_id": tokenizer.token_to_id("[e~["),
        "do_sample": False,
    }


def tokenizer_config_json() -> dict[str, Any]:
    """tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT_TOKENS,
        "bos_token": "]~!b[",
        "eos_token": "[e~[",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
    }
