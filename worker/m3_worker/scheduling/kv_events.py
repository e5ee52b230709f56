"""What happened to the cached pages, told in order to whoever routes by them.

Owns the events, their numbers and the ring that keeps the newest. Events of one step make one batch with one number; an
epoch, drawn at start, says which process' numbers they are. The log also keeps what a follower of all batches knows by
now (`snapshot`), so that one who comes late, or asks for a batch that has left the ring, starts from there.
Written by the engine's thread, read by any: every access takes the lock, for as long as a copy takes.

A page can be in two media, the device's memory and the host's, and is told of in each. When it leaves the device for
the host, `Stored` (host) comes before `Removed` (device): at no time is a page untold that could be served from.
"""

import threading
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

RING_BATCHES = 16384
"""Batches kept: minutes of steps."""
RING_TOKENS = 4 * 2**20
"""Token ids kept in the ring: 32 MiB, whatever the prompts."""


class Medium(StrEnum):
    """Where a page's content lies."""

    DEVICE = "device"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Stored:
    """Consecutive full pages of a sequence can be found by their names from now on."""

    names: tuple[bytes, ...]
    """32 bytes each, in order; see `prefix`."""
    parent: bytes | None
    """Name of the page before the first; None if the first begins the sequence, or was told of in the other medium."""
    token_ids: "array[int]"
    """Tokens of these pages, page_tokens each; empty if the pages were told of in the other medium."""
    medium: Medium = Medium.DEVICE
    client_id: str | None = None
    """Of the request that filled them; None if it has none, if they were moved, and in a snapshot."""
    first_page: int = 0
    """How many pages of the sequence come before them; 0 if they were moved, and in a snapshot."""


@dataclass(frozen=True, slots=True)
class Removed:
    """Pages of these names are no longer there."""

    names: tuple[bytes, ...]
    medium: Medium = Medium.DEVICE


@dataclass(frozen=True, slots=True)
class Cleared:
    """No page is there any longer, in no medium."""


Event = Stored | Removed | Cleared


@dataclass(frozen=True, slots=True)
class EventBatch:
    """The events of one step, in their order."""

    number: int
    """Counts up by one, from 1."""
    unix_seconds: float
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is stored after batch `number`; whatever was known before is to be forgotten."""

    number: int
    cleared: int
    """Number of the newest batch in which everything was cleared, 0 if that never happened."""
    stored: list[Stored]


@dataclass(slots=True)
class _Page:
    parent: bytes | None
    token_ids: "array[int]"
    media: set[Medium]


class EventLog:
    """The newest batches, and the state that all batches lead to."""

    def __init__(
        self, epoch: str, page_tokens: int, *, ring_batches: int = RING_BATCHES, ring_tokens: int = RING_TOKENS
    ) -> None:
        self.epoch = epoch
        self.page_tokens = page_tokens
        self._ring_batches = ring_batches
        self._ring_tokens = ring_tokens
        self._lock = threading.Lock()
        self._ring: deque[EventBatch] = deque()
        self._tokens = 0  # in the ring
        self._last = 0
        self._cleared = 0
        self._pages: dict[bytes, _Page] = {}  # in the order they were stored
        self._listeners: list[Callable[[], None]] = []
        self._is_closed = False

    @property
    def last_number(self) -> int:
        """Number of the newest batch, 0 before the first."""
        return self._last

    @property
    def first_number(self) -> int:
        """Number of the oldest batch that can still be had; one after the newest if there is none."""
        with self._lock:
            return self._last + 1 - len(self._ring)

    @property
    def is_closed(self) -> bool:
        """Whether nothing will be added any more."""
        return self._is_closed

    def append(self, events: Sequence[Event], unix_seconds: float) -> None:
        """Add one step's events, and call the listeners; nothing happens if there are none."""
        if not events:
            return
        with self._lock:
            self._last += 1
            batch = EventBatch(self._last, unix_seconds, tuple(events))
            self._ring.append(batch)
            self._tokens += _tokens(batch)
            while self._ring and (len(self._ring) > self._ring_batches or self._tokens > self._ring_tokens):
                self._tokens -= _tokens(self._ring.popleft())
            for event in batch.events:
                self._apply(event)
                if isinstance(event, Cleared):
                    self._cleared = batch.number
        self._call_listeners()

    def close(self) -> None:
        """Let those who follow know that nothing will come any more."""
        self._is_closed = True
        self._call_listeners()

    def after(self, number: int) -> list[EventBatch] | None:
        """All batches after `number`, oldest first. None if some have left the ring, or have not come to be yet."""
        with self._lock:
            missing = self._last - number
            if missing < 0 or missing > len(self._ring):
                return None
            return [self._ring[place] for place in range(len(self._ring) - missing, len(self._ring))]

    def snapshot(self) -> Snapshot:
        """What is stored after the newest batch, a page an event, in the order they were stored."""
        with self._lock:
            stored = [
                Stored((name,), page.parent, page.token_ids, medium)
                for name, page in self._pages.items()
                for medium in sorted(page.media)
            ]
            return Snapshot(self._last, self._cleared, stored)

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every append and at the end, on the thread of that; it must return at once."""
        with self._lock:
            self._listeners.append(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        """Call it no longer."""
        with self._lock:
            self._listeners.remove(listener)

    def _call_listeners(self) -> None:
        with self._lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()

    def _apply(self, event: Event) -> None:
        if isinstance(event, Cleared):
            self._pages.clear()
        elif isinstance(event, Removed):
            for name in event.names:
                page = self._pages[name]
                page.media.discard(event.medium)
                if not page.media:
                    del self._pages[name]
        else:
            parent = event.parent
            for place, name in enumerate(event.names):
                if name not in self._pages:
                    token_ids = event.token_ids[place * self.page_tokens : (place + 1) * self.page_tokens]
                    self._pages[name] = _Page(parent, token_ids, set())
                self._pages[name].media.add(event.medium)
                parent = name


def _tokens(batch: EventBatch) -> int:
    return sum(len(event.token_ids) for event in batch.events if isinstance(event, Stored))
