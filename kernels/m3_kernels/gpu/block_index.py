"""The reverse index of a selection: for every block, the queries that chose it.

Owns the numbering of the blocks of a step (`StepBlocks`, made once a step) and three launches a layer, count, scan and
scatter, of which the host learns nothing. Within a block the queries stand in whatever order the counters handed out;
no result depends on it, as each (query, choice) pair has a place of its own in what is computed from here.

A block's queries are cut into *runs*, so that a block which every query chose (a prompt's first, often) is not one
program's whole work. How many runs there are only the device knows; `most_runs` bounds it.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from m3_kernels.gpu.compiled import CompileCase
from m3_kernels.layout import RaggedBatch

SIZE = 1024
"""Pairs, or blocks, of a program."""
WARPS = 4


@dataclass(frozen=True)
class StepBlocks:
    """The blocks of the sequences with several tokens in the step, numbered through."""

    sequences: Tensor
    """[T] i32: whose each row is; -1 for a decoding row."""
    first: Tensor
    """[S] i32: number of a sequence's first block."""
    pages: Tensor
    """[NB] i64: where each block lies."""
    positions: Tensor
    """[NB] i64: of its first token."""
    written: Tensor
    """[NB] i32: tokens of it that the sequence has."""

    def __len__(self) -> int:
        return self.pages.shape[0]


@dataclass(frozen=True)
class BlockIndex:
    """The pairs (row, choice) of a stretch of rows by block, each numbered (row - first row) * K + choice."""

    pairs: Tensor
    """[G, rows * K] i32"""
    pair_starts: Tensor
    """[G, NB + 1] i32: where the pairs of a block begin."""
    runs: Tensor
    """[G, most_runs] i32: the block of each run."""
    run_starts: Tensor
    """[G, NB + 1] i32: where the runs of a block begin; the last is how many there are."""


def step_blocks(batch: RaggedBatch, block_tokens: int) -> StepBlocks:
    """Worked out once a step."""
    key = ("step_blocks", block_tokens)
    if key not in batch.memo:
        batch.memo[key] = _step_blocks(batch, block_tokens)
    found: StepBlocks = batch.memo[key]
    return found


