"""The scraper against real servers on loopback, and the whole way from a page to the number of groups.

Workers, a router and a DCGM exporter are one server; time is simulated.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from m3_operator.decide.deployment import decide_deployment
from m3_operator.decide.installation import Installation
from m3_operator.observed import Key
from m3_operator.plan.autoscale import ScaleAdvice
from m3_operator.signals import scraper as scraper_module
from m3_operator.signals.scraper import FetchError, Scraper, http_fetch
from m3_operator.signals.values import FetchSignals
from m3_operator.status.deployment import deployment_status
from m3_operator.store import Store
from operator_world import NOW

M3 = Key("M3Deployment", "ns", "m3")
INSTALLATION = Installation(worker_image="w", router_image="r")


@dataclass
class Pages:
    """A server that answers with these texts, by path; a path without one is not found."""

    texts: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    port: int = 0
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ")[1].decode()
                self.asked.append(path)
                if path == "/hangs":
                    await self.is_over.wait()
                if path == "/redirects":
                    writer.write(b"HTTP/1.1 302 Found\r\nLocation: /metrics\r\nContent-Length: 0\r\n\r\n")
                    continue
                text = self.texts.get(path)
                status, body = ("404 Not Found", b"") if text is None else ("200 OK", text.encode())
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(pages: Pages) -> AsyncIterator[Pages]:
    server = await asyncio.start_server(pages.answer, "127.0.0.1", 0)
    pages.port = server.sockets[0].getsockname()[1]
    try:
        yield pages
    finally:
        pages.is_over.set()
        server.close()
        await server.wait_closed()


@dataclass
class World:
    """A store with one autoscaled deployment, its scraper, and a clock that only moves when told to."""

    pages: Pages
    autoscaling: dict[str, Any]
    store: Store = field(default_factory=Store)
    now: datetime = NOW
    woken: list[Key] = field(default_factory=list)
    version: int = 1
    status: dict[str, Any] = field(default_factory=dict)
    recovery: dict[str, Any] = field(default_factory=dict)
    statuses: int = 0

    def put(self, kind: str, name: str, **rest: Any) -> None:
        self.version += 1
        labels, owner = rest.pop("labels", {}), rest.pop("owner", None)
        metadata: dict[str, Any] = {
            "name": name,
            "namespace": "ns",
            "uid": f"uid-{name}",
            "resourceVersion": str(self.version),
            "generation": 1,
            "labels": labels,
        }
        if owner:
            metadata["ownerReferences"] = [{"uid": owner, "controller": True}]
        self.store.put(kind, {"kind": kind, "metadata": metadata, **rest})

    def put_deployment(self) -> None:
        spec = {
            "model": {"name": "M", "source": {"tiny": {}}},
            "parallelism": {"gpusPerNode": 0},
            "engine": {"port": self.pages.port},
            "autoscaling": self.autoscaling,
            "recovery": self.recovery,
        }
        self.put("M3Deployment", "m3", spec=spec, status=self.status)

    def put_worker(self, group: int, *, is_ready: bool = True) -> None:
        labels = {
            "serving.m3.dev/deployment": "m3",
            "serving.m3.dev/group": str(group),
            "serving.m3.dev/rank": "0",
            "serving.m3.dev/revision": self.revision,
            "app.kubernetes.io/component": "worker",
        }
        conditions = [{"type": "Ready", "status": str(is_ready)}]
        status = {"phase": "Running", "podIP": "127.0.0.1", "hostIP": "127.0.0.1", "conditions": conditions}
        self.put("Pod", f"m3-g{group}-r0", labels=labels, owner="uid-m3", spec={"nodeName": "node-0"}, status=status)

    @property
    def revision(self) -> str:
        snapshot = self.store.deployment_snapshot(M3)
        assert snapshot is not None
        return str(decide_deployment(snapshot, INSTALLATION, self.now).revision)

    def decide(self) -> ScaleAdvice:
        """One cycle's decision, its status kept, and pods brought to what it wants."""
        snapshot = self.store.deployment_snapshot(M3)
        assert snapshot is not None
        decision = decide_deployment(snapshot, INSTALLATION, self.now)
        status = deployment_status(snapshot, decision, {}, decision.problem, self.now)
        if status.get("autoscaling") != self.status.get("autoscaling"):
            self.statuses += 1
        self.status = status
        self.put_deployment()
        assert decision.scaling is not None
        assert decision.scaling.advice is not None
        return decision.scaling.advice


