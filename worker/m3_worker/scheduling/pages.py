"""Which page of the paged cache belongs to whom, and what can be found in those that belong to nobody.

Owns page ids and counts: tables of the sequences that run, references, the free list, and which content is found under
which name. Not the memory behind them (model.cache, host_tier), not what makes two pages equal (prefix), not the
choice of who gives pages up (scheduler). A page is one sparse block; its keys, values and index keys live and die
together, so one id stands for all three. No clock, no torch.

A page is held by as many tables as share it, or free. A full page gets its name once its tokens are computed
(`commit`), and keeps name and content when it is free until it is given out for something else: the one freed longest
ago first, and of one sequence the tail before the head, because a head is of use without its tail and not the reverse.
What is evicted goes to the host's slots, if there are any. Only full pages are shared, and the last token known is
always computed, so nobody writes to a page that others read.

Two sequences may come to hold pages of equal content, when they computed it side by side: the first is found, the other
is an ordinary unnamed page. `computing` lets the scheduler avoid most of that.
"""

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from m3_worker.scheduling.host_pages import Copy, CopyIn, CopyOut, HostPages
from m3_worker.scheduling.kv_events import Cleared, Event, Medium, Removed, Stored
from m3_worker.scheduling.prefix import PageNames, PrefixIndex
from m3_worker.scheduling.request import Sequence


@dataclass(slots=True)
class PageCounters:
    """Totals since the start."""

    looked_up_tokens: int = 0
    """Tokens of sequences when they were first admitted."""
    device_hit_tokens: int = 0
    """Of these, found in pages of the device."""
    host_hit_tokens: int = 0
    """Of these, copied back from the host."""
    resumed_tokens: int = 0
    """Found in either, of sequences that had been preempted."""
    evicted_pages: int = 0
    """Named pages given out for something else, whether the host kept them or not."""
    offloaded_pages: int = 0
    """Copied to the host."""


@dataclass(slots=True)
class _Table:
    pages: "array[int]" = field(default_factory=lambda: array("q"))
    named: int = 0
    """Its first pages, which were given their names or found by them."""
    expected: list[bytes] = field(default_factory=list)
    """Names that its next pages will have."""


