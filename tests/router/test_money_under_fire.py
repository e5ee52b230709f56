"""The ledger's sum equals the workers' usage while clients, workers, Redis and the router itself are killed at random.

A router as a process, with a journal and a real redis-server, in front of mock workers that keep exact records. What is
killed when follows from a seed; what is asserted holds whatever the timing. By the rules of `m3_router.money.bill`:

- a bill that is no estimate has exactly the tokens of its last attempt, as the worker that made them knows; of an
  answer that was gone on with, the prompt once and what all workers together have delivered;
- an estimate is allowed only where nobody could say: that worker was killed, or the request never reached it; and for
  a few where it could not be asked in time, because its connections were cut;
- what failed costs nothing; everything else costs its tokens at the rates of its tiers, to the nano-dollar;
- every attempt that reached a worker is of one bill, each bill is settled once, and Redis has the same bills, once;
- a client that got a whole answer is charged for it, and what it was told it costs.

More seeds: `python tests/router/test_money_under_fire.py SEED...`
"""

import asyncio
import json
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from m3_mock import MockEngine
from m3_mock.records import UsageRecord
from m3_mock.router_process import RouterProcess
from m3_redis import RedisServer, find_redis_server, running_redis
from m3_router.money.segments import OPENED, SETTLED, read_head, read_records, segment_paths

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
THRESHOLD_TOKENS = 300  # of the long context tier, inclusive
CLIENTS = 14
SETTLE_SECONDS = 30.0
# Nano-dollars a token of plain input, of cached input, of output.
RATES = {
    ("standard", "standard"): (300, 60, 1200),
    ("long", "standard"): (600, 120, 2400),
    ("standard", "priority"): (450, 90, 1800),
    ("long", "priority"): (900, 180, 3600),
    ("standard", "batch"): (150, 30, 600),
    ("long", "batch"): (300, 60, 1200),
}
FAULTS = ["router"] * 2 + ["worker"] * 3 + ["cut"] * 5 + ["redis"] * 2 + ["freeze"]


@dataclass
class Asked:
    """A request, and what its client has got of the answer."""

    path: str
    stream: bool
    input_tokens: int
    got: bytes = b""

    @property
    def is_whole(self) -> bool:
        """Whether the client has all of a good answer."""
        head, _, body = self.got.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            return False
        length = re.search(rb"content-length: (\d+)", head)
        if length is not None:
            return len(body) == int(length[1])
        return body.endswith(b"0\r\n\r\n")

    @property
    def told_nanousd(self) -> int | None:
        told = re.findall(rb'"cost":(\d+)\.(\d{9})\}', self.got)
        return int(told[0][0] + told[0][1]) if told else None


