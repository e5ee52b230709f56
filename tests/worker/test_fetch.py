"""A model comes from a hub into a cache once: whole, verified, resumed after a kill, and refused by name."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from m3_hub import FakeHub, Fault, running_hub
from m3_worker.config import FetchSettings
from m3_worker.fetch.__main__ import fetch
from m3_worker.fetch.cache import CachedModel
from m3_worker.fetch.errors import FetchError
from m3_worker.fetch.page import Progress, telling

SHARD = bytes(range(256)) * 40_000  # 10 MB: more than a chunk, and more than sockets hold
FILES = {"config.json": b"{}", "model-00001.safetensors": SHARD, "sub/a file.txt": b"hello", "empty": b""}
SHARD_PATH = "/cdn/model-00001.safetensors"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running_hub(FakeHub(files=dict(FILES), large=frozenset({"model-00001.safetensors"}))) as running:
        yield running


def settings(hub: FakeHub, cache: Path, **changes: object) -> FetchSettings:
    given = {"repo": hub.repo, "revision": hub.revision, "endpoint": hub.url, "cache": cache, "port": 0, **changes}
    return FetchSettings.model_validate(given)


def contents(directory: Path) -> dict[str, bytes]:
    found = (path for path in directory.rglob("*") if path.is_file() and not path.name.startswith(".m3"))
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def bring(hub: FakeHub, cache: Path, token: str | None = None) -> list[float]:
    """Fetch without waiting; the pauses that it would have made."""
    pauses: list[float] = []
    fetch(settings(hub, cache), token, Progress(), pauses.append)
    return pauses


def test_every_file_arrives_as_it_is_and_a_second_run_asks_nobody(hub: FakeHub, tmp_path: Path) -> None:
    bring(hub, tmp_path)

    directory = tmp_path / "acme--model" / hub.revision
    assert contents(directory) == FILES
    asked = len(hub.requests)
    bring(hub, tmp_path)
    assert len(hub.requests) == asked


def test_the_token_goes_to_the_hub_and_to_no_other_host(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    bring(hub, tmp_path, "hf_secret")

    tokens = {(path.startswith("/cdn/"), token) for path, _, token in hub.requests}
    assert tokens == {(False, "Bearer hf_secret"), (True, None)}


def test_a_download_that_is_killed_goes_on_where_it_was(hub: FakeHub, tmp_path: Path) -> None:
    kept = 4 * 2**20
    hub.faults[SHARD_PATH] = Fault(stall_after_bytes=kept + 1000)
    wanted = settings(hub, tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "m3_worker.fetch", *wanted.arguments(), "--port=0"], stderr=subprocess.PIPE
    )
    try:
        partial = CachedModel(wanted).directory / "model-00001.safetensors.partial"
        deadline = time.monotonic() + 60
        while not partial.exists() or partial.stat().st_size < kept:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.communicate()
    assert not CachedModel(wanted).is_complete()
    had = partial.stat().st_size

    bring(hub, tmp_path)

    assert hub.ranges_of("model-00001.safetensors") == ["", f"bytes={had}-"]
    assert contents(CachedModel(wanted).directory) == FILES


def test_a_connection_that_breaks_again_and_again_costs_no_byte_twice(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults[SHARD_PATH] = Fault(cut_after_bytes=2**20 + 7, times=5)

    assert bring(hub, tmp_path) == []  # bytes came each time, so that nothing was waited for
    assert contents(tmp_path / "acme--model" / hub.revision) == FILES
    starts = [int(found.removeprefix("bytes=").rstrip("-") or 0) for found in hub.ranges_of("model-00001.safetensors")]
    assert len(starts) == 6
    assert starts == sorted(set(starts))


def test_a_hub_that_is_busy_is_asked_again_and_at_last_given_up(hub: FakeHub, tmp_path: Path) -> None:
    listing = f"/api/models/{hub.repo}/revision/{hub.revision}"
    hub.faults[listing] = Fault(status=503, times=3)
    assert bring(hub, tmp_path / "one") == [1, 2, 4]

    hub.faults[listing] = Fault(status=429, times=1000)
    with pytest.raises(FetchError, match=r"^HubUnreachable: .* answers 429 for acme/model"):
        bring(hub, tmp_path / "two")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(status=403, code="GatedRepo"), "^RepositoryForbidden: .* 403 .*gated; accept its terms"),
        (Fault(status=401, code="RepoNotFound"), "^RepositoryForbidden: .* 401 .*the token"),
        (Fault(status=404, code="RepoNotFound"), "^RepositoryNotFound: .* 404 .*no such repository"),
        (Fault(status=404, code="RevisionNotFound"), "^RepositoryNotFound: .* 404 .*no such commit"),
    ],
)
def test_what_the_hub_refuses_is_told_by_its_cause(hub: FakeHub, tmp_path: Path, fault: Fault, message: str) -> None:
    hub.faults[f"/api/models/{hub.repo}/revision/{hub.revision}"] = fault
    with pytest.raises(FetchError, match=message):
        bring(hub, tmp_path)


@pytest.mark.parametrize("name", ["model-00001.safetensors", "config.json"])
@pytest.mark.parametrize(
    "announced",
    [
        pytest.param(lambda sent: sent + b"more", id="shorter"),
        pytest.param(lambda sent: sent[:-1], id="longer"),
        pytest.param(lambda sent: sent[:-1] + b"?", id="other bytes"),
    ],
)
def test_a_file_that_is_not_what_was_announced_never_gets_its_name(
    hub: FakeHub, tmp_path: Path, name: str, announced: object
) -> None:
    assert callable(announced)
    hub.announced = {name: announced(FILES[name])}
    with pytest.raises(FetchError, match=f"^DownloadCorrupt: {name}"):
        bring(hub, tmp_path)
    directory = tmp_path / "acme--model" / hub.revision
    assert not (directory / name).exists()
    assert not CachedModel(settings(hub, tmp_path)).is_complete()


def test_bytes_that_were_spoilt_on_disk_are_brought_again(hub: FakeHub, tmp_path: Path) -> None:
    directory = tmp_path / "acme--model" / hub.revision
    directory.mkdir(parents=True)
    (directory / "model-00001.safetensors.partial").write_bytes(b"x" * 1000)

    bring(hub, tmp_path)

    assert contents(directory) == FILES
    assert hub.ranges_of("model-00001.safetensors") == ["bytes=1000-", ""]


def test_a_complete_model_that_lost_a_file_is_completed(hub: FakeHub, tmp_path: Path) -> None:
    bring(hub, tmp_path)
    directory = tmp_path / "acme--model" / hub.revision
    (directory / "config.json").unlink()
    hub.requests.clear()

    bring(hub, tmp_path)

    assert contents(directory) == FILES
    assert hub.ranges_of("model-00001.safetensors") == []


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "a\\b", "a//b"])
def test_a_name_that_leaves_the_directory_is_refused(hub: FakeHub, tmp_path: Path, name: str) -> None:
    hub.files[name] = b"evil"
    with pytest.raises(FetchError, match=r"^DownloadCorrupt: .*no path in a directory"):
        bring(hub, tmp_path / "cache")
    assert not (tmp_path / "outside").exists()


def test_a_volume_that_is_too_small_is_told_before_anything_is_written(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("usage", (), {"free": 5})())
    with pytest.raises(FetchError, match=r"^CacheFull: 0.0 GiB more are needed"):
        bring(hub, tmp_path)
    assert hub.ranges_of("model-00001.safetensors") == []


def test_a_cache_that_cannot_be_written_says_for_whom(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match=rf"^CacheNotWritable: .*user {os.getuid()} must be able to write"):
        bring(hub, tmp_path / "file")


def test_two_that_want_one_model_download_it_once(hub: FakeHub, tmp_path: Path) -> None:
    errors: list[Exception] = []

    def run() -> None:
        try:
            bring(hub, tmp_path)
        except Exception as error:  # noqa: BLE001 - of a thread; asserted below
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert hub.ranges_of("model-00001.safetensors") == [""]


def test_the_page_tells_bytes_and_the_time_that_is_left(tmp_path: Path) -> None:
    now, done = [100.0], [1000]
    progress = Progress(clock=lambda: now[0])
    with telling(progress, "127.0.0.1", 0) as port:
        url = f"http://127.0.0.1:{port}/metrics"
        assert httpx.get(url, trust_env=False).text == ""
        progress.begin(10_000, lambda: done[0])
        now[0], done[0] = 110.0, 3000
        page = httpx.get(url, trust_env=False).text
    # 2000 bytes in 10 s, and 7000 to go.
    assert page.splitlines() == ["m3_fetch_needed_bytes 10000", "m3_fetch_done_bytes 3000", "m3_fetch_seconds_left 35"]


def test_the_process_leaves_its_last_word_without_the_token(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "hf_right"
    message = tmp_path / "message"
    arguments = [*settings(hub, tmp_path / "cache", message_file=message).arguments(), "--port=0"]
    ended = subprocess.run(
        [sys.executable, "-m", "m3_worker.fetch", *arguments],
        env={**os.environ, "HF_TOKEN": "hf_wrong"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert message.read_text().startswith("RepositoryForbidden: ")
    assert message.read_text() in ended.stderr
    assert "hf_wrong" not in ended.stderr + ended.stdout


def test_the_marker_tells_what_was_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    bring(hub, tmp_path)
    told = json.loads((tmp_path / "acme--model" / hub.revision / ".m3-complete.json").read_text())
    assert told == {
        "repo": "acme/model",
        "revision": hub.revision,
        "files": {name: len(content) for name, content in FILES.items()},
    }
