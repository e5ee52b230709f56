"""A scripted router for tests of what people see: what it says is set, and what is done to it is recorded."""

import asyncio
import contextlib
import hashlib
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from fastapi import FastAPI
from prometheus_client.registry import Collector

from m3_router.admin import Access, ActError, Acts, Audit, Observatory, UsageSource, admin_app
from m3_router.admin.document import LaneNow, LimitNow, PoolNow, RouterNow, TenantNow, WorkerNow
from m3_router.config import LaneSettings, RouterConfig
from m3_router.money.bill import Bill
from m3_router.money.bill_lines import bill_from
from m3_router.money.bill_records import Line
from m3_router.money.ledger import Ledger
from m3_router.money.prices import PriceTable
from m3_router.money.spend import Spend
from m3_router.placement.pools import Pools

ADMIN_KEY = "an-admin-key"
ADMIN_DIGEST = hashlib.sha256(ADMIN_KEY.encode()).hexdigest()


class NoMetrics(Collector):
    def collect(self) -> Iterator[Any]:
        return iter(())


@dataclass
class Scene:
    """Two workers, two lanes and two tenants, unless a test says otherwise."""

    router_now: RouterNow = field(
        default_factory=lambda: RouterNow("scene", "1.2.3", "interpreted", 0.0, False, 3, 8192, 0, 2**31, "none")
    )
    lanes: tuple[LaneNow, ...] = (
        LaneNow("priority", "priority", None, 1_000, 0, 0, 0.0),
        LaneNow("standard", "standard", None, 30_000, 2, 5_000, 1.5),
    )
    workers: dict[str, WorkerNow] = field(
        default_factory=lambda: {
            name: WorkerNow(name, "127.0.0.1:1", "ready", "it says so", requests, tokens, epoch="e1", breaker="closed")
            for name, requests, tokens in (("worker-0", 4, 24_000), ("worker-1", 1, 7_000))
        }
    )
    tenants_now: tuple[TenantNow, ...] = (
        TenantNow("acme", 40, 90_000, 60_000, 9_000, 2_500_000, {"priority": 2_000_000, "standard": 500_000}),
        TenantNow(
            "zeta",
            7,
            4_000,
            0,
            300,
            90_000,
            {"standard": 90_000},
            "plus",
            [LimitNow("tokens_per_day", "tokens", 95, 100)],
        ),
    )
    admin_digest: str | None = None
    has_acts: bool = True
    spend: Spend = field(default_factory=Spend)
    journal_directory: Path | None = None
    done: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.audit = Audit(lambda line, _: self.lines.append(line), time.time)
        self.acts = Acts({name: self._act(name) for name in ("drain", "undrain", "revoke")} if self.has_acts else {})
        self.observatory = Observatory(self, LaneSettings(), self.audit, self.acts.names)

    # ---- Sources

    def router(self) -> RouterNow:
        return self.router_now

    def pools(self, now: float) -> list[PoolNow]:
        workers = list(self.workers.values())
        return [PoolNow("m3", ("MiniMax-M3",), "native", 100_000, 75_000, 900.0, list(self.lanes), workers)]

    def tenants(self, wall: float) -> Sequence[TenantNow]:
        return self.tenants_now

    # ---- what a test does

    def settle(self, *bills: Bill) -> None:
        """Bills that were settled now."""
        self.observatory.read(list(bills), time.monotonic())

    @property
    def audit_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def app(self) -> FastAPI:
        config = RouterConfig.from_yaml("auth: none\npools: [{name: m, models: [m], workers: ['http://127.0.0.1:1']}]")
        ledger = Ledger(PriceTable(config), lambda *_: None, (), lambda *_: None, name="scene")
        return admin_app(
            ledger=ledger,
            pools=Pools(()),
            collectors=[NoMetrics()],
            why_not_ready=lambda: None,
            observatory=self.observatory,
            access=Access(self.admin_digest),
            acts=self.acts,
            audit=self.audit,
            usage=UsageSource([self.spend], self.journal_directory),
        )

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[str]:
        """The admin port on loopback, with its timeline running, until the block is left; gives its URL."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        server = _Server(uvicorn.Config(self.app(), log_config=None, access_log=False, lifespan="off"))
        serving = asyncio.create_task(server.serve([listener]))
        ticking = asyncio.create_task(self._tick())
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ticking.cancel()
            server.should_exit = True
            await asyncio.gather(serving, ticking, return_exceptions=True)
            listener.close()

    async def _tick(self) -> None:
        while True:
            self.observatory.tick(time.monotonic(), time.time())
            await asyncio.sleep(0.1)

    def _act(self, name: str) -> Any:
        async def run(fields: Mapping[str, str]) -> str:
            if "worker" in fields:
                worker = self.workers.get(fields["worker"])
                if worker is None:
                    raise ActError(404, f"There is no worker {fields['worker']}.")
                state = "draining" if name == "drain" else "ready"
                self.workers[worker.name] = msgspec.structs.replace(
                    worker, state=state, is_held=name == "drain", reason="an administrator said so"
                )
            self.done.append((name, dict(fields)))
            return f"{name} is done."

        return run


def bill(**fields: Any) -> Bill:
    """A settled bill of an ordinary request."""
    usual: dict[str, Any] = {
        "time": time.time(),
        "request_id": "r-1",
        "path": "/v1/chat/completions",
        "tenant": "acme",
        "model": "MiniMax-M3",
        "context_tier": "standard",
        "service_tier": "standard",
        "worker": "worker-0",
        "outcome": "ok",
        "status": 200,
        "input_tokens": 1_000,
        "cached_tokens": 600,
        "output_tokens": 50,
        "cost_nanousd": 216_000,
        "first_byte_ms": 120.0,
        "duration_ms": 900.0,
        "attempts": 1,
    }
    return bill_from(Line(**{**usual, **fields}))


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
