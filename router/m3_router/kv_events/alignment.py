"""From a prompt's blocks of bytes to a worker's pages of tokens. Pure.

A chain has one digest for each block of bytes; how many tokens a block has nobody tells. Known is how many tokens a
whole prompt has had (its answer's usage), and with that, of a conversation, every earlier turn's: the last digest of
each earlier prompt is an anchor, which stands for so many tokens. Between two anchors, tokens are spread evenly:

    end(i) = t[a] + (i - a) * (t[b] - t[a]) / (b - a)         for block i between the anchors a < i <= b

A block is there once the page is stored that its last token lies in: those before it have been stored by then. It is
lost with any page that holds some of it. A prompt's own end is half a block behind its last digest on average, since
bytes that fill no block have none.
"""

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from math import ceil
from typing import Final

MAX_ANCHORS: Final = 65_536  # in each of two generations
TAIL_BLOCKS: Final = 0.5
_ROUNDING: Final = 1e-6  # of a token, which sums of shares may be off


class Anchors:
    """Token counts of prompts that were answered, by the last digest of each. Forgets the oldest."""

    def __init__(self, max_anchors: int = MAX_ANCHORS) -> None:
        self._max_anchors = max_anchors
        self._young: dict[int, float] = {}
        self._old: dict[int, float] = {}

    def add(self, chain: Sequence[int], tokens: int) -> None:
        """A prompt with this chain had so many tokens."""
        if not chain:
            return
        self._young[chain[-1]] = tokens * len(chain) / (len(chain) + TAIL_BLOCKS)
        if len(self._young) >= self._max_anchors:
            self._old, self._young = self._young, {}

    def along(self, chain: Sequence[int]) -> list[tuple[int, float]]:
        """(blocks, tokens) of every prompt that is known to be a beginning of this one, shortest first."""
        young, old = self._young, self._old
        found = []
        for place, digest in enumerate(chain):
            tokens = young.get(digest) or old.get(digest)
            if tokens is not None:
                found.append((place + 1, tokens))
        return found


class Alignment:
    """Where the blocks of one prompt lie among its tokens, and so in its pages."""

    __slots__ = ("_chain", "_last_tokens", "_page_tokens")

    def __init__(self, chain: Sequence[int], anchors: Sequence[tuple[int, float]], page_tokens: int) -> None:
        """`anchors`: (blocks, tokens), ascending in both, the last of them for the whole chain; others are left out."""
        self._chain = chain
        self._page_tokens = page_tokens
        self._last_tokens = array("q")  # of each block, counted from 0
        tokens = 0.0
        for blocks, next_tokens in anchors:
            known = len(self._last_tokens)
            if blocks <= known or next_tokens < tokens:
                continue
            each = (next_tokens - tokens) / (blocks - known)
            ends = (tokens + place * each for place in range(1, blocks - known + 1))
            self._last_tokens.extend(max(ceil(end - _ROUNDING) - 1, 0) for end in ends)
            tokens = next_tokens

    def ending(self, page: int) -> Sequence[int]:
        """Digests of the blocks that end in a page, given by its place in the sequence."""
        first, end = self._range(page)
        return self._chain[first:end]

    def touching(self, page: int) -> Sequence[int]:
        """Digests of all blocks of which the page holds some."""
        first, end = self._range(page)
        if end < len(self._last_tokens):
            begin = self._last_tokens[end - 1] + 1 if end else 0
            if begin < (page + 1) * self._page_tokens:
                end += 1
        return self._chain[first:end]

    def _range(self, page: int) -> tuple[int, int]:
        first = bisect_left(self._last_tokens, page * self._page_tokens)
        return first, bisect_left(self._last_tokens, (page + 1) * self._page_tokens, first)
