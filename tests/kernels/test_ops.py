"""The door refuses what does not fit, by name and number, and otherwise gives what the reference gives."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from m3_kernels import ops, reference
from m3_kernels.layout import AttentionNorms, BlockCandidates, BlockPart, LayerPages, RaggedBatch, RotaryAngles

T, H, G, D, I, B, R = 5, 4, 2, 8, 6, 4, 4  # noqa: E741
PAGES = LayerPages(torch.zeros(3, B, G, D), torch.zeros(3, B, G, D), torch.zeros(3, B, I))
DENSE_PAGES = replace(PAGES, index_k=None)
BATCH = RaggedBatch(
    positions=torch.tensor([3, 4, 0, 1, 2]),
    slots=torch.tensor([3, 4, 8, 9, 10]),
    query_starts=[0, 2, 5],
    context_lengths=[5, 3],
    page_table=torch.tensor([[0, 1], [2, 0]]),
)
NORMS = AttentionNorms(torch.zeros(D), torch.zeros(D), torch.zeros(I), torch.zeros(I), 1e-6)
DENSE_NORMS = replace(NORMS, index_q=None, index_k=None)
ANGLES = RotaryAngles(torch.ones(T, R // 2), torch.zeros(T, R // 2))
WIDTH = (H + 2 * G) * D + (G + 1) * I
Q = torch.randn(T, H, D)
INDEX_Q = torch.randn(T, G, I)
BLOCKS = torch.zeros(G, T, 2, dtype=torch.int32)
X = torch.randn(T, 6)
ROUTES = torch.zeros(T, 2, dtype=torch.int64)
SHARES = torch.ones(T, 2)
PAIRS = torch.randn(2 * T, 6)
ROWS = ops.sort_by_expert(ROUTES, 3)
GATE_UP, DOWN = torch.randn(3, 10, 6), torch.randn(3, 6, 5)
CLAMP = {"alpha": 1.7, "limit": 7.0}


def insert(packed: Any = WIDTH, norms: Any = NORMS, angles: Any = ANGLES, pages: Any = PAGES, slots: Any = None) -> Any:
    slots = BATCH.slots if slots is None else slots
    return ops.qk_norm_rope_insert(torch.randn(T, packed), norms, angles, pages, slots)


REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "norm weight": (lambda: ops.gemma_rms_norm(X, torch.zeros(5), 1e-6), r"weight has shape \[5\]: must be \[6\]"),
    "odd rotary dim": (lambda: ops.rotary_angles(BATCH.positions, 3, 1e4), "rotary_dim is 3: must be a positive even"),
    "positions dtype": (
        lambda: ops.rotary_angles(BATCH.positions.int(), 4, 1e4),
        "positions has dtype int32: must be int64",
    ),
    "packed width": (lambda: insert(packed=WIDTH + 1), f"packed is {WIDTH + 1} wide: .* 33 are left for the queries"),
    "no queries": (lambda: insert(packed=2 * G * D + (G + 1) * I), "0 are left for the queries"),
    "index norms without index pages": (
        lambda: insert(packed=(H + 2 * G) * D, pages=DENSE_PAGES),
        "must come together",
    ),
    "index pages without index norms": (lambda: insert(norms=DENSE_NORMS), "must come together"),
    "too many rotated dimensions": (
        lambda: insert(angles=RotaryAngles(torch.ones(T, 4), torch.ones(T, 4))),
        "8 rotated dimensions do not fit heads of 8 and index heads of 6",
    ),
    "too few angles": (
        lambda: insert(angles=RotaryAngles(torch.ones(2, 2), torch.ones(2, 2))),
        r"angles has shape \[2, 2\]: must be \[5, 2\]",
    ),
    "slots shape": (lambda: insert(slots=torch.tensor([1])), r"slots has shape \[1\]: must be \[5\]"),
    "slots dtype": (lambda: insert(slots=BATCH.slots.int()), "slots has dtype int32: must be int64"),
    "value pages": (
        lambda: insert(pages=replace(PAGES, v=torch.zeros(2, B, G, D))),
        r"pages.v has shape \[2, 4, 2, 8\]: must be \[3, 4, 2, 8\]",
    ),
    "index query shape": (
        lambda: ops.choose_blocks(INDEX_Q[:, :, :5], PAGES.index_k, BATCH, 1),
        r"index_q has shape \[5, 2, 5\]: must be \[5, 2, 6\]",
    ),
    "index query dtype": (
        lambda: ops.choose_blocks(INDEX_Q.double(), PAGES.index_k, BATCH, 1),
        "index_q has dtype float64: must be float32 or bfloat16 or float16",
    ),
    "k below one": (lambda: ops.choose_blocks(INDEX_Q, PAGES.index_k, BATCH, 0), "k is 0: .* 1 or more"),
    "candidates below one": (
        lambda: ops.best_blocks(INDEX_Q, PAGES.index_k, BATCH, 0, BlockPart(0, 2)),
        "k is 0: without a block beside the query's own there is nothing to choose",
    ),
    "part beyond the parts": (
        lambda: ops.best_blocks(INDEX_Q, PAGES.index_k, BATCH, 1, BlockPart(2, 2)),
        "part 2 of 2: parts are numbered from 0 on",
    ),
    "candidates shape": (
        lambda: ops.join_blocks(
            BlockCandidates(torch.zeros(2, G, T, 1), torch.zeros(2, G, T, 2, dtype=torch.int32)), BATCH.positions, B
        ),
        r"ids has shape \[2, 2, 5, 2\]: must be \[2, 2, 5, 1\]",
    ),
    "blocks shape": (
        lambda: ops.sparse_attention(Q, PAGES, BLOCKS[:1], BATCH),
        r"blocks has shape \[1, 5, 2\]: must be \[2, 5, 2\]",
    ),
    "blocks dtype": (
        lambda: ops.sparse_attention(Q, PAGES, BLOCKS.long(), BATCH),
        "blocks has dtype int64: must be int32",
    ),
    "heads that groups do not divide": (
        lambda: ops.dense_attention(Q[:, :3], PAGES, BATCH),
        "q has 3 heads: must be a multiple of the 2 groups",
    ),
    "queries of another batch": (
        lambda: ops.dense_attention(Q[:4], PAGES, BATCH),
        r"q has shape \[4, 4, 8\]: must be \[5, 4, 8\]",
    ),
    "query starts": (
        lambda: ops.dense_attention(Q, PAGES, replace(BATCH, query_starts=[0, 5])),
        "query_starts has 2 entries: must be 2 sequences",
    ),
    "a sequence without queries": (
        lambda: ops.dense_attention(Q, PAGES, replace(BATCH, query_starts=[0, 0, 5])),
        "sequence 0 has 0 tokens in the step and a context of 5",
    ),
    "more queries than context": (
        lambda: ops.dense_attention(Q, PAGES, replace(BATCH, query_starts=[0, 1, 5])),
        "sequence 1 has 4 tokens in the step and a context of 3",
    ),
    "a page table too narrow": (
        lambda: ops.dense_attention(Q, PAGES, replace(BATCH, page_table=torch.tensor([[0], [1]]))),
        r"page_table is \[2, 1\]: 2 sequences, the longest of 5 tokens, need at least \[2, 2\]",
    ),
    "an odd width of the activation": (lambda: ops.swiglu_clamped(torch.zeros(3), 1.7, 7.0), "gate_up is 3 wide"),
    "a limit of zero": (lambda: ops.swiglu_clamped(torch.zeros(4), 1.7, 0.0), "limit is 0.0: must be positive"),
    "more experts than there are": (
        lambda: ops.route_experts(torch.zeros(T, 3), torch.zeros(3), 4, 1.0),
        "k is 4: must be between 1 and the 3 experts",
    ),
    "a router in half precision": (
        lambda: ops.route_experts(torch.zeros(T, 3).bfloat16(), torch.zeros(3), 1, 1.0),
        "logits has dtype bfloat16: must be float32",
    ),
    "a bias in half precision": (
        lambda: ops.route_experts(torch.zeros(T, 3), torch.zeros(3).half(), 1, 1.0),
        "bias has dtype float16: must be float32",
    ),
    "experts of the wrong type": (
        lambda: ops.sort_by_expert(ROUTES.int(), 3),
        "experts has dtype int32: must be int64",
    ),
    "rows of another routing": (
        lambda: ops.run_experts(X, ROWS, GATE_UP, DOWN, **CLAMP),
        r"rows.order has shape \[10\]: must be \[5\]",
    ),
    "rows of other experts": (
        lambda: ops.run_experts(PAIRS, replace(ROWS, ends=ROWS.ends[:2]), GATE_UP, DOWN, **CLAMP),
        r"rows.ends has shape \[2\]: must be \[3\]",
    ),
    "experts of another width": (
        lambda: ops.run_experts(PAIRS, ROWS, GATE_UP[:, :8], DOWN, **CLAMP),
        r"gate_up has shape \[3, 8, 6\]: must be \[3, 10, 6\]",
    ),
    "shares of another routing": (
        lambda: ops.combine_experts(PAIRS, ROWS, SHARES[:, :1]),
        r"out has shape \[10, 6\]: must be \[5, 6\]",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_fit_is_refused_with_names_and_numbers(name: str) -> None:
    call, message = REFUSALS[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_what_fits_is_what_the_reference_gives() -> None:
    assert PAGES.index_k is not None
    q, index_q = insert()
    assert (q.shape, index_q.shape) == ((T, H, D), (T, G, I))
    q, index_q = insert(packed=(H + 2 * G) * D, norms=DENSE_NORMS, pages=DENSE_PAGES)
    assert (q.shape, index_q) == ((T, H, D), None)
    blocks = ops.choose_blocks(INDEX_Q, PAGES.index_k, BATCH, 1)
    assert torch.equal(blocks, reference.choose_blocks(INDEX_Q, PAGES.index_k, BATCH, 1))
    same = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    same(ops.sparse_attention(Q, PAGES, blocks, BATCH), reference.sparse_attention(Q, PAGES, blocks, BATCH))
    same(ops.dense_attention(Q, PAGES, BATCH), reference.dense_attention(Q, PAGES, BATCH))
    same(
        ops.run_experts(PAIRS, ROWS, GATE_UP, DOWN, **CLAMP), reference.run_experts(PAIRS, ROWS, GATE_UP, DOWN, **CLAMP)
    )
    same(ops.combine_experts(PAIRS, ROWS, SHARES), reference.combine_experts(PAIRS, ROWS, SHARES))
