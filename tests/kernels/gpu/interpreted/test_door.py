"""What `ops` gives where tensors are on a GPU: here they are said to be, and the interpreter takes them."""

from dataclasses import replace

import pytest
import torch

from m3_kernel_cases import B, Step, step
from m3_kernels import ops, reference
from m3_kernels.gpu import attention, selection, tiles
from m3_kernels.layout import BlockCandidates, BlockPart


@pytest.fixture(autouse=True)
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_is_cpu", lambda _: False)
    monkeypatch.setattr(ops, "_is_cuda", lambda _: True)
    monkeypatch.setattr(tiles, "SELECT_OF_TILES", tiles.SelectTile(rows=32, groups=4, members=2, warps=1))
    monkeypatch.setattr(tiles, "select_of_rows", lambda _: tiles.SelectTile(rows=1, groups=8, members=2, warps=1))


@pytest.fixture
def case() -> Step:
    return step([(3, 7 * B + 2), (1, 6 * B + 1)])


def test_blocks_are_chosen_by_the_kernels(case: Step) -> None:
    clean = case.without_poison()
    expected = reference.choose_blocks(clean.index_q, clean.index_k, clean.batch, 4)
    assert torch.equal(ops.choose_blocks(case.index_q, case.index_k, case.batch, 4), expected)


def test_parts_of_the_blocks_are_chosen_and_joined_by_the_kernels(case: Step) -> None:
    clean = case.without_poison()
    found = [ops.best_blocks(case.index_q, case.index_k, case.batch, 3, BlockPart(n, 2)) for n in range(2)]
    together = BlockCandidates(torch.stack([f.scores for f in found]), torch.stack([f.ids for f in found]))
    expected = reference.choose_blocks(clean.index_q, clean.index_k, clean.batch, 4)
    assert torch.equal(ops.join_blocks(together, case.batch.positions, B), expected)


def test_attention_is_the_kernels() -> None:
    case = step([(2, B + 2), (1, B + 1)], groups=1)
    clean = case.without_poison()
    blocks = reference.choose_blocks(clean.index_q, clean.index_k, clean.batch, 4)
    sparse = ops.sparse_attention(case.q, case.pages, blocks, case.batch)
    dense = ops.dense_attention(case.q, case.pages, case.batch)
    expected_sparse = reference.sparse_attention(clean.q, clean.pages, blocks, clean.batch)
    torch.testing.assert_close(sparse, expected_sparse, rtol=0, atol=1e-5)
    torch.testing.assert_close(dense, reference.dense_attention(clean.q, clean.pages, clean.batch), rtol=0, atol=1e-5)


def test_a_cache_of_another_type_than_the_queries_is_the_references(
    case: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kernels, names in (
        (selection, ("choose_blocks", "best_blocks")),
        (attention, ("sparse_attention", "dense_attention")),
    ):
        for name in names:
            monkeypatch.setattr(kernels, name, None)  # would be called in vain
    wide = replace(case, q=case.q.half(), index_q=case.index_q.half()).without_poison()
    blocks = ops.choose_blocks(wide.index_q, wide.index_k, wide.batch, 4)
    assert torch.equal(blocks, reference.choose_blocks(wide.index_q, wide.index_k, wide.batch, 4))
    assert ops.best_blocks(wide.index_q, wide.index_k, wide.batch, 3, BlockPart(0, 2)).ids.shape == (2, 4, 3)
    assert ops.sparse_attention(wide.q, wide.pages, blocks, wide.batch).dtype == torch.float16
    assert ops.dense_attention(wide.q, wide.pages, wide.batch).dtype == torch.float16


def test_experts_in_bfloat16_are_one_grouped_product_whoever_has_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = torch.tensor([[3, 1], [3, 5], [1, 3], [3, 1], [3, 0]])  # 2 and 4 have none
    rows = reference.sort_by_expert(chosen, 6)
    generator = torch.Generator().manual_seed(1)
    x, gate_up, down = (
        torch.randn(shape, generator=generator).bfloat16() for shape in ((10, 16), (6, 48, 16), (6, 16, 24))
    )
    expected = reference.run_experts(x, rows, gate_up, down, alpha=1.7, limit=7.0)
    monkeypatch.setattr(reference, "run_experts", None)  # would be called in vain
    found = ops.run_experts(x, rows, gate_up, down, alpha=1.7, limit=7.0)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("width", [16, 20], ids=["in fp32", "rows of no whole 16 bytes"])
def test_experts_that_torch_has_no_grouped_product_for_are_the_references(width: int) -> None:
    dtype = torch.float32 if width == 16 else torch.bfloat16
    rows = reference.sort_by_expert(torch.tensor([[0], [2]]), 3)
    x, gate_up, down = (torch.ones(shape, dtype=dtype) for shape in ((2, width), (3, 16, width), (3, width, 8)))
    expected = reference.run_experts(x, rows, gate_up, down, alpha=1.7, limit=7.0)
    assert torch.equal(ops.run_experts(x, rows, gate_up, down, alpha=1.7, limit=7.0), expected)
