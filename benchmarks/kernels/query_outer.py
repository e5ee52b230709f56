"""The plain way: one program per query and group walks the query's blocks. What the kernels are compared with.

As the public engines do it on Hopper: 16 rows, a page a step, an online softmax. Correct, and a yardstick only.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from m3_kernels.gpu.softmax import base2_scale
from m3_kernels.layout import LayerPages, RaggedBatch


def attend(q: Tensor, pages: LayerPages, blocks: Tensor, batch: RaggedBatch) -> Tensor:
    """Sparse attention of a step. q: [T, H, D]. blocks: [G, T, K] i32, then -1. Returns [T, H, D]."""
    (T, H, D), (_, B, G, _) = q.shape, pages.k.shape
    out = torch.empty_like(q)
    query_outer_kernel[(T, G)](
        q,
        pages.k,
        pages.v,
        out,
        blocks,
        T,
        batch.positions,
        batch.sequence_of_token,
        batch.page_table,
        batch.page_table.stride(0),
        base2_scale(D),
        G=G,
        HEADS=H // G,
        ROWS=max(16, H // G),
        D=D,
        B=B,
        K=blocks.shape[2],
        num_warps=4,
        num_stages=2,
    )
    return out


@triton.jit(do_not_specialize=["tokens", "table_stride"])
def query_outer_kernel(  # noqa: PLR0917
    q: tl.tensor,  # [T, H, D]
    k: tl.tensor,  # [P, B, G, D]
    v: tl.tensor,  # [P, B, G, D]
    out: tl.tensor,  # [T, H, D]
    blocks: tl.tensor,  # [G, T, K] i32
    tokens: tl.tensor,
    positions: tl.tensor,  # [T] i64
    sequences: tl.tensor,  # [T] i64
    page_table: tl.tensor,  # [S, table_stride] i64
    table_stride: tl.tensor,
    scale: tl.tensor,
    G: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    B: tl.constexpr,
    K: tl.constexpr,
) -> None:
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, d, key = tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, B)
    place = (token * (G * HEADS) + group * HEADS + row)[:, None] * D + d[None, :]
    real = (row < HEADS)[:, None]
    queries = tl.load(q + place, mask=real, other=0.0)
    position = tl.load(positions + token)
    pages = page_table + tl.load(sequences + token) * table_stride
    peak = tl.full((ROWS,), -1e30, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, D), tl.float32)
    for choice in range(K):
        block = tl.load(blocks + (group.to(tl.int64) * tokens + token) * K + choice)
        if block >= 0:
            visible = block * B + key <= position
            cell = (tl.load(pages + block) * B + key)[:, None] * (G * D) + group * D + d[None, :]
            keys = tl.load(k + cell, mask=visible[:, None], other=0.0).to(queries.dtype)
            scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
            scores = tl.where(visible[None, :], scores, float("-inf"))
            highest = tl.maximum(peak, tl.max(scores, 1))
            weights = tl.exp2(scores - highest[:, None])
            shrink = tl.exp2(peak - highest)
            values = tl.load(v + cell, mask=visible[:, None], other=0.0).to(queries.dtype)
            acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision="ieee")
            total = total * shrink + tl.sum(weights, 1)
            peak = highest
    tl.store(out + place, (acc / total[:, None]).to(out.dtype.element_ty), mask=real)
