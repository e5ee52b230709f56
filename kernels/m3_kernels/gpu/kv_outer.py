"""Attention of chunks, blocks outside: a block is read once, and the queries that chose it are gathered to it.

Grid: (runs of a block's queries, groups). A program keeps one page's keys and values and takes the queries of its run,
QUERIES at a time: one softmax over the block's keys, with nothing before it to correct. What a query gets from each of
its K blocks is a part, and `merge` adds the parts. Who chose a block is said by `block_index`.

Bytes: 2 x B x D elements per run and group; but each query is read K times, and K parts of it are written and read.
FLOP: 4 x HEADS x B x D per query, group and block, without waste.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from m3_kernels.gpu import attention_tiles, softmax
from m3_kernels.gpu.block_index import BlockIndex, StepBlocks, index_blocks, step_blocks
from m3_kernels.gpu.compiled import CompileCase
from m3_kernels.gpu.merge import Parts, merge
from m3_kernels.layout import LayerPages, RaggedBatch


def attend_blocks(q: Tensor, pages: LayerPages, blocks: Tensor, batch: RaggedBatch, out: Tensor) -> None:
    """Attention of all rows but decoding ones over the blocks that they list, up to their own position.

    q: [T, H, D], contiguous. blocks: [G, T, K] i32, ascending, each query's own in it, then -1. out: [T, H, D].
    Parts are kept for attention_tiles.KV_OUTER_ROWS rows at a time.
    """
    (T, G, B), K = (q.shape[0], pages.k.shape[2], pages.block_tokens), blocks.shape[2]
    step = step_blocks(batch, B)
    for first in range(0, T, attention_tiles.KV_OUTER_ROWS):
        rows = range(first, min(first + attention_tiles.KV_OUTER_ROWS, T))
        index = index_blocks(blocks, step, rows, attention_tiles.KV_OUTER_RUN)
        parts = Parts.empty(len(rows), K, q, q.dtype)
        parts.lse.fill_(-torch.inf)  # of choices that are none
        _attend(q, pages, batch, step, index=index, rows=rows, parts=parts)
        merge(parts, _rows(batch, step, rows), G, out)


def _attend(
    q: Tensor, pages: LayerPages, batch: RaggedBatch, step: StepBlocks, *, index: BlockIndex, rows: range, parts: Parts
) -> None:
    (_, H, D), (_, B, G, _) = q.shape, pages.k.shape
    tile = attention_tiles.kv_outer(q.dtype)
    kv_outer_kernel[(index.runs.shape[1], G)](
        q,
        pages.k,
        pages.v,
        parts.values,
        parts.lse,
        batch.positions,
        step.pages,
        step.positions,
        step.written,
        index.pairs,
        index.pair_starts,
        index.runs,
        index.run_starts,
        rows.start,
        index.pairs.shape[1],
        len(step),
        softmax.base2_scale(D),
        G=G,
        HEADS=H // G,
        D=D,
        B=B,
        QUERIES=tile.queries(H // G),
        RUN=attention_tiles.KV_OUTER_RUN,
        K=parts.values.shape[1],
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _rows(batch: RaggedBatch, step: StepBlocks, rows: range) -> Tensor:
    """[rows] i32: each row, -1 for a decoding one."""
    key = ("kv_outer_rows", rows)
    if key not in batch.memo:
        every = torch.arange(rows.start, rows.stop, dtype=torch.int32, device=step.sequences.device)
        batch.memo[key] = every.masked_fill_(step.sequences[rows.start : rows.stop] < 0, -1)
    found: Tensor = batch.memo[key]
    return found


@triton.jit(do_not_specialize=["first_row", "pair_count", "block_count"])
def kv_outer_kernel(  # noqa: PLR0917
    q: tl.tensor,  # [T, H, D]
    k: tl.tensor,  # [P, B, G, D]
    v: tl.tensor,  # [P, B, G, D]
    parts: tl.tensor,  # out, [rows, K, H, D]
    lse: tl.tensor,  # out, [rows, K, H] fp32
    positions: tl.tensor,  # [T] i64
    block_pages: tl.tensor,  # [NB] i64
    block_positions: tl.tensor,  # [NB] i64
    block_written: tl.tensor,  # [NB] i32
    pairs: tl.tensor,  # [G, pair_count] i32
    pair_starts: tl.tensor,  # [G, NB + 1] i32
    runs: tl.tensor,  # [G, programs] i32
    run_starts: tl.tensor,  # [G, NB + 1] i32
    first_row: tl.tensor,
    pair_count: tl.tensor,
    block_count: tl.tensor,
    scale: tl.tensor,
    G: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    B: tl.constexpr,
    QUERIES: tl.constexpr,
    RUN: tl.constexpr,
    K: tl.constexpr,
) -> None:
    number, group = tl.program_id(0), tl.program_id(1).to(tl.int64)
    starts = group * (block_count + 1)
    if number >= tl.load(run_starts + starts + block_count):
        return
    block = tl.load(runs + group * tl.num_programs(0) + number)
    run = number - tl.load(run_starts + starts + block)
    begin = tl.load(pair_starts + starts + block) + run * RUN
    end = tl.minimum(begin + RUN, tl.load(pair_starts + starts + block + 1))

    ROWS: tl.constexpr = QUERIES * HEADS
    row, d, key = tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, B)
    head = group * HEADS + row % HEADS
    cell = (tl.load(block_pages + block) * B + key)[:, None] * (G * D) + group * D + d[None, :]  # [B, D]
    written = (key < tl.load(block_written + block))[:, None]  # beyond, a page holds anything
    keys = tl.load(k + cell, mask=written, other=0.0).to(q.dtype.element_ty)
    values = tl.load(v + cell, mask=written, other=0.0).to(q.dtype.element_ty)
    first_position = tl.load(block_positions + block)
    for at in range(begin, end, QUERIES):
        # Rows beyond the run repeat its last query, and are not stored.
        pair = tl.load(pairs + group * pair_count + tl.minimum(at + row // HEADS, end - 1)).to(tl.int64)
        token = first_row + pair // K
        queries = tl.load(q + (token * (G * HEADS) + head)[:, None] * D + d[None, :])  # [ROWS, D]
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")  # [ROWS, B] fp32
        last = tl.load(positions + token) - first_position  # what a query sees of its own block; of others, all
        scores = tl.where(key[None, :] <= last[:, None], scores, float("-inf"))
        peak = tl.max(scores, 1) * scale
        weights = tl.exp2(scores * scale - peak[:, None])
        total = tl.sum(weights, 1)
        attended = tl.dot(weights.to(values.dtype), values, input_precision="ieee") / total[:, None]
        stored = at + row // HEADS < end
        place = pair * (G * HEADS) + head
        tl.store(lse + place, peak + tl.log2(total), mask=stored)
        tl.store(parts + place[:, None] * D + d[None, :], attended.to(parts.dtype.element_ty), mask=stored[:, None])


def configurations() -> list[CompileCase]:
    """Every way in which M3 compiles the kernel."""
    tile = attention_tiles.kv_outer(torch.bfloat16)
    return [
        CompileCase(
            name=f"kv_outer/{cache}",
            kernel=kv_outer_kernel,
            signature={
                "q": f"*{queries}",
                "k": f"*{cache}",
                "v": f"*{cache}",
                "parts": f"*{queries}",
                "lse": "*fp32",
                **dict.fromkeys(("positions", "block_pages", "block_positions"), "*i64"),
                **dict.fromkeys(("block_written", "pairs", "pair_starts", "runs", "run_starts"), "*i32"),
                **dict.fromkeys(("first_row", "pair_count", "block_count"), "i32"),
                "scale": "fp32",
            },
            constexprs={
                "G": 4,
                "HEADS": 16,
                "D": 128,
                "B": 128,
                "QUERIES": tile.queries(16),
                "RUN": attention_tiles.KV_OUTER_RUN,
                "K": 16,
            },
            num_warps=tile.warps,
            num_stages=tile.stages,
            instruction="HGMMA",
        )
        for queries, cache in (("bf16", "bf16"), ("fp16", "fp16"), ("bf16", "fp8e4nv"))
    ]
