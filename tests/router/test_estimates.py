"""Estimates of input tokens: safe before anything is known, narrow after a little, and never narrower than honest."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_router.money.estimates import (
    MAX_MODELS,
    MEDIA_HIGH_TOKENS,
    MIN_SAMPLES,
    TEMPLATE_TOKENS,
    TokenEstimates,
    bounds,
    exact,
)


def test_the_prior_is_a_token_for_12_to_1_5_bytes() -> None:
    interval = TokenEstimates().interval("m3", 1_200, 0)
    assert (interval.low, interval.likely, interval.high) == (100, 300, 800 + TEMPLATE_TOKENS + 1)


@settings(deadline=None)
@given(text_bytes=st.integers(0, 2**30), more=st.integers(0, 2**30), items=st.integers(0, 100))
def test_the_prior_grows_with_the_bytes_and_stays_in_order(text_bytes: int, more: int, items: int) -> None:
    estimates = TokenEstimates()
    less, greater = estimates.interval("m3", text_bytes, items), estimates.interval("m3", text_bytes + more, items)
    assert less.low <= less.likely <= less.high
    assert (less.low, less.likely, less.high) <= (greater.low, greater.likely, greater.high)
    assert less.low <= greater.low
    assert less.high <= greater.high
    assert bounds(text_bytes, items).low <= less.low
    assert less.high <= bounds(text_bytes, items).high + 1


def test_a_few_requests_replace_the_prior_and_one_less_does_not() -> None:
    estimates, fresh = TokenEstimates(), TokenEstimates()
    for _ in range(MIN_SAMPLES - 1):
        estimates.learn("m3", 10_000, 0, 2_500)
    assert repr(estimates.interval("m3", 10_000, 0)) == repr(fresh.interval("m3", 10_000, 0))
    estimates.learn("m3", 10_000, 0, 2_500)
    interval = estimates.interval("m3", 10_000, 0)
    assert (interval.low, interval.likely, interval.high) == (2_250, 2_500, 2_751)  # 10 % to either side


def test_what_is_learnt_of_one_model_or_size_says_nothing_of_another() -> None:
    estimates, fresh = TokenEstimates(), TokenEstimates()
    for _ in range(MIN_SAMPLES):
        estimates.learn("m3", 10_000, 0, 2_500)
    assert repr(estimates.interval("other", 10_000, 0)) == repr(fresh.interval("other", 10_000, 0))
    assert repr(estimates.interval("m3", 2_000_000, 0)) == repr(fresh.interval("m3", 2_000_000, 0))


@settings(deadline=None)
@given(
    ratios=st.lists(st.floats(0.01, 1.0), min_size=MIN_SAMPLES, max_size=100),
    text_bytes=st.integers(100, 10_000_000),
)
def test_an_interval_is_in_order_and_at_least_ten_per_cent_wide_on_both_sides(
    ratios: list[float], text_bytes: int
) -> None:
    estimates = TokenEstimates()
    for ratio in ratios:
        estimates.learn("m3", text_bytes, 0, max(int(text_bytes * ratio), 1))
    interval = estimates.interval("m3", text_bytes, 0)
    assert interval.low <= interval.likely <= interval.high
    assert interval.low <= 0.9 * interval.likely + 1
    assert interval.high >= 1.1 * interval.likely - 1


@settings(deadline=None)
@given(counts=st.lists(st.integers(20_000, 40_000), min_size=MIN_SAMPLES, max_size=60))
def test_what_was_seen_of_late_lies_inside(counts: list[int]) -> None:
    estimates = TokenEstimates()
    for count in counts:
        estimates.learn("m3", 100_000, 0, count)
    interval = estimates.interval("m3", 100_000, 0)
    assert interval.low <= min(counts)
    assert max(counts) <= interval.high


def test_traffic_of_two_languages_is_enclosed_and_english_alone_is_narrow() -> None:
    # Bytes a token of seeded texts: English 3.6 to 4.4, Chinese (three bytes a character) 2.4 to 3.0.
    seeded = random.Random(7)
    english, both = TokenEstimates(), TokenEstimates()
    outside = 0
    for number in range(2_000):
        text_bytes = seeded.randrange(1_100_000, 4_000_000)
        is_chinese = number % 20 == 0
        tokens = int(text_bytes / (seeded.uniform(2.4, 3.0) if is_chinese else seeded.uniform(3.6, 4.4)))
        interval = both.interval("m3", text_bytes, 0)
        outside += not interval.low <= tokens <= interval.high
        both.learn("m3", text_bytes, 0, tokens)
        if not is_chinese:
            english.learn("m3", text_bytes, 0, tokens)
    assert outside <= 2  # the first Chinese ones after the prior was replaced, if any
    narrow, wide = english.interval("m3", 2_000_000, 0), both.interval("m3", 2_000_000, 0)
    assert narrow.high / narrow.low < 1.55  # 4.4 / 3.6 and twice 10 %
    assert wide.high > 2_000_000 / 2.6
    assert wide.low < 2_000_000 / 4.2


def test_a_kind_of_request_that_comes_no_more_is_forgotten() -> None:
    estimates = TokenEstimates()
    for _ in range(MIN_SAMPLES):
        estimates.learn("m3", 100_000, 0, 90_000)
    for _ in range(10_000):
        estimates.learn("m3", 100_000, 0, 25_000)
    assert estimates.interval("m3", 100_000, 0).high < 28_000


def test_images_widen_the_interval_until_they_are_learnt() -> None:
    estimates = TokenEstimates()
    assert estimates.interval("m3", 1_000, 2).high >= 2 * MEDIA_HIGH_TOKENS
    for _ in range(MIN_SAMPLES):
        estimates.learn("m3", 400, 0, 100)
        estimates.learn("m3", 400, 2, 100 + 2 * 500)
    interval = estimates.interval("m3", 400, 4)
    assert interval.low <= 2_100 <= interval.high
    assert interval.high <= 110 + 2_200 + 1


def test_a_picture_beside_a_long_text_teaches_nothing() -> None:
    estimates, fresh = TokenEstimates(), TokenEstimates()
    for _ in range(MIN_SAMPLES):
        estimates.learn("m3", 400_000, 1, 100_500)
    assert estimates.interval("m3", 0, 1).high == fresh.interval("m3", 0, 1).high


@pytest.mark.parametrize(("text_bytes", "tokens"), [(0, 10), (10, 0), (-1, 5), (5, -1), (10, 10**9)])
def test_numbers_that_cannot_be_are_left_out(text_bytes: int, tokens: int) -> None:
    estimates = TokenEstimates()
    for _ in range(MIN_SAMPLES):
        estimates.learn("m3", text_bytes, 0, tokens)
    assert estimates.interval("m3", 10, 0).high == TokenEstimates().interval("m3", 10, 0).high


def test_no_more_models_are_learnt_than_there_is_room_for() -> None:
    estimates = TokenEstimates()
    for number in range(MAX_MODELS + 1):
        for _ in range(MIN_SAMPLES):
            estimates.learn(f"model-{number}", 10_000, 0, 2_500)
    assert estimates.interval(f"model-{MAX_MODELS - 1}", 10_000, 0).high == 2_751
    assert estimates.interval(f"model-{MAX_MODELS}", 10_000, 0).high > 6_000  # the prior


def test_a_number_that_is_known_is_an_interval_of_one() -> None:
    interval = exact(512_000)
    assert (interval.low, interval.likely, interval.high) == (512_000, 512_000, 512_000)


def test_the_bounds_let_every_byte_be_a_token() -> None:
    interval = bounds(1_000, 1)
    assert interval.low == 0
    assert interval.high == 1_000 + TEMPLATE_TOKENS + MEDIA_HIGH_TOKENS
