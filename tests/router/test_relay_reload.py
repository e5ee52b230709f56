"""Keys, plans and settings that change while the router runs; and what a broken file changes: nothing."""

import asyncio
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from m3_mock import Speaker
from m3_mock.running import Running, StartRouter, eventually, post
from m3_promise import takes_less_than

TURN: dict[str, Any] = {"model": "mock", "messages": [{"role": "user", "content": "hi"}]}


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def keys(*names: str) -> str:
    return yaml.safe_dump([{"tenant": name, "sha256": digest(name)} for name in names])


async def status_with(router: Running, key: str) -> int:
    answer = await router.http.post("/v1/chat/completions", json=TURN, headers={"authorization": f"Bearer {key}"})
    return answer.status_code


async def write(path: Path, text: str) -> None:
    await asyncio.to_thread(path.write_text, text)


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(keys("old"))
    return path


async def test_a_new_key_opens_and_a_removed_one_closes_within_two_seconds_also_on_an_open_connection(
    start_router: StartRouter, speaker: Speaker, keys_file: Path
) -> None:
    router = await start_router([speaker], auth={"keysFile": str(keys_file)})
    request = post(TURN, "authorization: Bearer old")
    reader, writer = await router.raw(request)
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
    assert await status_with(router, "new0") == 401
    loop = asyncio.get_running_loop()

    async def change(number: int) -> float:
        await write(keys_file, keys(f"new{number}"))
        changed_at = loop.time()
        async with asyncio.timeout(20):
            while await status_with(router, f"new{number}") != 200:  # noqa: ASYNC110 - as the next request shows
                await asyncio.sleep(0.02)
        return loop.time() - changed_at

    await takes_less_than(2.0, change)
    assert await status_with(router, "old") == 401
    writer.write(request)
    rest = b""
    async with asyncio.timeout(10):
        while b"HTTP/1.1 401" not in rest:
            rest += await reader.read(2**16)


@pytest.mark.parametrize("broken", ["- tenant: x", "{", "- {tenant: a, sha256: zz}", "keys: 3", "\x00"])
async def test_a_broken_keys_file_changes_nothing_is_counted_and_is_logged(
    start_router: StartRouter, speaker: Speaker, keys_file: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    router = await start_router([speaker], auth={"keysFile": str(keys_file)})
    with caplog.at_level(logging.ERROR):
        await write(keys_file, broken)
        await eventually(lambda: router.router._access_file.failures == 1, "it is refused")
    assert await status_with(router, "old") == 200
    assert [record.name for record in caplog.records] == ["m3_router.tenants.access_file"]
    assert f"auth.keysFile {keys_file}" in caplog.text
    await write(keys_file, keys("old", "new"))
    await eventually(lambda: router.router._access_file.reloads == 1, "the mended one is taken")
    assert await status_with(router, "new") == 200


async def test_a_changed_plan_holds_for_the_next_request(
    start_router: StartRouter, speaker: Speaker, tmp_path: Path
) -> None:
    path = tmp_path / "router.yaml"
    auth = {
        "plans": {"small": {"requestsPerMinute": 1}},
        "tenants": [{"name": "a", "plan": "small"}],
        "keys": [{"tenant": "a", "sha256": digest("a")}],
    }
    router = await start_router([speaker], path=path, auth=auth)
    assert [await status_with(router, "a") for _ in range(2)] == [200, 429]
    document = yaml.safe_load(path.read_text())
    document["auth"]["plans"]["small"]["requestsPerMinute"] = 3
    await write(path, yaml.safe_dump(document))
    await eventually(lambda: router.router._access_file.reloads == 1, "taken")
    # What was counted stays counted: one of three is used.
    assert [await status_with(router, "a") for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"limits": {"attempts": 5}}, "limits"),
        ({"contextTier": {"thresholdTokens": 9}, "lanes": {"preemption": False}}, "contextTier, lanes"),
    ],
)
async def test_a_setting_that_takes_a_restart_is_refused_by_its_name(
    start_router: StartRouter, speaker: Speaker, tmp_path: Path, change: dict[str, Any], names: str
) -> None:
    path = tmp_path / "router.yaml"
    keys_in_it = [{"tenant": "old", "sha256": digest("old")}]
    router = await start_router([speaker], path=path, auth={"keys": keys_in_it})
    document = yaml.safe_load(path.read_text())
    document["auth"]["keys"].append({"tenant": "new", "sha256": digest("new")})
    await write(path, yaml.safe_dump({**document, **change}))
    await eventually(lambda: router.router._access_file.failures == 1, "it is refused")
    assert f"a change of {names} takes a restart" in str(router.router._access_file.last_error)
    assert await status_with(router, "old") == 200
    assert await status_with(router, "new") == 401  # all of the file, or nothing
    told = await router.admin.post("/api/acts/reload", json={})
    assert told.status_code == 409
    assert f"The configuration was not taken: a change of {names} takes a restart" in told.json()["error"]
    await write(path, yaml.safe_dump(document))
    assert (await router.admin.post("/api/acts/reload", json={})).status_code == 200
    assert await status_with(router, "new") == 200


async def test_requests_in_flight_outlive_their_key(
    start_router: StartRouter, speaker: Speaker, keys_file: Path
) -> None:
    speaker.gate = asyncio.Event()
    router = await start_router([speaker], auth={"keysFile": str(keys_file)})
    running = asyncio.create_task(status_with(router, "old"))
    await asyncio.wait_for(speaker.arrived.wait(), 10)
    await write(keys_file, keys("new"))
    await eventually(lambda: router.router._access_file.reloads == 1, "taken")
    speaker.gate.set()
    assert await running == 200
    assert await status_with(router, "old") == 401
    assert json.loads((await router.http.get("/v1/models", headers={"authorization": "Bearer new"})).content)
