"""The union of a tile's blocks, and the reverse index of a selection, against the same made with Python's sets."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from m3_kernel_cases import SHAPES, B, G, Step, step
from m3_kernels import reference
from m3_kernels.gpu.block_index import index_blocks, most_runs, step_blocks
from m3_kernels.gpu.launch import query_tiles
from m3_kernels.gpu.union_tile import rows_of_tiles, unite

K = 3
CHUNKS = ["a_prompt_of_many_blocks", "two_tokens_across_a_page", "prefill_chunks_and_decodes"]


def choices(case: Step) -> Tensor:
    clean = case.without_poison()
    return reference.choose_blocks(clean.index_q, clean.index_k, clean.batch, K)


@pytest.mark.parametrize("shape", CHUNKS)
def test_a_tile_lists_each_block_once_with_all_who_chose_it(shape: str) -> None:
    case = step(SHAPES[shape])
    blocks, tiles = choices(case), query_tiles(case.batch, 4)
    assert tiles is not None
    lists = unite(blocks, case.batch, tiles, B)
    for group in range(G):
        for number, (sequence, first, end, _) in enumerate(tiles.table.tolist()):
            chosen = [set(blocks[group, row].tolist()) - {-1} for row in range(first, end)]
            union = sorted(set().union(*chosen))
            own = case.batch.positions[first].item() // B
            assert lists.counts[group, number].tolist() == [sum(block < own for block in union), len(union)]
            pages = case.batch.page_table[sequence, union].tolist()
            members = [sum(1 << query for query, ids in enumerate(chosen) if block in ids) for block in union]
            assert lists.pages[group, number, : len(union)].tolist() == pages
            assert lists.members[group, number, : len(union)].tolist() == members


def test_places_beyond_a_tile_have_no_row() -> None:
    batch = step([(3, 3), (1, 40), (5, 26)]).batch
    tiles = query_tiles(batch, 2)
    assert tiles is not None
    assert rows_of_tiles(batch, tiles).tolist() == [0, 1, 2, -1, 4, 5, 6, 7, 8, -1]


@pytest.mark.parametrize("shape", CHUNKS)
@pytest.mark.parametrize("run", [1, 4, 128])
def test_the_reverse_index_names_the_queries_of_each_block(shape: str, run: int) -> None:
    case = step(SHAPES[shape])
    blocks, numbered = choices(case), step_blocks(case.batch, B)
    rows = range(2 if case.batch.tokens > 8 else 0, case.batch.tokens)
    index = index_blocks(blocks, numbered, rows, run)
    for group in range(G):
        expected: list[set[int]] = [set() for _ in range(len(numbered))]
        for row in rows:
            if is_decoding(case, row):
                continue
            first = int(numbered.first[case.batch.sequence_of_token[row]])
            for choice, block in enumerate(blocks[group, row].tolist()):
                if block >= 0:
                    expected[first + block].add((row - rows.start) * K + choice)
        starts = index.pair_starts[group].tolist()
        pairs = index.pairs[group].tolist()
        assert [set(pairs[a:b]) for a, b in pairwise(starts)] == expected
        assert starts[-1] == sum(map(len, expected))
        runs = [number for number, ids in enumerate(expected) for _ in range(-(-len(ids) // run))]
        assert index.run_starts[group, -1].item() == len(runs) <= index.runs.shape[1]
        assert index.runs[group, : len(runs)].tolist() == runs


def is_decoding(case: Step, row: int) -> bool:
    sequence = int(case.batch.sequence_of_token[row])
    return case.batch.query_starts[sequence + 1] - case.batch.query_starts[sequence] == 1


def test_blocks_of_a_step_say_where_they_lie_and_what_is_written() -> None:
    case = step([(3, 2 * B + 1), (1, 5 * B), (B, B)])
    numbered = step_blocks(case.batch, B)
    table = case.batch.page_table
    assert numbered.pages.tolist() == [*table[0, :3].tolist(), int(table[2, 0])]
    assert numbered.positions.tolist() == [0, B, 2 * B, 0]
    assert numbered.written.tolist() == [B, B, 1, B]
    assert numbered.sequences.tolist() == [0] * 3 + [-1] + [2] * B
    assert numbered.first[[0, 2]].tolist() == [0, 3]


@pytest.mark.parametrize(("counts", "run"), [([5, 5, 5], 4), ([1, 1, 1], 4), ([12], 4), ([13, 0, 0], 4)])
def test_runs_are_never_more_than_their_bound(counts: list[int], run: int) -> None:
    assert sum(-(-count // run) for count in counts) <= most_runs(sum(counts), len(counts), run)


def test_the_index_counts_nothing_twice_when_made_again() -> None:
    case = step(SHAPES["a_prompt_of_many_blocks"])
    blocks, numbered = choices(case), step_blocks(case.batch, B)
    once, again = (index_blocks(blocks, numbered, range(case.batch.tokens), 4) for _ in range(2))
    assert torch.equal(once.pair_starts, again.pair_starts)
