"""Attention over pages: how the queries of a step are cut into runs.

Owns the plan, worked out once a step for all layers of a kind: which queries see all tokens before them, which only the
blocks that they chose (where these are all there are, the list of them is not read), and how many stand together. The
loops over keys are compiled (`native/attention.h`).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from m3_kernels import reference
from m3_kernels.cpu import compiled
from m3_kernels.layout import LayerPages, RaggedBatch

_SEEING_ALL = 64
"""Queries of a run that see all before them: many small runs share the work evenly."""
_CHOOSING = 1024
"""Queries of a run that chose: the more, the more of them chose the same block; what is kept of each bounds it."""


@dataclass(frozen=True)
class _Plan:
    runs: Tensor
    """[n, 5] i64, as `compiled.attend` wants them."""
    pairs: int
    """Of a query and a key that it sees."""


def dense_attention(q: Tensor, pages: LayerPages, batch: RaggedBatch) -> Tensor:
    """See `reference.dense_attention`."""
    if not compiled.fits_attention(q, pages):
        return reference.dense_attention(q, pages, batch)
    plan = _plan(batch, pages.block_tokens, None)
    return compiled.attend(q, pages, None, batch, runs=plan.runs, pairs=plan.pairs).to(q.dtype)


def sparse_attention(q: Tensor, pages: LayerPages, blocks: Tensor, batch: RaggedBatch) -> Tensor:
    """See `reference.sparse_attention`."""
    if not compiled.fits_attention(q, pages):
        return reference.sparse_attention(q, pages, blocks, batch)
    plan = _plan(batch, pages.block_tokens, blocks.shape[-1])
    return compiled.attend(q, pages, blocks, batch, runs=plan.runs, pairs=plan.pairs).to(q.dtype)


def _plan(batch: RaggedBatch, block_tokens: int, topk: int | None) -> _Plan:
    """topk: blocks that a query sees at most; None if it sees all."""
    found: _Plan | None = batch.memo.get(("plan", topk))
    if found is not None:
        return found
    runs: list[tuple[int, int, int, int, bool]] = []
    pairs = 0
    for sequence, (context, (start, stop)) in enumerate(
        zip(batch.context_lengths, pairwise(batch.query_starts), strict=True)
    ):
        offset = context - stop  # of a position from its row
        border = stop if topk is None else min(max(start, topk * block_tokens - offset), stop)
        for first in range(start, border, _SEEING_ALL):
            rows = min(_SEEING_ALL, border - first)
            runs.append((first, rows, sequence, first + offset, False))
            pairs += rows * (first + offset + rows)
        for first in range(border, stop, _CHOOSING):
            rows = min(_CHOOSING, stop - first)
            runs.append((first, rows, sequence, first + offset, True))
            pairs += rows * block_tokens * (topk or 0)
    # The longest first: the last ones to be taken should be short.
    runs.sort(key=lambda run: run[1] * (block_tokens * (topk or 0) if run[4] else run[3] + run[1]), reverse=True)
    plan = batch.memo["plan", topk] = _Plan(torch.tensor(runs, dtype=torch.int64), pairs)
    return plan
