"""The state directory of `m3 up`."""

import stat
from pathlib import Path

import pytest

from m3_operator.local.state import StateDirectory, StateError


def test_a_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    with StateDirectory(tmp_path / "state") as state:
        first = state.key("tiny")
        assert state.key("other") != first
    with StateDirectory(tmp_path / "state") as state:
        assert state.key("tiny") == first

    assert len(first) >= 32
    file = tmp_path / "state" / "keys" / "tiny"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_damaged_key_is_refused_and_its_file_named(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "tiny").write_text("short\n")

    with StateDirectory(tmp_path) as state, pytest.raises(StateError, match="keys/tiny: not an API key"):
        state.key("tiny")


def test_a_second_run_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    with (
        StateDirectory(tmp_path),
        pytest.raises(StateError, match="in use by another `m3 up`"),
        StateDirectory(tmp_path),
    ):
        pytest.fail("two runs shared a directory")
    with StateDirectory(tmp_path):
        pass


def test_a_place_that_is_no_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StateError, match="name another with --state-dir"), StateDirectory(tmp_path / "file"):
        pytest.fail("a file was taken for a directory")


def test_logs_are_those_of_the_last_run(tmp_path: Path) -> None:
    with StateDirectory(tmp_path) as state:
        (state.logs / "worker.log").write_text("old")
    with StateDirectory(tmp_path) as state:
        assert list(state.logs.iterdir()) == []


def test_a_file_is_replaced_and_private(tmp_path: Path) -> None:
    file = tmp_path / "routers" / "tiny" / "router.yaml"
    with StateDirectory(tmp_path) as state:
        state.write({file: "a much longer text"})
        state.write({file: "short"})

    assert file.read_text() == "short"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
