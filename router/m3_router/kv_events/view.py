"""What one worker's events come to, in the terms of the affinity index.

Owns the map from the pages that this replica's requests have filled to digests of their prompts, and the requests whose
pages cannot be placed yet because nobody knows how many tokens they had. Pure: lines and requests go in, digests that
are confirmed or gone come out, to a `Sink`. Memory: MAX_PAGES of about 250 bytes, and MAX_SENT_BLOCKS of about 50, the
oldest of both given up first; what is given up counts as held until the index forgets it by itself.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from m3_router.kv_events.alignment import Alignment, Anchors
from m3_router.kv_events.lines import (
    Batch,
    Cleared,
    EventsError,
    Line,
    Removed,
    Snapshot,
    Start,
    Stored,
    page_key,
)

MAX_SENT_BLOCKS: Final = 131_072
MAX_PAGES: Final = 65_536


class Sink(Protocol):
    """Who is told: the affinity index, through whoever knows the worker's slot and the other replicas."""

    def began(self, epoch: str) -> None:
        """The worker's cache is in this epoch; whatever it held in another one is gone.

        A cleared cache is a new epoch, as a restart is, and every replica gives it the same name.
        """

    def stored(self, digests: list[int]) -> None:
        """It holds these blocks."""

    def removed(self, digests: list[int]) -> None:
        """It does not hold these blocks any more."""


class _Sent:
    """A request on its way, and a while after it."""

    __slots__ = ("alignment", "chain", "gone", "pages")

    def __init__(self, chain: Sequence[int]) -> None:
        self.chain = chain
        self.pages: dict[int, int] = {}  # place of a page in the sequence -> its key; until `alignment` is known
        self.gone: set[int] = set()  # keys of these that were removed meanwhile
        self.alignment: Alignment | None = None  # once it was answered


