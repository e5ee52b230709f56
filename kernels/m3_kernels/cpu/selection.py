"""Which blocks a query attends to: scoring and choosing in one, tile by tile.

Owns what makes this cheaper than its definition (`reference.index_score`, then `reference.select_blocks`): a query that
sees at most K blocks takes all of them unscored; a query's own block is always chosen and therefore never scored, so
that no score needs a mask by token; and only the scores of one tile of queries exist at a time.
"""

import torch
from torch import Tensor

from m3_kernels.cpu.pages import Span, spans
from m3_kernels.layout import RaggedBatch

_TILE_QUERIES = 128
_TILE_ELEMENTS = 1 << 18
"""Dot products that exist at a time: 1 MiB, near the size of a core's cache."""


def choose_blocks(index_q: Tensor, index_k: Tensor, batch: RaggedBatch, k: int) -> Tensor:
    """See `reference.choose_blocks`."""
    T, G, I = index_q.shape  # noqa: E741
    B = index_k.shape[1]
    first_blocks = _first_blocks(batch, k, B).expand(G, T, k)
    tiles = _tiles(batch, k * B)
    if not tiles:
        return first_blocks
    chosen = first_blocks.clone()
    pool = index_k[:, :, None]  # [P, B, 1, I]: one group
    for tile in tiles:
        rows = [row for start, stop, _, _ in tile for row in range(start, stop)]
        positions = [position for start, stop, _, first in tile for position in range(first, first + stop - start)]
        own = torch.tensor(positions) // B
        scores = torch.full((G, len(rows), int(own[-1]) if len(tile) == 1 else int(own.max())), -torch.inf)
        at = 0
        for start, stop, sequence, first in tile:
            blocks = (first + stop - start - 1) // B  # all before the last query's own
            queries = index_q[start:stop].transpose(0, 1).reshape(-1, I).float()
            part = scores[:, at : at + stop - start, :blocks]
            part.copy_(_scores(queries, pool, spans(batch, sequence, (0, blocks * B), B)).view(part.shape))
            at += stop - start
        scores.masked_fill_(torch.arange(scores.shape[-1]) >= own[:, None], -torch.inf)
        best = _best(scores.flatten(0, 1), k - 1).view(G, len(rows), k - 1).sort(-1).values
        ids = torch.cat((best, own[:, None].expand(G, -1, 1)), -1).to(torch.int32)
        chosen.index_copy_(1, torch.tensor(rows), ids)
    return chosen


def _first_blocks(batch: RaggedBatch, k: int, block_tokens: int) -> Tensor:
    """[T, k] i32: all blocks up to a query's own, in order, then -1. The same for all layers."""
    key = ("first_blocks", k)
    found: Tensor | None = batch.memo.get(key)
    if found is None:
        ids = torch.arange(k, dtype=torch.int32)
        own = (batch.positions // block_tokens)[:, None]
        found = batch.memo[key] = torch.where(ids <= own, ids, -1)
    return found


def _tiles(batch: RaggedBatch, seen_tokens: int) -> list[list[tuple[int, int, int, int]]]:
    """Queries from position `seen_tokens` on, which have to choose: (row, end row, sequence, position of row).

    Tiles of one long chunk each, or of several short ones (decoding sequences) together.
    """
    tiles: list[list[tuple[int, int, int, int]]] = [[]]
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


def _scores(queries: Tensor, pool: Tensor, parts: list[Span]) -> Tensor:
    """The best dot product of each query with each whole block: queries [n, I], to [n, blocks] fp32."""
    B = pool.shape[1]
    found = []
    step = max(1, _TILE_ELEMENTS // (B * len(queries))) * B
    for part in parts:
        for keys in torch.split(part.read(pool)[0], step):
            dots = queries @ keys.T
            found.append(dots.view(len(queries), -1, B).amax(-1))
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def _best(scores: Tensor, k: int) -> Tensor:
    """Indices of the k highest of each row, in any order; of equal scores the lower index wins. scores: [n, > k]."""
    if k == 0:
        return torch.empty(len(scores), 0, dtype=torch.int64)
    top = scores.topk(k + 1)
    ids = top.indices[:, :k]
    tied = (top.values[:, k - 1] == top.values[:, k]).nonzero()[:, 0]
    if len(tied):  # topk takes any of them
        ids[tied] = scores[tied].sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return ids
