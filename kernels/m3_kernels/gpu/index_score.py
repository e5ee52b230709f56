"""Scores of blocks: for each query and index head, the largest dot product with a token of each block.

Owns the two kernels that read index keys. Neither masks a token: the query's own block, the only one that it sees in
part, is always chosen and so needs no score, and all blocks before it are full.

A prompt (`score_tiles`): rows = queries x heads of one tile, packed, all against the same pages; a program takes a tile
and a stretch of the blocks. Programs that run together share the stretch, so that its pages are read from memory once.
    arithmetic   2 * T * G * I * n for n tokens before a query: 4.4 TFLOP for 8,192 queries after 512K
    scores       [tile, block, row]: the rows of a block lie together, as a program computes them

Decoding (`score_rows`): one query; its heads are the columns and the keys the rows of the product, so that a key is
read once for all heads. A program takes a query and a stretch of the blocks; the grid depends on shapes alone.
    bytes        B * I a block (32 KiB in bf16): n * 256 bytes a query
    scores       [query, head, block]

Keys in FP8 meet queries that are rounded to FP8 in the same way (cut to the range, no scale: both are normed), in
both kernels, so that a token's choice does not depend on whether it was computed in a prompt or decoded.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from m3_kernels.gpu import tiles
from m3_kernels.gpu.compiled import CompileCase
from m3_kernels.gpu.launch import DecodeRows, QueryTiles
from m3_kernels.layout import BlockPart, RaggedBatch

FP8_MAX = tl.constexpr(448.0)


@dataclass(frozen=True)
class Wanted:
    """Which blocks are scored: those of `part` that lie before a query's own block.

    A query with fewer than `least_own` blocks before its own gets no scores: its choice needs none.
    """

    part: BlockPart
    least_own: int


def score_tiles(index_q: Tensor, index_k: Tensor, batch: RaggedBatch, queries: QueryTiles, wanted: Wanted) -> Tensor:
    """Score the blocks of every tile. index_q: [T, G, I], contiguous. index_k: [P, B, I].

    Returns [tiles, blocks, rows] fp32: row r of a tile is head r % G of its query r // G; block j is the j-th of the
    part. Nothing is written, and there is anything, where a query needs no score (see `Wanted`).
    """
    (_, G, I), B = index_q.shape, index_k.shape[1]  # noqa: E741
    tile = tiles.prefill_score(index_k.dtype)
    blocks = most_blocks(queries.longest_context, B, wanted.part)
    split = tiles.PREFILL_SCORE_SPLIT.blocks(len(queries), blocks)
    scores = torch.empty(len(queries), blocks, tile.rows, dtype=torch.float32, device=index_q.device)
    score_tiles_kernel[(len(queries), -(-blocks // split))](
        index_q,
        index_k,
        batch.page_table,
        batch.page_table.stride(0),
        batch.positions,
        queries.table,
        scores,
        blocks,
        split,
        wanted.least_own,
        wanted.part.number,
        wanted.part.parts,
        **_sizes(G, I, B),
        ROWS=tile.rows,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return scores


def score_rows(index_q: Tensor, index_k: Tensor, batch: RaggedBatch, decode: DecodeRows, wanted: Wanted) -> Tensor:
    """Score the blocks of every decoding row. index_q: [T, G, I], contiguous. index_k: [P, B, I].

    Returns [n, G, blocks] fp32: block j is the j-th of the part. Nothing is written, and there is anything, where a
    query needs no score (see `Wanted`).
    """
    (_, G, I), B = index_q.shape, index_k.shape[1]  # noqa: E741
    tile = tiles.decode_score(index_k.dtype)
    blocks = most_blocks(batch.page_table.shape[1] * B, B, wanted.part)
    split = tiles.DECODE_SCORE_SPLIT.blocks(len(decode), blocks)
    scores = torch.empty(len(decode), G, blocks, dtype=torch.float32, device=index_q.device)
    score_rows_kernel[(len(decode), -(-blocks // split))](
        index_q,
        index_k,
        batch.page_table,
        batch.page_table.stride(0),
        batch.positions,
        decode.rows,
        decode.sequences,
        scores,
        blocks,
        split,
        wanted.least_own,
        wanted.part.number,
        wanted.part.parts,
        **_sizes(G, I, B),
        HEADS=max(tile.rows, triton.next_power_of_2(G)),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return scores


def most_blocks(context: int, block_tokens: int, part: BlockPart) -> int:
    """At least as many as a query of such a context has in the part; 1 where it may have none."""
    return max(-(-context // block_tokens // part.parts), 1)


@triton.jit
def stretch(blocks: tl.tensor, own: tl.tensor, number: tl.tensor, parts: tl.tensor) -> tl.tensor:
    """First and end of the blocks that are scored for a query in block `own` of a sequence (`BlockPart.of`)."""
    return blocks * number // parts, tl.minimum(blocks * (number + 1) // parts, own)


_CHANGING = ["table_stride", "score_blocks", "split_blocks", "least_own", "number", "parts"]


@triton.jit(do_not_specialize=_CHANGING)
def score_tiles_kernel(  # noqa: PLR0917
    index_q: tl.tensor,  # [T, G, I]
    index_k: tl.tensor,  # [P, B, I]
    page_table: tl.tensor,  # [S, table_stride] i64
    table_stride: tl.tensor,
    positions: tl.tensor,  # [T] i64
    tile_table: tl.tensor,  # [tiles, 4] i32, see QueryTiles
    scores: tl.tensor,  # out, [tiles, score_blocks, ROWS] fp32
    score_blocks: tl.tensor,
    split_blocks: tl.tensor,
    least_own: tl.tensor,
    number: tl.tensor,
    parts: tl.tensor,
    G: tl.constexpr,
    I: tl.constexpr,  # noqa: E741
    B: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Grid (tiles, stretches)."""
    tile, split = tl.program_id(0), tl.program_id(1)
    sequence = tl.load(tile_table + tile * 4)
    first_row = tl.load(tile_table + tile * 4 + 1)
    end_row = tl.load(tile_table + tile * 4 + 2)
    context = tl.load(tile_table + tile * 4 + 3)
    own = (tl.load(positions + end_row - 1) // B).to(tl.int32)  # of the tile's last query, which sees the most
    first, end = stretch((context + B - 1) // B, own, number, parts)
    start = first + split * split_blocks
    end = tl.minimum(start + split_blocks, end)
    if (own < least_own) | (start >= end):
        return

    row, dim, token = tl.arange(0, ROWS), tl.arange(0, I), tl.arange(0, B)
    q_rows = index_q + first_row.to(tl.int64) * (G * I) + row[:, None] * I + dim
    q = tl.load(q_rows, mask=row[:, None] < (end_row - first_row) * G, other=0.0)  # [ROWS, I]
    q = as_keys(q, index_k)
    key = token[:, None] * I + dim  # [B, I]
    pages = page_table + sequence.to(tl.int64) * table_stride
    out = scores + (tile.to(tl.int64) * score_blocks - first) * ROWS + row
    for block in range(start, end):
        k = tl.load(index_k + tl.load(pages + block) * (B * I) + key)  # [B, I]
        dots = tl.dot(q, k.T, input_precision="ieee")  # [ROWS, B] fp32
        tl.store(out + block * ROWS, tl.max(dots, 1))


@triton.jit(do_not_specialize=_CHANGING)
def score_rows_kernel(  # noqa: PLR0917
    index_q: tl.tensor,  # [T, G, I]
    index_k: tl.tensor,  # [P, B, I]
    page_table: tl.tensor,  # [S, table_stride] i64
    table_stride: tl.tensor,
    positions: tl.tensor,  # [T] i64
    rows: tl.tensor,  # [n] i32, see DecodeRows
    sequences: tl.tensor,  # [n] i32
    scores: tl.tensor,  # out, [n, G, score_blocks] fp32
    score_blocks: tl.tensor,
    split_blocks: tl.tensor,
    least_own: tl.tensor,
    number: tl.tensor,
    parts: tl.tensor,
    G: tl.constexpr,
    I: tl.constexpr,  # noqa: E741
    B: tl.constexpr,
    HEADS: tl.constexpr,  # G, padded
) -> None:
    """Grid (n, stretches)."""
    n, split = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + n).to(tl.int64)
    own = (tl.load(positions + row) // B).to(tl.int32)
    first, end = stretch(own + 1, own, number, parts)
    start = first + split * split_blocks
    end = tl.minimum(start + split_blocks, end)
    if (own < least_own) | (start >= end):
        return

    head, dim, token = tl.arange(0, HEADS), tl.arange(0, I), tl.arange(0, B)
    q = tl.load(index_q + row * (G * I) + head[:, None] * I + dim, mask=head[:, None] < G, other=0.0)  # [HEADS, I]
    q = as_keys(q, index_k)
    key = token[:, None] * I + dim  # [B, I]
    pages = page_table + tl.load(sequences + n).to(tl.int64) * table_stride
    out = scores + (n.to(tl.int64) * G + head) * score_blocks - first
    for block in range(start, end):
        k = tl.load(index_k + tl.load(pages + block) * (B * I) + key)  # [B, I]
        dots = tl.dot(k, q.T, input_precision="ieee")  # [B, HEADS] fp32
        tl.store(out + block, tl.max(dots, 0), mask=head < G)


@triton.jit
def as_keys(q: tl.tensor, index_k: tl.tensor) -> tl.tensor:
    """Queries in the type of the cache; cut to the range of FP8 as the keys were when they were written."""
    if index_k.dtype.element_ty == tl.float8e4nv:
        return tl.minimum(tl.maximum(q, -FP8_MAX), FP8_MAX).to(tl.float8e4nv)
    else:  # noqa: RET505 - the compiler wants one type a branch
        return q


def _sizes(groups: int, index_dim: int, block_tokens: int) -> Mapping[str, int]:
    return {"G": groups, "I": index_dim, "B": block_tokens}


def configurations() -> list[CompileCase]:
    """Every way in which M3 compiles the two kernels."""
    kinds = (
        ("bf16", "bf16", torch.bfloat16),
        ("fp16", "fp16", torch.float16),
        ("bf16", "fp8e4nv", torch.float8_e4m3fn),
    )
    cases = []
    for queries, keys, dtype in kinds:
        common = {
            "index_q": f"*{queries}",
            "index_k": f"*{keys}",
            **dict.fromkeys(("page_table", "positions"), "*i64"),
            **dict.fromkeys(("tile_table", "rows", "sequences"), "*i32"),
            "scores": "*fp32",
            **dict.fromkeys(_CHANGING, "i32"),
        }
        phases = (
            ("prefill", score_tiles_kernel, "ROWS", tiles.prefill_score(dtype)),
            ("decode", score_rows_kernel, "HEADS", tiles.decode_score(dtype)),
        )
        cases += [
            CompileCase(
                name=f"index_score/{phase}/{keys}",
                kernel=kernel,
                signature={name: type_ for name, type_ in common.items() if name in kernel.arg_names},
                constexprs={**_sizes(groups=4, index_dim=128, block_tokens=128), rows: tile.rows},
                num_warps=tile.warps,
                num_stages=tile.stages,
                instruction="QGMMA" if keys == "fp8e4nv" else "HGMMA",
            )
            for phase, kernel, rows, tile in phases
        ]
    return cases
