"""The vision fields of a config.json: read, checked, and refused by name where they mean another computation."""

from pathlib import Path
from typing import Any

import pytest

from m3_configs import with_field
from m3_worker.config import TinySettings
from m3_worker.model.config import CheckpointError, ModelConfig
from m3_worker.tiny import config_json

COMPRESSION = "img_token_compression_config"


def changed(path: str, value: Any) -> dict[str, Any]:
    """A tiny config with one field (a dotted path) set, or taken out where value is ..."""
    return with_field(config_json(TinySettings(directory=Path("unused"))), path, value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("vision_config.model_type", "siglip", 'vision_config.model_type is "siglip": only "clip_vision_model"'),
        ("vision_config.hidden_act", "quick_gelu", 'vision_config.hidden_act is "quick_gelu": only "gelu"'),
        ("vision_config.rope_mode", "2d", 'vision_config.rope_mode is "2d": only "3d" is supported'),
        ("vision_config.num_channels", 4, "vision_config.num_channels is 4: only 3 is supported"),
        ("vision_config.rope_theta", ..., "vision_config.rope_theta is missing: must be a positive number"),
        ("vision_config.hidden_size", 41, "vision_config.hidden_size is 41: must be a multiple of num_attention_heads"),
        ("vision_config.hidden_size", 4, "vision_config.hidden_size is 4: a head must have 6 dimensions"),
        ("vision_config", [], "vision_config is missing: must be an object"),
        ("projector_hidden_act", "relu", 'projector_hidden_act is "relu": only "gelu" is supported'),
        ("multimodal_projector_bias", False, "multimodal_projector_bias is false: only true is supported"),
        ("process_image_mode", "anyres", 'process_image_mode is "anyres": only "dynamic_res" is supported'),
        ("vision_feature_layer", -2, "vision_feature_layer is -2: only -1 is supported"),
        ("image_token_index", 100_000, "image_token_index and video_token_index must differ and be below vocab_size"),
        (COMPRESSION, {"spatial_merge_size": 4}, f"{COMPRESSION} and vision_config.{COMPRESSION} differ"),
    ],
)
def test_another_kind_of_vision_is_refused_in_one_line_that_names_it(path: str, value: Any, message: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        ModelConfig.from_json(changed(path, value))
    assert str(refusal.value).startswith(f"config.json: {message}")


def test_the_patch_merge_may_stand_in_one_place_only() -> None:
    for path in (COMPRESSION, f"vision_config.{COMPRESSION}"):
        vision = ModelConfig.from_json(changed(path, ...)).vision
        assert vision is not None
        assert (vision.merge_size, vision.temporal_patch_size) == (2, 2)


def test_a_head_of_80_dimensions_turns_26_for_each_axis_and_keeps_two() -> None:
    config = changed("vision_config.hidden_size", 160)
    vision = ModelConfig.from_json(config).vision
    assert vision is not None
    assert (vision.head_dim, vision.axis_dim, vision.tile, vision.patch_elements) == (80, 26, 28, 1176)


def test_a_text_checkpoint_has_no_vision() -> None:
    assert ModelConfig.from_json(changed("vision_config", ...)).vision is None
