"""Tenants whose keys lie in files of their own: what opens, what does not, and that nobody is in another's way."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from m3_mock import Speaker
from m3_mock.running import StartRouter, eventually
from m3_promise import takes_less_than
from m3_router.config import AuthSettings, ConfigError, load_access

TURN: dict[str, Any] = {"model": "mock", "messages": [{"role": "user", "content": "hi"}]}


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def tenants_file(directory: Path, *tenants: dict[str, Any], **plans: Any) -> Path:
    path = directory / "tenants.json"
    entries = [{"plan": "free", **tenant} for tenant in tenants]
    path.write_text(json.dumps({"plans": {"free": {}, **plans}, "tenants": entries}))
    return path


def auth(path: Path, **rest: Any) -> AuthSettings:
    return AuthSettings.model_validate({"tenantsFile": str(path), **rest})


def test_a_key_file_holds_a_key_or_its_digest(tmp_path: Path) -> None:
    plain, hashed = tmp_path / "plain", tmp_path / "hashed"
    plain.write_text("sk-ada\n")
    hashed.write_text(f"sha256:{digest('sk-grace').upper()}\n")
    found = load_access(
        auth(
            tenants_file(
                tmp_path,
                {"name": "ada", "keyFiles": [str(plain)]},
                {"name": "grace", "keyFiles": [str(hashed)], "keyDigests": [digest("sk-2")]},
            )
        )
    )
    owners = {key.sha256: key.tenant for key in found.keys}
    assert owners == {digest("sk-ada"): "ada", digest("sk-grace"): "grace", digest("sk-2"): "grace"}
    assert found.unusable_keys == ()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "is not there"),
        (b"", "does not hold a key"),
        (b"two words", "does not hold a key"),
        ("schlüssel".encode(), "does not hold a key"),
        (b"sha256:abc", "is not followed by 64 hexadecimal digits"),
        (b"x" * 1025, "does not hold a key"),
    ],
)
def test_a_file_without_a_key_opens_nothing_and_leaves_the_others_as_they_are(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("sk-good")
    if content is not None:
        bad.write_bytes(content)
    path = tenants_file(tmp_path, {"name": "bad", "keyFiles": [str(bad)]}, {"name": "good", "keyFiles": [str(good)]})
    found = load_access(auth(path))
    assert [key.tenant for key in found.keys] == ["good"]
    (fault,) = found.unusable_keys
    assert fault.startswith(f"tenants.bad.keyFiles: {bad}: ")
    assert reason in fault
    assert not content or content.decode()[:20] not in fault.rpartition(": ")[2]


def test_a_key_stays_with_its_first_owner(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-shared")
    path = tenants_file(
        tmp_path,
        {"name": "first", "keyDigests": [digest("sk-shared")]},
        {"name": "second", "keyFiles": [str(key)], "keyDigests": [digest("sk-configured"), digest("sk-own")]},
    )
    found = load_access(auth(path, keys=[{"tenant": "configured", "sha256": digest("sk-configured")}]))
    assert {(entry.tenant, entry.sha256) for entry in found.keys} == {
        ("configured", digest("sk-configured")),
        ("first", digest("sk-shared")),
        ("second", digest("sk-own")),
    }
    assert len(found.unusable_keys) == 2
    assert all("belongs to another tenant" in fault for fault in found.unusable_keys)


def test_tenants_may_be_on_plans_of_the_keys_file_and_a_fault_names_the_file(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("plans: {plus: {requestsPerMinute: 7}}\n")
    path = tenants_file(tmp_path, {"name": "ada", "plan": "plus", "keyDigests": [digest("k")]})
    assert load_access(auth(path, keysFile=str(keys))).plans["plus"].requests_per_minute == 7
    with pytest.raises(ConfigError, match=r"auth\.tenantsFile .*tenants\.json: .*there is no plan 'plus'"):
        load_access(auth(path))


async def test_a_key_file_opens_when_it_comes_and_closes_within_two_seconds_when_it_goes(
    start_router: StartRouter, speaker: Speaker, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    path = tenants_file(tmp_path, {"name": "ada", "keyFiles": [str(key)]})
    router = await start_router([speaker], auth={"tenantsFile": str(path)})

    async def status() -> int:
        answer = await router.http.post("/v1/chat/completions", json=TURN, headers={"authorization": "Bearer sk-ada"})
        return answer.status_code

    assert await status() == 401
    assert "m3_router_unusable_keys 1.0" in (await router.admin.get("/metrics")).text

    async def come_and_go(_: int) -> float:
        await asyncio.to_thread(key.write_text, "sk-ada")
        async with asyncio.timeout(20):
            while await status() != 200:  # noqa: ASYNC110 - as the next request shows
                await asyncio.sleep(0.02)
        await asyncio.to_thread(key.unlink)
        gone_at = asyncio.get_running_loop().time()
        async with asyncio.timeout(20):
            while await status() != 401:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return asyncio.get_running_loop().time() - gone_at

    await takes_less_than(2.0, come_and_go)


async def test_a_tenant_that_is_added_to_the_file_is_known_and_its_plan_holds(
    start_router: StartRouter, speaker: Speaker, tmp_path: Path
) -> None:
    path = tenants_file(tmp_path)
    router = await start_router([speaker], auth={"tenantsFile": str(path)})
    tenants_file(
        tmp_path,
        {"name": "ada", "plan": "small", "keyDigests": [digest("sk-ada")]},
        small={"requestsPerMinute": 2},
    )
    await eventually(lambda: router.router._access_file.reloads == 1, "taken")
    headers = {"x-api-key": "sk-ada"}
    answers = [await router.http.post("/v1/chat/completions", json=TURN, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
