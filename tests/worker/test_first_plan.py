"""The plan that a group begins with: from a file that fits, else in order."""

import json
import logging
from pathlib import Path

import pytest

from m3_worker.first_plan import learned_plan
from m3_worker.model.expert_plan import ExpertPlan

IN_ORDER = ExpertPlan.default(layers=2, experts=3, ranks=2)
LAYERS = [[2, 1, 0, 2], [0, 1, 2, 0]]


def test_a_learned_plan_of_the_same_shape_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"epoch": 7, "layers": LAYERS}))
    plan = learned_plan(IN_ORDER, file)
    assert plan.as_json() == {"epoch": 7, "layers": LAYERS}
    assert plan.ranks == IN_ORDER.ranks


@pytest.mark.parametrize("file", [None, Path("/nowhere/plan.json")])
def test_without_a_file_experts_are_in_order(file: Path | None) -> None:
    assert learned_plan(IN_ORDER, file) is IN_ORDER


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "Expecting property name"),
        ("[]", "must be an object with epoch and layers"),
        (json.dumps({"epoch": 1, "layers": [[0, 1, 2, 0, 1, 2]] * 2}), "must be a list of 4 integers"),
        (json.dumps({"epoch": 1, "layers": [[0, 1, 1, 0]] * 2}), "no slot for expert 2"),
        ("\xff", "codec can't decode"),
        (" " * (16 * 2**20 + 1), "more than 16777216 bytes"),
    ],
)
def test_a_file_that_does_not_fit_is_left_aside_and_the_log_says_why(
    content: str, word: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "plan.json"
    file.write_bytes(content.encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        assert learned_plan(IN_ORDER, file) is IN_ORDER
    assert word in caplog.text
