"""Which blocks a query attends to, on a GPU: scoring and choosing, one after the other.

Owns what passes between the two: scores of decoding rows exist all at once (few rows), scores of prompts for so many
tiles of queries as SCORE_BYTES allow, however long the context is.
"""

import torch
from torch import Tensor

from m3_kernels.gpu import index_score, select_blocks, tiles
from m3_kernels.gpu.index_score import Wanted
from m3_kernels.gpu.launch import decode_rows, query_tiles
from m3_kernels.gpu.select_blocks import Choice
from m3_kernels.layout import BlockCandidates, BlockPart, RaggedBatch

_EVERY = BlockPart(0, 1)


def choose_blocks(index_q: Tensor, index_k: Tensor, batch: RaggedBatch, k: int) -> Tensor:
    """See `reference.choose_blocks`. Raises ValueError if a size is no power of two, or below 16."""
    T, G, _ = index_q.shape
    ids = torch.empty(G, T, k, dtype=torch.int32, device=index_q.device)
    _select(index_q, index_k, batch, Choice(ids, None, _EVERY, index_k.shape[1]), least_own=k)
    return ids


def best_blocks(index_q: Tensor, index_k: Tensor, batch: RaggedBatch, k: int, part: BlockPart) -> BlockCandidates:
    """See `reference.best_blocks`. Raises ValueError as `choose_blocks` does."""
    T, G, _ = index_q.shape
    ids = torch.empty(G, T, k, dtype=torch.int32, device=index_q.device)
    scores = torch.empty(G, T, k, dtype=torch.float32, device=index_q.device)
    _select(index_q, index_k, batch, Choice(ids, scores, part, index_k.shape[1]), least_own=1)
    return BlockCandidates(scores, ids)


join_blocks = select_blocks.join


def _select(index_q: Tensor, index_k: Tensor, batch: RaggedBatch, choice: Choice, least_own: int) -> None:
    _check_sizes(index_k)
    index_q = index_q.contiguous()
    wanted = Wanted(choice.part, least_own)
    rows = decode_rows(batch)
    if rows is not None:
        scores = index_score.score_rows(index_q, index_k, batch, rows, wanted)
        select_blocks.select_of_rows(scores, batch, rows, choice)
    G, B = index_q.shape[1], index_k.shape[1]
    tile = tiles.prefill_score(index_k.dtype)
    prompts = query_tiles(batch, tile.rows // G)
    if prompts is not None:
        blocks = index_score.most_blocks(prompts.longest_context, B, choice.part)
        at_a_time = max(1, tiles.SCORE_BYTES // (4 * tile.rows * blocks))
        for first in range(0, len(prompts), at_a_time):
            part = prompts.part(first, min(first + at_a_time, len(prompts)))
            scores = index_score.score_tiles(index_q, index_k, batch, part, wanted)
            select_blocks.select_of_tiles(scores, batch, part, choice)


def _check_sizes(index_k: Tensor) -> None:
    _, B, I = index_k.shape  # noqa: E741
    for name, size in (("dimensions of an index key", I), ("tokens of a page", B)):
        if size < 16 or size & (size - 1):
            raise ValueError(f"{size} {name}: the GPU's kernels take powers of two from 16 up")
    if not index_k.is_contiguous():
        raise ValueError("index_k must be contiguous: the GPU's kernels address its cells themselves")
