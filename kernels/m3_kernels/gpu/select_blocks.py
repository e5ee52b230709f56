"""The k best blocks of each query: of the scores of `index_score`, or of candidates that several ranks found.

Owns what a choice is, and where it is written; how the best are found is `block_keys`' affair.
A query in block `own` chooses among the blocks before it, and has its own besides. With no more than k in all there is
nothing to choose, and its scores are not read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from m3_kernels.gpu import tiles
from m3_kernels.gpu.block_keys import best, block_of, pack, score_of
from m3_kernels.gpu.compiled import CompileCase
from m3_kernels.gpu.index_score import stretch
from m3_kernels.gpu.launch import DecodeRows, QueryTiles
from m3_kernels.layout import BlockCandidates, BlockPart, RaggedBatch

NONE = tl.constexpr(0x7FFFFFFF)
"""Behind every block's number."""


@dataclass(frozen=True)
class Choice:
    """Where a choice is written: complete ones to `ids`; of a part of the blocks, what it brings, with the scores."""

    ids: Tensor
    """[G, T, k] i32."""
    scores: Tensor | None
    """[G, T, k] fp32; None for complete choices."""
    part: BlockPart
    block_tokens: int


def select_of_tiles(scores: Tensor, batch: RaggedBatch, queries: QueryTiles, choice: Choice) -> None:
    """Choose for the queries of some tiles. scores: [tiles, blocks, rows] of `index_score.score_tiles`."""
    n, blocks, rows = scores.shape
    G, T, k = choice.ids.shape
    tile = tiles.SELECT_OF_TILES
    select_of_tiles_kernel[(n, rows // tile.rows)](
        scores,
        blocks,
        batch.positions,
        queries.table,
        *_written(choice),
        T,
        choice.part.number,
        choice.part.parts,
        int(choice.scores is not None),
        **_sizes(G, k, choice),
        TILE_ROWS=rows,
        ROWS=tile.rows,
        GROUPS=tile.groups,
        MEMBERS=tile.members,
        num_warps=tile.warps,
        num_stages=1,
    )


def select_of_rows(scores: Tensor, batch: RaggedBatch, decode: DecodeRows, choice: Choice) -> None:
    """Choose for the decoding rows. scores: [n, G, blocks] of `index_score.score_rows`."""
    n, _, blocks = scores.shape
    G, T, k = choice.ids.shape
    tile = tiles.select_of_rows(blocks)
    select_of_rows_kernel[(n, G)](
        scores,
        blocks,
        batch.positions,
        decode.rows,
        *_written(choice),
        T,
        choice.part.number,
        choice.part.parts,
        int(choice.scores is not None),
        **_sizes(G, k, choice),
        GROUPS=tile.groups,
        MEMBERS=tile.members,
        num_warps=tile.warps,
        num_stages=1,
    )


def join(candidates: BlockCandidates, positions: Tensor, block_tokens: int) -> Tensor:
    """See `reference.join_blocks`."""
    parts, G, T, kept = candidates.ids.shape
    ids = torch.empty(G, T, kept + 1, dtype=torch.int32, device=positions.device)
    join_kernel[(G, -(-T // tiles.JOIN_ROWS))](
        candidates.scores,
        candidates.ids,
        positions,
        ids,
        T,
        G * T * kept,
        parts * kept,
        ROWS=tiles.JOIN_ROWS,
        K=kept + 1,
        KEPT=kept,
        PADDED=_padded(kept + 1),
        CANDIDATES=max(triton.next_power_of_2(parts * kept), _padded(kept + 1)),
        B=block_tokens,
        num_warps=1,
        num_stages=1,
    )
    return ids


@triton.jit
def write(  # noqa: PLR0917
    keys: tl.tensor,  # [ROWS, PADDED] u64, best first, then 0
    first: tl.tensor,  # the block that is counted as 0
    own: tl.tensor,  # [ROWS]
    ids: tl.tensor,  # [ROWS] pointers to a row's K blocks
    scores: tl.tensor,  # [ROWS] pointers to a row's K scores, if with_scores
    with_scores: tl.tensor,
    valid: tl.tensor,  # [ROWS]
    K: tl.constexpr,
    PADDED: tl.constexpr,
) -> None:
    """Candidates as they are; or a choice: the K - 1 best and the own block, or all blocks where they are at most K."""
    column = tl.arange(0, PADDED)[None, :]
    block = tl.where(keys > 0, first + block_of(keys), NONE)
    wanted = valid[:, None] & (column < K)
    if with_scores:
        tl.store(scores[:, None] + column, score_of(keys), mask=wanted)
        tl.store(ids[:, None] + column, tl.where(keys > 0, block, -1), mask=wanted)
    else:
        block = tl.where(column == K - 1, own[:, None], tl.where(column < K - 1, block, NONE))
        block = tl.where(own[:, None] < K, tl.where(column <= own[:, None], column, NONE), block)
        block = tl.sort(block)
        tl.store(ids[:, None] + column, tl.where(block == NONE, -1, block), mask=wanted)


_CHANGING = ["score_blocks", "tokens", "number", "parts", "with_scores"]


@triton.jit(do_not_specialize=_CHANGING)
def select_of_tiles_kernel(  # noqa: PLR0917
    scores: tl.tensor,  # [tiles, score_blocks, TILE_ROWS] fp32
    score_blocks: tl.tensor,
    positions: tl.tensor,  # [T] i64
    tile_table: tl.tensor,  # [tiles, 4] i32, see QueryTiles
    ids: tl.tensor,  # out, [G, T, K] i32
    id_scores: tl.tensor,  # out, [G, T, K] fp32, if with_scores
    tokens: tl.tensor,  # T
    number: tl.tensor,
    parts: tl.tensor,
    with_scores: tl.tensor,  # 1 for candidates, 0 for choices
    G: tl.constexpr,
    B: tl.constexpr,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    MEMBERS: tl.constexpr,
) -> None:
    """Grid (tiles, TILE_ROWS / ROWS)."""
    tile = tl.program_id(0)
    first_row = tl.load(tile_table + tile * 4 + 1)
    end_row = tl.load(tile_table + tile * 4 + 2)
    context = tl.load(tile_table + tile * 4 + 3)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    token = first_row + row // G
    valid = (row < TILE_ROWS // G * G) & (token < end_row)
    own = (tl.load(positions + token, mask=valid, other=0) // B).to(tl.int32)
    first, end = stretch((context + B - 1) // B, own, number, parts)
    counts = tl.maximum(end - first, 0)
    counts = tl.where((own < K) & (with_scores == 0), 0, counts)
    rows = scores + tile.to(tl.int64) * score_blocks * TILE_ROWS + row
    keys = best(rows, counts, False, TILE_ROWS, ROWS, GROUPS, MEMBERS, PADDED)
    place = ((row % G).to(tl.int64) * tokens + token) * K
    write(keys, first, own, ids + place, id_scores + place, with_scores, valid, K, PADDED)


@triton.jit(do_not_specialize=_CHANGING)
def select_of_rows_kernel(  # noqa: PLR0917
    scores: tl.tensor,  # [n, G, score_blocks] fp32
    score_blocks: tl.tensor,
    positions: tl.tensor,  # [T] i64
    rows: tl.tensor,  # [n] i32, see DecodeRows
    ids: tl.tensor,  # out, [G, T, K] i32
    id_scores: tl.tensor,  # out, [G, T, K] fp32, if with_scores
    tokens: tl.tensor,  # T
    number: tl.tensor,
    parts: tl.tensor,
    with_scores: tl.tensor,  # 1 for candidates, 0 for choices
    G: tl.constexpr,
    B: tl.constexpr,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    GROUPS: tl.constexpr,
    MEMBERS: tl.constexpr,
) -> None:
    """Grid (n, G)."""
    n, group = tl.program_id(0), tl.program_id(1)
    token = tl.load(rows + n) + tl.zeros((1,), tl.int32)
    own = (tl.load(positions + token) // B).to(tl.int32)
    first, end = stretch(own + 1, own, number, parts)
    counts = tl.maximum(end - first, 0)
    counts = tl.where((own < K) & (with_scores == 0), 0, counts)
    row = scores + (n.to(tl.int64) * G + group) * score_blocks + tl.zeros((1,), tl.int64)
    keys = best(row, counts, True, 1, 1, GROUPS, MEMBERS, PADDED)
    place = (group.to(tl.int64) * tokens + token) * K
    write(keys, first, own, ids + place, id_scores + place, with_scores, token >= 0, K, PADDED)


@triton.jit(do_not_specialize=["tokens", "part_stride", "count"])
def join_kernel(  # noqa: PLR0917
    scores: tl.tensor,  # [parts, G, T, KEPT] fp32
    candidates: tl.tensor,  # [parts, G, T, KEPT] i32
    positions: tl.tensor,  # [T] i64
    ids: tl.tensor,  # out, [G, T, K] i32
    tokens: tl.tensor,  # T
    part_stride: tl.tensor,  # G * T * KEPT
    count: tl.tensor,  # parts * KEPT
    ROWS: tl.constexpr,
    K: tl.constexpr,
    KEPT: tl.constexpr,
    PADDED: tl.constexpr,
    CANDIDATES: tl.constexpr,
    B: tl.constexpr,
) -> None:
    """Grid (G, T / ROWS)."""
    group = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    valid = token < tokens
    row = group * tokens + token
    candidate = tl.arange(0, CANDIDATES)[None, :]
    place = (candidate // KEPT).to(tl.int64) * part_stride + row[:, None] * KEPT + candidate % KEPT
    exists = valid[:, None] & (candidate < count)
    block = tl.load(candidates + place, mask=exists, other=-1)  # [ROWS, CANDIDATES]
    score = tl.load(scores + place, mask=exists, other=0.0)
    keys = tl.topk(tl.where(block < 0, 0, pack(score, block)), PADDED)
    own = (tl.load(positions + token, mask=valid, other=0) // B).to(tl.int32)
    write(keys, 0, own, ids + row * K, ids + row * K, 0, valid, K, PADDED)


def _written(choice: Choice) -> tuple[Tensor, Tensor]:
    """Pointers to what is written; where scores are not, anything stands in."""
    return choice.ids, choice.ids if choice.scores is None else choice.scores


def _sizes(groups: int, k: int, choice: Choice) -> Mapping[str, Any]:
    return {
        "G": groups,
        "B": choice.block_tokens,
        "K": k,
        "PADDED": _padded(k),
    }


def _padded(k: int) -> int:
    """A power of two, as sorting takes, and 2 at least."""
    return 1 << max((k - 1).bit_length(), 1)


def configurations() -> list[CompileCase]:
    """Every way in which M3 compiles the three kernels; page tables of up to 1M tokens, choices of 8 ranks together."""
    sizes = {"G": 4, "B": 128, "K": 16, "PADDED": 16}
    common = {
        "scores": "*fp32",
        "positions": "*i64",
        "ids": "*i32",
        "id_scores": "*fp32",
        **dict.fromkeys(_CHANGING, "i32"),
    }
    tile, tile_rows = tiles.SELECT_OF_TILES, tiles.prefill_score(torch.bfloat16).rows
    of_tiles = CompileCase(
        name="select_blocks/prefill",
        kernel=select_of_tiles_kernel,
        signature={**common, "tile_table": "*i32"},
        constexprs={**sizes, "TILE_ROWS": tile_rows, "ROWS": tile.rows, "GROUPS": tile.groups, "MEMBERS": tile.members},
        num_warps=tile.warps,
        num_stages=1,
    )
    of_rows = [
        CompileCase(
            name=f"select_blocks/decode/{tile.groups}x{tile.members}",
            kernel=select_of_rows_kernel,
            signature={**common, "rows": "*i32"},
            constexprs={**sizes, "GROUPS": tile.groups, "MEMBERS": tile.members},
            num_warps=tile.warps,
            num_stages=1,
        )
        for tile in (tiles.select_of_rows(blocks) for blocks in (128, 1024, 8192))
    ]
    joining = CompileCase(
        name="select_blocks/join",
        kernel=join_kernel,
        signature={**common, "candidates": "*i32", "part_stride": "i64", "count": "i32"},
        constexprs={"ROWS": tiles.JOIN_ROWS, "K": 16, "KEPT": 15, "PADDED": 16, "CANDIDATES": 128, "B": 128},
        num_warps=1,
        num_stages=1,
    )
    joining = replace(joining, signature={n: t for n, t in joining.signature.items() if n in join_kernel.arg_names})
    return [of_tiles, *of_rows, joining]