@asynccontextmanager
async def world(pages: Pages, **autoscaling: Any) -> AsyncIterator[tuple[World, Scraper]]:
    async with serving(pages), http_fetch() as fetch:
        one = World(pages, {"maxReplicas": 8, **autoscaling})
        one.put_deployment()
        yield one, Scraper(one.store, fetch, clock=lambda: one.now, wake=one.woken.extend)


async def pass_time(one: World, scraper: Scraper, seconds: int) -> list[int]:
    """Scrapes and decisions, each 5 s; the desired numbers."""
    desired = []
    for _ in range(seconds // 5):
        one.now += timedelta(seconds=5)
        await scraper.look(M3)
        desired.append(one.decide().desired)
    return desired


def worker_page(*, running: int = 4, steps: int = 1) -> str:
    return f"m3_worker_requests_running {running}\nm3_worker_requests_waiting 0\nm3_worker_steps_total {steps}\n"


def dcgm_page(*percents: int) -> str:
    return "".join(
        f'DCGM_FI_DEV_GPU_UTIL{{gpu="{group}",Hostname="node-0",namespace="ns",pod="m3-g{group}-r0"}} {percent}\n'
        for group, percent in enumerate(percents)
    )


async def test_gpu_utilisation_of_a_dcgm_exporter_scales_up_holds_when_stale_and_down_after_the_window() -> None:
    pages = Pages({"/metrics": worker_page(), "/dcgm": dcgm_page(95)})
    async with world(
        pages,
        signals=[{"type": "GPUUtilization", "target": 0.8}],
        gpuMetrics={"source": "DCGM", "url": "http://{hostIP}:0/dcgm"},
    ) as (one, scraper):
        one.autoscaling["gpuMetrics"]["url"] = f"http://{{hostIP}}:{pages.port}/dcgm"
        one.put_deployment()
        one.put_worker(0)
        # 0.95 / 0.8 = 1.19 is above 0.85: 1 + ceil(1 * 0.397), once it has been so for 30 s.
        desired = await pass_time(one, scraper, 60)
        assert desired[:4] == [1] * 4
        assert desired[-1] == 2
        one.put_worker(1)
        pages.texts["/dcgm"] = dcgm_page(55, 55)  # 0.69: between the bands
        assert set(await pass_time(one, scraper, 120)) == {2}

        del pages.texts["/dcgm"]
        assert set(await pass_time(one, scraper, 60)) == {2}
        told = one.decide()
        assert (told.reason, told.is_active) == ("MetricsStale", False)
        assert "/dcgm" in told.message
        conditions = {found["type"]: found for found in one.status["conditions"]}
        assert conditions["ScalingActive"]["status"] == "False"
        assert conditions["ScalingActive"]["reason"] == "MetricsStale"
        assert scraper.failures > 0

        pages.texts["/dcgm"] = dcgm_page(10, 10)
        # A mean of 45 s with what was before, and 180 s in which nothing asked for more.
        down = await pass_time(one, scraper, 300)
        assert down[:36] == [2] * 36
        assert down[-1] == 1
        history = [(entry["from"], entry["to"]) for entry in one.status["autoscaling"]["history"]]
        assert history == [(1, 2), (2, 1)]


async def test_waiting_requests_wake_a_deployment_that_sleeps_and_idleness_puts_it_to_sleep() -> None:
    def waiting(requests: int, ended: int) -> str:
        return (
            f'm3_router_requests_waiting_for_worker{{pool="m3"}} {requests}\n'
            f'm3_router_requests_total{{model="M"}} {ended}\n'
        )

    pages = Pages({"/metrics": worker_page(running=0) + waiting(0, 0)})
    async with world(pages, minReplicas=0, idleSeconds=60, signals=[{"type": "QueueWait", "target": 2}]) as (
        one,
        scraper,
    ):
        one.put("M3Router", "m3", spec={"deployments": [{"name": "m3"}]})
        router_labels = {"serving.m3.dev/router": "m3", "app.kubernetes.io/component": "router"}
        ready = {"phase": "Running", "podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
        admin = {"containers": [{"ports": [{"name": "admin", "containerPort": pages.port}]}]}
        one.put("Pod", "m3-router-a", labels=router_labels, spec=admin, status=ready)
        one.put_worker(0)
        assert (await pass_time(one, scraper, 30))[-1] == 1
        # A request that came and went between two looks is one.
        pages.texts["/metrics"] = worker_page(running=0) + waiting(0, 1)
        assert set(await pass_time(one, scraper, 60)) == {1}
        assert (await pass_time(one, scraper, 15))[-1] == 0
        assert one.status["autoscaling"]["history"][-1]["reason"] == "there was no request for 60 s"
        one.store.remove("Pod", {"metadata": {"name": "m3-g0-r0", "namespace": "ns", "uid": "uid-m3-g0-r0"}})
        assert set(await pass_time(one, scraper, 60)) == {0}
        asked = await scraper.look(M3)
        assert asked is not None
        assert asked.every_seconds == 1
        one.woken.clear()
        pages.texts["/metrics"] = waiting(1, 1)
        one.now += timedelta(seconds=1)
        await scraper.look(M3)
        assert one.woken == [M3]
        assert one.decide().desired == 1


async def test_who_hangs_lies_or_sends_too_much_is_a_failure_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraper_module, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(scraper_module, "PAGE_MAX_BYTES", 1000)
    pages = Pages({"/large": "x" * 2000, "/metrics": "fine"})
    async with serving(pages), http_fetch() as fetch:
        base = f"http://127.0.0.1:{pages.port}"
        assert await fetch(f"{base}/metrics") == "fine"
        for path, words in [
            ("/absent", "HTTP 404"),
            ("/redirects", "HTTP 302"),
            ("/hangs", "no answer within 0.2 s"),
            ("/large", "more than 1000 bytes"),
        ]:
            with pytest.raises(FetchError, match=words):
                await fetch(base + path)
        with pytest.raises(FetchError):
            await fetch("http://[")
    with pytest.raises(FetchError):
        async with http_fetch() as again:
            await again(f"{base}/metrics")


async def test_a_steady_load_writes_its_status_once_and_wakes_rarely() -> None:
    pages = Pages({"/metrics": worker_page(running=0) + "m3_worker_kv_cache_usage_ratio 0.7\n"})
    async with world(pages, signals=[{"type": "CacheUsage", "target": 1}]) as (one, scraper):
        one.put_worker(0)
        await pass_time(one, scraper, 60)
        one.statuses = 0
        one.woken.clear()
        await pass_time(one, scraper, 300)
        assert one.statuses == 0
        assert len(one.woken) == 20  # every 15 s
        for load in range(60):
            pages.texts["/metrics"] = (
                worker_page(running=0) + f"m3_worker_kv_cache_usage_ratio {0.65 + load % 10 / 50}\n"
            )
            await pass_time(one, scraper, 5)
        assert one.statuses <= 10  # 300 s


async def test_a_deployment_without_autoscaling_is_not_asked() -> None:
    pages = Pages({"/metrics": worker_page()})
    async with world(pages) as (one, scraper):
        one.autoscaling = {"maxReplicas": 2, "backend": "External"}
        one.put_deployment()
        one.put_worker(0)
        assert await scraper.look(M3) is None
        assert pages.asked == []


async def test_the_watch_for_hangs_asks_workers_alone_wakes_when_one_stands_still_and_gives_the_unreachable_time() -> (
    None
):
    pages = Pages({"/metrics": worker_page(steps=1)})
    async with world(pages) as (one, scraper):
        one.autoscaling = {"maxReplicas": 2, "backend": "External"}
        one.recovery = {"hangSeconds": 60}
        one.put_deployment()
        one.put_worker(0)
        asked = await scraper.look(M3)
        assert asked is not None
        assert (asked.every_seconds, asked.routers, asked.is_scaled) == (15, (), False)
        one.woken.clear()
        for steps in range(2, 10):
            one.now += timedelta(seconds=15)
            pages.texts["/metrics"] = worker_page(steps=steps)
            await scraper.look(M3)
        assert one.woken == []
        one.now += timedelta(seconds=15)
        await scraper.look(M3)
        assert one.woken == [M3]
        del pages.texts["/metrics"]
        pages.asked.clear()
        for _ in range(40):
            one.now += timedelta(seconds=15)
            await scraper.look(M3)
        assert len(pages.asked) <= 9  # 600 s: after 15 s, 30 s, 60 s, and then every 120 s


async def test_the_loop_looks_by_itself_and_ends_when_cancelled() -> None:
    pages = Pages({"/metrics": worker_page()})
    async with world(pages, signals=[{"type": "CacheUsage", "target": 1}]) as (one, scraper):
        one.put_worker(0)
        woken = asyncio.Event()
        looping = Scraper(one.store, scraper._fetch, clock=lambda: one.now, wake=lambda _: woken.set())
        running = asyncio.create_task(looping.run(spread=0))
        await asyncio.wait_for(woken.wait(), 10)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        snapshot = one.store.deployment_snapshot(M3)
        assert snapshot is not None
        assert snapshot.signals.workers["uid-m3-g0-r0"].running == 4


def fetch_page(done: int) -> str:
    return f"m3_fetch_needed_bytes 1000\nm3_fetch_done_bytes {done}\nm3_fetch_seconds_left 7\n"


async def test_a_download_is_followed_and_wakes_its_deployment_at_its_first_word_and_then_as_often_as_people_look() -> (
    None
):
    pages = Pages({"/metrics": ""})
    async with world(pages) as (one, scraper):
        one.autoscaling = {"maxReplicas": 2, "backend": "External"}
        one.put_deployment()
        labels = {
            "app.kubernetes.io/component": "model-cache",
            "serving.m3.dev/deployment": "m3",
            "batch.kubernetes.io/job-name": "m3-fetch-1",
        }
        container = {"name": "fetch", "ports": [{"name": "http", "containerPort": pages.port}]}
        running = {"podIP": "127.0.0.1", "containerStatuses": [{"name": "fetch", "state": {"running": {}}}]}
        one.put("Pod", "m3-fetch-1-x", labels=labels, spec={"containers": [container]}, status=running)
        asked = await scraper.look(M3)
        assert asked is not None
        assert asked.every_seconds == 5
        assert one.store.deployment_snapshot(M3).signals.fetches == {}  # type: ignore[union-attr]
        one.woken.clear()
        for seconds in range(0, 60, 5):
            one.now += timedelta(seconds=5)
            pages.texts["/metrics"] = fetch_page(seconds)
            await scraper.look(M3)
        snapshot = one.store.deployment_snapshot(M3)
        assert snapshot is not None
        assert snapshot.signals.fetches == {
            "uid-m3-fetch-1-x": FetchSignals(done_bytes=55, needed_bytes=1000, seconds_left=7)
        }
        assert len(one.woken) == 4  # at 5 s, and every 15 s
        one.put("Pod", "m3-fetch-1-x", labels=labels, spec={"containers": [container]}, status={"phase": "Succeeded"})
        assert await scraper.look(M3) is None
