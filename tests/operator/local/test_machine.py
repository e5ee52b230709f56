"""What `m3 up` finds on a machine."""

import os
from pathlib import Path

import pytest

from m3_operator.local.machine import usable_cpus, visible_gpus


@pytest.mark.parametrize(("text", "at_most"), [("100000 100000", 1), ("150000 100000", 2), ("1000 100000", 1)])
def test_a_containers_quota_bounds_the_cores(text: str, at_most: int, tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(text)

    assert usable_cpus(quota) == min(at_most, os.cpu_count() or 1)


@pytest.mark.parametrize("text", ["max 100000", "", "nonsense"])
def test_without_a_quota_all_cores_count(text: str, tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(text)

    assert usable_cpus(quota) == usable_cpus(tmp_path / "missing") >= 1


def test_gpus_are_those_that_the_user_chose_or_every_nvidia_device(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()

    assert visible_gpus(None, tmp_path) == ("0", "1")
    assert visible_gpus("3,5", tmp_path) == ("3", "5")
    assert visible_gpus("", tmp_path) == ()
    assert visible_gpus("-1", tmp_path) == ()
    assert visible_gpus(None, tmp_path / "missing") == ()
