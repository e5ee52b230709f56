"""Reading a sequence's tokens out of a pool of pages.

Owns the one decision there is about it: pages that follow each other are read where they lie; others are copied
together, at most COPIED_PAGES at a time, so that a long context takes no memory of its own size. Only tokens that the
caller asks for are read: what else a page holds may be anything, NaN too.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m3_kernels.layout import RaggedBatch

COPIED_PAGES = 64
"""Pages copied together: 8,192 tokens of real blocks."""
LONG_RUN_PAGES = 8
"""A run of so many pages is read in place even if it is not all of the context: merging costs less than copying."""


@dataclass(frozen=True)
class Span:
    """Tokens that are read as one tensor: `tokens` of them, the first in the first page."""

    first_page: int
    pages: Tensor | None
    """[n] i64 ids; None if they follow `first_page` one by one."""
    tokens: int

    def read(self, pool: Tensor) -> Tensor:
        """pool [P, B, G, D] to [G, tokens, D] fp32: a view of the pool if it can be one."""
        _, B, G, D = pool.shape
        if self.pages is None:
            offset = pool.storage_offset() + self.first_page * B * G * D
            return pool.as_strided((G, self.tokens, D), (D, G * D, 1), offset).float()
        return pool.index_select(0, self.pages).view(-1, G, D)[: self.tokens].transpose(0, 1).float()


def page_ids(batch: RaggedBatch, sequence: int) -> NDArray[np.int64]:
    """The pages of one sequence of a step, in order."""
    if "page_ids" not in batch.memo:
        batch.memo["page_ids"] = batch.page_table.numpy()
    ids: NDArray[np.int64] = batch.memo["page_ids"][sequence]
    return ids


def spans(batch: RaggedBatch, sequence: int, part: tuple[int, int], block_tokens: int) -> list[Span]:
    """The tokens part[0] .. part[1] - 1 of a sequence, in as few parts as suits reading; part[0] begins a block.

    Worked out once a step for all layers.
    """
    key = ("spans", sequence, part)
    found: list[Span] | None = batch.memo.get(key)
    if found is None:
        start, stop = part
        ids = page_ids(batch, sequence)[start // block_tokens : -(-stop // block_tokens)]
        found = batch.memo[key] = _spans(ids, stop - start, block_tokens)
    return found


def _spans(ids: NDArray[np.int64], tokens: int, block_tokens: int) -> list[Span]:
    runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1)
    parts: list[list[NDArray[np.int64]]] = []  # runs that are read together
    held = COPIED_PAGES
    for run in runs:
        if len(run) >= LONG_RUN_PAGES or held + len(run) > COPIED_PAGES:
            parts.append([])
            held = COPIED_PAGES if len(run) >= LONG_RUN_PAGES else 0
        parts[-1].append(run)
        held += len(run)
    out = []
    for part in parts:
        pages = np.concatenate(part)
        count = min(len(pages) * block_tokens, tokens)
        out.append(Span(int(pages[0]), None if len(part) == 1 else torch.from_numpy(pages), count))
        tokens -= count
    return out


def group_blocks(pool: Tensor, pages: Tensor) -> Tensor:
    """Blocks of single groups: pool [P, B, G, D], pages [n, G, k] i64 to [n, G, k * B, D] fp32.

    The pool is seen as blocks of one group, [B, D] each, that begin at every row of it; those overlap, so that one
    index finds a block of a group and leaves the other groups alone.
    """
    (P, B, G, D), (n, _, k) = pool.shape, pages.shape
    blocks = pool.as_strided(((P - 1) * B * G + G, B, D), (D, G * D, 1))
    index = pages * (B * G) + torch.arange(G)[:, None]
    return blocks.index_select(0, index.flatten()).view(n, G, k * B, D).float()
