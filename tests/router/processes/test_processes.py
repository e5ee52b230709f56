"""The m3-router process of a configuration with several processes: one address, one admin port, one end."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from m3_mock import MockEngine

CONFIG = """
listen: 127.0.0.1:{port}
admin: 127.0.0.1:0
processes: 2
auth: none
ledger: {{directory: {directory}, segmentBytes: 65536}}
limits: {{drainSeconds: 5}}
pools: [{{name: mock, models: [mock], workers: ["{url}"]}}]
"""


@dataclass
class Fleet:
    """The supervisor, what it has logged, and a client of its admin port; `http` makes one connection a request."""

    process: Process
    address: str
    admin: httpx.AsyncClient
    directory: Path
    messages: list[str] = field(default_factory=list)

    async def complete(self, count: int = 1) -> set[int]:
        statuses = set()
        for _ in range(count):
            async with httpx.AsyncClient(base_url=f"http://{self.address}", trust_env=False, timeout=20) as client:
                answer = await client.post("/v1/completions", json={"model": "mock", "prompt": [1, 2]})
                statuses.add(answer.status_code)
        return statuses

    async def until(self, condition: Callable[[dict[str, dict[str, float]]], bool]) -> dict[str, dict[str, float]]:
        """The metrics by process, once they are as they should be."""
        async with asyncio.timeout(30):
            while True:
                found: dict[str, dict[str, float]] = {}
                text = (await self.admin.get("/metrics")).text
                for family in text_string_to_metric_families(text):
                    for sample in family.samples:
                        values = found.setdefault(sample.labels["process"], {})
                        values[sample.name] = values.get(sample.name, 0.0) + sample.value
                if condition(found):
                    return found
                await asyncio.sleep(0.05)

    async def end(self, *signals: signal.Signals) -> tuple[int, list[dict[str, Any]]]:
        """Its exit status, and the lines of its log."""
        for number in signals:
            self.process.send_signal(number)
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            output = await self.process.stdout.read()
            return await self.process.wait(), [json.loads(line) for line in output.splitlines()]


@asynccontextmanager
async def a_fleet(tmp_path: Path, url: str) -> AsyncIterator[Fleet]:
    file = tmp_path / "router.yaml"
    file.write_text(CONFIG.format(port=0, directory=tmp_path / "ledger", url=url))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "m3_router.server", "--config", str(file), stdout=PIPE, stderr=PIPE
    )
    messages: list[str] = []
    reading: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(60):
            words = await _said(process, messages, ", 2 processes")
        reading = asyncio.create_task(_read(process, messages))
        admin = f"http://{words[5].rstrip(',')}"
        async with httpx.AsyncClient(base_url=admin, trust_env=False, timeout=20) as client:
            fleet = Fleet(process, words[2].rstrip(","), client, tmp_path / "ledger", messages)
            await fleet.until(lambda found: all(found.get(i, {}).get("m3_router_worker_ready") for i in "01"))
            yield fleet
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        if reading is not None:
            reading.cancel()
        await process.communicate()


async def _said(process: Process, messages: list[str], text: str) -> list[str]:
    assert process.stderr is not None
    while line := await process.stderr.readline():
        messages.append(json.loads(line)["message"])
        if text in messages[-1]:
            return messages[-1].split()
    raise AssertionError(messages)


async def _read(process: Process, messages: list[str]) -> None:
    assert process.stderr is not None
    while line := await process.stderr.readline():
        messages.append(json.loads(line)["message"])


async def test_two_processes_share_one_address_and_are_one_router_on_the_admin_port(
    engine: MockEngine, tmp_path: Path
) -> None:
    async with a_fleet(tmp_path, engine.url) as fleet:
        # Each connection is given to one of them by the kernel: forty all to one have a chance of 2 in 2^40.
        assert await fleet.complete(40) == {200}
        found = await fleet.until(
            lambda found: sum(values.get("m3_router_requests_total", 0) for values in found.values()) == 40
        )
        assert sorted(found) == ["0", "1"]
        assert min(values["m3_router_requests_total"] for values in found.values()) > 0

        usage = (await fleet.admin.get("/api/usage")).json()
        table = (await fleet.admin.get("/api/usage.csv")).text.splitlines()
        one = (await fleet.admin.get("/api/usage", params={"process": 1})).json()
        assert usage["requests"] == 40
        assert usage["cost_nanousd"] == 40 * (2 * 300 + 3 * 1200)
        assert one["requests"] == found["1"]["m3_router_requests_total"]
        assert len(table) == 41
        assert [line.startswith("time,request_id,") for line in table] == [True] + [False] * 40
        assert (await fleet.admin.get("/readyz")).json() == {"status": "ok"}
        assert (await fleet.admin.get("/workers", params={"process": 7})).status_code == 404

        status, lines = await fleet.end(signal.SIGTERM)
    assert status == 0
    assert len(lines) == 40
    assert sorted(path.name for path in fleet.directory.iterdir()) == ["process-0", "process-1"]


async def test_a_process_that_dies_is_begun_again_and_the_others_go_on(engine: MockEngine, tmp_path: Path) -> None:
    async with a_fleet(tmp_path, engine.url) as fleet:
        os.kill(_children_of(fleet.process)[0], signal.SIGKILL)
        await fleet.until(lambda found: sum(values["m3_router_process_up"] for values in found.values()) == 1)
        assert (await fleet.admin.get("/readyz")).status_code == 200
        assert await fleet.complete(10) == {200}
        found = await fleet.until(lambda found: all(found.get(i, {}).get("m3_router_worker_ready") for i in "01"))
        assert sorted(values["m3_router_process_restarts_total"] for values in found.values()) == [0.0, 1.0]
        assert await fleet.complete(10) == {200}
        assert any("was killed by SIGKILL; it is begun again in 0.5 s" in message for message in fleet.messages)
        status, lines = await fleet.end(signal.SIGTERM)
    assert (status, len(lines)) == (0, 20)


async def test_an_act_is_done_by_all_and_each_leaves_its_line(engine: MockEngine, tmp_path: Path) -> None:
    async with a_fleet(tmp_path, engine.url) as fleet:
        worker = f"127.0.0.1:{engine.port}"
        answer = await fleet.admin.post("/api/acts/drain", json={"pool": "mock", "worker": worker})
        assert answer.status_code == 200, answer.text
        assert answer.json()["message"].endswith("(2 processes)")
        for process in (0, 1):
            state = (await fleet.admin.get("/api/state", params={"process": process})).json()
            assert state["pools"][0]["workers"][0]["is_held"]
        refused = await fleet.admin.post("/api/acts/drain", json={"pool": "mock", "worker": "nobody"})
        assert refused.status_code == 404
        assert refused.json()["error"] == "Process 0: Pool 'mock' has no worker 'nobody'."
        nobody = {"authorization": "Bearer wrong", "x-forwarded-for": "10.0.0.1"}
        assert (await fleet.admin.get("/workers", headers=nobody)).status_code == 403
        _, lines = await fleet.end(signal.SIGTERM)
    audits = [(line["audit"], line["who"], line["peer"], line["outcome"]) for line in lines]
    assert audits.count(("drain", "this machine", "127.0.0.1", "done")) == 2
    assert audits.count(("drain", "this machine", "127.0.0.1", "refused")) == 2


async def test_the_first_signal_drains_and_the_second_ends_at_once(engine: MockEngine, tmp_path: Path) -> None:
    engine.gate = asyncio.Event()
    async with a_fleet(tmp_path, engine.url) as fleet:
        running = asyncio.create_task(fleet.complete())
        await fleet.until(
            lambda found: sum(values["m3_router_worker_requests_in_flight"] for values in found.values()) == 1
        )
        fleet.process.send_signal(signal.SIGTERM)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await fleet.process.wait()
        status, _ = await fleet.end(signal.SIGTERM)
        with pytest.raises(httpx.HTTPError):
            await running
    assert status == 0


async def test_processes_whose_supervisor_is_killed_end_by_themselves(engine: MockEngine, tmp_path: Path) -> None:
    async with a_fleet(tmp_path, engine.url) as fleet:
        children = _children_of(fleet.process)
        fleet.process.kill()
        async with asyncio.timeout(30):
            while any(_is_alive(child) for child in children):  # noqa: ASYNC110 - nobody tells of a stranger's end
                await asyncio.sleep(0.05)


def _children_of(process: Process) -> list[int]:
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) == 2
    return children


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_an_address_in_use_is_named_before_any_process_is_begun(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as another router of this user would
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, said = await _run_until_it_ends(tmp_path, port, tmp_path / "ledger")
    assert status == 1
    assert said == f"m3-router: cannot listen on 127.0.0.1:{port}: Address already in use\n"


async def test_a_process_that_cannot_serve_ends_all_with_its_status(tmp_path: Path) -> None:
    taken = tmp_path / "ledger"
    taken.write_text("a file where a directory should be")
    status, said = await _run_until_it_ends(tmp_path, 0, taken)
    assert status == 2
    assert "m3-router: ledger.directory: " in said
    assert "ended with status 2 before it served" in said


async def _run_until_it_ends(tmp_path: Path, port: int, directory: Path) -> tuple[int, str]:
    file = tmp_path / "router.yaml"
    file.write_text(CONFIG.format(port=port, directory=directory, url="http://127.0.0.1:1"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "m3_router.server", "--config", str(file), stdout=PIPE, stderr=PIPE
    )
    async with asyncio.timeout(60):
        _, said = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()
