"""The files of the journal: their format, how one is made, and how one is read, whatever a crash has left in it.

Owns the bytes on disk. A segment is a file of fixed size, its blocks reserved when it is made (a write to the mapping
could otherwise meet a full disk, which kills a process), and mapped into memory: what was written is in the kernel's
hands at once and survives the death of the process without a system call. Little-endian:

    segment   magic "m3bills1", name of the journal (16 hex digits), number of its first record (u64), records, zeros
    record    length (u32, of the payload, never 0), checksum (u32), sequence (u64), number (u64), kind (u8), payload

A settled payload is the bill as JSON, an opened one is `bill.OpenedBill` as MessagePack. `sequence` counts the records
of a journal up and is never given twice; `number` is the bill's: the sequence of the first record about it. The
checksum is xxh32 of the payload, seeded with the other fields, their upper halves folded onto the lower: a record that
was cut short does not have it, and ends what can be read of its segment. No process writes into a segment that another
one began.
"""

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import xxhash

MAGIC: Final = b"m3bills1"
OPENED: Final = 1  # a bill before it is dispatched; the newest one of a bill counts
SETTLED: Final = 2  # a bill for good
SUFFIX: Final = ".bills"

HEAD: Final = struct.Struct("<8s16sQ")
RECORD: Final = struct.Struct("<IIQQB")
MAX_PAYLOAD_BYTES: Final = 2**15  # a bill has a kilobyte, and the smallest segment 64

READ_BYTES: Final = 2**18  # of a segment at a time
SEED_MASK: Final = 0xFFFFFFFF


class JournalError(Exception):
    """A journal that cannot be used. The message names the file and what to do."""


class Record(NamedTuple):
    """One record of a segment."""

    sequence: int
    number: int
    kind: int
    payload: bytes


class SegmentHead(NamedTuple):
    """What a segment says of itself."""

    journal: str
    first_sequence: int


class MadeFile(NamedTuple):
    """A new file, mapped for writing."""

    descriptor: int
    mapping: mmap.mmap


def checksum(payload: bytes, sequence: int, number: int, kind: int) -> int:
    """Of one record. The journal computes the same in place."""
    return xxhash.xxh32_intdigest(payload, (sequence ^ sequence >> 32 ^ number ^ number >> 32 ^ kind) & SEED_MASK)


def segment_paths(directory: Path) -> list[Path]:
    """Every segment of a directory, the oldest first."""
    return sorted(directory.glob(f"*{SUFFIX}"))


def segment_path(directory: Path, first_sequence: int) -> Path:
    """Where the segment that begins with this record is; names sort as records do."""
    return directory / f"{first_sequence:020d}{SUFFIX}"


def create(path: Path, size_bytes: int) -> MadeFile:
    """Make a file of zeros with all its blocks reserved. Raises OSError, and leaves no file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
        return MadeFile(descriptor, mmap.mmap(descriptor, size_bytes))
    except OSError:
        os.close(descriptor)
        path.unlink()
        raise


def lock(directory: Path) -> int:
    """The descriptor that holds a directory for this process, and loses it with it. Raises JournalError."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise JournalError(
            f"{directory}: another router writes its ledger here; give each one a directory of its own"
        ) from error
    return descriptor


def read_head(path: Path) -> SegmentHead | None:
    """What a segment says of itself; None of one that was made and never begun, or that is none of ours."""
    with path.open("rb") as file:
        data = file.read(HEAD.size)
    if len(data) < HEAD.size:
        return None
    magic, journal, first_sequence = HEAD.unpack(data)
    return SegmentHead(journal.decode("ascii", "replace"), first_sequence) if magic == MAGIC else None


def read_records(path: Path) -> Iterator[Record]:
    """Every whole record of a segment, in order, up to its end or to where a crash or a power loss has cut it.

    Safe while another thread appends to it: what is not yet complete is not read. Holds a part of the file at a time,
    since memory that was used once for all of it stays with the process.
    """
    with path.open("rb") as file:
        if file.read(HEAD.size)[: len(MAGIC)] != MAGIC:
            return
        data, at = b"", 0
        while True:
            if len(data) - at < RECORD.size + MAX_PAYLOAD_BYTES:
                data, at = data[at:] + file.read(READ_BYTES), 0
            if len(data) - at < RECORD.size:
                return
            length, check, sequence, number, kind = RECORD.unpack_from(data, at)
            begin = at + RECORD.size
            at = begin + length
            if length == 0 or length > MAX_PAYLOAD_BYTES or at > len(data):
                return
            payload = data[begin:at]
            if checksum(payload, sequence, number, kind) != check:
                return
            yield Record(sequence, number, kind, payload)


def settled_after(directory: Path, sequence: int, max_bytes: int) -> list[Record]:
    """The settled bills behind `sequence`, the oldest first, of about `max_bytes` at most. Reads files: not for a loop.

    A segment that is retired meanwhile was not needed any more.
    """
    found: list[Record] = []
    size = 0
    paths = segment_paths(directory)
    for path, following in zip(paths, [*paths[1:], None], strict=True):
        if following is not None and int(following.stem) <= sequence:
            continue  # all of it is older
        try:
            records = list(read_records(path))
        except FileNotFoundError:
            continue
        for record in records:
            if record.kind == SETTLED and record.sequence > sequence:
                found.append(record)
                size += len(record.payload)
                if size >= max_bytes:
                    return found
    return found
