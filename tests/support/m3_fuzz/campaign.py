"""Cases side by side for so many seconds, and what must hold of them.

Every connection ends within the router's own time limits; every answer is HTTP, or the connection is closed; a good
request is answered all the while (the canary); the process lives, says of no exception that nobody expected, and does
not grow. What was found names the case, which `python -m m3_fuzz --seed S --case N` sends alone.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from m3_behaviour import Door, ask, chat_body
from m3_fuzz.answers import read_answers
from m3_fuzz.cases import Case, make_case
from m3_fuzz.corpus import KEY, REQUESTS
from m3_fuzz.process import RouterProcess

SIDE_BY_SIDE: Final = 48
# What the router may take: a slow head or body (2 s each), a wait in a lane (2 s), attempts at a silent worker (5 s
# each, at most 3), its pause (5 s) and a lingering close (2 s); a busy machine doubles it.
END_SECONDS: Final = 60.0
OWN_DELAY_SECONDS: Final = 0.5  # of our own loop, in which the good worker runs too: then it is not the router's fault
CANARY_SECONDS: Final = 10.0
CANARY_PAUSE_SECONDS: Final = 0.25
WEIGH_PAUSE_SECONDS: Final = 0.5
MAX_FAULTS: Final = 20
# The newest bills that a router keeps (its RING_BILLS): until it has them it grows, as it should.
KEPT_BILLS: Final = 10_000
FILL_CONNECTIONS: Final = 16


@dataclass
class Findings:
    """What a campaign saw. memory: (seconds since its begin, bytes)."""

    faults: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    cases: int = 0
    silent: int = 0  # connections that were closed without an answer
    canaries: int = 0
    delayed_canaries: int = 0  # by ourselves: these tell nothing
    slowest_canary_seconds: float = 0.0
    memory: list[tuple[float, int]] = field(default_factory=list)

    def fault(self, text: str) -> None:
        """Note something that must not be."""
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(text)

    @property
    def growth_bytes_per_minute(self) -> float:
        """The slope of a straight line through the second half of the weighings."""
        half = self.memory[len(self.memory) // 2 :]
        return 60 * _slope(half)

    @property
    def growth_bytes(self) -> int:
        """From the first quarter's most to the last quarter's most."""
        quarter = max(len(self.memory) // 4, 1)
        most = [max(size for _, size in part) for part in (self.memory[:quarter], self.memory[-quarter:])]
        return most[1] - most[0]

    @property
    def summary(self) -> str:
        """In a few lines."""
        statuses = ", ".join(f"{status}: {count:,}" for status, count in sorted(self.statuses.items()))
        most = max((size for _, size in self.memory), default=0)
        return (
            f"{self.cases:,} connections, {self.silent:,} closed without an answer; answers {statuses}\n"
            f"{self.canaries:,} good requests meanwhile ({self.delayed_canaries:,} delayed by the fuzzer itself), "
            f"the slowest took {self.slowest_canary_seconds:.2f} s\n"
            f"memory: at most {most / 2**20:.1f} MiB, {self.growth_bytes / 2**20:+.1f} MiB from the first to the last "
            f"quarter, {self.growth_bytes_per_minute / 2**20:+.2f} MiB a minute in the second half\n"
            f"{len(self.faults)} faults"
        )


async def campaign(router: RouterProcess, seed: int, seconds: float) -> Findings:
    """Send cases until the time is over."""
    findings = Findings()
    begun = time.monotonic()
    numbers = iter(range(10**9))
    until = begun + seconds

    async def client() -> None:
        while time.monotonic() < until and router.is_alive and len(findings.faults) < MAX_FAULTS:
            await run_case(router, make_case(next(numbers), seed, REQUESTS), findings)

    watching = [asyncio.create_task(_canary(router, findings)), asyncio.create_task(_weigh(router, findings, begun))]
    try:
        await asyncio.gather(*(client() for _ in range(SIDE_BY_SIDE)))
        await asyncio.sleep(CANARY_PAUSE_SECONDS)
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
    if not router.is_alive:
        findings.fault(f"the router ended with {router.process.returncode}: {' / '.join(router.log[-5:])}")
    elif not (await ask(Door(router.port, KEY), chat_body(stream=False), CANARY_SECONDS)).is_good:
        findings.fault("a good request is not answered after it all")
    for line in router.complaints[:MAX_FAULTS]:
        findings.fault(f"the router complains: {line[:2000]}")
    return findings


async def fill(router: RouterProcess) -> None:
    """Have it settle as many priced requests as it keeps bills of. Raises RuntimeError if one is not answered well."""
    left = iter(range(KEPT_BILLS))
    body = chat_body(stream=False)
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        try:
            for _ in left:
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                if not head.startswith(b"http/1.1 200 "):
                    raise RuntimeError(f"a good request was answered {head[:80]!r}")
                await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
        finally:
            writer.transport.abort()

    async with asyncio.TaskGroup() as group:
        for _ in range(FILL_CONNECTIONS):
            group.create_task(client())


async def run_case(router: RouterProcess, case: Case, findings: Findings) -> None:
    """Send one case, and check what comes back."""
    findings.cases += 1
    try:
        async with asyncio.timeout(END_SECONDS):
            data = await _converse(router.port, case)
    except TimeoutError:
        findings.fault(f"case {case.number}: the connection is open after {END_SECONDS:g} s: {case.data[:200]!r}")
        return
    except ConnectionError:
        findings.silent += 1
        return
    reading = read_answers(data)
    findings.statuses.update(reading.statuses)
    findings.silent += not reading.statuses
    if reading.fault:
        findings.fault(f"case {case.number}: an answer that is not HTTP: {reading.fault}; sent {case.data[:200]!r}")


async def _converse(port: int, case: Case) -> bytes:
    """All that the router sent until it closed. Raises ConnectionError where it does not even listen."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    reading = asyncio.create_task(_read_all(reader))
    try:
        with contextlib.suppress(OSError):  # it has heard enough; what it said before is still to be read
            await _send(writer, case, reading)
        return b"" if case.ending == "reset" else await reading
    finally:
        writer.transport.abort()
        reading.cancel()


