"""Settled bills on their way to Redis: each one once, whatever happens to Redis or to this process.

Owns one stream for all replicas, `{prefix}:ledger`, and per journal the sequence of its newest bill there,
`{prefix}:ledger:applied:JOURNAL`. An entry holds the bills of one flush:

    journal   name of the journal they come from; (journal, number) is unique to a bill
    first     sequence of the first of them in that journal; entries of a journal follow each other in this order
    last      sequence of the last
    count     how many they are
    bills     one JSON object a line, the fields of `bill.Bill`

Entry and sequence are written in one transaction (MULTI), on condition that the sequence still is what it was when it
was read (WATCH). So neither a reply that got lost nor a transaction of a connection that was given up, and that a frozen
Redis carries out later, can write a bill twice; after any failure the sequence is read again, and says what to send.

What was settled since this process began waits in memory, up to MAX_WAITING_BYTES; what is older, or more, is read from
the journal's files, on a thread. Redis may come back empty: then all that the journal still has is sent again. The
stream is trimmed to about `ledger.streamEntries` entries; who wants all bills reads it as it comes.
"""

import asyncio
import logging
from collections import deque
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import WatchError

from m3_router.journal import Journal
from m3_router.segments import settled_after
from m3_router.shared.link import Failure, Link

FLUSH_SECONDS: Final = 0.25
MAX_ENTRY_BYTES: Final = 2**17  # about two hundred bills; a millisecond on the wire
MAX_WAITING_BYTES: Final = 16 * 2**20
RETRY_SECONDS: Final = 0.1

_log = logging.getLogger(__name__)

_Bills = list[tuple[int, bytes]]


class LedgerStream:
    """The sending end of one replica; `ledger.Ledger` offers, `run` sends."""

    def __init__(self, link: Link, journal: Journal, max_entries: int) -> None:
        self._link = link
        self._journal = journal
        self._max_entries = max_entries
        self._stream_key = link.key("ledger")
        self._applied_key = link.key("ledger", "applied", journal.name)
        # Every bill behind `_complete_after` is here, in order; what is older is in the journal's files alone.
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._waiting_bytes = 0
        self._complete_after = journal.first_sequence - 1
        self._has_more = asyncio.Event()
        self._applied = 0  # the last that is known to be in Redis
        self.sent_bills = 0

    @property
    def is_caught_up(self) -> bool:
        """Whether Redis has all that was offered."""
        return not self._waiting and self._applied >= self._complete_after

    def offer(self, sequences: list[int], lines: list[bytes]) -> None:
        """Settled bills: the sequence of each in the journal, and its line. Never waits."""
        self._waiting.extend(zip(sequences, lines, strict=True))
        self._waiting_bytes += sum(map(len, lines))
        if self._waiting_bytes > MAX_WAITING_BYTES:
            self._complete_after = sequences[-1]
            self._waiting.clear()
            self._waiting_bytes = 0
        self._has_more.set()

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
            await asyncio.sleep(RETRY_SECONDS)

    async def flush(self, seconds: float) -> bool:
        """Wait until Redis has everything, at most so long. Returns whether it has."""
        until = asyncio.get_running_loop().time() + seconds
        while not self.is_caught_up and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(FLUSH_SECONDS / 5)
        return self.is_caught_up

    async def _send_from(self, applied: int) -> None:
        """Send what is behind `applied`, for as long as nothing goes wrong."""
        self._take_note(applied)
        while True:
            bills = await self._next(applied)
            expected, applied = applied, bills[-1][0]

            async def write(redis: "Redis", expected: int = expected, bills: _Bills = bills) -> int | None:
                return await self._write(redis, expected, bills)

            reply = await self._link.call("ledger", write)
            if reply != applied:
                return  # it failed, or somebody has written what we do not know of: read again where Redis is
            self.sent_bills += len(bills)
            self._take_note(applied)

    async def _next(self, applied: int) -> _Bills:
        """The next entry's bills, waited for."""
        while True:
            if applied < self._complete_after:
                bills = await self._from_files(applied)
                if bills:
                    return bills
                applied = self._complete_after  # the files have no more: it was retired, or the disk was full
            bills = self._from_memory()
            if bills:
                return bills
            self._has_more.clear()
            await self._has_more.wait()
            await asyncio.sleep(FLUSH_SECONDS)  # so that an entry has many

    async def _from_files(self, applied: int) -> _Bills:
        complete_after = self._complete_after
        records = await asyncio.to_thread(settled_after, self._journal.directory, applied, MAX_ENTRY_BYTES)
        return [(record.sequence, record.payload) for record in records if record.sequence <= complete_after]

    def _from_memory(self) -> _Bills:
        bills: _Bills = []
        size = 0
        for sequence, line in self._waiting:
            bills.append((sequence, line))
            size += len(line)
            if size >= MAX_ENTRY_BYTES:
                break
        return bills

    def _take_note(self, applied: int) -> None:
        """Redis has everything up to `applied`."""
        self._applied = applied
        waiting = self._waiting
        while waiting and waiting[0][0] <= applied:
            self._waiting_bytes -= len(waiting.popleft()[1])
        self._journal.confirm(applied)

    async def _read_applied(self, redis: "Redis") -> int:
        return int(await redis.get(self._applied_key) or 0)

    async def _write(self, redis: "Redis", expected: int, bills: _Bills) -> int | None:
        """Write one entry, if Redis still is at `expected`. Returns where it is then; None: it has just moved."""
        entry: dict[Any, Any] = {
            "journal": self._journal.name,
            "first": bills[0][0],
            "last": bills[-1][0],
            "count": len(bills),
            "bills": b"\n".join(line for _, line in bills),
        }
        async with redis.pipeline(transaction=True) as pipe:
            await pipe.watch(self._applied_key)
            applied = int(await pipe.get(self._applied_key) or 0)
            if applied != expected:
                return applied
            pipe.multi()  # type: ignore[no-untyped-call] # redis-py leaves it untyped
            pipe.xadd(self._stream_key, entry, maxlen=self._max_entries, approximate=True)
            pipe.set(self._applied_key, bills[-1][0])
            try:
                await pipe.execute()
            except WatchError:
                return None
        return bills[-1][0]
