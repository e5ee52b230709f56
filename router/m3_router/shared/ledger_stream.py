"""Settled bills on their way to Redis: each one once, whatever happens to Redis or to this process.

Owns one stream for all replicas, `{prefix}:ledger`, and per journal the sequence of its newest bill there,
`{prefix}:ledger:applied:JOURNAL`. An entry holds the bills of one flush:

    journal   name of the journal they come from; (journal, number) is unique to a bill
    sequences where each is in that journal, decimal, a space between them; they only ever go up
    bills     one JSON object a line, the fields of `bill.Bill`

Entry and sequence are written by one script, on condition that the sequence still is what it was when it was read. So
neither a reply that got lost nor a call on a connection that was given up, which a frozen Redis carries out later, can
write a bill twice; after any failure the sequence is read again, and says what to send.

New bills wait in memory, up to MAX_WAITING_BYTES, in the parts in which the ledger offers them; older ones, and more,
are read from the journal's files, on a thread.
Redis may come back empty, which is seen within CHECK_SECONDS: then all that the journal still has is sent again. The
stream is trimmed to about `ledger.streamEntries` entries; who wants all bills reads it as it comes.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from redis.asyncio import Redis

from m3_router.money.journal import Journal
from m3_router.money.segments import settled_after
from m3_router.shared.link import Failure, Link

JOURNAL: Final = b"journal"  # the fields of an entry
SEQUENCES: Final = b"sequences"
BILLS: Final = b"bills"

FLUSH_SECONDS: Final = 0.25
MAX_ENTRY_BYTES: Final = 2**17  # about two hundred bills; a millisecond on the wire
MAX_WAITING_BYTES: Final = 16 * 2**20
READ_BYTES: Final = 4 * 2**20  # of files at a time
RETRY_SECONDS: Final = 0.1
CHECK_SECONDS: Final = 5.0  # between two looks at whether Redis still has what it was told

# KEYS: the sequence of the newest bill, the stream. ARGV: that sequence as it is expected to be, and as it is then, how
# many entries the stream keeps, then an entry. Reply: the sequence as it is now.
_WRITE: Final = """
local applied = redis.call('GET', KEYS[1]) or '0'
if applied ~= ARGV[1] then
  return applied
