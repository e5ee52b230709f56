"""From a prompt's blocks of bytes to a worker's pages of tokens. Pure.

A chain has one digest for each block of bytes; how many tokens a block has nobody tells. Known is how many tokens a
whole prompt has had (its answer's usage), and with that, of a conversation, every earlier turn's: the last digest of
each earlier prompt is an anchor, which stands for so many tokens. Between two anchors, tokens are spread evenly:

    end(i) = t[a] + (i - a) * (t[b] - t[a]) / (b - a)         for block i between the anchors a < i <= b

A block counts as held by the page that its last token lies in: pages before that one hold no whole block, and a chain
is prefix-closed, so that what comes after is of no use without it. A prompt's own end is half a block behind its last
digest on average, since bytes that fill no block have none.
"""

from collections.abc import Sequence
from typing import Final

MAX_ANCHORS: Final = 65_536  # in each of two generations
TAIL_BLOCKS: Final = 0.5


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


def blocks_by_page(
    chain: Sequence[int], anchors: Sequence[tuple[int, float]], page_tokens: int
) -> dict[int, list[int]]:
    """The digests whose blocks end in each page, by the page's place in the sequence.

    `anchors`: (blocks, tokens), ascending in both, the last of them for the whole chain; what is not is left out.
    """
    pages: dict[int, list[int]] = {}
    block, tokens = 0, 0.0
    for next_block, next_tokens in anchors:
        if next_block <= block or next_tokens < tokens:
            continue
        each = (next_tokens - tokens) / (next_block - block)
        for place in range(block, next_block):
            end = tokens + (place + 1 - block) * each
            pages.setdefault(max(int((end - 1) // page_tokens), 0), []).append(chain[place])
        block, tokens = next_block, next_tokens
    return pages
