"""Scoring and choosing on a GPU against their definition.

Whole numbers for queries and keys make every dot product exact in every type, and many of them equal: a choice must
then be the definition's to the last block.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from m3_kernel_cases import SHAPES, B, G, Step, step
from m3_kernels import reference
from m3_kernels.gpu import index_score, selection, tiles
from m3_kernels.gpu.index_score import Wanted
from m3_kernels.gpu.launch import decode_rows, query_tiles
from m3_kernels.layout import BlockCandidates, BlockPart

EVERY = BlockPart(0, 1)
TYPES = {
    "fp32": (torch.float32, torch.float32),
    "fp16": (torch.float16, torch.float16),
    "fp8_keys": (torch.float16, torch.float8_e4m3fn),
}


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves unwritten is NaN, or a block that there is not."""
    plain_empty = torch.empty

    def empty(*args: object, **options: object) -> Tensor:
        made: Tensor = plain_empty(*args, **options)  # type: ignore[call-overload]
        return made.fill_(torch.nan if made.is_floating_point() else 1 << 30)

    monkeypatch.setattr(torch, "empty", empty)


def of_types(shape: str, types: str) -> Step:
    case = step(SHAPES[shape], *TYPES[types])
    return fp8_queries(case) if types == "fp8_keys" else case


def whole(case: Step) -> Step:
    """The same with whole numbers for index queries and keys."""
    index_k = case.index_k.float().round().to(case.index_k.dtype)
    return replace(case, index_q=case.index_q.round(), pages=replace(case.pages, index_k=index_k))


def fp8_queries(case: Step) -> Step:
    """The same with queries that FP8 has, and one beyond its range.

    The interpreter does not round to FP8 as the chip does (a carry into the exponent is lost), so nothing may be left
    to round; that the queries are cut to the range is seen.
    """
    index_q = case.index_q.to(torch.float8_e4m3fn).to(case.index_q.dtype)
    index_q[0, 0, 0] = 460.0
    return replace(case, index_q=index_q)


def expected_scores(case: Step) -> Tensor:
    """[G, T, NB]; with keys in FP8, of queries that are cut to its range as the keys were."""
    index_q = case.index_q.float()
    if case.index_k.dtype == torch.float8_e4m3fn:
        index_q = index_q.clamp(-448, 448)
    return reference.index_score(index_q, case.without_poison().index_k, case.batch)


PROMPTS = [name for name, lengths in SHAPES.items() if any(queries > 1 for queries, _ in lengths)]
DECODES = [name for name, lengths in SHAPES.items() if any(queries == 1 for queries, _ in lengths)]


