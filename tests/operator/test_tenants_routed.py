"""From M3Tenants to a router's answers: the files that the operator renders, read by a real router process.

The kubelet's part, which puts ConfigMaps and Secrets into the pod's directories, is played by the test.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from m3_mock import MockEngine
from m3_mock.router_process import RouterProcess
from m3_operator.api import M3Router, M3Tenant, parse_deployment, parse_router, parse_tenant
from m3_operator.render.router import router_config
from m3_operator.render.router_mounts import TENANT_KEYS_DIRECTORY
from m3_operator.render.router_settings import Files
from m3_operator.render.tenants import tenants_file
from m3_promise import takes_less_than

REVOKED_WITHIN_SECONDS = 2.0
PLANS = [{"name": "small", "requestsPerMinute": 2}, {"name": "short", "maxContextTokens": 4}]


def manifest(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "serving.m3.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def front() -> M3Router:
    return parse_router(manifest("M3Router", "front", {"deployments": [{"name": "m3"}], "plans": PLANS}), strict=True)


def tenant(name: str, **spec: Any) -> M3Tenant:
    spec = {"keys": [{"secretRef": {"name": name, "key": "api-key"}}], **spec}
    return parse_tenant(manifest("M3Tenant", name, spec), strict=True)


class Pod:
    """A router process on the files of a pod."""

    def __init__(self, directory: Path, worker_url: str) -> None:
        self.tenants, self.secrets = directory / "tenants.json", directory / "tenants"
        config = directory / "router.yaml"
        deployment = manifest("M3Deployment", "m3", {"model": {"name": "mock", "source": {"tiny": {}}}})
        rendered = router_config(
            front(),
            [parse_deployment(deployment, strict=True)],
            listen="127.0.0.1:0",
            admin="127.0.0.1:0",
            workers={"m3": [worker_url]},
            files=Files(tenants=self.tenants),
        )
        config.write_text(rendered.to_yaml())
        self.mount()
        self.process = RouterProcess(config)

    def mount(self, *tenants: M3Tenant) -> None:
        """What the kubelet does with a changed ConfigMap."""
        text = tenants_file(front(), tenants).replace(str(TENANT_KEYS_DIRECTORY), str(self.secrets))
        new = self.tenants.with_suffix(".new")
        new.write_text(text)
        new.replace(self.tenants)

    def write_key(self, name: str, key: str) -> Path:
        """What it does with a Secret that has come."""
        path = self.secrets / name / "api-key"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(key)
        return path

    async def ask(self, key: str, words: int = 1) -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.process.port}", trust_env=False) as client:
            body = {"model": "mock", "prompt": "word " * words, "max_tokens": 1}
            return await client.post("/v1/completions", json=body, headers={"authorization": f"Bearer {key}"})

    async def becomes(self, key: str, status: int) -> None:
        async with asyncio.timeout(20):
            while (await self.ask(key)).status_code != status:  # noqa: ASYNC110 - as the next request shows
                await asyncio.sleep(0.02)


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    async with MockEngine().running() as engine, contextlib.AsyncExitStack() as stack:
        found = await asyncio.to_thread(Pod, tmp_path, engine.url)
        stack.push_async_callback(found.process.kill)
        await found.process.start()
        yield found


async def test_a_tenant_comes_with_its_key_and_its_plan_and_goes_with_its_secret(pod: Pod) -> None:
    assert (await pod.ask("sk-ada")).status_code == 401
    pod.mount(tenant("ada", plan="small"), tenant("grace", plan="short"), tenant("hedy"))
    for name in ("ada", "grace", "hedy"):
        await asyncio.to_thread(pod.write_key, name, f"sk-{name}")
    await pod.becomes("sk-hedy", 200)

    statuses = [(await pod.ask("sk-ada")).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    long = await pod.ask("sk-grace", words=500)
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_above_plan")
    assert (await pod.ask("sk-hedy", words=500)).status_code == 200

    async def revoke(_: int) -> float:
        path = await asyncio.to_thread(pod.write_key, "hedy", "sk-hedy")
        await pod.becomes("sk-hedy", 200)
        await asyncio.to_thread(path.unlink)
        gone_at = asyncio.get_running_loop().time()
        await pod.becomes("sk-hedy", 401)
        return asyncio.get_running_loop().time() - gone_at

    await takes_less_than(REVOKED_WITHIN_SECONDS, revoke)
    assert (await pod.ask("sk-ada")).status_code == 429, "the others are what they were"


async def test_a_tenant_that_leaves_the_configmap_is_refused_without_a_restart(pod: Pod) -> None:
    await asyncio.to_thread(pod.write_key, "ada", "sk-ada")
    pod.mount(tenant("ada"))
    await pod.becomes("sk-ada", 200)
    port = pod.process.port
    pod.mount()
    await pod.becomes("sk-ada", 401)
    assert pod.process.port == port
