"""What one replica tells the others about cached prefixes: the records, what need not be told twice, what waits.

Owns the form of a stream entry and two bounded memories. Pure: no Redis, no clock, no loop.

An entry is a msgpack array of records, in their order, each an array of five:

    ["held", pool, worker uid, epoch, digests]    the worker was sent a prompt with these blocks: 8 bytes each, little
                                                  endian, in the order of the chain, but not always from its beginning
    ["gone", pool, worker uid, epoch, digests]    its own events say that it does not hold them any more
"""

import sys
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

RECORD_BLOCKS: Final = 4096  # in one record; a longer chain makes several
ENTRY_BYTES: Final = 64 * 1024  # begins a new entry
DIGEST_BYTES: Final = 8


class Held(msgspec.Struct, array_like=True, frozen=True, tag="held"):
    """Blocks that a worker was sent."""

    pool: str
    uid: str
    epoch: str
    digests: bytes


class Gone(msgspec.Struct, array_like=True, frozen=True, tag="gone"):
    """Blocks that a worker has lost."""

    pool: str
    uid: str
    epoch: str
    digests: bytes


Record = Held | Gone

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(list[Record])


def pack(digests: Sequence[int]) -> bytes:
    """Digests (64 bits, unsigned) as bytes."""
    packed = array("Q", digests)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack(data: bytes) -> list[int]:
    """The reverse. `data` is whole digests."""
    packed = array("Q")
    packed.frombytes(data)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()


def encode(records: Iterable[Record]) -> Iterator[bytes]:
    """The records as entries of about ENTRY_BYTES at most."""
    gathered: list[Record] = []
    gathered_bytes = 0
    for record in records:
        gathered.append(record)
        gathered_bytes += len(record.digests)
        if gathered_bytes >= ENTRY_BYTES:
            yield _encoder.encode(gathered)
            gathered, gathered_bytes = [], 0
    if gathered:
        yield _encoder.encode(gathered)


def decode(entry: bytes) -> list[Record]:
    """The records of an entry. Raises ValueError."""
    records = _decoder.decode(entry)
    if any(len(record.digests) % DIGEST_BYTES for record in records):
        raise ValueError("a digest is cut off")
    return records


class Told:
    """Which blocks the others know of, so that of a conversation's next turn only what is new is told.

    Forgets all when it holds `limit_blocks`, or `limit_seconds` after it began: then everything in use is told again,
    before others' indexes would have dropped it, and within what a new replica replays.
    """

    def __init__(self, limit_blocks: int, limit_seconds: float) -> None:
        self._limit_blocks = limit_blocks
        self._limit_seconds = limit_seconds
        self._blocks: dict[tuple[str, str, str], set[int]] = {}
        self._count = 0
        self._began = 0.0

    def new(self, holder: tuple[str, str, str], chain: Sequence[int], now: float) -> Sequence[int]:
        """The end of the chain that was not told yet, and is from now on.

        `holder`: pool, uid and epoch of the worker. `now`: monotonic seconds.
        """
        if self._count >= self._limit_blocks or now - self._began > self._limit_seconds:
            self.forget()
            self._began = now
        told = self._blocks.setdefault(holder, set())
        low, high = 0, len(chain)  # chain[:low] was told, chain[high:] was not: what is told is always a whole prefix
        while low < high:
            middle = (low + high) // 2
            if chain[middle] in told:
                low = middle + 1
            else:
                high = middle
        rest = chain[low:]
        told.update(rest)
        self._count += len(rest)
        return rest

    def gone(self, holder: tuple[str, str, str], digests: Sequence[int]) -> None:
        """The others are told that it has lost these blocks; who sends them to it again says so."""
        told = self._blocks.get(holder)
        if told is not None:
            self._count -= len(told)
            told.difference_update(digests)
            self._count += len(told)

    def forget(self) -> None:
        """Let everything be told again."""
        self._blocks.clear()
        self._count = 0


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
