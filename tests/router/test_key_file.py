"""The key of an upstream: read strictly, and taken anew when its file changes."""

import logging
from pathlib import Path

import pytest

from m3_router.config import ConfigError
from m3_router.tenants.key_file import KeyFile, read_key


@pytest.mark.parametrize("content", [b"", b" \n", b"two\nlines", "schlüssel".encode(), b"\xff"])
def test_what_is_no_key_is_refused_and_never_shown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"apiKeyFile {path}: ") as refused:
        read_key(path)
    assert "lines" not in str(refused.value)


def test_white_space_around_a_key_is_no_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(" sk-1\n")
    assert read_key(path) == "sk-1"


async def test_a_key_is_used_when_it_is_another_and_a_broken_file_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "key"
    used: list[str] = []
    watched = KeyFile(path, used.append)
    with caplog.at_level(logging.ERROR):
        await watched.poll()
        await watched.poll()
    assert (used, len(caplog.records)) == ([], 1)
    for content in ("a", "a\n", "b", ""):
        path.write_text(content)
        await watched.poll()
    assert used == ["a", "b"]