@dataclass
class Fire:
    """One run: everything that is alive, and everything that was asked."""

    random: random.Random
    router: RouterProcess
    engines: list[MockEngine]
    redis: RedisServer
    journal: Path
    asked: dict[str, Asked] = field(default_factory=dict)
    is_over: bool = False

    async def client(self, name: str) -> None:
        """Asks one thing after the other, and leaves in the middle of some."""
        number = 0
        while not self.is_over:
            number += 1
            patience = self.random.uniform(0, 0.15) if self.random.random() < 0.35 else 30.0
            if not await self.ask(f"{name}-{number}", patience):
                await asyncio.sleep(0.1)

    async def ask(self, request_id: str, patience_seconds: float) -> Asked | None:
        """One request. None: nobody listens."""
        asked, body = self._request()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.router.port)
        except OSError:
            return None
        self.asked[request_id] = asked
        data = json.dumps(body).encode()
        lines = (f"POST {asked.path} HTTP/1.1", "host: r", "connection: close", f"x-request-id: {request_id}")
        writer.write(("\r\n".join((*lines, f"content-length: {len(data)}")) + "\r\n\r\n").encode() + data)
        try:
            with suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(patience_seconds):
                    while piece := await reader.read(2**16):
                        asked.got += piece
        finally:
            writer.transport.abort()
        return asked

    def _request(self) -> tuple[Asked, dict[str, Any]]:
        rng = self.random
        path, stream, tokens = rng.choice(PATHS), rng.random() < 0.7, rng.randint(1, 400)
        limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
        body: dict[str, Any] = {"model": "mock", "stream": stream, "usage": {"include": True}}
        body[limit] = rng.randint(1, 40)
        tier = rng.choice(("standard", "standard", "priority", "batch"))
        if tier != "standard":
            body["service_tier"] = tier
        if path == "/v1/completions":
            body["prompt"] = list(range(tokens)) if rng.random() < 0.3 else "x" * tokens
        elif path == "/v1/responses":
            body["input"] = "x" * tokens
        else:
            body["messages"] = [{"role": "user", "content": "x" * tokens}]
        return Asked(path, stream, tokens), body

    async def rage(self) -> None:
        """Every fault there is, in an order and at times of the seed's."""
        faults = [*FAULTS]
        self.random.shuffle(faults)
        for fault in faults:
            await asyncio.sleep(self.random.uniform(0.05, 0.3))
            engine = self.random.choice(self.engines)
            match fault:
                case "router":
                    await self.router.kill()
                    await self.router.start()
                case "worker":
                    await engine.stop()
                    await asyncio.sleep(self.random.uniform(0.0, 0.3))
                    await engine.start(engine.port)
                case "cut":
                    await engine.cut()
                case "redis":
                    await asyncio.to_thread(self.redis.restart)
                case _:
                    self.redis.freeze()
                    await asyncio.sleep(0.2)
                    self.redis.thaw()

    async def settle(self) -> None:
        """Wait until every bill is settled and Redis has them all; then end the router."""
        async with asyncio.timeout(SETTLE_SECONDS):
            for number in range(3):  # all is well again
                asked: Asked | None = None
                while asked is None or not asked.is_whole:
                    await asyncio.sleep(0.1)
                    asked = await self.ask(f"last-{number}-{len(self.asked)}", 20.0)
            while not self.is_settled():  # noqa: ASYNC110 - another process settles
                await asyncio.sleep(0.2)
        assert await self.router.terminate() == 0

    def is_settled(self) -> bool:
        """Whether no bill is open, and Redis has all of them."""
        opened, settled, _ = self.bills()
        return opened == set(settled) and len(self.stream()) >= len(settled)

    def bills(self) -> tuple[set[int], dict[int, bytes], str]:
        """Of the journal: the numbers that were opened, the settled bills by number, its name."""
        opened, settled, name = set(), {}, ""
        for path in segment_paths(self.journal):
            head = read_head(path)
            if head is None:
                continue
            name = head.journal
            for record in read_records(path):
                if record.kind == OPENED:
                    opened.add(record.number)
                else:
                    assert record.kind == SETTLED
                    assert record.number not in settled, "settled twice"
                    settled[record.number] = record.payload
        return opened, settled, name

    def stream(self) -> list[bytes]:
        """The bills in Redis."""
        with self.redis.client() as client:
            entries = client.xrange("{m3}:ledger")
        return [line for _, entry in entries for line in entry[b"bills"].split(b"\n")]


def cost_nanousd(bill: dict[str, Any], input_tokens: int, cached_tokens: int, output_tokens: int) -> int:
    """By the table above."""
    context = "standard" if input_tokens <= THRESHOLD_TOKENS else "long"
    plain, cached, output = RATES[context, bill["service_tier"]]
    return (input_tokens - cached_tokens) * plain + cached_tokens * cached + output_tokens * output


def used_by_rule(bill: dict[str, Any], asked: Asked, attempts: list[UsageRecord]) -> set[tuple[int, int, int]]:
    """Input, cached and output tokens that a bill may have whose workers can say; `attempts` in their order.

    The last one is known. The messages dialect says at the beginning what was cached: that is the attempt that began
    the answer, and one before it may have computed without a word of it arriving.
    """
    last = attempts[-1]
    if not bill["continuations"]:
        return {(last.prompt_tokens, last.cached_tokens, last.completion_tokens)}
    delivered = last.input_tokens - asked.input_tokens  # it went on with the prompt and all that the client had
    began = attempts if asked.path == "/v1/messages" else [last]
    cached = {one.cached_tokens for one in began if one is last or one.completion_tokens or one.prompt_tokens}
    return {(asked.input_tokens, min(one, asked.input_tokens), delivered + last.completion_tokens) for one in cached}


