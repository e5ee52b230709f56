"""The memory of a group: figures worked by hand for the released model, and what holds for every group."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from m3_operator.capacity.group import (
    GIB,
    RUNTIME_BYTES,
    GroupCapacity,
    GroupRequest,
    ShapeRefusedError,
    group_capacity,
)
from m3_operator.capacity.releases import PACKAGED, RELEASES
from m3_operator.capacity.shape import ModelShape, Precision

M3, MXFP8 = RELEASES["MiniMax-M3"], RELEASES["MiniMax-M3-MXFP8"]
ONE_MILLION, HALF_A_MILLION = 1_048_576, 524_288


def request(gib: int | None = 140, gpus: int = 8, nodes: int = 1, **asked: Any) -> GroupRequest:
    return GroupRequest(nodes=nodes, gpus_per_node=gpus, memory_bytes=None if gib is None else gib * GIB, **asked)


def test_m3_in_bfloat16_on_8_gpus_of_140_gib_worked_by_hand() -> None:
    found = group_capacity(M3, request(140))
    # 16 slots x 57 layers x three matrices of 3072 x 6144 x 2 bytes
    assert found.first.experts_bytes == 16 * 57 * 3 * 3072 * 6144 * 2 == 103_280_541_696
    # A quarter of the heads: 60 x (2 x 16 + 2 x 1) x 128 x 6144, and 57 x (1 + 1) x 128 x 6144 of index, x 2 bytes
    assert found.first.attention_bytes == 2 * (1_604_321_280 + 89_653_248) == 3_387_949_056
    # Dense MLPs 679,477,248, shared experts 3,227,516,928, embedding 1,229,193,216, norms 773,376, x 2 bytes;
    # routers 57 x 128 x (6144 + 1) x 4 bytes
    assert found.first.replicated_bytes == 2 * 5_136_960_768 + 179_335_680 == 10_453_257_216
    # Output head 200,064 x 6144 x 2; vision 865,567,232 numbers, of which 1,505,280 in fp32
    assert found.first.ends_bytes == 2_458_386_432 + 2 * 865_567_232 + 2 * 1_505_280 == 4_192_531_456
    assert found.first.total_bytes == 121_314_279_424
    assert found.other.total_bytes == 121_314_279_424 - 4_192_531_456
    # One of four KV heads: 60 x 2 x 128 x 2 bytes, and the whole index key: 57 x 128 x 2
    assert found.token_bytes == 30_720 + 14_592 == 45_312
    # 140 GiB - 2 GiB - weights = 26,862,092,288; nine tenths hold 533,542 tokens: 4,168 pages of 128
    assert found.cache_tokens == found.longest_context_tokens == 4_168 * 128 == 533_504
    assert found.slots_per_rank == 16
    assert found.fits


@pytest.mark.parametrize(
    ("shape", "asked", "longest", "sequences"),
    [
        # 79 GiB - 2 GiB - 65,861,828,608 of weights = 16,816,291,840; x 0.9 / 45,312 = 334,010 tokens
        (MXFP8, request(79), 333_952, 1),
        # half the bytes a token: 668,020 tokens, one sequence of 512K
        (MXFP8, request(79, cache_dtype="fp8", context_tokens=HALF_A_MILLION), 667_904, 1),
        # keys and values in FP8 alone: 15,360 + 14,592 = 29,952 bytes a token, 505,297 tokens: 512K has no room
        (MXFP8, request(79, cache_dtype="fp8", index_cache_dtype="bfloat16"), 505_216, 1),
        # 140 GiB leave 26,862,092,288 beside bfloat16 weights: 1M has room in FP8 only
        (M3, request(140, cache_dtype="fp8", context_tokens=ONE_MILLION), ONE_MILLION, 1),
        # 65,861,828,608 of weights leave 82,314,543,104: 1,634,950 tokens, one of 1M; 3,269,900 in FP8, three
        (MXFP8, request(140, context_tokens=ONE_MILLION), ONE_MILLION, 1),
        (MXFP8, request(140, cache_dtype="fp8", context_tokens=ONE_MILLION), ONE_MILLION, 3),
    ],
)
def test_longest_contexts_and_sequences_worked_by_hand(
    shape: ModelShape, asked: GroupRequest, longest: int, sequences: int
) -> None:
    found = group_capacity(shape, asked)
    assert found.fits
    assert (found.longest_context_tokens, found.sequences) == (longest, sequences)


@pytest.mark.parametrize(
    ("shape", "asked"),
    [
        (M3, request(79)),  # 113.0 GiB of weights
        (M3, request(140, context_tokens=ONE_MILLION)),  # 44.2 GiB of cache, 22.5 there
        (MXFP8, request(79, context_tokens=HALF_A_MILLION)),
        (M3, request(140, gpus=4)),  # 32 slots: 96.2 GiB more
        (M3, request(140, cache_tokens=ONE_MILLION)),
        (M3, request(140, context_tokens=ONE_MILLION + 1)),  # longer than the model was made for
        (M3, request(None, context_tokens=4096, cache_tokens=4095)),  # whatever the GPU
        (PACKAGED, request(None, gpus=0, context_tokens=8192, cache_tokens=4096)),
    ],
)
def test_what_has_no_room_does_not_fit(shape: ModelShape, asked: GroupRequest) -> None:
    assert group_capacity(shape, asked).fits is False


def test_without_declared_memory_what_is_needed_is_known_and_whether_it_fits_is_not() -> None:
    found = group_capacity(M3, request(None))
    assert found.first.total_bytes == 121_314_279_424
    assert (found.fits, found.budget, found.cache_tokens, found.longest_context_tokens) == (None, None, None, None)


def test_the_published_sizes_of_the_releases_are_those_of_the_table() -> None:
    """In GB, as published or worked out for each: 854.17, 443.7, 260.2 (calculated) and 250.1."""
    one = request(None, gpus=1)
    sizes = {name: group_capacity(shape, one).first.total_bytes / 1e9 for name, shape in RELEASES.items()}
    assert sizes["MiniMax-M3"] == pytest.approx(854.17, abs=0.01)
    assert sizes["MiniMax-M3-MXFP8"] == pytest.approx(443.7, abs=0.05)
    assert sizes["MiniMax-M3-NVFP4"] == pytest.approx(260.2, abs=0.15)
    assert sizes["MiniMax-M3.1-Flash"] == pytest.approx(250.1, abs=0.05)


def test_tokens_of_cache_cost_what_the_fact_of_four_kv_heads_says() -> None:
    """Per rank, over one, two, four and eight of them: past four, nothing more is split."""
    bf16 = [group_capacity(M3, request(None, gpus=gpus)).token_bytes for gpus in (1, 2, 4, 8)]
    fp8 = [group_capacity(M3, request(None, gpus=gpus, cache_dtype="fp8")).token_bytes for gpus in (1, 2, 4, 8)]
    assert bf16 == [137_472, 76_032, 45_312, 45_312]
    assert fp8 == [68_736, 38_016, 22_656, 22_656]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            request(redundant_experts=4),
            "parallelism.redundantExperts is 4: 128 experts and 4 copies are 132 slots a layer, which 8 ranks cannot "
            "share evenly; set it to 0 (16 slots a rank) or 8 (17 slots a rank)",
        ),
        (request(nodes=3, redundant_experts=0), "which 24 ranks cannot share evenly; set it to 16 (6 slots a rank)"),
        (request(gpus=1, redundant_experts=8), "a group of one rank has no use for copies of experts; set it to 0"),
    ],
)
def test_slots_that_ranks_cannot_share_are_refused_with_what_would_do(asked: GroupRequest, words: str) -> None:
    with pytest.raises(ShapeRefusedError) as refusal:
        group_capacity(M3, asked)
    assert words in str(refusal.value)


def test_without_a_word_redundant_slots_are_the_fewest_that_ranks_can_share() -> None:
    assert group_capacity(M3, request(nodes=3)).redundant_experts == 16
    assert group_capacity(M3, request(redundant_experts=8)).slots_per_rank == 17


shapes = st.sampled_from([M3, MXFP8, PACKAGED, replace(M3, precision=Precision(dtype="float32"))])
requests = st.builds(
    GroupRequest,
    nodes=st.integers(1, 8),
    gpus_per_node=st.sampled_from([1, 2, 4, 8]),
    memory_bytes=st.integers(1, 300).map(lambda gib: gib * GIB),
    redundant_experts=st.none(),
    dtype=st.sampled_from(["auto", "float32", "bfloat16"]),
    cache_dtype=st.sampled_from(["auto", "bfloat16", "fp8"]),
    index_cache_dtype=st.sampled_from(["auto", "bfloat16", "fp8"]),
    context_tokens=st.none() | st.integers(16, 2**20),
    max_concurrent=st.integers(1, 4096),
    cache_tokens=st.none() | st.integers(16, 2**24),
)


@settings(deadline=None)
@given(shapes, requests)
def test_the_parts_of_a_gpu_add_up_to_it(shape: ModelShape, asked: GroupRequest) -> None:
    found = group_capacity(shape, asked)
    budget = found.budget
    assert budget is not None
    parts = (budget.weights_bytes, budget.cache_bytes, budget.runtime_bytes, budget.activations_bytes)
    assert min(parts) >= 0
    assert sum(parts) + budget.free_bytes == asked.memory_bytes
    assert budget.weights_bytes == found.first.total_bytes >= found.other.total_bytes
    assert budget.cache_bytes == (found.cache_tokens or 0) * found.token_bytes


@settings(deadline=None)
@given(shapes, requests, st.integers(0, 200))
def test_more_memory_never_fits_less(shape: ModelShape, asked: GroupRequest, more_gib: int) -> None:
    less = group_capacity(shape, asked)
    more = group_capacity(shape, replace(asked, memory_bytes=(asked.memory_bytes or 0) + more_gib * GIB))
    assert more.fits or not less.fits
    assert (more.longest_context_tokens or 0) >= (less.longest_context_tokens or 0)
    if asked.context_tokens is not None:
        assert (more.sequences or 0) >= (less.sequences or 0)


@settings(deadline=None)
@given(shapes, requests)
def test_a_cache_in_fp8_never_holds_less(shape: ModelShape, asked: GroupRequest) -> None:
    wide = group_capacity(shape, asked)
    narrow = group_capacity(shape, replace(asked, cache_dtype="fp8", index_cache_dtype="auto"))
    assert narrow.fits or not wide.fits
    assert (narrow.longest_context_tokens or 0) >= (wide.longest_context_tokens or 0)


@settings(deadline=None)
@given(shapes, requests)
def test_the_longest_context_fits_and_a_page_more_does_not(shape: ModelShape, asked: GroupRequest) -> None:
    found = group_capacity(shape, replace(asked, context_tokens=None))
    assume(found.fits)
    longest = found.longest_context_tokens or 0
    assert group_capacity(shape, replace(asked, context_tokens=longest)).fits
    assert not group_capacity(shape, replace(asked, context_tokens=longest + shape.page_tokens)).fits


@settings(deadline=None, max_examples=200)
@given(shapes, requests)
def test_the_least_memory_is_enough_and_a_little_less_is_not(shape: ModelShape, asked: GroupRequest) -> None:
    found = group_capacity(shape, asked)
    assume(found.context_tokens <= shape.max_context_tokens)
    assume((asked.cache_tokens or 2**40) >= shape.page_tokens * found.needed_pages)
    # Asked for no context, one page is enough: then less memory only makes the context shorter.
    enough = group_capacity(shape, replace(asked, memory_bytes=found.least_memory_bytes))
    page_bytes = shape.page_tokens * found.token_bytes
    short = group_capacity(shape, replace(asked, memory_bytes=found.least_memory_bytes - 2 * page_bytes))
    assert enough.fits
    assert not short.fits


def test_every_rank_s_experts_are_all_the_experts_and_their_copies() -> None:
    found: GroupCapacity = group_capacity(M3, request(redundant_experts=8))
    whole = group_capacity(M3, request(None, gpus=1))
    copies = 8 * 57 * 3 * 3072 * 6144 * 2
    assert 8 * found.first.experts_bytes == whole.first.experts_bytes + copies
    assert found.weights_bytes == found.first.total_bytes + 7 * found.other.total_bytes
    assert RUNTIME_BYTES == 2 * GIB
