"""Attention of single queries: few rows and many keys, bound by the bytes of the cache.

Grid: (rows, groups, splits). A program holds the heads of one group of one query and reads its share of the query's
blocks: the selected ones or, for dense attention, all. Where rows x groups fill the chip there is one split, and the
program writes the result itself: one launch, nothing to merge. With fewer rows the blocks are split, and `merge` adds
the parts. The number of splits follows from shapes alone and everything else is read on the device, so that a captured
graph stays valid while contexts grow.

Bytes: 2 x B x D elements per row, group and block, each once. 16 rows take the tensor cores' older instruction (HMMA),
which is enough: they wait for memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from m3_kernels.gpu import attention_tiles, softmax
from m3_kernels.gpu.compiled import CompileCase
from m3_kernels.gpu.launch import DecodeRows
from m3_kernels.gpu.merge import Parts, merge
from m3_kernels.layout import LayerPages, RaggedBatch


def attend_rows(
    q: Tensor, pages: LayerPages, batch: RaggedBatch, decode: DecodeRows, out: Tensor, *, blocks: Tensor | None
) -> None:
    """Attention of the decoding rows over the blocks listed, up to their own position; without a list, over all.

    q: [T, H, D], contiguous. blocks: [G, T, K] i32. out: [T, H, D], of which the decoding rows are written.
    """
    (T, H, D), (_, B, G, _), N = q.shape, pages.k.shape, len(decode)
    tile = attention_tiles.decode(q.dtype, pages.k.dtype)
    K = 0 if blocks is None else blocks.shape[2]
    splits = attention_tiles.splits(N * G, K or batch.page_table.shape[1])
    parts = Parts.empty(N, splits, q, torch.float32) if splits > 1 else None
    sparse_decode_kernel[(N, G, splits)](
        q,
        pages.k,
        pages.v,
        out if parts is None else parts.values,
        decode.rows if parts is None else parts.lse,  # stands for what is not written
        decode.rows if blocks is None else blocks,
        T,
        batch.positions,
        decode.rows,
        decode.sequences,
        batch.page_table,
        batch.page_table.stride(0),
        softmax.base2_scale(D),
        G=G,
        HEADS=H // G,
        ROWS=max(H // G, attention_tiles.LEAST_ROWS),
        D=D,
        B=B,
        KEYS=tile.keys_of(B),
        K=K,
        KP=triton.next_power_of_2(max(K, 1)),
        SPLIT=splits > 1,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if parts is not None:
        merge(parts, decode.rows, G, out)


@triton.jit(do_not_specialize=["tokens", "table_stride"])
def sparse_decode_kernel(  # noqa: PLR0917
    q: tl.tensor,  # [T, H, D]
    k: tl.tensor,  # [P, B, G, D]
    v: tl.tensor,  # [P, B, G, D]
    out: tl.tensor,  # [T, H, D]; if SPLIT the parts, [N, splits, H, D] fp32
    lse: tl.tensor,  # if SPLIT [N, splits, H] fp32; else not written
    blocks: tl.tensor,  # [G, T, K] i32, ascending, then -1; not read where K is 0
    tokens: tl.tensor,
    positions: tl.tensor,  # [T] i64
    rows: tl.tensor,  # [N] i32, of the step
    sequences: tl.tensor,  # [N] i32
    page_table: tl.tensor,  # [S, table_stride] i64
    table_stride: tl.tensor,
    scale: tl.tensor,
    G: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,  # HEADS, padded
    D: tl.constexpr,
    B: tl.constexpr,
    KEYS: tl.constexpr,
    K: tl.constexpr,  # 0: no lists, all blocks
    KP: tl.constexpr,
    SPLIT: tl.constexpr,  # whether a walk is split; into how many parts, the grid says
) -> None:
    number, group = tl.program_id(0), tl.program_id(1)
    PARTS: tl.constexpr = B // KEYS
    token = tl.load(rows + number).to(tl.int64)
    pages = page_table + tl.load(sequences + number).to(tl.int64) * table_stride
    position = tl.load(positions + token)
    listed = blocks + (group * tokens.to(tl.int64) + token) * K
    if K:
        choice = tl.arange(0, KP)
        count = tl.sum((tl.load(listed + choice, mask=choice < K, other=-1) >= 0).to(tl.int32), 0)
    else:
        count = (position // B + 1).to(tl.int32)
    split, splits = (tl.program_id(2), tl.num_programs(2)) if SPLIT else (0, 1)
    share = tl.cdiv(count, splits)
    begin = tl.minimum(split * share, count)
    end = tl.minimum(begin + share, count)

    row, d, key = tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, KEYS)
    real = row < HEADS
    head = group * HEADS + row
    queries = tl.load(q + (token * (G * HEADS) + head)[:, None] * D + d[None, :], mask=real[:, None], other=0.0)
    cell = key[:, None] * (G * D) + group * D + d[None, :]  # [KEYS, D]
    acc, peak, total = softmax.start(ROWS, D)
    # Block and page are read one step ahead: where an address waits for a load of the same step, nothing is prefetched.
    entry = tl.minimum(begin, count - 1)
    block = tl.load(listed + entry) if K else entry
    page = tl.load(pages + block)
    for step in range(begin * PARTS, end * PARTS):
        within = step % PARTS * KEYS + key
        base = (page * B + step % PARTS * KEYS) * (G * D)
        visible = block * B + within <= position  # beyond, a page holds anything
        keys = tl.load(k + base + cell, mask=visible[:, None], other=0.0).to(queries.dtype)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")  # [ROWS, KEYS] fp32
        scores = tl.where(visible[None, :], scores, float("-inf"))
        values = tl.load(v + base + cell, mask=visible[:, None], other=0.0).to(queries.dtype)
        acc, peak, total = softmax.meet(acc, peak, total, scores, values, scale, row >= 0)
        entry = tl.minimum((step + 1) // PARTS, count - 1)
        block = tl.load(listed + entry) if K else entry
        page = tl.load(pages + block)

    attended, sums = softmax.finish(acc, peak, total)
    place = token * (G * HEADS) + head
    if SPLIT:
        place = (number.to(tl.int64) * splits + split) * (G * HEADS) + head
        tl.store(lse + place, sums, mask=real)
    tl.store(out + place[:, None] * D + d[None, :], attended.to(out.dtype.element_ty), mask=real[:, None])


def configurations() -> list[CompileCase]:
    """Every way in which M3 compiles the kernel."""
    return [
        _case(kind, queries, cache, topk, is_split)
        for queries, cache in (("bf16", "bf16"), ("fp16", "fp16"), ("bf16", "fp8e4nv"))
        for kind, topk in (("sparse", 16), ("dense", 0))
        for is_split in (False, True)
    ]


def _case(kind: str, queries: str, cache: str, topk: int, is_split: bool) -> CompileCase:
    tile = attention_tiles.decode(torch.bfloat16, torch.float8_e4m3fn if cache == "fp8e4nv" else torch.bfloat16)
    sizes = {"G": 4, "HEADS": 16, "ROWS": 16, "D": 128, "B": 128, "KEYS": tile.keys_of(128)}
    return CompileCase(
        name=f"sparse_decode/{kind}{'_split' if is_split else ''}/{cache}",
        kernel=sparse_decode_kernel,
        signature={
            "q": f"*{queries}",
            "k": f"*{cache}",
            "v": f"*{cache}",
            "out": "*fp32" if is_split else f"*{queries}",
            "lse": "*fp32",
            "scale": "fp32",
            **dict.fromkeys(("blocks", "rows", "sequences"), "*i32"),
            **dict.fromkeys(("positions", "page_table"), "*i64"),
            **dict.fromkeys(("tokens", "table_stride"), "i32"),
        },
        constexprs={**sizes, "K": topk, "KP": max(topk, 1), "SPLIT": is_split},
        num_warps=tile.warps,
        num_stages=tile.stages,
        instruction="HMMA",
    )
