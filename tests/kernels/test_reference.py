"""Each operation against its formula written out once more, one token and one head at a time, in fp64.

Random heads and dimensions, odd lengths, several sequences, shuffled pages, a partly filled last page, stale page
content, and more than block x top-k tokens.
"""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from m3_kernels import reference
from m3_kernels.layout import AttentionNorms, LayerPages, RaggedBatch, RotaryAngles

G, Q, D, I, B = 3, 2, 6, 5, 4  # noqa: E741
# (queries of the step, context after it): a whole prompt, a chunk, decodes at both sides of a block boundary, one token
CASES = {
    "one_sequence": [(29, 29)],
    "a_chunk_after_a_prefix": [(7, 30)],
    "decodes_of_different_lengths": [(1, 16), (1, 17), (1, 40), (1, 1), (1, 33)],
    "prefill_chunks_and_decodes": [(11, 11), (1, 23), (5, 26), (5, 31), (1, 4), (3, 3)],
}


@dataclass
class Case:
    """A ragged batch, its cache, and each sequence's keys, values and index keys laid out plainly."""

    batch: RaggedBatch
    pages: LayerPages
    keys: list[Tensor]
    values: list[Tensor]
    index_keys: list[Tensor]
    q: Tensor
    index_q: Tensor

    def tokens(self) -> list[tuple[int, int, int]]:
        """(row of the step, sequence, position) of every token."""
        spans = itertools.pairwise(self.batch.query_starts)
        return [
            (row, sequence, int(self.batch.positions[row]))
            for sequence, (start, stop) in enumerate(spans)
            for row in range(start, stop)
        ]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    generator = torch.Generator().manual_seed(len(request.param))
    lengths = CASES[request.param]
    pages_needed = sum(-(-context // B) for _, context in lengths)
    free = torch.randperm(pages_needed + 3, generator=generator).tolist()
    width = max(-(-context // B) for _, context in lengths) + 1
    pages = LayerPages(*(torch.full((pages_needed + 3, B, *tail), torch.nan) for tail in ((G, D), (G, D), (I,))))
    table = torch.full((len(lengths), width), -7)  # never to be read beyond a sequence's blocks
    keys, values, index_keys, starts, positions, slots = [], [], [], [0], [], []
    for sequence, (queries, context) in enumerate(lengths):
        own = [free.pop() for _ in range(-(-context // B))]
        table[sequence, : len(own)] = torch.tensor(own)
        places = [(own[position // B], position % B) for position in range(context)]
        for pool, plain, shape in (
            (pages.k, keys, (G, D)),
            (pages.v, values, (G, D)),
            (pages.index_k, index_keys, (I,)),
        ):
            assert pool is not None
            plain.append(torch.randn(context, *shape, generator=generator))
            for (page, offset), row in zip(places, plain[-1], strict=True):
                pool[page, offset] = row
        starts.append(starts[-1] + queries)
        positions += range(context - queries, context)
        slots += [page * B + offset for page, offset in places[-queries:]]
    batch = RaggedBatch(
        torch.tensor(positions), torch.tensor(slots), starts, [context for _, context in lengths], table
    )
    q = torch.randn(starts[-1], G * Q, D, generator=generator)
    index_q = torch.randn(starts[-1], G, I, generator=generator)
    return Case(batch, pages, keys, values, index_keys, q, index_q)


def attention_of(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q . k / sqrt(D)) v of one head: q [D], keys and values [n, D]."""
    weights = torch.exp((keys.double() * q.double()).sum(-1) / math.sqrt(D))
    return (weights[:, None] * values.double()).sum(0) / weights.sum()


@pytest.mark.parametrize("run_elements", [1, 200, 1 << 21])
def test_dense_attention_sees_every_token_up_to_its_own(
    case: Case, run_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_RUN_ELEMENTS", run_elements)
    out = reference.dense_attention(case.q, case.pages, case.batch)
    for (row, sequence, position), head in itertools.product(case.tokens(), range(G * Q)):
        seen = slice(0, position + 1)
        expected = attention_of(
            case.q[row, head], case.keys[sequence][seen, head // Q], case.values[sequence][seen, head // Q]
        )
        torch.testing.assert_close(out[row, head].double(), expected.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("run_elements", [1, 200, 1 << 21])
def test_index_score_is_the_best_visible_token_of_each_block(
    case: Case, run_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_RUN_ELEMENTS", run_elements)
    assert case.pages.index_k is not None
    scores = reference.index_score(case.index_q, case.pages.index_k, case.batch)
    blocks = -(-max(case.batch.context_lengths) // B)
    assert scores.shape == (G, case.batch.tokens, blocks)
    assert scores.dtype == torch.float32
    for (row, sequence, position), group, block in itertools.product(case.tokens(), range(G), range(blocks)):
        visible = case.index_keys[sequence][block * B : min((block + 1) * B, position + 1)]
        expected = max((float(case.index_q[row, group] @ key) for key in visible), default=-math.inf)
        assert float(scores[group, row, block]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("run_elements", [1, 2000, 1 << 21])
@pytest.mark.parametrize("k", [1, 2, 4, 50])
def test_sparse_attention_sees_the_tokens_of_its_groups_blocks_up_to_its_own(
    case: Case, k: int, run_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_RUN_ELEMENTS", run_elements)
    assert case.pages.index_k is not None
    scores = reference.index_score(case.index_q, case.pages.index_k, case.batch)
    blocks = reference.select_blocks(scores, case.batch.positions, k, B)
    out = reference.sparse_attention(case.q, case.pages, blocks, case.batch)
    for (row, sequence, position), head in itertools.product(case.tokens(), range(G * Q)):
        chosen = set(blocks[head // Q, row].tolist())
        seen = [token for token in range(position + 1) if token // B in chosen]
        expected = attention_of(
            case.q[row, head], case.keys[sequence][seen, head // Q], case.values[sequence][seen, head // Q]
        )
        torch.testing.assert_close(out[row, head].double(), expected.double(), rtol=0, atol=1e-5)


def test_sparse_attention_is_dense_where_top_k_covers_the_context(case: Case) -> None:
    everything = torch.arange(12, dtype=torch.int32).expand(G, case.batch.tokens, 12).clone()
    everything[everything > case.batch.positions[:, None] // B] = -1
    torch.testing.assert_close(
        reference.sparse_attention(case.q, case.pages, everything, case.batch),
        reference.dense_attention(case.q, case.pages, case.batch),
        rtol=0,
        atol=1e-6,
    )


def test_half_precision_is_computed_in_fp32_and_returned_in_half(case: Case) -> None:
    half = LayerPages(case.pages.k.bfloat16(), case.pages.v.bfloat16())
    wide = LayerPages(half.k.float(), half.v.float())
    q = case.q.bfloat16()
    out = reference.dense_attention(q, half, case.batch)
    assert torch.equal(out, reference.dense_attention(q.float(), wide, case.batch).bfloat16())


class TestSelectBlocks:
    """Written down by hand; -inf is a block in the future."""

    INF = -math.inf

    def select(self, scores: list[float], position: int, k: int) -> list[int]:
        chosen = reference.select_blocks(torch.tensor([[scores]]), torch.tensor([position]), k, block_tokens=10)
        assert chosen.dtype == torch.int32
        return chosen[0, 0].tolist()

    def test_the_best_blocks_come_in_ascending_order(self) -> None:
        assert self.select([1.0, 9.0, 3.0, 7.0, 0.0], position=45, k=3) == [1, 3, 4]

    def test_the_own_block_is_kept_within_the_k_however_low_its_score(self) -> None:
        assert self.select([5.0, 6.0, 7.0, -99.0], position=30, k=2) == [2, 3]
        assert self.select([5.0, 6.0, 7.0, -99.0], position=39, k=1) == [3]

    def test_future_blocks_are_never_chosen(self) -> None:
        assert self.select([1.0, 2.0, self.INF, self.INF], position=19, k=3) == [0, 1, -1]

    def test_missing_blocks_are_filled_with_minus_one_on_the_right(self) -> None:
        assert self.select([4.0], position=3, k=4) == [0, -1, -1, -1]

    def test_of_equal_scores_the_lower_id_wins(self) -> None:
        assert self.select([2.0, 2.0, 2.0, 2.0, 1.0], position=49, k=3) == [0, 1, 4]

    def test_groups_and_queries_choose_for_themselves(self) -> None:
        scores = torch.tensor([[[9.0, 1.0, 0.0], [1.0, 9.0, 0.0]], [[1.0, 9.0, 0.0], [9.0, 1.0, 0.0]]])
        chosen = reference.select_blocks(scores, torch.tensor([25, 29]), 2, block_tokens=10)
        assert chosen.tolist() == [[[0, 2], [1, 2]], [[1, 2], [0, 2]]]


def test_gemma_rms_norm_scales_by_one_plus_the_weight() -> None:
    out = reference.gemma_rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([0.0, 1.0]), eps=0.0)
    # mean square 12.5
    assert out.tolist() == [[pytest.approx(3 / math.sqrt(12.5)), pytest.approx(2 * 4 / math.sqrt(12.5))]]


def test_gemma_rms_norm_of_half_precision_rounds_once_at_the_end() -> None:
    x, weight = torch.randn(5, 64).bfloat16(), torch.randn(64).bfloat16()
    expected = reference.gemma_rms_norm(x.double().float(), weight.float(), 1e-6).bfloat16()
    assert torch.equal(reference.gemma_rms_norm(x, weight, 1e-6), expected)


def test_partial_rope_turns_pairs_of_halves_and_leaves_the_rest() -> None:
    angles = reference.rotary_angles(torch.tensor([0, 3]), rotary_dim=4, theta=100.0)
    x = torch.arange(1.0, 13.0).view(2, 1, 6)
    out = reference.partial_rope(x, angles)
    assert torch.equal(out[0], x[0])  # position 0 turns nothing
    a, b, c, d, e, f = range(7, 13)
    first, second = 3.0, 3.0 / 10  # 3 * 100^(-0/4) and 3 * 100^(-2/4)
    assert out[1, 0].tolist() == [
        pytest.approx(a * math.cos(first) - c * math.sin(first)),
        pytest.approx(b * math.cos(second) - d * math.sin(second)),
        pytest.approx(c * math.cos(first) + a * math.sin(first)),
        pytest.approx(d * math.cos(second) + b * math.sin(second)),
        e,
        f,
    ]


@pytest.mark.parametrize("has_index", [True, False])
def test_qk_norm_rope_insert_norms_rotates_and_writes_only_the_given_slots(has_index: bool) -> None:
    tokens, slots = 3, torch.tensor([9, 2, 4])
    generator = torch.Generator().manual_seed(1)
    pages = LayerPages(*(torch.full((3, B, *tail), 77.0) for tail in ((G, D), (G, D), *([(I,)] if has_index else []))))
    norms = AttentionNorms(
        *(torch.randn(width, generator=generator) for width in (D, D)),
        *((torch.randn(I, generator=generator) for _ in range(2)) if has_index else (None, None)),
        eps=1e-6,
    )
    angles = reference.rotary_angles(torch.tensor([5, 0, 8]), 4, 1e4)
    q, k, v = (torch.randn(tokens, heads, D, generator=generator) for heads in (G * Q, G, G))
    index_q, index_k = (torch.randn(tokens, heads, I, generator=generator) for heads in (G, 1))
    parts = [q, k, v, index_q, index_k] if has_index else [q, k, v]
    packed = torch.cat([part.flatten(1) for part in parts], dim=1)

    out_q, out_index_q = reference.qk_norm_rope_insert(packed, norms, angles, pages, slots)

    def done(x: Tensor, weight: Tensor | None) -> Tensor:
        assert weight is not None
        return reference.partial_rope(reference.gemma_rms_norm(x, weight, 1e-6), angles)

    assert torch.equal(out_q, done(q, norms.q))
    expected = [(pages.k, done(k, norms.k)), (pages.v, v)]
    if has_index:
        assert out_index_q is not None
        assert pages.index_k is not None
        assert torch.equal(out_index_q, done(index_q, norms.index_q))
        expected.append((pages.index_k, done(index_k, norms.index_k)[:, 0]))
    else:
        assert out_index_q is None
    for pool, rows in expected:
        flat = pool.flatten(0, 1)
        assert torch.equal(flat[slots], rows)
        untouched = [slot for slot in range(3 * B) if slot not in slots.tolist()]
        assert (flat[untouched] == 77.0).all()


def test_swiglu_clamps_the_gate_above_and_the_linear_half_on_both_sides() -> None:
    gate = torch.tensor([20.0, -20.0, 1.0, 0.0])
    up = torch.tensor([-20.0, 1.0, 20.0, 5.0])
    out = reference.swiglu_clamped(torch.cat((gate, up)), alpha=1.702, limit=7.0)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    assert out.tolist() == [
        pytest.approx(7 * sigmoid(1.702 * 7) * (-7 + 1)),
        pytest.approx(-20 * sigmoid(1.702 * -20) * 2),
        pytest.approx(sigmoid(1.702) * 8),
        0.0,
    ]


def test_the_router_chooses_with_the_bias_and_weighs_without_it() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]])
    bias = torch.tensor([0.9, 0.0, -0.9, 0.7])
    experts, weights = reference.route_experts(logits, bias, k=2, scaling=2.0)
    # scores .5, .881, .731, .269; with bias 1.4, .881, -.169, .969
    assert dict(zip(experts[0].tolist(), weights[0].tolist(), strict=True)) == {
        0: pytest.approx(2 * 0.5 / (0.5 + 0.26894), abs=1e-4),
        3: pytest.approx(2 * 0.26894 / (0.5 + 0.26894), abs=1e-4),
    }


def test_rows_go_through_their_experts_and_add_up_by_weight() -> None:
    generator = torch.Generator().manual_seed(2)
    T, C, F, E, A = 11, 6, 5, 7, 3
    x = torch.randn(T, C, generator=generator)
    gate_up, down = torch.randn(E, 2 * F, C, generator=generator), torch.randn(E, C, F, generator=generator)
    experts = torch.stack([torch.randperm(E - 1, generator=generator)[:A] for _ in range(T)])  # the last has no token
    weights = torch.rand(T, A, generator=generator)
    rows = reference.sort_by_expert(experts, E)
    of_pairs = reference.run_experts(x[rows.tokens(A)], rows, gate_up, down, alpha=1.7, limit=2.0)
    out = reference.combine_experts(of_pairs, rows, weights)
    for token in range(T):
        expected = sum(
            weights[token, choice] * (down[expert] @ reference.swiglu_clamped(gate_up[expert] @ x[token], 1.7, 2.0))
            for choice, expert in enumerate(experts[token].tolist())
        )
        torch.testing.assert_close(out[token], expected, rtol=1e-5, atol=1e-5)


def test_intermediates_stay_bounded_with_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor that attention makes does not grow with queries x context."""
    largest = 0
    softmax = torch.softmax

    def watched(scores: Tensor, dim: int) -> Tensor:
        nonlocal largest
        largest = max(largest, scores.numel())
        return softmax(scores, dim=dim)

    monkeypatch.setattr(torch, "softmax", watched)
    monkeypatch.setattr(reference, "_RUN_ELEMENTS", 1 << 14)
    context = 1024
    pages = LayerPages(*(torch.zeros(context // B, B, 1, D) for _ in range(2)))
    batch = RaggedBatch(
        torch.arange(context), torch.arange(context), [0, context], [context], torch.arange(context // B)[None]
    )
    q = torch.zeros(context, 2, D)
    reference.dense_attention(q, pages, batch)
    assert 0 < largest <= 1 << 14
    largest = 0
    blocks = reference.select_blocks(torch.zeros(1, context, context // B), batch.positions, 16, B)
    reference.sparse_attention(q, pages, blocks, batch)
    assert 0 < largest <= 1 << 14


def test_rotary_angles_are_those_of_the_formula() -> None:
    angles = reference.rotary_angles(torch.tensor([0, 1, 1000]), rotary_dim=8, theta=5e6)
    assert isinstance(angles, RotaryAngles)
    for row, position in enumerate((0, 1, 1000)):
        for pair in range(4):
            angle = position * 5e6 ** (-2 * pair / 8)
            assert float(angles.cos[row, pair]) == pytest.approx(math.cos(angle), abs=1e-4)
            assert float(angles.sin[row, pair]) == pytest.approx(math.sin(angle), abs=1e-4)
