"""What one replica tells the others about cached prefixes: records, entries of them, and the entries that wait.

Owns the form of a stream entry, and a bounded memory of entries. Pure: no Redis, no clock, no loop.

An entry is a msgpack array of records, in their order, each an array of five:

    ["held", pool, worker uid, epoch, digests]    the worker was sent a prompt with these blocks: unsigned integers of
                                                  64 bits, in the order of the chain, but not always from its beginning
    ["gone", pool, worker uid, epoch, digests]    its own events say that it does not hold them any more
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

RECORD_BLOCKS: Final = 4096  # in one record; a longer chain makes several
ENTRY_BLOCKS: Final = 8192  # begins a new entry; of 9 bytes each


class Held(msgspec.Struct, array_like=True, frozen=True, tag="held", gc=False):
    """Blocks that a worker was sent."""

    pool: str
    uid: str
    epoch: str
    digests: list[int]


class Gone(msgspec.Struct, array_like=True, frozen=True, tag="gone", gc=False):
    """Blocks that a worker has lost."""

    pool: str
    uid: str
    epoch: str
    digests: list[int]


Record = Held | Gone

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(list[Record])


def encode(records: Iterable[Record]) -> Iterator[bytes]:
    """The records as entries of about ENTRY_BLOCKS at most."""
    gathered: list[Record] = []
    blocks = 0
    for record in records:
        gathered.append(record)
        blocks += len(record.digests)
        if blocks >= ENTRY_BLOCKS:
            yield _encoder.encode(gathered)
            gathered, blocks = [], 0
    if gathered:
        yield _encoder.encode(gathered)


def decode(entry: bytes) -> list[Record]:
    """The records of an entry. Raises ValueError."""
    return _decoder.decode(entry)


class Outbox:
    """This replica's entries: those to be sent, and behind them the newest that were, for a Redis that lost them."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._entries: deque[bytes] = deque()  # oldest first: sent ones, then unsent ones
        self._unsent = 0
        self._bytes = 0
        self.dropped = 0  # entries that were never sent

    @property
    def unsent(self) -> int:
        """Entries that wait."""
        return self._unsent

    def add(self, entry: bytes) -> None:
        """Take a new entry; the oldest are dropped where there is no room, sent or not."""
        self._entries.append(entry)
        self._unsent += 1
        self._bytes += len(entry)
        while self._bytes > self._limit_bytes and len(self._entries) > 1:
            self._bytes -= len(self._entries.popleft())
            if self._unsent > len(self._entries):
                self._unsent -= 1
                self.dropped += 1

    def next(self, limit_bytes: int) -> list[bytes]:
        """The oldest entries that wait, one at least if there are any."""
        entries: list[bytes] = []
        total_bytes = 0
        first = len(self._entries) - self._unsent
        for place in range(first, len(self._entries)):
            total_bytes += len(self._entries[place])
            if entries and total_bytes > limit_bytes:
                break
            entries.append(self._entries[place])
        return entries

    def sent(self, entries: list[bytes]) -> None:
        """What `next` gave has arrived. Entries that were dropped meanwhile are none of them."""
        first = len(self._entries) - self._unsent
        place = first
        for entry in entries:
            if place < len(self._entries) and self._entries[place] is entry:
                place += 1
        self._unsent -= place - first

    def send_again(self) -> None:
        """All that is kept waits again."""
        self._unsent = len(self._entries)
