"""Attention of chunks over selected blocks, in one of two loop orders behind one interface.

`union_tile`: queries outside, four adjacent ones walk the union of their blocks. Nothing is stored between; what is
read grows with how much the four disagree. `kv_outer`: blocks outside, each with all queries that chose it. What is
read of the cache does not depend on agreement; but a part of every (query, block) pair is written and read again.
Both give the same; `docs/msa-on-gpu.md` counts what each costs, and when which is less.
"""

from enum import Enum

from torch import Tensor

from m3_kernels.gpu import attention_tiles
from m3_kernels.gpu.kv_outer import attend_blocks
from m3_kernels.gpu.launch import query_tiles
from m3_kernels.gpu.union_tile import attend_tiles, unite
from m3_kernels.layout import LayerPages, RaggedBatch


class LoopOrder(Enum):
    """What the outer loop goes over."""

    UNION_TILE = "union_tile"
    KV_OUTER = "kv_outer"


def sparse_prefill(
    q: Tensor, pages: LayerPages, blocks: Tensor, batch: RaggedBatch, out: Tensor, *, order: LoopOrder
) -> None:
    """Attention of the queries of sequences with several in the step; the other rows of `out` are left as they are.

    q: [T, H, D], contiguous. blocks: [G, T, K] i32, ascending, each query's own in it, then -1. out: [T, H, D].
    """
    heads = q.shape[1] // pages.k.shape[2]
    tiles = query_tiles(batch, attention_tiles.union_tile(q.dtype).queries(heads))
    if tiles is None:
        return
    if order is LoopOrder.KV_OUTER:
        attend_blocks(q, pages, blocks, batch, out)
    else:
        attend_tiles(q, pages, batch, tiles, out, lists=unite(blocks, batch, tiles, pages.block_tokens))
