"""The operations on a CPU give what the reference gives, and choose exactly the same blocks.

Pages are scattered, or follow each other; what no token was written to holds NaN, so that reading it shows.
Chunks are long enough that blocks gather their queries, and short enough that queries take their blocks one by one.
"""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from m3_kernels import reference
from m3_kernels.cpu import attention, compiled, pointwise, products, selection
from m3_kernels.layout import AttentionNorms, BlockCandidates, BlockPart, LayerPages, RaggedBatch

G, Q, D, I, B, K = 2, 3, 16, 4, 8, 3  # noqa: E741
# (tokens in the step, tokens after it) of each sequence; beyond K * B = 24 there is something to choose.
STEPS = {
    "decode, short and long": [(1, 1), (1, 8), (1, 24), (1, 25), (1, 90), (1, 200)],
    "a whole prompt": [(200, 200)],
    "a chunk within a block": [(5, 61)],
    "a chunk over the edge of choosing": [(40, 50)],
    "a later chunk that begins within a block": [(100, 203)],
    "all kinds at once": [(1, 77), (64, 64), (30, 100), (1, 3), (3, 120), (24, 24)],
}
LAYOUTS = ("in a row", "scattered")


class Step:
    """A ragged batch over a cache of one layer."""

    def __init__(
        self, lengths: list[tuple[int, int]], layout: str, dtype: torch.dtype, *, heads: int = Q, width: int = D
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        needed = [-(-context // B) for _, context in lengths]
        total = sum(needed) + 4
        order = list(range(total))
        if layout == "scattered":
            order = torch.randperm(total, generator=generator).tolist()
        self.pages = LayerPages(
            torch.full((total, B, G, width), torch.nan, dtype=dtype),
            torch.full((total, B, G, width), torch.nan, dtype=dtype),
            torch.full((total, B, I), torch.nan, dtype=dtype),
        )
        table = torch.zeros(len(lengths), max(needed) + 1, dtype=torch.int64)
        free = iter(order)
        starts, positions, slots = [0], [], []
        for sequence, (tokens, context) in enumerate(lengths):
            own = list(itertools.islice(free, needed[sequence]))
            table[sequence, : len(own)] = torch.tensor(own)
            places = [own[position // B] * B + position % B for position in range(context)]
            for pool in (self.pages.k, self.pages.v, self.pages.index_k):
                assert pool is not None
                rows = torch.randn(context, *pool.shape[2:], generator=generator)
                pool.flatten(0, 1)[places] = rows.to(dtype)
            starts.append(starts[-1] + tokens)
            positions += range(context - tokens, context)
            slots += places[-tokens:]
        contexts = [context for _, context in lengths]
        self.batch = RaggedBatch(torch.tensor(positions), torch.tensor(slots), starts, contexts, table)
        self.q = torch.randn(starts[-1], G * heads, width, generator=generator)
        self.index_q = torch.randn(starts[-1], G, I, generator=generator)

    def blocks(self, k: int = K) -> Tensor:
        assert self.pages.index_k is not None
        return reference.choose_blocks(self.index_q, self.pages.index_k, self.batch, k)


@pytest.fixture(params=STEPS)
def lengths(request: pytest.FixtureRequest) -> list[tuple[int, int]]:
    return STEPS[request.param]


@pytest.fixture(params=LAYOUTS)
def step(request: pytest.FixtureRequest, lengths: list[tuple[int, int]]) -> Step:
    return Step(lengths, request.param, torch.float32)


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=4e-6)


@pytest.fixture(params=["usual sizes", "small tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small that everything is cut, and done by two threads, as only long contexts are otherwise."""
    if request.param == "small tiles":
        monkeypatch.setattr(attention, "_SEEING_ALL", 5)
        monkeypatch.setattr(attention, "_CHOOSING", 7)
        monkeypatch.setattr(selection, "_TILE_QUERIES", 7)
        monkeypatch.setattr(compiled, "_THREADED_FLOPS", 0)


@pytest.fixture(params=["v4", "v3", "base"])
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """The loops as compiled for other processors, too."""
    from m3_kernels.cpu import _native

    if not _native.use(request.param):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    _native.use(_native.LEVEL)


def test_the_loops_are_compiled_and_of_a_level_that_this_processor_has() -> None:
    assert compiled.level() in ("v4", "v3", "base"), "build them: pip install -e . (needs a C compiler)"


@pytest.mark.usefixtures("tiles")
def test_dense_attention_is_that_of_the_reference(step: Step) -> None:
    same(
        attention.dense_attention(step.q, step.pages, step.batch),
        reference.dense_attention(step.q, step.pages, step.batch),
    )


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("k", [1, K, 50])
def test_sparse_attention_is_that_of_the_reference(step: Step, k: int) -> None:
    blocks = step.blocks(k)
    same(
        attention.sparse_attention(step.q, step.pages, blocks, step.batch),
        reference.sparse_attention(step.q, step.pages, blocks, step.batch),
    )


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("k", [1, K, 50])
def test_the_same_blocks_are_chosen(step: Step, k: int) -> None:
    assert step.pages.index_k is not None
    chosen = selection.choose_blocks(step.index_q, step.pages.index_k, step.batch, k)
    assert torch.equal(chosen, step.blocks(k))


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(("k", "parts"), [(2, 1), (K, 2), (K, 5), (50, 3)])
@pytest.mark.parametrize("best_blocks", [selection.best_blocks, reference.best_blocks])
def test_parts_of_the_blocks_bring_together_what_one_choice_brings(
    step: Step, k: int, parts: int, best_blocks: Callable[..., BlockCandidates]
) -> None:
    assert step.pages.index_k is not None
    found = [
        best_blocks(step.index_q, step.pages.index_k, step.batch, k - 1, BlockPart(number, parts))
        for number in range(parts)
    ]
    together = BlockCandidates(torch.stack([one.scores for one in found]), torch.stack([one.ids for one in found]))
    assert torch.equal(reference.join_blocks(together, step.batch.positions, B), step.blocks(k))


def test_parts_join_by_the_lower_block_where_scores_are_equal(lengths: list[tuple[int, int]]) -> None:
    step = Step(lengths, "scattered", torch.float32)
    assert step.pages.index_k is not None
    step.pages.index_k.fill_(1.0)
    found = [
        selection.best_blocks(step.index_q, step.pages.index_k, step.batch, K - 1, BlockPart(number, 3))
        for number in range(3)
    ]
    together = BlockCandidates(torch.stack([one.scores for one in found]), torch.stack([one.ids for one in found]))
    assert torch.equal(reference.join_blocks(together, step.batch.positions, B), step.blocks())


def test_of_equal_scores_the_lower_block_wins(lengths: list[tuple[int, int]]) -> None:
    step = Step(lengths, "scattered", torch.float32)
    assert step.pages.index_k is not None
    step.pages.index_k.fill_(1.0)
    chosen = selection.choose_blocks(step.index_q, step.pages.index_k, step.batch, K)
    assert torch.equal(chosen, step.blocks())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_a_narrow_cache_is_computed_in_fp32(lengths: list[tuple[int, int]], dtype: torch.dtype) -> None:
    narrow = Step(lengths, "scattered", dtype)
    wide = Step(lengths, "scattered", dtype)
    assert narrow.pages.index_k is not None
    wide.pages = LayerPages(*(pool.float() for pool in (wide.pages.k, wide.pages.v, narrow.pages.index_k)))
    chosen = selection.choose_blocks(narrow.index_q, narrow.pages.index_k, narrow.batch, K)
    assert torch.equal(chosen, wide.blocks())
    expected = reference.sparse_attention(wide.q, wide.pages, chosen, wide.batch)
    same(attention.sparse_attention(narrow.q, narrow.pages, chosen, narrow.batch), expected)
    same(reference.sparse_attention(narrow.q, narrow.pages, chosen, narrow.batch), expected)


@pytest.mark.parametrize("index_dim", [None, D, D + 4], ids=["dense", "as wide as a head", "wider than a head"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_norms_and_rotations_are_those_of_the_reference(index_dim: int | None, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    T, slots = 5, torch.tensor([9, 2, 4, 11, 0])
    index_width = 0 if index_dim is None else (G + 1) * index_dim
    packed = 3 * torch.randn(T, (G * Q + 2 * G) * D + index_width, generator=generator)
    packed[0, 0], packed[1, (G * Q + G) * D] = 1e4, 1e4  # a value beyond what FP8 holds
    norms = AttentionNorms(
        *(torch.randn(D, generator=generator) for _ in range(2)),
        *((None if index_dim is None else torch.randn(index_dim, generator=generator)) for _ in range(2)),
        eps=1e-6,
    )
    angles = reference.rotary_angles(torch.tensor([5, 0, 8, 100, 3]), 4, 1e4)
    results = []
    for implementation in (pointwise, reference):
        index_k = None if index_dim is None else torch.zeros(3, B, index_dim, dtype=dtype)
        cache = LayerPages(torch.zeros(3, B, G, D, dtype=dtype), torch.zeros(3, B, G, D, dtype=dtype), index_k)
        q, index_q = implementation.qk_norm_rope_insert(packed, norms, angles, cache, slots)
        results.append([q, index_q, cache.k, cache.v, cache.index_k])
    for actual, expected in zip(*results, strict=True):
        assert (actual is None) == (expected is None)
        if actual is not None:
            assert torch.isfinite(actual.float()).all()
            torch.testing.assert_close(actual.float(), expected.float(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_and_activation_are_those_of_the_reference(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    x, weight = (10 * torch.randn(6, 32, generator=generator)).to(dtype), torch.randn(32, generator=generator)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(
        pointwise.gemma_rms_norm(x, weight, 1e-6), reference.gemma_rms_norm(x, weight, 1e-6), **tolerance
    )
    torch.testing.assert_close(
        pointwise.swiglu_clamped(x, 1.7, 7.0), reference.swiglu_clamped(x, 1.7, 7.0), **tolerance
    )


@pytest.mark.parametrize("rows", [1, 16, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_the_reference(rows: int, dtype: torch.dtype, level: str) -> None:
    generator = torch.Generator().manual_seed(5)
    x, weight = torch.randn(rows, 40, generator=generator), torch.randn(300, 40, generator=generator).to(dtype)
    expected = x @ weight.float().T
    torch.testing.assert_close(compiled.linear(x, weight), expected, rtol=1e-5, atol=1e-5)
    if dtype == torch.float32:
        torch.testing.assert_close(products.linear(x, weight), expected, rtol=1e-5, atol=1e-5)


def test_calls_from_several_threads_do_not_disturb_each_other() -> None:
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(4000, 64, generator=generator)  # so large that a call asks for help
    given = [torch.randn(8, 64, generator=generator) for _ in range(4)]
    expected = [x @ weight.T for x in given]

    def work(number: int) -> None:
        for _ in range(200):
            torch.testing.assert_close(compiled.linear(given[number], weight), expected[number], rtol=1e-4, atol=1e-4)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


@pytest.mark.parametrize("width", [16, 6], ids=["aligned", "odd"])
@pytest.mark.parametrize("tokens", [1, 11, 100])
def test_experts_are_those_of_the_reference(width: int, tokens: int, level: str) -> None:
    generator = torch.Generator().manual_seed(3)
    E, A = 7, 3
    x = torch.randn(tokens, width, generator=generator)
    gate_up = torch.randn(E, 2 * width, width, generator=generator)
    down = torch.randn(E, width, width, generator=generator)
    chosen = torch.stack([torch.randperm(E - 1, generator=generator)[:A] for _ in range(tokens)])
    rows = reference.sort_by_expert(chosen, E)
    pairs = x[rows.tokens(A)]
    torch.testing.assert_close(
        products.run_experts(pairs, rows, gate_up, down, alpha=1.7, limit=2.0),
        reference.run_experts(pairs, rows, gate_up, down, alpha=1.7, limit=2.0),
        rtol=1e-5,
        atol=1e-4,
    )


@pytest.mark.parametrize(("heads", "width"), [(1, 32), (4, 32), (8, 24), (16, 128), (64, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_any_shape_is_that_of_the_reference(
    heads: int, width: int, dtype: torch.dtype, level: str
) -> None:
    step = Step(STEPS["all kinds at once"], "scattered", dtype, heads=heads, width=width)
    blocks = step.blocks()
    for actual, expected in (
        (attention.dense_attention, reference.dense_attention),
        (
            lambda *given: attention.sparse_attention(*given[:2], blocks, given[2]),
            lambda *given: reference.sparse_attention(*given[:2], blocks, given[2]),
        ),
    ):
        same(actual(step.q, step.pages, step.batch), expected(step.q, step.pages, step.batch))


@pytest.mark.parametrize("rows", [1, 16, 17, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_scores_are_the_best_dot_products(rows: int, dtype: torch.dtype, level: str) -> None:
    generator = torch.Generator().manual_seed(4)
    keys = torch.randn(9, 128, 20, generator=generator).to(dtype)
    queries, pages = torch.randn(rows, 20, generator=generator), torch.tensor([3, 8, 0, 5])
    expected = (keys[pages].float() @ queries.T).amax(1)
    torch.testing.assert_close(compiled.score_blocks(queries, keys, pages), expected)


def test_every_value_is_rounded_to_fp8_as_torch_rounds_it() -> None:
    values = torch.cat([torch.arange(-500, 500, 0.37), torch.arange(-0.05, 0.05, 0.0007), torch.tensor([0.0, 448.0])])
    values = values[: len(values) // D * D].view(-1, 1, D).contiguous()
    T = len(values)
    packed = torch.cat([torch.ones(T, D), torch.ones(T, D), values[:, 0]], 1)  # a query, a key and a value a token
    norms = AttentionNorms(torch.zeros(D), torch.zeros(D), None, None, eps=1e-6)
    cache = LayerPages(*(torch.zeros(T, 1, 1, D, dtype=torch.float8_e4m3fn) for _ in range(2)))
    angles = reference.rotary_angles(torch.zeros(T, dtype=torch.int64), 4, 1e4)
    pointwise.qk_norm_rope_insert(packed, norms, angles, cache, torch.arange(T))
    expected = values.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    assert torch.equal(cache.v[:, 0].float(), expected)


@pytest.mark.parametrize("shape", ["heads", "width", "type"])
def test_what_does_not_fit_the_loops_is_computed_as_defined(shape: str) -> None:
    sizes = {"heads": (65, 8), "width": (3, 4), "type": (3, 8)}
    heads, width = sizes[shape]
    dtype = torch.float16 if shape == "type" else torch.float32
    step = Step(STEPS["all kinds at once"], "scattered", dtype, heads=heads, width=width)
    assert not compiled.fits_attention(step.q, step.pages)
    blocks = step.blocks()
    same(
        attention.sparse_attention(step.q, step.pages, blocks, step.batch),
        reference.sparse_attention(step.q, step.pages, blocks, step.batch),
    )