@pytest.mark.parametrize(
    ("shape", "types"),
    [(shape, "fp32") for shape in PROMPTS] + [("a_chunk_after_a_prefix", types) for types in ("fp16", "fp8_keys")],
)
def test_scores_of_a_prompt_are_the_best_dot_products(shape: str, types: str) -> None:
    case = of_types(shape, types)
    rows = tiles.prefill_score(case.index_k.dtype).rows
    queries = query_tiles(case.batch, rows // G)
    assert queries is not None
    expected = expected_scores(case)
    scores = index_score.score_tiles(case.index_q, case.index_k, case.batch, queries, Wanted(EVERY, 1))
    for tile, (_, first, end, _) in enumerate(queries.table.tolist()):
        for token in range(first, end):
            own = int(case.batch.positions[token]) // B
            found = scores[tile, :own, (token - first) * G : (token - first + 1) * G].T
            torch.testing.assert_close(found, expected[:, token, :own], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "types"),
    [(shape, "fp32") for shape in DECODES]
    + [("decodes_of_different_lengths", types) for types in ("fp16", "fp8_keys")],
)
def test_scores_of_decoding_rows_are_the_best_dot_products(shape: str, types: str) -> None:
    case = of_types(shape, types)
    rows = decode_rows(case.batch)
    assert rows is not None
    expected = expected_scores(case)
    scores = index_score.score_rows(case.index_q, case.index_k, case.batch, rows, Wanted(EVERY, 1))
    for n, token in enumerate(rows.rows.tolist()):
        own = int(case.batch.positions[token]) // B
        torch.testing.assert_close(scores[n, :, :own], expected[:, token, :own], rtol=0, atol=1e-4)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few blocks a step that short contexts take several; all rows of a tile at once, as interpreting is slow."""
    monkeypatch.setattr(tiles, "SELECT_OF_TILES", tiles.SelectTile(rows=64, groups=4, members=2, warps=1))
    monkeypatch.setattr(tiles, "select_of_rows", lambda _: tiles.SelectTile(rows=1, groups=8, members=4, warps=1))
    monkeypatch.setattr(tiles, "JOIN_ROWS", 64)
    monkeypatch.setattr(tiles, "prefill_score", lambda _: tiles.Tile(rows=64, warps=1, stages=1))


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    ("shape", "types", "k"),
    [
        pytest.param(shape, "fp32", 3, marks=[pytest.mark.long] * (shape == "a_prompt_of_many_blocks"))
        for shape in SHAPES
    ]
    + [
        pytest.param("prefill_chunks_and_decodes", "fp16", 4, marks=pytest.mark.long),
        ("prefill_chunks_and_decodes", "fp8_keys", 4),
    ],
)
def test_the_choice_is_the_definitions(shape: str, types: str, k: int) -> None:
    case = whole(step(SHAPES[shape], *TYPES[types]))
    chosen = selection.choose_blocks(case.index_q, case.index_k, case.batch, k)
    clean = case.without_poison()
    assert torch.equal(chosen, reference.choose_blocks(clean.index_q, clean.index_k, clean.batch, k))


@pytest.mark.usefixtures("small_steps")
def test_one_block_is_the_querys_own() -> None:
    case = whole(step(SHAPES["prefill_chunks_and_decodes"]))
    chosen = selection.choose_blocks(case.index_q, case.index_k, case.batch, 1)
    assert torch.equal(chosen[..., 0], (case.batch.positions // B).expand(G, -1).int())


def test_the_shipped_sizes_choose_the_same_for_an_odd_number_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "prefill_score", lambda _: tiles.Tile(rows=16, warps=1, stages=1))  # the rest is shipped
    case = whole(step([(2, 20 * B + 1), (1, 140 * B + 5)], groups=3))
    chosen = selection.choose_blocks(case.index_q, case.index_k, case.batch, 16)
    clean = case.without_poison()
    assert torch.equal(chosen, reference.choose_blocks(clean.index_q, clean.index_k, clean.batch, 16))


@pytest.mark.usefixtures("small_steps")
def test_scores_of_a_prompt_exist_for_few_tiles_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    plain = index_score.score_tiles

    def noted(*args: Any) -> Tensor:
        made.append(plain(*args))
        return made[-1]

    monkeypatch.setattr(index_score, "score_tiles", noted)
    monkeypatch.setattr(tiles, "SCORE_BYTES", 2 * 64 * 4 * 10)
    case = whole(step(SHAPES["a_prompt_of_many_blocks"]))
    chosen = selection.choose_blocks(case.index_q, case.index_k, case.batch, 4)
    clean = case.without_poison()
    assert torch.equal(chosen, reference.choose_blocks(clean.index_q, clean.index_k, clean.batch, 4))
    assert [list(scores.shape) for scores in made] == [[2, 10, 64], [2, 10, 64], [1, 10, 64]]


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        pytest.param("prefill_chunks_and_decodes", 2, marks=pytest.mark.long),
        ("two_tokens_across_a_page", 2),
        ("decodes_of_different_lengths", 3),
        ("one_token", 2),
        ("a_chunk_after_a_prefix", 1),
    ],
)
def test_what_the_parts_find_joins_to_the_choice(shape: str, parts: int) -> None:
    case = whole(step(SHAPES[shape]))
    clean = case.without_poison()
    found = []
    for number in range(parts):
        part = BlockPart(number, parts)
        candidates = selection.best_blocks(case.index_q, case.index_k, case.batch, 3, part)
        expected = reference.best_blocks(clean.index_q, clean.index_k, clean.batch, 3, part)
        assert torch.equal(candidates.scores, expected.scores)
        assert torch.equal(candidates.ids, expected.ids)
        found.append(candidates)
    together = BlockCandidates(torch.stack([f.scores for f in found]), torch.stack([f.ids for f in found]))
    joined = selection.join_blocks(together, case.batch.positions, B)
    assert torch.equal(joined, reference.choose_blocks(clean.index_q, clean.index_k, clean.batch, 4))


@pytest.mark.usefixtures("small_steps")
def test_decoding_asks_the_host_for_shapes_alone() -> None:
    class Unread(list[int]):
        """Its length may be asked for, what is in it not: a captured graph would keep the answer."""

        def __getitem__(self, _: Any) -> Any:
            raise AssertionError("read on the host")

        def __iter__(self) -> Any:
            raise AssertionError("read on the host")

    case = whole(step([(1, 6 * B), (1, 1), (1, 3 * B + 1)]))
    unread = replace(case.batch, context_lengths=Unread(case.batch.context_lengths))
    chosen = selection.choose_blocks(case.index_q, case.index_k, unread, 4)
    assert torch.equal(chosen, selection.choose_blocks(case.index_q, case.index_k, case.batch, 4))


@pytest.mark.parametrize("size", [8, 24])
def test_sizes_that_no_tile_has_are_refused_by_name(size: int) -> None:
    case = step([(1, 5)])
    index_k = torch.zeros(4, size, 16)
    with pytest.raises(ValueError, match=f"{size} tokens of a page: the GPU's kernels take powers of two from 16 up"):
        selection.choose_blocks(case.index_q, index_k, case.batch, 4)
