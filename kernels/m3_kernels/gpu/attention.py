"""Attention of a step on a GPU: its decoding rows to one kernel, its chunks to another.

Owns the split, the default loop order, and which tensors the kernels are made for; no kernel. See `sparse_decode`,
`sparse_prefill` and `union_tile`.
"""

import torch
from torch import Tensor

from m3_kernels.gpu import attention_tiles
from m3_kernels.gpu.launch import decode_rows, query_tiles
from m3_kernels.gpu.sparse_decode import attend_rows
from m3_kernels.gpu.sparse_prefill import LoopOrder, sparse_prefill
from m3_kernels.gpu.union_tile import attend_tiles
from m3_kernels.layout import LayerPages, RaggedBatch


def takes(q: Tensor, pages: LayerPages) -> bool:
    """Whether the kernels are made for such tensors.

    A cache of the queries' type or FP8, unbroken in memory; heads of a group, dimensions of a head and tokens of a page
    that are powers of 2, the latter two at least 16.
    """
    (_, H, D), (_, B, G, _) = q.shape, pages.k.shape
    types = (q.dtype, torch.float8_e4m3fn)
    known = q.dtype in (torch.bfloat16, torch.float16, torch.float32) and all(
        pool.dtype in types and pool.is_contiguous() for pool in (pages.k, pages.v)
    )
    return known and min(D, B) >= 16 and all(size & (size - 1) == 0 for size in (H // G, D, B))


def sparse_attention(
    q: Tensor, pages: LayerPages, blocks: Tensor, batch: RaggedBatch, order: LoopOrder = LoopOrder.UNION_TILE
) -> Tensor:
    """See `reference.sparse_attention`. Each query's own block must be among its blocks, as `choose_blocks` has it."""
    q, blocks, out = q.contiguous(), blocks.contiguous(), torch.empty_like(q, memory_format=torch.contiguous_format)
    decode = decode_rows(batch)
    if decode is not None:
        attend_rows(q, pages, batch, decode, out, blocks=blocks)
    sparse_prefill(q, pages, blocks, batch, out, order=order)
    return out


def dense_attention(q: Tensor, pages: LayerPages, batch: RaggedBatch) -> Tensor:
    """See `reference.dense_attention`."""
    q, out = q.contiguous(), torch.empty_like(q, memory_format=torch.contiguous_format)
    decode = decode_rows(batch)
    if decode is not None:
        attend_rows(q, pages, batch, decode, out, blocks=None)
    heads = q.shape[1] // pages.k.shape[2]
    tiles = query_tiles(batch, attention_tiles.dense_tile(q.dtype, pages.k.dtype).queries(heads))
    if tiles is not None:
        attend_tiles(q, pages, batch, tiles, out, lists=None)
    return out