class Pages:
    """The pages of one cache."""

    def __init__(self, pages: int, page_tokens: int, host: HostPages | None = None) -> None:
        """`pages` pages of `page_tokens` tokens each, all free. Raises ValueError unless both are positive."""
        if pages < 1 or page_tokens < 1:
            raise ValueError(f"{pages} pages of {page_tokens} tokens: both must be at least 1")
        self.total_pages = pages
        self.page_tokens = page_tokens
        self.counters = PageCounters()
        self._host = host if host is not None else HostPages(0)
        self._references = [0] * pages  # tables that hold each page
        # The next to be given out first. A dictionary in order: pages also leave from its middle, when they are found.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(pages))
        self._tables: dict[str, _Table] = {}
        self._index = PrefixIndex()
        self._computing: dict[bytes, str] = {}  # names of pages to come, by who computes them
        self._copies: list[Copy] = []
        self._events: list[Event] = []

    @property
    def free_pages(self) -> int:
        """Pages that no sequence holds, whether or not something can be found in them."""
        return len(self._free)

    @property
    def found_pages(self) -> int:
        """Pages of the device whose content can be found, held or free."""
        return len(self._index)

    @property
    def host_pages(self) -> int:
        """Pages whose content the host keeps."""
        return len(self._host)

    @property
    def used_ratio(self) -> float:
        """Share of the pages that sequences hold, 0 to 1."""
        return 1 - len(self._free) / self.total_pages

    def pages_for(self, tokens: int) -> int:
        """Pages that a sequence of `tokens` tokens needs."""
        return -(-tokens // self.page_tokens)

    def missing_pages(self, sequence_id: str, tokens: int) -> int:
        """Pages that the sequence lacks to hold `tokens` tokens; 0 if it has them."""
        held = self._tables.get(sequence_id)
        return max(self.pages_for(tokens) - (len(held.pages) if held is not None else 0), 0)

    def table(self, sequence_id: str) -> "array[int]":
        """The sequence's page ids in the order of its tokens: a view that grows with it, not to be written to."""
        return self._tables[sequence_id].pages

    # What a sequence that is to start would find.

    def found(self, sequence: Sequence) -> list[bytes]:
        """Names of its first pages, as far as their content is on the device or the host; changes nothing."""
        if sequence.request.pooling is not None:
            return []
        limit = self._shareable_pages(sequence)
        names = self._names(sequence, limit)
        for place in range(limit):
            if self._index.page(names[place]) is None and self._host.slot(names[place]) is None:
                return names[:place]
        return names[:limit]

    def computing(self, sequence: Sequence, found: list[bytes]) -> str | None:
        """The running sequence that is about to compute the page which this one lacks first; None if nobody is."""
        if sequence.request.pooling is not None or len(found) == self._shareable_pages(sequence):
            return None
        return self._computing.get(self._names(sequence, len(found) + 1)[len(found)])

    def shortfall(self, sequence: Sequence, found: list[bytes]) -> "Shortfall":
        """What its admission would take from the free pages, and what preempting others would bring."""
        return Shortfall(self._references, self._held(found), self.pages_for(sequence.total_tokens))

    # What changes tables.

    def admit(self, sequence: Sequence, found: list[bytes]) -> int | None:
        """Give a sequence without a table pages for all its tokens. None, and nothing changed, if too few are free.

        Returns how many of its tokens need no computing: those of `found`, as it was just told. Copies back what of it
        lies on the host, which is to be done (`take_copies`) before the pages are read.
        """
        needed = self.pages_for(sequence.total_tokens)
        if needed - len(self._held(found)) > len(self._free):
            return None
        table = self._tables[sequence.id] = _Table()
        pages = [self._index.page(name) for name in found]
        for page in pages:
            if page is not None:
                self._references[page] += 1
                self._free.pop(page, None)
        for name in reversed(found):  # the tail first, so that the head stays longest
            if self._host.slot(name) is not None:
                self._host.touch(name)
        pinned = set(found)
        for place, page in enumerate(pages):
            table.pages.append(page if page is not None else self._copy_in(sequence, found, place, pinned))
        table.pages.extend(self._take(pinned) for _ in range(needed - len(found)))
        table.named = len(found)
        self._expect(sequence, table)
        self._count_found(sequence, pages)
        return len(found) * self.page_tokens

    def reserve(self, sequence_id: str, tokens: int) -> bool:
        """Give the sequence pages for `tokens` tokens in all. False, and nothing changed, if there are too few free."""
        table = self._tables.get(sequence_id)
        if table is not None and len(table.pages) * self.page_tokens >= tokens:
            return True  # as nearly always: one page lasts for many tokens
        missing = self.missing_pages(sequence_id, tokens)
        if missing > len(self._free):
            return False
        table = self._tables.setdefault(sequence_id, _Table())
        table.pages.extend(self._take(()) for _ in range(missing))
        return True

    def commit(self, sequence: Sequence) -> None:
        """Let others find the pages that the sequence's computed tokens have filled."""
        full = sequence.computed_tokens // self.page_tokens
        table = self._tables[sequence.id]
        if full <= table.named or sequence.request.pooling is not None:
            return
        names = self._names(sequence, full)
        first = table.named
        for place in range(table.named, full):
            if self._computing.get(names[place]) == sequence.id:
                del self._computing[names[place]]
            if not self._index.add(names[place], table.pages[place]):
                self._tell_stored(sequence, names, first, place)
                first = place + 1
        self._tell_stored(sequence, names, first, full)
        del table.expected[: full - table.named]
        table.named = full

    def release(self, sequence_id: str) -> None:
        """Take all pages of the sequence back; nothing happens if it has none."""
        table = self._tables.pop(sequence_id, None)
        if table is None:
            return
        for name in table.expected:
            if self._computing.get(name) == sequence_id:
                del self._computing[name]
        for page in reversed(table.pages):
            self._references[page] -= 1
            if self._references[page] == 0:
                self._free[page] = None
                if self._index.name(page) is None:  # nothing can be found in it: use it first
                    self._free.move_to_end(page, last=False)

    def forget_content(self) -> None:
        """Let nothing be found any longer; sequences keep their pages."""
        self._index.clear()
        self._host.clear()
        self._events.append(Cleared())

    def take_copies(self) -> tuple[Copy, ...]:
        """Copies decided since the last call, to be done in this order before the next step."""
        copies, self._copies = tuple(self._copies), []
        return copies

    def take_events(self) -> list[Event]:
        """What happened since the last call."""
        events, self._events = self._events, []
        return events

    def check(self, holders: Iterable[str]) -> None:
        """Raise RuntimeError unless exactly `holders` have tables and every page is accounted for."""
        expected = set(holders)
        if expected != self._tables.keys():
            raise RuntimeError(f"page tables of {sorted(self._tables.keys() ^ expected)} do not match who runs")
        held = Counter(page for table in self._tables.values() for page in table.pages)
        if [held[page] for page in range(self.total_pages)] != self._references:
            raise RuntimeError(f"{held.total()} places in tables are not the {sum(self._references)} references")
        if sorted([*held, *self._free]) != list(range(self.total_pages)):
            raise RuntimeError(
                f"{len(held)} held and {len(self._free)} free pages are not the {self.total_pages} there are"
            )
        for sequence_id, table in self._tables.items():
            if len(set(table.pages)) != len(table.pages):
                raise RuntimeError(f"the table of {sequence_id} has a page twice")
        if not set(self._computing.values()) <= self._tables.keys():
            raise RuntimeError("a page is expected of a sequence that does not run")
        self._index.check()
        self._host.check()

    def __repr__(self) -> str:
        return (
            f"Pages({len(self._free)} of {self.total_pages} free, {len(self._tables)} tables, "
            f"{len(self._index)} named, {len(self._host)} of {self._host.slots} on the host)"
        )

    def _shareable_pages(self, sequence: Sequence) -> int:
        """Full pages before the last token, which is always computed: something must give the next one."""
        return max(sequence.total_tokens - 1, 0) // self.page_tokens

    def _names(self, sequence: Sequence, pages: int) -> list[bytes]:
        if sequence.page_names is None:
            request = sequence.request
            sequence.page_names = PageNames(self.page_tokens, request.cache_salt, request.adapter, request.media)
        return sequence.page_names.of(sequence.token_ids, pages)

    def _held(self, found: list[bytes]) -> set[int]:
        """Pages among the found ones that other sequences hold: they cost nothing."""
        pages = (self._index.page(name) for name in found)
        return {page for page in pages if page is not None and self._references[page]}

    def _take(self, pinned: "set[bytes] | tuple[()]") -> int:
        """The page to use next, for something new; what could be found in it goes to the host."""
        page, _ = self._free.popitem(last=False)
        self._references[page] = 1
        name = self._index.remove(page)
        if name is not None:
            self.counters.evicted_pages += 1
            self._offload(name, page, pinned)
            self._events.append(Removed((name,)))
        return page

    def _offload(self, name: bytes, page: int, pinned: "set[bytes] | tuple[()]") -> None:
        if self._host.slot(name) is not None:
            self._host.touch(name)
            return
        kept = self._host.keep(name, pinned)
        if kept is None:
            return
        self._copies.append(CopyOut(page, kept.slot))
        self.counters.offloaded_pages += 1
        if kept.replaced is not None:
            self._events.append(Removed((kept.replaced,), Medium.HOST))
        self._events.append(Stored((name,), None, array("q"), Medium.HOST))

    def _copy_in(self, sequence: Sequence, found: list[bytes], place: int, pinned: set[bytes]) -> int:
        page = self._take(pinned)
        slot = self._host.slot(found[place])
        assert slot is not None, self  # noqa: S101 # found and pinned
        self._copies.append(CopyIn(slot, page))
        self._index.add(found[place], page)
        self._tell_stored(sequence, found, place, place + 1)
        return page

    def _expect(self, sequence: Sequence, table: _Table) -> None:
        if sequence.request.pooling is None:
            table.expected = self._names(sequence, sequence.total_tokens // self.page_tokens)[table.named :]
            for name in table.expected:
                self._computing.setdefault(name, sequence.id)

    def _count_found(self, sequence: Sequence, pages: list[int | None]) -> None:
        """`pages` of what was found: None for those that were copied back."""
        if sequence.request.pooling is not None:
            return
        counters = self.counters
        copied = pages.count(None)
        if sequence.admissions:
            counters.resumed_tokens += len(pages) * self.page_tokens
            return
        counters.looked_up_tokens += sequence.total_tokens
        counters.device_hit_tokens += (len(pages) - copied) * self.page_tokens
        counters.host_hit_tokens += copied * self.page_tokens

    def _tell_stored(self, sequence: Sequence, names: list[bytes], first: int, end: int) -> None:
        if first < end:
            token_ids = sequence.token_ids[first * self.page_tokens : end * self.page_tokens]
            parent = names[first - 1] if first else None
            client_id = sequence.request.client_id
            self._events.append(Stored(tuple(names[first:end]), parent, token_ids, Medium.DEVICE, client_id, first))


class Shortfall:
    """How far free pages would go for one admission, while it is thought through whom to preempt for it."""

    def __init__(self, references: list[int], held: set[int], needed: int) -> None:
        self._references = references
        self._held = held
        self._dropped: Counter[int] = Counter()
        self.pages = needed - len(held)
        """Pages to take from the free list, less those that the preemptions so far would bring."""

    def preempt(self, table: "array[int]") -> None:
        """Count what would come free with one more sequence gone: pages that nobody else holds.

        A page that the admission shares is then no gain: it comes free and is taken again.
        """
        for page in table:
            self._dropped[page] += 1
            if self._dropped[page] == self._references[page] and page not in self._held:
                self.pages -= 1