def _step_blocks(batch: RaggedBatch, block_tokens: int) -> StepBlocks:
    device = batch.positions.device
    chunks = [stop - start > 1 for start, stop in pairwise(batch.query_starts)]
    lengths = [context if chunk else 0 for context, chunk in zip(batch.context_lengths, chunks, strict=True)]
    contexts = torch.tensor(lengths, device=device)
    counts = (contexts + block_tokens - 1) // block_tokens
    total = sum(-(-length // block_tokens) for length in lengths)
    first = counts.cumsum(0) - counts
    sequence = torch.repeat_interleave(counts, output_size=total)
    block = torch.arange(total, device=device) - first[sequence]
    of_row = batch.sequence_of_token
    return StepBlocks(
        sequences=torch.where(contexts[of_row] > 0, of_row, -1).to(torch.int32),
        first=first.to(torch.int32),
        pages=batch.page_table[sequence, block],
        positions=block * block_tokens,
        written=(contexts[sequence] - block * block_tokens).clamp(max=block_tokens).to(torch.int32),
    )


def index_blocks(blocks: Tensor, step: StepBlocks, rows: range, run: int) -> BlockIndex:
    """The index of the choices of some rows, in runs of at most `run` queries. blocks: [G, T, K] i32, then -1."""
    (G, T, K), NB, pairs = blocks.shape, len(step), len(rows) * blocks.shape[2]
    counts = blocks.new_zeros(G, NB)
    index = BlockIndex(
        pairs=blocks.new_empty(G, pairs),
        pair_starts=blocks.new_empty(G, NB + 1),
        runs=blocks.new_empty(G, most_runs(pairs, NB, run)),
        run_starts=blocks.new_empty(G, NB + 1),
    )
    stretch = (blocks, step.sequences, step.first, T, rows.start, pairs, NB, counts)
    grid = (triton.cdiv(pairs, SIZE), G)
    count_kernel[grid](*stretch, SIZE=SIZE, K=K, num_warps=WARPS)
    scan_kernel[(G,)](counts, index.pair_starts, index.run_starts, NB, RUN=run, SIZE=SIZE, num_warps=WARPS)
    scatter_kernel[grid](
        *stretch,
        index.pair_starts,
        index.run_starts,
        index.pairs,
        index.runs,
        index.runs.shape[1],
        RUN=run,
        SIZE=SIZE,
        K=K,
        num_warps=WARPS,
    )
    return index


def most_runs(pairs: int, blocks: int, run: int) -> int:
    """Runs into which so many pairs of so many blocks are cut at most: each block may have one that is not full."""
    return min(pairs, pairs // run + blocks)


@triton.jit
def numbered(  # noqa: PLR0917
    blocks: tl.tensor,
    sequences: tl.tensor,
    first_blocks: tl.tensor,
    row: tl.tensor,
    place: tl.tensor,
    real: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    """The number of the block at each place of the lists, and whether there is one."""
    sequence = tl.load(sequences + row, mask=real, other=-1)
    chosen = sequence >= 0
    block = tl.load(blocks + place, mask=chosen, other=-1)
    chosen = block >= 0
    return block + tl.load(first_blocks + sequence, mask=chosen, other=0), chosen


_CHANGING = ["tokens", "first_row", "pair_count", "block_count", "most_runs"]


@triton.jit(do_not_specialize=_CHANGING)
def count_kernel(  # noqa: PLR0917
    blocks: tl.tensor,  # [G, T, K] i32, ascending, then -1
    sequences: tl.tensor,  # [T] i32
    first_blocks: tl.tensor,  # [S] i32
    tokens: tl.tensor,
    first_row: tl.tensor,
    pair_count: tl.tensor,
    block_count: tl.tensor,
    counts: tl.tensor,  # [G, NB] i32, zeros before; after: queries of each block
    SIZE: tl.constexpr,
    K: tl.constexpr,
) -> None:
    """Grid (pairs / SIZE, G)."""
    pair, group = tl.program_id(0) * SIZE + tl.arange(0, SIZE), tl.program_id(1).to(tl.int64)
    place = (group * tokens + first_row) * K + pair
    block, chosen = numbered(blocks, sequences, first_blocks, first_row + pair // K, place, pair < pair_count)
    tl.atomic_add(counts + group * block_count + block, 1, mask=chosen, sem="relaxed")


@triton.jit(do_not_specialize=_CHANGING)
def scan_kernel(  # noqa: PLR0917
    counts: tl.tensor,  # [G, NB] i32
    pair_starts: tl.tensor,  # out, [G, NB + 1] i32
    run_starts: tl.tensor,  # out, [G, NB + 1] i32
    block_count: tl.tensor,
    RUN: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    """Grid (G,): a group's 8,192 blocks at a million tokens are eight steps."""
    group = tl.program_id(0).to(tl.int64)
    counts += group * block_count
    pair_starts += group * (block_count + 1)
    run_starts += group * (block_count + 1)
    pairs = tl.zeros((), tl.int32)
    runs = tl.zeros((), tl.int32)
    for first in range(0, block_count, SIZE):
        block = first + tl.arange(0, SIZE)
        real = block < block_count
        count = tl.load(counts + block, mask=real, other=0)
        cut = (count + RUN - 1) // RUN
        tl.store(pair_starts + block, pairs + tl.cumsum(count, 0) - count, mask=real)
        tl.store(run_starts + block, runs + tl.cumsum(cut, 0) - cut, mask=real)
        pairs += tl.sum(count, 0)
        runs += tl.sum(cut, 0)
    tl.store(pair_starts + block_count, pairs)
    tl.store(run_starts + block_count, runs)


@triton.jit(do_not_specialize=_CHANGING)
def scatter_kernel(  # noqa: PLR0917
    blocks: tl.tensor,  # [G, T, K] i32, ascending, then -1
    sequences: tl.tensor,  # [T] i32
    first_blocks: tl.tensor,  # [S] i32
    tokens: tl.tensor,
    first_row: tl.tensor,
    pair_count: tl.tensor,
    block_count: tl.tensor,
    counts: tl.tensor,  # [G, NB] i32: queries of each block; zeros after
    pair_starts: tl.tensor,  # [G, NB + 1] i32
    run_starts: tl.tensor,  # [G, NB + 1] i32
    pairs: tl.tensor,  # out, [G, pair_count] i32
    runs: tl.tensor,  # out, [G, most_runs] i32
    most_runs: tl.tensor,
    RUN: tl.constexpr,
    SIZE: tl.constexpr,
    K: tl.constexpr,
) -> None:
    """Grid (pairs / SIZE, G)."""
    pair, group = tl.program_id(0) * SIZE + tl.arange(0, SIZE), tl.program_id(1).to(tl.int64)
    place = (group * tokens + first_row) * K + pair
    block, chosen = numbered(blocks, sequences, first_blocks, first_row + pair // K, place, pair < pair_count)
    # Counting down hands out each place of a block once.
    rank = tl.atomic_add(counts + group * block_count + block, -1, mask=chosen, sem="relaxed") - 1
    start = group * (block_count + 1) + block
    tl.store(pairs + group * pair_count + tl.load(pair_starts + start, mask=chosen, other=0) + rank, pair, mask=chosen)
    opens = chosen & (rank % RUN == 0)  # the first pair of a run says whose run it is
    run = tl.load(run_starts + start, mask=opens, other=0) + rank // RUN
    tl.store(runs + group * most_runs + run, block, mask=opens)


def configurations() -> list[CompileCase]:
    """How M3 makes the index."""
    run = 128
    stretch = {
        **dict.fromkeys(("blocks", "sequences", "first_blocks", "counts"), "*i32"),
        **dict.fromkeys(("tokens", "first_row", "pair_count", "block_count"), "i32"),
    }
    starts = {"pair_starts": "*i32", "run_starts": "*i32"}
    return [
        CompileCase("block_index/count", count_kernel, stretch, {"SIZE": SIZE, "K": 16}, WARPS, 1),
        CompileCase(
            "block_index/scan",
            scan_kernel,
            {"counts": "*i32", "block_count": "i32", **starts},
            {"RUN": run, "SIZE": SIZE},
            WARPS,
            1,
        ),
        CompileCase(
            "block_index/scatter",
            scatter_kernel,
            {**stretch, **starts, "pairs": "*i32", "runs": "*i32", "most_runs": "i32"},
            {"RUN": run, "SIZE": SIZE, "K": 16},
            WARPS,
            1,
        ),
    ]
