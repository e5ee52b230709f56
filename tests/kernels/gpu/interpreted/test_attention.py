"""Attention on a GPU gives what the reference gives: in either loop order, whole or split, whatever else memory holds.

Pages are shuffled and hold NaN where no token is; tensors that a launch leaves unwritten hold NaN too.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from m3_kernel_cases import SHAPES, B, G, Step, step
from m3_kernels import reference
from m3_kernels.gpu import attention, attention_tiles
from m3_kernels.gpu.attention_tiles import AttentionTile
from m3_kernels.gpu.sparse_prefill import LoopOrder
from m3_kernels.layout import LayerPages

K = 3
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}
ORDERS = pytest.mark.parametrize("order", LoopOrder, ids=lambda order: order.value)
EVERY_SHAPE = pytest.mark.parametrize(
    "shape",
    [pytest.param(shape, marks=[pytest.mark.long] * (shape == "a_prompt_of_many_blocks")) for shape in SHAPES],
)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 queries of 4 heads, as time goes by programs here; a block's queries in runs; no walk is split."""
    tile = AttentionTile(rows=64, keys=B, warps=4, stages=1)
    for kernel in ("union_tile", "dense_tile", "kv_outer", "decode"):
        monkeypatch.setattr(attention_tiles, kernel, lambda *_dtypes: tile)
    monkeypatch.setattr(attention_tiles, "KV_OUTER_RUN", 20)
    monkeypatch.setattr(attention_tiles, "KV_OUTER_ROWS", 30)
    monkeypatch.setattr(attention_tiles, "SINGLE_WAVE", 1)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is allocated holds NaN, or a number that no index may be, until it is written."""

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate_and_fill(*arguments: Any, **options: Any) -> Tensor:
            tensor = allocate(*arguments, **options)
            return tensor.fill_(torch.nan if tensor.is_floating_point() else 1 << 30)

        return allocate_and_fill

    for owner, name in ((torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


def choices(case: Step) -> Tensor:
    clean = case.without_poison()
    return reference.choose_blocks(clean.index_q, clean.index_k, clean.batch, K)


def assert_sparse(case: Step, order: LoopOrder) -> None:
    blocks = choices(case)
    expected = reference.sparse_attention(case.q, case.without_poison().pages, blocks, case.batch)
    assert_same(attention.sparse_attention(case.q, case.pages, blocks, case.batch, order), expected)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE[actual.dtype])


@EVERY_SHAPE
@ORDERS
def test_sparse_attention_is_that_of_the_reference(shape: str, order: LoopOrder) -> None:
    assert_sparse(step(SHAPES[shape]), order)


@EVERY_SHAPE
def test_dense_attention_is_that_of_the_reference(shape: str) -> None:
    case = step(SHAPES[shape])
    expected = reference.dense_attention(case.q, case.without_poison().pages, case.batch)
    assert_same(attention.dense_attention(case.q, case.pages, case.batch), expected)


@pytest.fixture
def four_queries_and_half_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As M3's tiles are: 4 queries, and two steps to a page."""
    tile = AttentionTile(rows=16, keys=B // 2, warps=4, stages=1)
    for kernel in ("union_tile", "dense_tile", "decode"):
        monkeypatch.setattr(attention_tiles, kernel, lambda *_dtypes: tile)


@pytest.mark.usefixtures("four_queries_and_half_pages")
@pytest.mark.parametrize("shape", ["two_tokens_across_a_page", "a_chunk_after_a_prefix"])
def test_pages_may_be_read_in_halves(shape: str) -> None:
    case = step(SHAPES[shape])
    assert_sparse(case, LoopOrder.UNION_TILE)
    expected = reference.dense_attention(case.q, case.without_poison().pages, case.batch)
    assert_same(attention.dense_attention(case.q, case.pages, case.batch), expected)


@pytest.mark.parametrize("cache", [pytest.param(torch.float16, marks=pytest.mark.long), torch.float8_e4m3fn])
@ORDERS
def test_half_precision_is_that_of_the_reference(cache: torch.dtype, order: LoopOrder) -> None:
    assert_sparse(step(SHAPES["prefill_chunks_and_decodes"], torch.float16, cache), order)


@pytest.mark.parametrize("cache", [torch.float16, torch.float8_e4m3fn])
def test_dense_half_precision_is_that_of_the_reference(cache: torch.dtype) -> None:
    case = step([(7, 3 * B + 2), (1, 2 * B + 5)], torch.float16, cache)
    expected = reference.dense_attention(case.q, case.without_poison().pages, case.batch)
    assert_same(attention.dense_attention(case.q, case.pages, case.batch), expected)


@pytest.mark.parametrize(
    "shape",
    [
        "one_token_of_a_new_page",
        "two_tokens_across_a_page",
        pytest.param("a_chunk_after_a_prefix", marks=pytest.mark.long),
    ],
)
def test_a_walk_that_is_split_gives_the_same(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_tiles, "SINGLE_WAVE", 12)
    case = step(SHAPES[shape])
    assert_sparse(case, LoopOrder.UNION_TILE)
    expected = reference.dense_attention(case.q, case.without_poison().pages, case.batch)
    assert_same(attention.dense_attention(case.q, case.pages, case.batch), expected)


@ORDERS
def test_queries_that_agree_on_every_block(order: LoopOrder) -> None:
    case = step([(2 * B, 9 * B)])
    blocks = choices(case)
    blocks[..., 0], blocks[..., 1] = 0, 3
    blocks[..., 2] = (case.batch.positions // B).to(torch.int32)
    expected = reference.sparse_attention(case.q, case.without_poison().pages, blocks, case.batch)
    assert_same(attention.sparse_attention(case.q, case.pages, blocks, case.batch, order), expected)


@ORDERS
def test_what_is_given_may_be_a_view(order: LoopOrder) -> None:
    case = step([(6, 5 * B), (1, 4 * B)])
    blocks = choices(case)
    strided = replace(case, q=case.q.transpose(0, 1).contiguous().transpose(0, 1))
    actual = attention.sparse_attention(strided.q, case.pages, blocks.mT.contiguous().mT, case.batch, order)
    assert_same(actual, attention.sparse_attention(case.q, case.pages, blocks, case.batch, order))


@pytest.mark.parametrize(
    ("heads", "dim", "page", "named"),
    [(3, 16, 16, "3 heads of a group"), (4, 8, 16, "8 dimensions of a head"), (4, 16, 24, "24 tokens of a page")],
)
def test_sizes_that_no_tile_has_are_refused(heads: int, dim: int, page: int, named: str) -> None:
    case = step([(2, 2)])
    pages = LayerPages(*(torch.zeros(4, page, G, dim) for _ in range(2)))
    with pytest.raises(ValueError, match=f"{named}: the GPU's kernels take powers of 2 from .* on"):
        attention.dense_attention(torch.zeros(2, G * heads, dim), pages, case.batch)


def test_pages_with_gaps_are_refused() -> None:
    case = step([(2, 2)])
    broken = replace(case.pages, v=case.pages.v.transpose(1, 2).contiguous().transpose(1, 2))
    with pytest.raises(ValueError, match=r"pages\.k and pages\.v must be contiguous"):
        attention.sparse_attention(case.q, broken, choices(case), case.batch)


@pytest.mark.parametrize(
    ("programs", "blocks", "expected"),
    [
        (198, 16, 1),
        (197, 16, 2),
        (99, 16, 2),
        (64, 16, 4),
        (4, 16, 16),
        (4, 8192, 32),
        (1, 1, 1),
        (1, 0, 1),
        (4, 11, 8),
    ],
)
def test_walks_are_split_until_they_fill_the_chip(
    programs: int, blocks: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_tiles, "SINGLE_WAVE", 198)
    assert attention_tiles.splits(programs, blocks) == expected
