"""Attention of a step on a GPU: its decoding rows to one kernel, its chunks to another.

Owns the split, the default loop order, and which sizes the kernels are made for; no kernel. See `sparse_decode`,
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


def sparse_attention(
    q: Tensor, pages: LayerPages, blocks: Tensor, batch: RaggedBatch, order: LoopOrder = LoopOrder.UNION_TILE
) -> Tensor:
    """See `reference.sparse_attention`. Each query's own block must be among its blocks, as `choose_blocks` has it.

    Raises ValueError where a size is none that the kernels are made for, or the pages are a view with gaps.
    """
    _check_sizes(q, pages)
    q, blocks, out = q.contiguous(), blocks.contiguous(), torch.empty_like(q, memory_format=torch.contiguous_format)
    decode = decode_rows(batch)
    if decode is not None:
        attend_rows(q, pages, batch, decode, out, blocks=blocks)
    sparse_prefill(q, pages, blocks, batch, out, order=order)
    return out


def dense_attention(q: Tensor, pages: LayerPages, batch: RaggedBatch) -> Tensor:
    """See `reference.dense_attention`. Raises ValueError as `sparse_attention` does."""
    _check_sizes(q, pages)
    q, out = q.contiguous(), torch.empty_like(q, memory_format=torch.contiguous_format)
    decode = decode_rows(batch)
    if decode is not None:
        attend_rows(q, pages, batch, decode, out, blocks=None)
    heads = q.shape[1] // pages.k.shape[2]
    tiles = query_tiles(batch, attention_tiles.dense_tile(q.dtype, pages.k.dtype).queries(heads))
    if tiles is not None:
        attend_tiles(q, pages, batch, tiles, out, lists=None)
    return out


def _check_sizes(q: Tensor, pages: LayerPages) -> None:
    (_, H, D), (_, B, G, _) = q.shape, pages.k.shape
    sizes = {"heads of a group": (H // G, 1), "dimensions of a head": (D, 16), "tokens of a page": (B, 16)}
    for name, (size, least) in sizes.items():
        if size < least or size & (size - 1):
            raise ValueError(f"{size} {name}: the GPU's kernels take powers of 2 from {least} on")
    if not (pages.k.is_contiguous() and pages.v.is_contiguous()):
        raise ValueError("pages.k and pages.v must be contiguous: the GPU's kernels find tokens in them by number")
