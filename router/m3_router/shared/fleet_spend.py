"""What the other replicas have settled, read off the ledger's stream: so that any replica can tell a tenant's usage.

Owns the reading end of `ledger_stream`. Every bill of another journal is counted once, into `others`; this replica's
own are in its own `Spend`, and the two together are the fleet's. It begins with all that the stream holds. When the
stream comes back empty, its writers fill it again: the sequence of each bill says whether it was counted before. Redis
away: the sums stay as they were, and catch up later.
"""

import asyncio
from typing import Any, Final

from redis.asyncio import Redis

from m3_router.money.bill_records import decode_lines
from m3_router.money.spend import Spend
from m3_router.shared.ledger_stream import BILLS, JOURNAL, SEQUENCES
from m3_router.shared.link import Failure, Link

READ_ENTRIES: Final = 16
WAIT_SECONDS: Final = 1.0
PAUSE_SECONDS: Final = 0.25  # between two reads: what came meanwhile is one reply
RETRY_SECONDS: Final = 0.25


class FleetSpend:
    """The bills of all other replicas, summed. `run` until it is cancelled."""

    def __init__(self, link: Link, own_journal: str) -> None:
        self.others = Spend()
        self.malformed_entries = 0
        self.is_caught_up = False  # has read all that there was when it began
        self._link = link
        self._own_journal = own_journal.encode()
        self._key = link.key("ledger")
        self._position = b"0-0"
        self._counted: dict[bytes, int] = {}  # by journal: the last sequence

    async def run(self) -> None:
        """Read, until cancelled."""
        while True:
            await self._link.until_shared()
            reply = await self._link.waiting_call("ledger_read", self._read, WAIT_SECONDS)
            if isinstance(reply, Failure):
                await asyncio.sleep(RETRY_SECONDS)
                continue
            for entry_id, fields in reply:
                self._position = entry_id
                self._count(fields)
                await asyncio.sleep(0)  # hundreds of bills: others have their turn
            self.is_caught_up = self.is_caught_up or not reply
            if 0 < len(reply) < READ_ENTRIES:
                await asyncio.sleep(PAUSE_SECONDS)

    async def _read(self, redis: "Redis") -> list[tuple[bytes, dict[bytes, bytes]]]:
        reply: Any = await redis.xread({self._key: self._position}, count=READ_ENTRIES, block=int(WAIT_SECONDS * 1000))
        return reply[0][1] if reply else []

    def _count(self, fields: dict[bytes, bytes]) -> None:
        journal = fields.get(JOURNAL)
        if journal == self._own_journal:
            return
        try:
            sequences = [int(sequence) for sequence in fields[SEQUENCES].split()]
            lines = decode_lines(fields[BILLS])
        except (KeyError, ValueError):  # msgspec's errors among them
            self.malformed_entries += 1
            return
        if journal is None or len(lines) != len(sequences):
            self.malformed_entries += 1
            return
        if not sequences:
            return
        counted = self._counted.get(journal, 0)
        self.others.count_lines(line for line, sequence in zip(lines, sequences, strict=True) if sequence > counted)
        self._counted[journal] = max(counted, sequences[-1])