class CacheView:
    """One worker, as its events and this replica's requests tell."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._anchors = Anchors()
        self._page_tokens = 0
        self._sent: dict[str, _Sent] = {}  # by request id, oldest first
        self._sent_blocks = 0
        self._digests: dict[int, tuple[int, ...]] = {}  # of all that is lost with a page, by key of one that is there
        self._waiting: dict[int, _Sent] = {}  # by key of a page that is there, and not placed
        self._host: set[int] = set()  # those of both that are on the host, and maybe on the device
        self._host_only: set[int] = set()
        self._snapshot: list[Stored] | None = None  # while its lines come
        self._began = ""  # as told last
        self.epoch = ""  # of the worker's process
        self.number: int | None = None  # of the last batch; None: a snapshot has to come first
        self.confirmed_blocks = 0
        self.removed_blocks = 0

    # What this replica does.

    def sent(self, request_id: str, chain: Sequence[int]) -> None:
        """A request with this chain was sent to the worker. Not for a request of several prompts."""
        if not chain or request_id in self._sent:
            return
        self._sent[request_id] = _Sent(chain)
        self._sent_blocks += len(chain)
        while self._sent_blocks > MAX_SENT_BLOCKS and len(self._sent) > 1:
            self._forget(next(iter(self._sent)))

    def answered(self, request_id: str, input_tokens: int | None) -> None:
        """Its answer has ended; `input_tokens` as the worker counted them, None if it did not say."""
        sent = self._sent.get(request_id)
        if sent is None or sent.alignment is not None:
            return
        if input_tokens:
            self._anchors.add(sent.chain, input_tokens)
        if not input_tokens or not self._page_tokens:
            self._forget(request_id)
            return
        sent.alignment = Alignment(sent.chain, self._anchors.along(sent.chain), self._page_tokens)
        pages, sent.pages = sent.pages, {}
        held: dict[int, bool] = {}
        for place, key in pages.items():
            if key in sent.gone:
                held.update(dict.fromkeys(sent.alignment.touching(place), False))
            else:
                del self._waiting[key]
                self._place(key, sent.alignment, place, held)
        self._tell(held)

    # What the worker says.

    def take(self, line: Line) -> None:
        """The next line. Raises EventsError if it does not follow what was there; then a snapshot has to come."""
        try:
            if isinstance(line, Start):
                self._start(line)
            elif isinstance(line, Snapshot):
                self._take_snapshot(line)
            elif isinstance(line, Batch):
                self._take_batch(line)
        except EventsError:
            self.number = None
            raise

    def _start(self, line: Start) -> None:
        if line.page_tokens < 1:
            raise EventsError(f"pages of {line.page_tokens} tokens")
        self._page_tokens = line.page_tokens
        self._snapshot = None
        if line.epoch != self.epoch:
            self._forget_pages()
            self.epoch, self.number = line.epoch, None

    def _take_snapshot(self, line: Snapshot) -> None:
        if self._snapshot is None:
            self._snapshot = []
        self._snapshot += line.events
        if line.more:
            return
        events, self._snapshot = self._snapshot, None
        self.number = line.number
        self._begin(line.cleared)
        device = {page_key(name) for event in events if event.medium == "device" for name in event.names}
        host = {page_key(name) for event in events if event.medium == "host" for name in event.names}
        known = {*self._digests, *self._waiting}
        self._host = known & host
        self._host_only = self._host - device
        held: dict[int, bool] = {}
        for key in known - device - host:
            held.update(dict.fromkeys(self._lost(key), False))
        self._tell(held)

    def _take_batch(self, line: Batch) -> None:
        if self.number is None or line.number != self.number + 1:
            raise EventsError(f"batch {line.number} came after {self.number}")
        self.number = line.number
        held: dict[int, bool] = {}  # what the last event of this batch said of a block
        for event in line.events:
            if isinstance(event, Stored):
                self._store(event, held)
            elif isinstance(event, Removed):
                held.update(dict.fromkeys(self._remove(event), False))
            elif isinstance(event, Cleared):
                held.clear()
                self._forget_pages()
                self._begin(line.number)
        self._tell(held)

    def _store(self, event: Stored, held: dict[int, bool]) -> None:
        keys = [page_key(name) for name in event.names]
        if event.medium == "host":
            self._host.update(key for key in keys if key in self._digests or key in self._waiting)
            return
        self._host_only.difference_update(keys)
        sent = self._sent.get(event.request) if event.request is not None else None
        if sent is None:
            return
        for place, key in enumerate(keys, event.first_page):
            if sent.alignment is not None:
                self._place(key, sent.alignment, place, held)
            elif place not in sent.pages and key not in self._digests and key not in self._waiting:
                sent.pages[place] = key
                self._waiting[key] = sent

    def _place(self, key: int, alignment: Alignment, place: int, held: dict[int, bool]) -> None:
        """A page that is there, and its place in a prompt: note what is lost with it, and what has come with it."""
        touching = tuple(alignment.touching(place))
        if not touching:  # behind the prompt
            self._drop(key)
            return
        self._digests[key] = touching
        held.update(dict.fromkeys(alignment.ending(place), True))
        if len(self._digests) > MAX_PAGES:
            self._drop(next(iter(self._digests)))

    def _remove(self, event: Removed) -> list[int]:
        gone: list[int] = []
        for name in event.names:
            key = page_key(name)
            if key not in self._digests and key not in self._waiting:
                continue
            if event.medium == "device" and key in self._host:
                self._host_only.add(key)
            elif event.medium == "host" and key not in self._host_only:
                self._host.discard(key)
            else:
                gone += self._lost(key)
        return gone

    # Inside.

    def _lost(self, key: int) -> tuple[int, ...]:
        """A page is in no medium any more. Returns its digests, as far as they are known."""
        sent = self._waiting.get(key)
        if sent is not None:
            sent.gone.add(key)
        return self._drop(key)

    def _drop(self, key: int) -> tuple[int, ...]:
        self._host.discard(key)
        self._host_only.discard(key)
        self._waiting.pop(key, None)
        return self._digests.pop(key, ())

    def _forget(self, request_id: str) -> None:
        sent = self._sent.pop(request_id)
        self._sent_blocks -= len(sent.chain)
        for key in sent.pages.values():
            if self._waiting.get(key) is sent:
                self._drop(key)

    def _begin(self, cleared: int) -> None:
        """`cleared`: number of the batch since which there may be pages."""
        epoch = f"{self.epoch}.{cleared}"
        if epoch != self._began:
            self._began = epoch
            self._sink.began(epoch)

    def _forget_pages(self) -> None:
        for pages in (self._digests, self._waiting, self._host, self._host_only):
            pages.clear()
        for sent in self._sent.values():
            sent.gone.update(sent.pages.values())

    def _tell(self, held: dict[int, bool]) -> None:
        if stored := [digest for digest, is_held in held.items() if is_held]:
            self.confirmed_blocks += len(stored)
            self._sink.stored(stored)
        if removed := [digest for digest, is_held in held.items() if not is_held]:
            self.removed_blocks += len(removed)
            self._sink.removed(removed)
