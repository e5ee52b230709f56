"""Which blocks a query attends to: scoring and choosing in one, tile by tile.

Owns what makes this cheaper than its definition (`reference.index_score`, then `reference.select_blocks`): a query that
sees at most K blocks takes all of them unscored; a query's own block is always chosen and therefore never scored, so
that no score needs a mask by token; and only the scores of one tile of queries exist at a time. The dot products are
compiled (`native/scoring.h`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from m3_kernels import reference
from m3_kernels.cpu import compiled
from m3_kernels.layout import BlockCandidates, BlockPart, RaggedBatch

_Tile = list[tuple[int, int, int, int]]
"""Runs of queries: (row, end row, sequence, position of row)."""
_TILE_QUERIES = 128


def choose_blocks(index_q: Tensor, index_k: Tensor, batch: RaggedBatch, k: int) -> Tensor:
    """See `reference.choose_blocks`."""
    if not compiled.fits_scoring(index_k):
        return reference.choose_blocks(index_q, index_k, batch, k)
    T, G, _ = index_q.shape
    B = index_k.shape[1]
    first_blocks = _first_blocks(batch, k, B).expand(G, T, k)
    tiles = _tiles(batch, k * B)
    if not tiles:
        return first_blocks
    chosen = first_blocks.clone()
    for tile in tiles:
        scored = _score_tile(index_q, index_k, batch, tile, BlockPart(0, 1))
        best = _best(scored.scores.flatten(0, 1), k - 1).view(G, len(scored.rows), k - 1).sort(-1).values
        ids = torch.cat((best, scored.own[:, None].expand(G, -1, 1)), -1).to(torch.int32)
        chosen.index_copy_(1, scored.rows, ids)
    return chosen


def best_blocks(index_q: Tensor, index_k: Tensor, batch: RaggedBatch, k: int, part: BlockPart) -> BlockCandidates:
    """See `reference.best_blocks`."""
    if not compiled.fits_scoring(index_k):
        return reference.best_blocks(index_q, index_k, batch, k, part)
    T, G, _ = index_q.shape
    found = BlockCandidates(torch.full((G, T, k), -torch.inf), torch.full((G, T, k), -1, dtype=torch.int32))
    for tile in _tiles(batch, index_k.shape[1]):
        scored = _score_tile(index_q, index_k, batch, tile, part)
        room = max(k + 1 - scored.scores.shape[-1], 0)
        scores = torch.nn.functional.pad(scored.scores, (0, room), value=-torch.inf).flatten(0, 1)
        best = _best(scores, k)
        values = scores.gather(1, best).view(G, -1, k)
        ids = (best.view(G, -1, k) + scored.first[:, None]).masked_fill(values == -torch.inf, -1)
        found.scores.index_copy_(1, scored.rows, values)
        found.ids.index_copy_(1, scored.rows, ids.to(torch.int32))
    return found


@dataclass(frozen=True)
class _Scored:
    """The scores of one tile of n queries."""

    rows: Tensor
    """[n] i64, of the step."""
    own: Tensor
    """[n] i64: the block that each query is in."""
    first: Tensor
    """[n] i64: the block that the first column is."""
    scores: Tensor
    """[G, n, columns] fp32; -inf from a query's own block on, and beyond the part that was asked for."""


def _score_tile(index_q: Tensor, index_k: Tensor, batch: RaggedBatch, tile: "_Tile", part: BlockPart) -> _Scored:
    G, I, B = index_q.shape[1], index_q.shape[2], index_k.shape[1]  # noqa: E741
    rows = [row for start, stop, _, _ in tile for row in range(start, stop)]
    positions = [position for start, stop, _, first in tile for position in range(first, first + stop - start)]
    own = torch.tensor(positions) // B
    # Of each run: the first block of the part, and the end of those that are in it and before the last query's own.
    stretches = [part.of(-(-batch.context_lengths[sequence] // B)) for _, _, sequence, _ in tile]
    ends = [min(end, (run[3] + run[1] - run[0] - 1) // B) for (_, end), run in zip(stretches, tile, strict=True)]
    widths = [max(end - first, 0) for (first, _), end in zip(stretches, ends, strict=True)]
    scores = torch.full((G, len(rows), max(widths)), -torch.inf)
    at = 0
    for (start, stop, sequence, _), (first, _), width in zip(tile, stretches, widths, strict=True):
        if width:
            queries, pages = index_q[start:stop].reshape(-1, I), batch.page_table[sequence, first : first + width]
            found = compiled.score_blocks(queries, index_k, pages)  # [width, rows of the run * G]
            scores[:, at : at + stop - start, :width] = found.view(width, stop - start, G).permute(2, 1, 0)
        at += stop - start
    firsts = [
        first for (start, stop, _, _), (first, _) in zip(tile, stretches, strict=True) for _ in range(start, stop)
    ]
    first_block = torch.tensor(firsts)
    scores.masked_fill_(torch.arange(scores.shape[-1]) + first_block[:, None] >= own[:, None], -torch.inf)
    return _Scored(torch.tensor(rows), own, first_block, scores)


def _first_blocks(batch: RaggedBatch, k: int, block_tokens: int) -> Tensor:
    """[T, k] i32: all blocks up to a query's own, in order, then -1. The same for all layers."""
    key = ("first_blocks", k)
    found: Tensor | None = batch.memo.get(key)
    if found is None:
        ids = torch.arange(k, dtype=torch.int32)
        own = (batch.positions // block_tokens)[:, None]
        found = batch.memo[key] = torch.where(ids <= own, ids, -1)
    return found


def _tiles(batch: RaggedBatch, seen_tokens: int) -> list[_Tile]:
    """Queries from position `seen_tokens` on, which have to choose.

    Tiles of one long chunk each, or of several short ones (decoding sequences) together.
    """
    tiles: list[_Tile] = [[]]
    size = 0
    for sequence, context in enumerate(batch.context_lengths):
        start, stop = batch.query_starts[sequence], batch.query_starts[sequence + 1]
        offset = context - stop  # of a position from its row
        for row in range(max(start, seen_tokens - offset), stop, _TILE_QUERIES):
            end = min(row + _TILE_QUERIES, stop)
            if size + end - row > _TILE_QUERIES:
                tiles.append([])
                size = 0
            tiles[-1].append((row, end, sequence, row + offset))
            size += end - row
    return [tile for tile in tiles if tile]


def _best(scores: Tensor, k: int) -> Tensor:
    """Indices of the k highest of each row, in any order; of equal scores the lower index wins. scores: [n, > k]."""
    if k == 0:
        return torch.empty(len(scores), 0, dtype=torch.int64)
    top = scores.topk(k + 1)
    ids = top.indices[:, :k]
    tied = ((top.values[:, k - 1] == top.values[:, k]) & (top.values[:, k] > -torch.inf)).nonzero()[:, 0]
    if len(tied):  # topk takes any of them
        ids[tied] = scores[tied].sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return ids