end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', unpack(ARGV, 4))
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
"""

_log = logging.getLogger(__name__)


class Part(msgspec.Struct, frozen=True, gc=False):
    """Settled bills that go together."""

    first: int  # of the sequences
    last: int
    count: int
    sequences: bytes  # as in an entry, like the next
    bills: bytes


def part_of(sequences: list[int], lines: list[bytes]) -> Part:
    """The part of these bills, of which there is one at least."""
    return Part(sequences[0], sequences[-1], len(lines), " ".join(map(str, sequences)).encode(), b"\n".join(lines))


class LedgerStream:
    """The sending end of one replica; `ledger.Ledger` offers, `run` sends."""

    def __init__(self, link: Link, journal: Journal, max_entries: int) -> None:
        self._link = link
        self._journal = journal
        self._max_entries = max_entries
        self._stream_key = link.key("ledger")
        self._applied_key = link.key("ledger", "applied", journal.name)
        # Every bill behind `_complete_after` is here, in order; older ones are in the journal's files alone.
        self._waiting: deque[Part] = deque()
        self._waiting_bytes = 0
        self._complete_after = journal.first_sequence - 1
        self._has_more = asyncio.Event()
        self._is_caught_up = asyncio.Event()
        self.sent_bills = 0

    @property
    def is_caught_up(self) -> bool:
        """Whether Redis has all that was offered."""
        return self._is_caught_up.is_set()

    @property
    def waiting_bills(self) -> int:
        """Bills in memory that Redis does not have."""
        return sum(part.count for part in self._waiting)

    def offer(self, sequences: list[int], lines: list[bytes]) -> None:
        """Settled bills: the sequence of each in the journal, and its line. Never waits."""
        part = part_of(sequences, lines)
        self._waiting.append(part)
        self._waiting_bytes += len(part.bills)
        if self._waiting_bytes > MAX_WAITING_BYTES:
            self._complete_after = part.last
            self._waiting.clear()
            self._waiting_bytes = 0
        self._has_more.set()
        self._is_caught_up.clear()

    async def run(self) -> None:
        """Send, until cancelled."""
        while True:
            await self._link.until_shared()
            applied = await self._link.call("ledger", self._read_applied)
            if not isinstance(applied, Failure):
                if applied > self._journal.last_sequence:
                    _log.error(
                        "Redis has bills of journal %s that %s does not have, as after restoring an old copy of it; "
                        "nothing is sent to Redis: give this router an empty directory",
                        self._journal.name,
                        self._journal.directory,
                    )
                    return
                await self._send_from(applied)
            self._is_caught_up.clear()
            await asyncio.sleep(RETRY_SECONDS)

    async def flush(self, seconds: float) -> bool:
        """Wait until Redis has everything, at most so long. Returns whether it has."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._is_caught_up.wait()
        return self.is_caught_up

    async def _send_from(self, applied: int) -> None:
        """Send what is behind `applied`, until something goes wrong or Redis is not where it was."""
        self._take_note(applied)
        while True:
            parts = await self._next(applied)
            for entry in _entries(parts):
                if not await self._send(applied, entry):
                    return
                applied = entry[-1].last
                self._take_note(applied)
            if not parts and await self._link.call("ledger", self._read_applied) != applied:
                return

    async def _next(self, applied: int) -> list[Part]:
        """The bills behind `applied`, waited for; none if there was none for CHECK_SECONDS."""
        if applied < self._complete_after:
            complete_after = self._complete_after
            records = await asyncio.to_thread(settled_after, self._journal.directory, applied, READ_BYTES)
            older = [part_of([r.sequence], [r.payload]) for r in records if r.sequence <= complete_after]
            if older:
                return older
            # The files have no more: what was between is retired, or a full disk has not taken it.
        if not self._waiting:
            self._is_caught_up.set()
            self._has_more.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._has_more.wait()
        if 0 < self._waiting_bytes < MAX_ENTRY_BYTES:
            await asyncio.sleep(FLUSH_SECONDS)  # so that an entry has many
        return list(self._waiting)

    async def _send(self, expected: int, entry: list[Part]) -> bool:
        async def write(redis: "Redis") -> int:
            return await self._write(redis, expected, entry)

        if await self._link.call("ledger", write) != entry[-1].last:
            return False  # it failed, or Redis was not there
        self.sent_bills += sum(part.count for part in entry)
        return True

    def _take_note(self, applied: int) -> None:
        """Redis has everything up to `applied`."""
        waiting = self._waiting
        while waiting and waiting[0].first <= applied:  # of a part of which it has some, the files have the rest
            part = waiting.popleft()
            self._waiting_bytes -= len(part.bills)
            self._complete_after = part.last
        self._journal.confirm(applied)

    async def _read_applied(self, redis: "Redis") -> int:
        return int(await redis.get(self._applied_key) or 0)

    async def _write(self, redis: "Redis", expected: int, entry: list[Part]) -> int:
        """Write one entry, if Redis still is at `expected`. Returns where it is then."""
        keys = (self._applied_key, self._stream_key)
        arguments: list[Any] = [expected, entry[-1].last, self._max_entries, JOURNAL, self._journal.name]
        arguments += [SEQUENCES, b" ".join([part.sequences for part in entry])]
        arguments += [BILLS, b"\n".join([part.bills for part in entry])]
        return int(await redis.eval(_WRITE, len(keys), *keys, *arguments))


def _entries(parts: list[Part]) -> Iterator[list[Part]]:
    """The same bills, in pieces that one entry can hold."""
    entry: list[Part] = []
    size = 0
    for part in parts:
        entry.append(part)
        size += len(part.bills)
        if size >= MAX_ENTRY_BYTES:
            yield entry
            entry, size = [], 0
    if entry:
        yield entry
