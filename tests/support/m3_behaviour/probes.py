"""The questions that are asked of a router, and what each answer is worth.

Each probe starts engines and the router anew, does one thing to them, and grades what it saw from 0 to 3; the grades of
a probe are stated with it, so that a good result is the same for everyone. Limits of time are the issue of the probes
that end with `seconds`; they are generous, since the machine may be busy.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final, Protocol

from m3_behaviour.client import Answer, Door, ask, chat_body, post, read_answer
from m3_behaviour.engine import Engine, Script, until

BEST: Final = 3
PATIENCE_SECONDS: Final = 2  # that the router is told to have with a silent engine, where a probe is about that
LONG_SECONDS: Final = 600
REQUESTS: Final = 40
ABORTS: Final = 5
_FLOOD_EVENTS, _FLOOD_EVENT_BYTES = 2000, 2**14
_MIB: Final = 2**20


@dataclass(frozen=True)
class Finding:
    """What was seen, in words, and its grade."""

    text: str
    grade: int


class Launched(Protocol):
    """A router that runs."""

    door: Door

    def drain(self) -> None:
        """Ask it to finish what it does, and to end."""

    async def ended(self, seconds: float) -> bool:
        """Whether its process ends within these seconds."""
        ...


Launch = Callable[[list[int], int], AbstractAsyncContextManager[Launched]]
"""Starts the router in front of engines at these ports, with so many seconds of patience for a silent one."""


@dataclass(frozen=True)
class Probe:
    """One question. `grades` says what it takes to be given which grade."""

    name: str
    title: str
    grades: str
    find: Callable[[Launch], Awaitable[Finding]]


class _Bench:
    """Two engines and a router in front of them."""

    def __init__(self, launch: Launch, script: Script, patience_seconds: int = LONG_SECONDS) -> None:
        self._launch = launch
        self._patience_seconds = patience_seconds
        self._stack = AsyncExitStack()
        self.engines = [Engine(script), Engine(script)]
        self.router: Launched

    async def __aenter__(self) -> "_Bench":
        for engine in self.engines:
            await self._stack.enter_async_context(engine.running())
        ports = [engine.port for engine in self.engines]
        self.router = await self._stack.enter_async_context(self._launch(ports, self._patience_seconds))
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._stack.aclose()

    @property
    def door(self) -> Door:
        return self.router.door

    def run(self, script: Script) -> None:
        """Let both engines do this from now on."""
        for engine in self.engines:
            engine.script = script

    async def busy_engine(self) -> Engine:
        """The engine that answers now."""
        async with asyncio.timeout(10):
            while True:
                for engine in self.engines:
                    if engine.is_answering:
                        return engine
                await asyncio.sleep(0.002)


# ---- a client leaves


async def _leave(bench: _Bench, tokens: int) -> float | None:
    """Leave after so many tokens; seconds until the engine saw it, None if it did not within 8 s."""
    reader, writer = await post(bench.door, chat_body(stream=True, max_tokens=400))
    engine = await bench.busy_engine()
    if tokens:
        await reader.readuntil(b" token%d" % tokens)
    engine.has_left.clear()
    left = time.perf_counter()
    writer.transport.abort()
    return engine.left_at[-1] - left if await until(engine.has_left, 8) else None


async def leave_seconds(launch: Launch, script: Script, tokens: int, times: int) -> list[float | None]:
    """Leave several times."""
    async with _Bench(launch, script) as bench:
        return [await _leave(bench, tokens) for _ in range(times)]


def _left(seen: list[float | None]) -> Finding:
    seconds = [one for one in seen if one is not None]
    if len(seconds) < len(seen):
        return Finding("not within 8 s", 0)
    worst = max(seconds)
    grade = 3 if worst <= 0.05 else 2 if worst <= 0.25 else 1
    return Finding(f"{median(seconds) * 1e3:.0f} ms (worst of {len(seen)}: {worst * 1e3:.0f} ms)", grade)


async def _leaves_in_prefill(launch: Launch) -> Finding:
    return _left(await leave_seconds(launch, Script(prefill_seconds=20), 0, ABORTS))


async def _leaves_in_stream(launch: Launch) -> Finding:
    return _left(await leave_seconds(launch, Script(token_seconds=0.05), 3, ABORTS))


# ---- a worker dies


async def _dead_engine(launch: Launch) -> Finding:
    async with _Bench(launch, Script()) as bench:
        await asyncio.gather(*(ask(bench.door, chat_body(stream=False, content=f"warm {i}")) for i in range(4)))
        bench.engines[1].kill()
        answers = [await ask(bench.door, chat_body(stream=False, content=f"{i} hi")) for i in range(REQUESTS)]
    failed = sum(not answer.is_good for answer in answers)
    slowest = max(answer.seconds for answer in answers)
    grade = 0 if failed > 4 else 1 if failed else 2 if slowest > 1 else 3
    return Finding(f"{failed} of {REQUESTS} failed, slowest {slowest * 1e3:.0f} ms", grade)


def _broken_off(answer: Answer) -> Finding:
    """What a client sees of a stream that cannot be gone on with."""
    ending = {"complete": "a complete message", "cut": "the connection ends", "silence": "nothing more"}[answer.ending]
    error, tokens = answer.error, f"{answer.tokens} tokens, then"
    if answer.ending == "silence":
        return Finding(f"{tokens} nothing more", 0)
    if error is None:
        silent = answer.ending == "complete"
        return Finding(f"{tokens} {ending}, without a word", 0 if silent or answer.is_done else 1)
    if answer.is_done:
        return Finding(f"{tokens} an error event, followed by [DONE]", 2)
    return Finding(f"{tokens} an error event ({error.get('code') or error.get('type')}), no [DONE]", 3)


async def _all_die(launch: Launch) -> Finding:
    async with _Bench(launch, Script(die_after=5)) as bench:
        return _broken_off(await ask(bench.door, chat_body(stream=True)))


async def _one_dies(launch: Launch) -> Finding:
    async with _Bench(launch, Script(token_seconds=0.05)) as bench:
        reader, writer = await post(bench.door, chat_body(stream=True))
        begun = time.perf_counter()
        engine = await bench.busy_engine()
        reading = asyncio.create_task(read_answer(reader, begun, 10))
        await asyncio.sleep(0.3)
        engine.kill()
        answer = await reading
        writer.transport.abort()
    if answer.is_good and answer.is_done and answer.error is None and answer.tokens > 5:
        return Finding("the stream goes on to its end", 3)
    broken = _broken_off(answer)
    return Finding(broken.text, min(broken.grade, 2))


async def _dies_before(launch: Launch) -> Finding:
    async with _Bench(launch, Script()) as bench:
        for engine in bench.engines:
            engine.script = Script(die_after=0)
        answer = await ask(bench.door, chat_body(stream=False))
    if answer.ending != "complete" or not answer.status:
        return Finding("the connection is closed" if answer.ending == "cut" else "nothing", 0)
    has_words = answer.error is not None
    return Finding(f"{answer.status}{' with a JSON error' if has_words else ''}", 3 if has_words else 2)


# ---- a worker talks nonsense, or nothing


async def _nonsense(launch: Launch) -> Finding:
    async with _Bench(launch, Script()) as bench:
        bench.run(Script(raw=b"\x00\xff\xfe garbage\r\n\r\n\r\n"))
        answer = await ask(bench.door, chat_body(stream=False), seconds=10)
        bench.run(Script())
        await asyncio.sleep(0.2)
        after = await _eventually_good(bench.door)
    if not answer.status or answer.ending != "complete":
        return Finding("the connection is closed" if answer.ending == "cut" else "nothing within 10 s", 0)
    text = f"{answer.status}{' with a JSON error' if answer.error else ''}; afterwards {after}"
    return Finding(text, (3 if answer.error else 2) if answer.status >= 500 and after.startswith("200") else 1)


async def _eventually_good(door: Door) -> str:
    begun = time.perf_counter()
    while time.perf_counter() - begun < 12:
        answer = await ask(door, chat_body(stream=False))
        if answer.is_good:
            return f"200 after {time.perf_counter() - begun:.1f} s"
        await asyncio.sleep(0.1)
    return f"still {answer.status or 'nothing'} after 12 s"


async def _nonsense_in_stream(launch: Launch) -> Finding:
    async with _Bench(launch, Script(nonsense_after=5), PATIENCE_SECONDS) as bench:
        return _broken_off(await ask(bench.door, chat_body(stream=True), seconds=4 * PATIENCE_SECONDS))


async def _stalled(launch: Launch) -> Finding:
    async with _Bench(launch, Script(stall_after=0), PATIENCE_SECONDS) as bench:
        answer = await ask(bench.door, chat_body(stream=False), seconds=8 * PATIENCE_SECONDS)
    if not answer.status or answer.ending != "complete":
        return Finding("the connection is closed" if answer.ending == "cut" else "nothing within 16 s", 0)
    text = f"{answer.status}{' with a JSON error' if answer.error else ''} after {answer.seconds:.1f} s"
    return Finding(text, 3 if answer.error and answer.seconds < 4 * PATIENCE_SECONDS else 2)


async def _stalled_in_stream(launch: Launch) -> Finding:
    async with _Bench(launch, Script(stall_after=5), PATIENCE_SECONDS) as bench:
        return _broken_off(await ask(bench.door, chat_body(stream=True), seconds=8 * PATIENCE_SECONDS))


# ---- bodies


async def _fidelity(launch: Launch) -> Finding:
    fields = {
        "max_tokens": 7,
        "service_tier": "standard",
        "priority": -3,
        "x_unknown": {"a": 1.50},
        "cache_salt": "tenant-1",
        "temperature": 0.25,
        "metadata": {"trace": "é"},
    }
    body = chat_body(stream=False, **fields)
    async with _Bench(launch, Script()) as bench:
        answer = await ask(bench.door, body)
        bodies = [one for engine in bench.engines for one in engine.bodies]
    if not bodies:
        return Finding(f"no request reached an engine ({answer.status})", 0)
    if bodies[-1] == body:
        return Finding("byte for byte", 3)
    sent, got = json.loads(body), json.loads(bodies[-1])
    lost, added = sorted(sent.keys() - got.keys()), sorted(got.keys() - sent.keys())
    changed = sorted(name for name in sent.keys() & got.keys() if sent[name] != got[name])
    notes = [f"{what} {', '.join(names)}" for what, names in (("lost", lost), ("changed", changed)) if names]
    if added:
        notes.append(f"{len(added)} fields added")
    return Finding(f"re-encoded; {'; '.join(notes) or 'the same fields'}", 0 if lost or changed else 1 if added else 2)


async def _big_body(launch: Launch) -> Finding:
    best = 0
    async with _Bench(launch, Script()) as bench:
        for mib in (1, 4, 16, 60):
            if not (await ask(bench.door, chat_body(stream=False, content="x" * (mib * _MIB)), seconds=60)).is_good:
                break
            best = mib
    return Finding(f"{best} MiB", 3 if best >= 60 else 2 if best >= 4 else 0)


# ---- a slow client, and the end of the router


async def _slow_client(launch: Launch) -> Finding:
    """A client that asks for 32 MiB of events and reads none of it for two seconds, and then all."""
    async with _Bench(launch, Script()) as bench:
        await ask(bench.door, chat_body(stream=True))
        bench.run(Script(token_seconds=0, event_bytes=_FLOOD_EVENT_BYTES))
        before = _memory_bytes(bench.door.pid)
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.door.port, limit=2**12)
        body = chat_body(stream=True, max_tokens=_FLOOD_EVENTS)
        writer.write(bench.door.head(len(body)) + body)
        await asyncio.sleep(2)
        held = max(_memory_bytes(bench.door.pid) - before, 0) / _MIB
        neighbour = await ask(bench.door, chat_body(stream=False))
        answer = await read_answer(reader, time.perf_counter(), 10)
        writer.transport.abort()
    is_whole = answer.is_good and answer.is_done and answer.tokens == _FLOOD_EVENTS
    text = f"{held:.1f} MiB held of {_FLOOD_EVENTS * _FLOOD_EVENT_BYTES // _MIB}, "
    text += "all delivered later" if is_whole else f"{answer.tokens} of {_FLOOD_EVENTS} events delivered later"
    if not neighbour.is_good:
        text += "; others are not served meanwhile"
    return Finding(text, 0 if not is_whole or not neighbour.is_good else 3 if held <= 4 else 2 if held <= 16 else 1)


async def _drain(launch: Launch) -> Finding:
    async with _Bench(launch, Script(token_seconds=0.05)) as bench:
        reader, writer = await post(bench.door, chat_body(stream=True, max_tokens=40))
        begun = time.perf_counter()
        await reader.readuntil(b" token3")
        rest = asyncio.create_task(_rest(reader))
        bench.router.drain()
        await asyncio.sleep(0.3)
        late = await ask(bench.door, chat_body(stream=False, content="late"), seconds=5)
        is_whole = await rest
        writer.transport.abort()
        has_ended = await bench.router.ended(10)
        seconds = time.perf_counter() - begun
    newcomers = "refused" if not late.status else f"answered {late.status}"
    text = f"the stream {'ends whole' if is_whole else 'is cut'}; newcomers {newcomers}; "
    text += f"the process ends after {seconds:.1f} s" if has_ended else "the process does not end within 10 s"
    grade = 0 if not is_whole else 1 if not has_ended else 3 if late.ending != "silence" else 2
    return Finding(text, grade)


async def _rest(reader: asyncio.StreamReader) -> bool:
    """Whether the rest of a stream comes to its end."""
    data = b""
    try:
        async with asyncio.timeout(15):
            while not data.endswith(b"0\r\n\r\n"):
                more = await reader.read(2**16)
                if not more:
                    break
                data += more
    except (TimeoutError, ConnectionError):
        pass
    return data.endswith(b"0\r\n\r\n") and b"[DONE]" in data and b" token40" in data


def _memory_bytes(pid: int) -> int:
    """Resident memory of a process and its children."""
    total = 0
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            total += int(line.split()[1]) * 1024
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        total += sum(_memory_bytes(int(child)) for child in task.read_text().split())
    return total


_BROKEN = "3: an error event and no [DONE]; 2: an error event, then [DONE]; 1: the connection ends; 0: looks whole"
_LEFT = "3: every time within 50 ms; 2: within 250 ms; 1: within 8 s"
PROBES: Final = (
    Probe("leaves-in-prefill", "client leaves in a long prefill: the engine sees it after", _LEFT, _leaves_in_prefill),
    Probe("leaves-in-stream", "client leaves in a stream: the engine sees it after", _LEFT, _leaves_in_stream),
    Probe(
        "dead-engine",
        "one of two engines is killed: what clients see",
        "3: no failure, each within 1 s; 2: no failure; 1: up to a tenth fails",
        _dead_engine,
    ),
    Probe("all-die", "every engine dies after 5 tokens: the client sees", _BROKEN, _all_die),
    Probe(
        "one-dies",
        "one of two engines dies in a stream: the client sees",
        "3: the rest of the answer; 2: an error event; 1: the connection ends; 0: looks whole",
        _one_dies,
    ),
    Probe(
        "dies-before",
        "engines close without an answer: the client sees",
        "3: a JSON error; 2: a status; 0: neither",
        _dies_before,
    ),
    Probe(
        "nonsense",
        "engines answer with what is not HTTP: the client sees",
        "3: 5xx and a JSON error, and a good engine is used again; 2: 5xx; 1: another status, or no recovery; 0: none",
        _nonsense,
    ),
    Probe(
        "nonsense-in-stream",
        "engine sends what is no chunk after 5 tokens: the client sees",
        _BROKEN,
        _nonsense_in_stream,
    ),
    Probe(
        "stalled",
        f"engines say nothing (patience {PATIENCE_SECONDS} s): the client sees",
        f"3: a JSON error within {4 * PATIENCE_SECONDS} s; 2: a status; 0: neither",
        _stalled,
    ),
    Probe(
        "stalled-in-stream",
        "engine falls silent after 5 tokens (same patience): the client sees",
        _BROKEN,
        _stalled_in_stream,
    ),
    Probe(
        "fidelity",
        "the body that reaches the engine",
        "3: byte for byte; 2: re-encoded with the same fields; 1: with fields added; 0: fields lost or changed",
        _fidelity,
    ),
    Probe("big-body", "largest prompt taken of 1, 4, 16 and 60 MiB", "3: 60 MiB; 2: at least 4 MiB", _big_body),
    Probe(
        "slow-client",
        "client reads nothing for 2 s: what the router holds",
        "3: at most 4 MiB, and all is delivered later; 2: at most 16 MiB; 1: more; 0: not delivered",
        _slow_client,
    ),
    Probe(
        "drain",
        "asked to end in the middle of a stream",
        "3: the stream ends whole, the process then, newcomers hear at once; 2: newcomers hang; 1: no end; 0: cut",
        _drain,
    ),
)
