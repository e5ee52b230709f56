"""Files that change are read again; those that cannot be used change nothing, and are counted and named."""

import asyncio
import hashlib
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from m3_promise import takes_less_than
from m3_router.config import Access, ConfigError, RouterConfig, load, load_access
from m3_router.tenants.access_file import RACY_SECONDS, AccessFile

CONFIG = """\
auth: {keysFile: %s}
pools: [{name: m3, models: [M3], workers: ["http://127.0.0.1:9101"]}]
"""


def keys_of(*tenants: str) -> str:
    return "".join(
        f"- {{tenant: {tenant}, sha256: {hashlib.sha256(tenant.encode()).hexdigest()}}}\n" for tenant in tenants
    )


class Watched:
    """A configuration and a keys file, their watch, and what it has told."""

    def __init__(self, directory: Path) -> None:
        self.keys = directory / "keys.yaml"
        self.config = directory / "router.yaml"
        self.keys.write_text(keys_of("acme", "beta"))
        self.config.write_text(CONFIG % self.keys)
        self.told: list[list[str] | None] = []
        self.has_told = asyncio.Event()
        self.wall = time.time()
        self.refuses: str | None = None
        config = load(self.config)
        assert config.auth != "none"
        self.file = AccessFile(self.config, config, load_access(config.auth), self._apply, wall_clock=lambda: self.wall)

    def _apply(self, config: RouterConfig, access: Access | None) -> None:
        if self.refuses is not None:
            raise ConfigError(self.refuses)
        self.told.append(None if access is None else [key.tenant for key in access.keys])
        self.has_told.set()


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


async def test_what_is_in_use_already_is_no_change(watched: Watched) -> None:
    assert not await watched.file.poll()
    watched.keys.touch()
    assert not await watched.file.poll()
    assert (watched.told, watched.file.reloads, watched.file.failures) == ([], 0, 0)


async def test_a_key_that_left_the_file_is_told_at_the_next_look(watched: Watched) -> None:
    watched.keys.write_text(keys_of("acme"))
    assert await watched.file.poll()
    assert watched.told == [["acme"]]
    assert watched.file.reloads == 1


async def test_a_change_of_the_same_size_and_time_is_seen(watched: Watched) -> None:
    await watched.file.poll()
    before = watched.keys.stat()
    watched.keys.write_text(keys_of("acme", "late"))
    os.utime(watched.keys, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert await watched.file.poll()
    assert watched.told == [["acme", "late"]]


async def test_a_file_that_rests_is_not_read(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    await watched.file.poll()
    watched.wall += RACY_SECONDS + 1
    reads: list[Path] = []
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or b"")
    assert not await watched.file.poll()
    assert reads == []


async def test_a_mount_that_moves_its_link_is_a_change(watched: Watched, tmp_path: Path) -> None:
    for version, tenants in (("one", ("acme",)), ("two", ("acme", "gamma"))):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys.yaml").write_text(keys_of(*tenants))
    watched.keys.unlink()
    (tmp_path / "now").symlink_to("one")
    watched.keys.symlink_to("now/keys.yaml")
    assert await watched.file.poll()
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(tmp_path / "now")
    assert await watched.file.poll()
    assert watched.told == [["acme"], ["acme", "gamma"]]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("- {tenant: acme, sha256: sk-secret}\n", "keysFile .*keys.yaml: 0.sha256: expected the SHA-256 digest"),
        ("{", "keysFile .*keys.yaml: not YAML"),
        ("tenants: [{name: acme, plan: gold}]\n", "there is no plan 'gold'"),
        (None, "keysFile .*keys.yaml: cannot be read"),
    ],
)
async def test_a_file_that_cannot_be_used_changes_nothing_and_is_counted_once(
    watched: Watched, content: str | None, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    await watched.file.poll()
    if content is None:
        watched.keys.unlink()
    else:
        watched.keys.write_text(content)
    for _ in range(3):
        assert not await watched.file.poll()
    assert (watched.told, watched.file.failures) == ([], 1)
    assert watched.file.last_error is not None
    assert re.search(named, watched.file.last_error)
    assert len(caplog.records) == 1
    assert "sk-secret" not in caplog.text
    watched.keys.write_text(keys_of("gamma"))
    assert await watched.file.poll()
    assert watched.told == [["gamma"]]
    assert watched.file.last_error is None


async def test_the_configuration_is_read_again_and_its_new_keys_file_watched(watched: Watched, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(keys_of("gamma"))
    watched.config.write_text(CONFIG % other)
    assert await watched.file.poll()
    other.write_text(keys_of("delta"))
    assert await watched.file.poll()
    watched.keys.write_text(keys_of("nobody"))
    assert not await watched.file.poll()
    assert watched.told == [["gamma"], ["delta"]]


async def test_a_change_that_is_refused_by_its_user_is_not_taken(watched: Watched) -> None:
    watched.refuses = "listen: cannot change without a restart"
    watched.keys.write_text(keys_of("gamma"))
    assert not await watched.file.poll()
    assert (watched.file.failures, watched.file.last_error) == (1, "listen: cannot change without a restart")


async def test_keys_may_be_taken_away_altogether(watched: Watched) -> None:
    watched.config.write_text("auth: none\npools: [{name: m3, models: [M3], workers: ['http://127.0.0.1:9101']}]\n")
    assert await watched.file.poll()
    assert watched.told == [None]


async def test_the_watch_looks_by_itself_within_two_seconds(watched: Watched) -> None:
    async def change(number: int) -> float:
        watched.has_told.clear()
        watched.keys.write_text(keys_of(f"new{number}"))
        begun = time.monotonic()
        await asyncio.wait_for(watched.has_told.wait(), 20)
        return time.monotonic() - begun

    task: asyncio.Task[Any] = asyncio.create_task(watched.file.run())
    try:
        await takes_less_than(2.0, change)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
