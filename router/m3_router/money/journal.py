"""The write-ahead file of the ledger: what was dispatched and what was settled, before anybody is told.

Owns the writing side; the format is `segments`'. `opened` before a request goes out, `settled` when it has ended; what
was opened and not settled when the process died is what `recover` returns, for its replacement to settle.

A record costs no system call: it is copied into a mapped file, which a SIGKILL cannot undo. A thread has the kernel
write the file down (fdatasync) SYNC_SECONDS after the first record that is not yet on disk; so what a power loss or a
kernel crash may cost is the records of the last SYNC_SECONDS and of the time that the disk takes, never older ones.

A full segment is followed by one that the thread has made ready. The oldest segments are removed when there are more
than `retain_segments`, but none before every bill that was opened in it is settled and, where Redis is configured
(`confirm`), Redis has all that was settled in it. On a full disk the router goes on without: such records are counted
in `lost_records` and logged, and the bills are in the log and on their way to Redis all the same.
"""

import mmap
import os
from pathlib import Path
from secrets import token_hex
from typing import Final

from mypy_extensions import i64
from xxhash import xxh32_intdigest

from m3_router.config import ConfigError, RouterConfig
from m3_router.money.journal_keeper import JournalKeeper, Segment
from m3_router.money.segments import (
    HEAD,
    MAGIC,
    MAX_PAYLOAD_BYTES,
    OPENED,
    RECORD,
    SEED_MASK,
    SETTLED,
    JournalError,
    lock,
    read_head,
    read_records,
    segment_path,
    segment_paths,
)

# Each start counts on from the next multiple, so that a sequence which a power loss took from the file, and Redis has
# seen, is never given again. Room for 64 billion records a start, and for 131,072 starts below 2^53.
START_BITS: Final = 36

# Compiled, these are machine words; what is made of them for each record would otherwise be objects.
_RECORD_BYTES: Final[i64] = RECORD.size
_SEED_MASK: Final[i64] = SEED_MASK
_pack: Final = RECORD.pack


class Unsettled:
    """A bill that was opened and never settled, as it was at its newest dispatch."""

    __slots__ = ("number", "payload")

    def __init__(self, number: int, payload: bytes) -> None:
        self.number = number
        self.payload = payload