def audit(fire: Fire) -> Counter[str]:
    """Compare everything; returns how many bills there were of each kind."""
    assert not [line for line in fire.router.log if '"exception"' in line]
    opened, lines, journal = fire.bills()
    assert opened == set(lines)
    assert sorted(fire.stream()) == sorted(lines.values())
    known, forgotten = {}, {}
    for engine in fire.engines:
        known |= {record.attempt: record for record in engine.records.known.values()}
        forgotten |= {record.attempt: record for record in engine.records.forgotten.values()}
    records = forgotten | known
    assert {int(attempt.split("-")[1]) for attempt in records} <= set(lines)
    kinds: Counter[str] = Counter()
    total = expected_total = 0
    for number, line in lines.items():
        bill = json.loads(line)
        asked = fire.asked[bill["request_id"]]
        used = bill["input_tokens"], bill["cached_tokens"], bill["output_tokens"]
        names = [f"{journal}-{number}-{attempt}" for attempt in range(1, bill["attempts"] + 1)]
        attempts = [records[name] for name in names if name in records]
        outcome: str = bill["outcome"]
        if outcome in ("worker_error", "rejected"):
            expected = 0
        elif bill["estimated"]:
            outcome += " estimated"
            assert bill["outcome"] != "ok", line
            kinds["not asked in time"] += names[-1] in known
            assert bill["input_tokens"] in (0, asked.input_tokens), line
            assert bill["output_tokens"] <= sum(one.completion_tokens for one in attempts), line
            expected = cost_nanousd(bill, *used)
        elif bill["outcome"] == "client_gone" and bill["preemptions"] and used == (0, 0, 0):
            expected = 0  # put back, and left while it waited again
        else:
            assert names[-1] in records, line
            assert used in used_by_rule(bill, asked, attempts), (line, attempts)
            expected = cost_nanousd(bill, *used)
        assert bill["cost_nanousd"] == expected, line
        kinds[outcome] += 1
        kinds["retried"] += bill["attempts"] > bill["continuations"] + bill["preemptions"] + 1
        kinds["continued"] += bool(bill["continuations"])
        kinds["preempted"] += bool(bill["preemptions"])
        total += bill["cost_nanousd"]
        expected_total += expected
        if asked.is_whole:
            assert bill["outcome"] == "ok", line
            assert asked.told_nanousd == bill["cost_nanousd"], (line, asked.got)
    # A worker that was cut off or busy may know and not have said it while the router asked.
    assert kinds["not asked in time"] <= 3, kinds
    assert total == expected_total == sum(json.loads(line)["cost_nanousd"] for line in fire.stream())
    served = {json.loads(line)["request_id"] for line in lines.values()}
    assert {request_id for request_id, asked in fire.asked.items() if asked.is_whole} <= served
    kinds["bills"] = len(lines)
    return kinds


@asynccontextmanager
async def burning(seed: int, directory: Path, redis: RedisServer) -> AsyncIterator[Fire]:
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(
                MockEngine(
                    output_tokens=10_000, token_text="@", pace_seconds=0.004, cached_tokens=cached, tokens_ahead=ahead
                ).running()
            )
            for cached, ahead in ((0, 0), (5, 1), (64, 2))
        ]
        journal = directory / "journal"
        config = directory / "router.yaml"
        document = {
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "auth": "none",
            "contextTier": {"thresholdTokens": THRESHOLD_TOKENS, "inclusive": True},
            "prices": {"batchFactor": "0.5"},
            "lanes": {"longPrefillsPerWorker": 2},
            "ledger": {"directory": str(journal), "segmentBytes": 2**16, "retainSegments": 10_000},
            "redis": {"url": redis.url},
            "pools": [
                {
                    "name": "mock",
                    "models": ["mock"],
                    "maxContextTokens": 1500,
                    "tokensInFlight": 3500,
                    "workers": [engine.url for engine in engines],
                }
            ],
        }
        config.write_text(yaml.safe_dump(document))
        router = RouterProcess(config)
        stack.push_async_callback(router.kill)
        await router.start()
        yield Fire(random.Random(seed), router, engines, redis, journal)


async def burn(seed: int, directory: Path, redis: RedisServer) -> Counter[str]:
    """One run by one seed; returns what it has seen."""
    async with burning(seed, directory, redis) as fire:
        clients = [asyncio.create_task(fire.client(f"{seed}-{number}")) for number in range(CLIENTS)]
        try:
            await fire.rage()
            fire.is_over = True
            async with asyncio.timeout(SETTLE_SECONDS):
                await asyncio.gather(*clients)
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
        await fire.settle()
        return audit(fire)


@pytest.mark.skipif(find_redis_server() is None, reason="there is no redis-server")
@pytest.mark.parametrize("seed", [1, 2])
async def test_the_ledger_is_what_the_workers_used_whatever_is_killed(seed: int, tmp_path: Path) -> None:
    with running_redis() as redis:
        kinds = await burn(seed, tmp_path, redis)
    assert kinds["ok"] > 10
    assert kinds["client_gone"] > 0
    assert kinds["router_lost"] > 0


def main(seeds: list[int]) -> None:
    """Run these, and tell what each has seen."""
    for seed in seeds:
        with tempfile.TemporaryDirectory() as directory, running_redis() as redis:
            kinds = asyncio.run(burn(seed, Path(directory), redis))
        sys.stdout.write(f"{seed}: {dict(sorted(kinds.items()))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
