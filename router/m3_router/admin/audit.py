"""Who changed what: one JSON line for every administrative act, also for those that were refused or failed.

Owns the lines and a ring of the newest ones. A line never holds a key, at most the digest of one.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from m3_router.admin.document import AuditEntry

RING_ENTRIES: Final = 100
Outcome = Literal["done", "refused", "failed"]

_encode_lines: Final = msgspec.json.Encoder().encode_lines


class Audit:
    """The record of acts. write: gets whole lines and their number; wall_clock: seconds since the epoch."""

    def __init__(self, write: Callable[[bytes, int], None], wall_clock: Callable[[], float]) -> None:
        self._write = write
        self._wall_clock = wall_clock
        self._ring: deque[AuditEntry] = deque(maxlen=RING_ENTRIES)

    def record(
        self, act: str, *, who: str, peer: str, what: dict[str, str], outcome: Outcome, message: str
    ) -> AuditEntry:
        """An act has ended, in whatever way."""
        entry = AuditEntry(round(self._wall_clock(), 3), act, who, peer, what, outcome, message)
        self._ring.append(entry)
        self._write(_encode_lines([entry]), 1)
        return entry

    def newest(self, limit: int) -> list[AuditEntry]:
        """The newest acts, the newest first."""
        return [entry for entry, _ in zip(reversed(self._ring), range(limit), strict=False)]