class Journal:
    """One directory, held by this process alone. For one thread, the event loop's; `close` it in the end."""

    def __init__(self, directory: Path, segment_bytes: int, retain_segments: int, *, awaits_redis: bool) -> None:
        """Take the directory and read what is in it: about a second a gigabyte. Raises JournalError, OSError."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._segment_bytes = segment_bytes
        self._retain_segments = retain_segments
        self._lock = lock(directory)
        self.name = ""  # 16 hex digits, the same after every restart
        self.lost_records = 0
        self._open: dict[int, Segment] = {}  # by number: where a bill that is not settled was opened first
        self._unsettled: dict[int, bytes] = {}
        self._segments: list[Segment] = []  # the oldest first; the last one is being written
        self._sequence: i64 = 0  # the last that was given
        self._confirmed = 0 if awaits_redis else -1  # the last that Redis has; -1: nobody waits for that
        try:
            self._recover()
        except BaseException:
            os.close(self._lock)
            raise
        self.name = self.name or token_hex(8)
        self._sequence = ((self._sequence >> START_BITS) + 1) << START_BITS
        self.first_sequence = self._sequence + 1  # of this process; all earlier ones were there when it began
        # the segment being written
        self._mapping: mmap.mmap | None = None
        self._at: i64 = 0
        self._end: i64 = 0
        self._is_dirty = False
        self._keeper = JournalKeeper(directory, segment_bytes, self.synced)
        if not self._begin_segment():
            self._keeper.close()
            os.close(self._lock)
            raise JournalError(f"{directory}: no room for a file of {segment_bytes} bytes")

    # ---- the way of a bill

    def opened(self, number: int, payload: bytes) -> int:
        """Note a bill before it is dispatched; `number` is 0 the first time. Returns its number."""
        if number == 0:
            number = self._sequence + 1
            self._open[number] = self._segments[-1]
            self._segments[-1].open_bills += 1
        self._append(number, OPENED, payload)
        return number

    def settled(self, number: int, payload: bytes) -> int:
        """Note a bill for good. Returns the sequence of its record."""
        segment = self._open.pop(number, None)
        if segment is not None:
            segment.open_bills -= 1
        return self._append(number, SETTLED, payload)

    def take_unsettled(self) -> list[Unsettled]:
        """The bills that an earlier process left open, once. They stay open until each is `settled`."""
        unsettled, self._unsettled = self._unsettled, {}
        return [Unsettled(number, payload) for number, payload in unsettled.items()]

    # ---- what becomes of it

    @property
    def segments(self) -> int:
        """Files there are."""
        return len(self._segments)

    @property
    def last_sequence(self) -> int:
        """The last that was given."""
        return self._sequence

    @property
    def open_bills(self) -> int:
        """Bills opened and not settled."""
        return len(self._open)

    def confirm(self, sequence: int) -> None:
        """Redis has everything that was settled up to `sequence`."""
        self._confirmed = sequence
        self._retire()

    def close(self) -> None:
        """Write all of it down, and let the directory go. Harmless the second time."""
        if self._lock < 0:
            return
        if self._mapping is not None:
            self._keeper.seal(self._segments[-1], self._at)
            self._mapping = None
            self._at = self._end = 0
        self._keeper.close()
        os.close(self._lock)
        self._lock = -1

    # ---- inside

    def _append(self, number: i64, kind: i64, payload: bytes) -> i64:
        self._sequence += 1
        sequence = self._sequence
        length: i64 = len(payload)
        if length > MAX_PAYLOAD_BYTES or (self._at + _RECORD_BYTES + length > self._end and not self._begin_segment()):
            self.lost_records += 1
            return sequence
        mapping = self._mapping
        assert mapping is not None  # noqa: S101 - there is room in it
        begin = self._at
        end = begin + _RECORD_BYTES + length
        self._at = end
        check = xxh32_intdigest(payload, (sequence ^ sequence >> 32 ^ number ^ number >> 32 ^ kind) & _SEED_MASK)
        mapping[begin:end] = _pack(length, check, sequence, number, kind) + payload
        if not self._is_dirty:
            self._is_dirty = True
            self._keeper.sync_soon()
        return sequence

    def _begin_segment(self) -> bool:
        """Go on in a new file. False if there is none: the disk is full."""
        if self._mapping is not None:
            # The record for which there was no room has a sequence already.
            self._segments[-1].last_sequence = self._sequence - 1
            self._keeper.seal(self._segments[-1], self._at)
            self._mapping = None
            self._at = self._end = 0
        made = self._keeper.take()
        if made is None:
            return False
        first_sequence = self._sequence
        segment = Segment(segment_path(self.directory, first_sequence), made.descriptor, made.mapping)
        HEAD.pack_into(made.mapping, 0, MAGIC, self.name.encode(), first_sequence)
        self._keeper.begin(segment)
        self._segments.append(segment)
        self._mapping = made.mapping
        self._at = HEAD.size
        self._end = self._segment_bytes
        self._retire()
        return True

    def synced(self) -> int:
        """The descriptor of the file whose bytes go to the disk now, -1 if there is none; for the keeper's thread."""
        self._is_dirty = False
        return self._segments[-1].descriptor

    def _retire(self) -> None:
        segments = self._segments
        while len(segments) > self._retain_segments:
            oldest = segments[0]
            if oldest.open_bills or (self._confirmed >= 0 and oldest.last_sequence > self._confirmed):
                return
            del segments[0]
            self._keeper.remove(oldest)

    def _recover(self) -> None:
        """Read every segment: who is open, and what was the last sequence. Removes files that were never begun."""
        for path in segment_paths(self.directory):
            head = read_head(path)
            if head is None:
                path.unlink()
                continue
            if self.name and head.journal != self.name:
                raise JournalError(
                    f"{path}: belongs to the journal {head.journal}, and the files before it to {self.name}; "
                    "give each router a directory of its own"
                )
            self.name = head.journal
            segment = Segment(path)
            segment.last_sequence = head.first_sequence
            self._segments.append(segment)
            for record in read_records(path):
                self._recover_record(segment, record.sequence, record.number, record.kind, record.payload)
            self._sequence = segment.last_sequence

    def _recover_record(self, segment: Segment, sequence: int, number: int, kind: int, payload: bytes) -> None:
        segment.last_sequence = sequence
        if kind == OPENED:
            if number not in self._open:
                self._open[number] = segment
                segment.open_bills += 1
            self._unsettled[number] = payload
        elif number in self._open:
            self._open.pop(number).open_bills -= 1
            del self._unsettled[number]


def open_journal(config: RouterConfig, process: int) -> Journal | None:
    """The journal of one of a router's processes, None where none is configured. Raises ConfigError."""
    settings, directory = config.ledger, config.ledger.directory
    if directory is None:
        return None
    if config.processes > 1:
        directory = directory / f"process-{process}"
    try:
        return Journal(
            directory, settings.segment_bytes, settings.retain_segments, awaits_redis=config.redis is not None
        )
    except (JournalError, OSError) as error:
        raise ConfigError(f"ledger.directory: {error}") from error
