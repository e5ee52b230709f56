"""Which page of the paged cache belongs to whom: a free list and one page table per sequence.

Owns page ids and counts, not the memory behind them (cache.PagedCache) and not the choice of who gives pages up
(scheduler). A page is one sparse block; its keys, values and index keys live and die together, so one id stands for all
three. Callers reserve for a sequence and release it as a whole, and read its table; they never handle a single page, so
that pages can come to be shared between sequences without them noticing.

Invariant (`check`): every page is in the free list or in exactly one table.
"""

from array import array
from collections import deque
from collections.abc import Iterable


class Pages:
    """The pages of one cache."""

    def __init__(self, pages: int, page_tokens: int) -> None:
        """`pages` pages of `page_tokens` tokens each, all free. Raises ValueError unless both are positive."""
        if pages < 1 or page_tokens < 1:
            raise ValueError(f"{pages} pages of {page_tokens} tokens: both must be at least 1")
        self.total_pages = pages
        self.page_tokens = page_tokens
        # Oldest first, so that a freed page keeps its content for as long as possible.
        self._free: deque[int] = deque(range(pages))
        self._tables: dict[str, array[int]] = {}

    @property
    def free_pages(self) -> int:
        return len(self._free)

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
        return max(self.pages_for(tokens) - (len(held) if held is not None else 0), 0)

    def reserve(self, sequence_id: str, tokens: int) -> bool:
        """Give the sequence pages for `tokens` tokens in all. False, and nothing changed, if there are too few free."""
        missing = self.missing_pages(sequence_id, tokens)
        if missing > len(self._free):
            return False
        table = self._tables.setdefault(sequence_id, array("q"))
        table.extend(self._free.popleft() for _ in range(missing))
        return True

    def table(self, sequence_id: str) -> "array[int]":
        """The sequence's page ids in the order of its tokens: a view that grows with it, not to be written to."""
        return self._tables[sequence_id]

    def release(self, sequence_id: str) -> None:
        """Take all pages of the sequence back; nothing happens if it has none."""
        self._free.extend(self._tables.pop(sequence_id, ()))

    def check(self, holders: Iterable[str]) -> None:
        """Raise RuntimeError unless exactly `holders` have tables and every page is accounted for once."""
        expected = set(holders)
        if expected != self._tables.keys():
            raise RuntimeError(f"page tables of {sorted(self._tables.keys() ^ expected)} do not match who runs")
        held = [page for table in self._tables.values() for page in table]
        if sorted([*held, *self._free]) != list(range(self.total_pages)):
            raise RuntimeError(
                f"{len(held)} held and {len(self._free)} free pages are not the {self.total_pages} there are"
            )

    def __repr__(self) -> str:
        return f"Pages({len(self._free)} of {self.total_pages} free, {len(self._tables)} tables)"