async def _send(writer: asyncio.StreamWriter, case: Case, reading: asyncio.Task[bytes]) -> None:
    """The pieces, until the router closes."""
    for piece in case.pieces:
        if piece.pause_seconds:
            await asyncio.sleep(piece.pause_seconds)
        if reading.done() or writer.is_closing():
            return
        writer.write(piece.data)
        await writer.drain()
    if case.ending == "half-close":
        writer.write_eof()


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    """Everything until the connection ends, also if it ends by a reset."""
    parts = []
    try:
        while part := await reader.read(2**16):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


async def _canary(router: RouterProcess, findings: Findings) -> None:
    """A good request, again and again, in both forms."""
    door = Door(router.port, KEY)
    while router.is_alive:
        for is_stream in (False, True):
            delay = asyncio.create_task(_own_delay())
            answer = await ask(door, chat_body(stream=is_stream), CANARY_SECONDS)
            delay.cancel()
            own_seconds = (await asyncio.gather(delay, return_exceptions=True))[0]
            findings.canaries += 1
            if isinstance(own_seconds, float) and own_seconds > OWN_DELAY_SECONDS:
                findings.delayed_canaries += 1
                continue
            findings.slowest_canary_seconds = max(findings.slowest_canary_seconds, answer.seconds)
            if not answer.is_good or answer.is_done != is_stream:
                text = f"{answer.status} ({answer.ending}) after {answer.seconds:.1f} s: {answer.body[-300:]!r}"
                findings.fault(f"a good request got {text}")
        await asyncio.sleep(CANARY_PAUSE_SECONDS)


async def _own_delay() -> float:
    """The longest that this loop was late, until this is cancelled."""
    longest = 0.0
    try:
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.02)
            longest = max(longest, time.monotonic() - begun - 0.02)
    except asyncio.CancelledError:
        return longest


async def _weigh(router: RouterProcess, findings: Findings, begun: float) -> None:
    while router.is_alive:
        findings.memory.append((time.monotonic() - begun, router.memory_bytes()))
        await asyncio.sleep(WEIGH_PAUSE_SECONDS)


def _slope(points: Sequence[tuple[float, int]]) -> float:
    """Of the straight line with the least squares; 0 for fewer than two points."""
    if len(points) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
