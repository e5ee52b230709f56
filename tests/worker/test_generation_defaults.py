"""Generation defaults: the checkpoint's, or none, or a refusal that names the field."""

import json
from pathlib import Path
from typing import Any

import pytest

from m3_worker.model.config import CheckpointError
from m3_worker.model.generation_defaults import GenerationDefaults


def load(directory: Path, config: dict[str, Any]) -> GenerationDefaults:
    (directory / "generation_config.json").write_text(json.dumps(config))
    return GenerationDefaults.load(directory)


def test_the_checkpoint_s_defaults_are_used(tmp_path: Path) -> None:
    assert load(tmp_path, {"temperature": 1.0, "top_p": 0.95, "top_k": 40}) == GenerationDefaults(1.0, 0.95, 40)


def test_a_checkpoint_that_does_not_sample_is_greedy(tmp_path: Path) -> None:
    assert load(tmp_path, {"do_sample": False, "temperature": 1.0}).temperature == 0


def test_without_a_file_nothing_is_limited(tmp_path: Path) -> None:
    assert GenerationDefaults.load(tmp_path) == GenerationDefaults(1.0, 1.0, 0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"top_p": 1.5}, "top_p is 1.5: must be a number from 0 to 1"),
        ({"temperature": "hot"}, "temperature is 'hot': must be a number from 0 to 2"),
        ({"top_k": True}, "top_k is True: must be a number"),
    ],
)
def test_a_default_that_makes_no_sense_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, config)
