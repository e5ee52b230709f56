"""Checkpoint configs for tests: M3's released sizes in the tiny model's form, and any config with one field changed."""

import copy
from pathlib import Path
from typing import Any

from m3_worker.config import TinySettings
from m3_worker.tiny import config_json


def with_field(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one field (a dotted path) set, or taken out where value is ..."""
    changed = copy.deepcopy(config)
    *parents, name = path.split(".")
    section = changed
    for parent in parents:
        section = section[parent]
    if value is ...:
        del section[name]
    else:
        section[name] = value
    return changed


def of_released_sizes() -> dict[str, Any]:
    """A config.json with the sizes of the released MiniMax-M3, in the fields that are read."""
    config = config_json(
        TinySettings(
            directory=Path("unused"),
            layers=60,
            dense_layers=3,
            hidden=6144,
            heads=64,
            kv_heads=4,
            head_dim=128,
            index_dim=128,
            experts=128,
            experts_per_token=4,
            intermediate=3072,
            block=128,
            topk=16,
            context=1_048_576,
            dtype="bfloat16",
        )
    )
    config["text_config"] |= {"vocab_size": 200_064, "dense_intermediate_size": 12_288}
    config["vision_config"] |= {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "intermediate_size": 5120,
    }
    return config
