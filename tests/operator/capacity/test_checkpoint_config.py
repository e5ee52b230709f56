"""A checkpoint's config.json: what is read of it, and how a file reads that does not say how large its model is."""

import json
from importlib import resources
from typing import Any

import pytest

from m3_configs import with_field
from m3_operator.capacity.checkpoint_config import ConfigFileError, shape_of_config
from m3_operator.capacity.releases import PACKAGED

CONFIG: dict[str, Any] = json.loads((resources.files("m3_worker") / "data/tiny/config.json").read_text())


def changed(path: str, value: Any) -> dict[str, Any]:
    """The packaged model's config with one field (a dotted path) set, or taken out where value is ..."""
    return with_field(CONFIG, path, value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("text_config", ..., "text_config: Field required"),
        ("text_config.head_dim", ..., "text_config.head_dim: Field required"),
        ("text_config.num_local_experts", 0, "text_config.num_local_experts: Input should be greater than or equal"),
        ("text_config.vocab_size", "2048", "text_config.vocab_size: Input should be a valid integer (got 2048)"),
        ("text_config.moe_layer_freq", [0, 1], "text_config.moe_layer_freq: must be 4 zeros and ones, one per layer"),
        ("text_config.moe_layer_freq", [0, 1, 2, 1], "text_config.moe_layer_freq.2: Input should be 0 or 1 (got 2)"),
        ("text_config.num_key_value_heads", 3, "text_config.num_attention_heads: must be a multiple of"),
        ("text_config.dense_intermediate_size", ..., "text_config.dense_intermediate_size: Field required"),
        ("model_type", "mixtral", "model_type: Input should be 'minimax_m3_vl' (got mixtral)"),
        ("torch_dtype", ..., "torch_dtype: Field required: bfloat16, float32 or float16"),
        ("torch_dtype", "int8", "torch_dtype: Input should be 'float32', 'bfloat16' or 'float16' (got int8)"),
        (
            "quantization_config",
            {"quant_method": "fp8", "weight_block_size": [128, 128]},
            "quantization_config.quant_method: fp8 with blocks of [128, 128] is not known here: only MXFP8 is",
        ),
        (
            "quantization_config",
            {"quant_method": "modelopt"},
            "quantization_config.quant_method: modelopt is not known",
        ),
        ("projector_hidden_size", ..., "projector_hidden_size: Field required: there is a vision_config"),
        ("vision_config.patch_size", ..., "vision_config.patch_size: Field required"),
    ],
)
def test_a_file_that_does_not_say_how_large_its_model_is(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigFileError) as refusal:
        shape_of_config(changed(path, value))
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)


def test_fields_that_memory_does_not_depend_on_are_not_read() -> None:
    assert shape_of_config(changed("text_config.rope_theta", "any")) == PACKAGED


@pytest.mark.parametrize(
    "quantization", [{"quant_method": "mxfp8"}, {"quant_method": "fp8", "weight_block_size": [1, 32]}]
)
def test_both_names_of_mxfp8_are_known(quantization: dict[str, Any]) -> None:
    precision = shape_of_config(changed("quantization_config", quantization)).precision
    assert (precision.experts, precision.matrices, precision.dtype) == ("mxfp8", "mxfp8", "bfloat16")


def test_a_model_without_vision_has_none() -> None:
    assert shape_of_config(changed("vision_config", ...)).vision is None
