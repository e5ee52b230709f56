"""The model of step times: it finds the cost behind the steps, follows it, and sizes chunks by it."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_worker.scheduling.step_time import StepTime, chunk_pairs

STEP, TOKEN, PAIR = 4e-3, 50e-6, 2e-9
"""Of a machine that takes 0.1 s for 2,000 tokens, and as much again a million tokens deep for 50 of them."""


def seconds(tokens: int, pairs: float, slower: float = 1.0) -> float:
    return slower * (STEP + TOKEN * tokens + PAIR * pairs)


def mixed_step(draw: random.Random) -> tuple[int, float]:
    """A decode step of some sequences, in half of the cases with a chunk of a prompt."""
    sequences, context = draw.randint(1, 64), draw.randint(100, 5000)
    tokens, pairs = sequences, float(sequences * context)
    if draw.random() < 0.5:
        chunk, start = draw.randint(16, 2048), draw.randint(0, 300_000)
        tokens, pairs = tokens + chunk, pairs + chunk_pairs(start, chunk)
    return tokens, pairs


def fitted(steps: int = 300, noise: float = 0.05, seed: int = 1) -> StepTime:
    draw, model = random.Random(seed), StepTime()
    for _ in range(steps):
        tokens, pairs = mixed_step(draw)
        model.observe(tokens, pairs, seconds(tokens, pairs) * draw.gauss(1, noise))
    return model


def worst_error(model: StepTime, slower: float = 1.0) -> float:
    draw = random.Random(99)
    steps = [mixed_step(draw) for _ in range(200)]
    return max(abs(model.predict(*step) / seconds(*step, slower) - 1) for step in steps)


def test_it_finds_what_steps_cost() -> None:
    model = fitted(noise=0.0)
    assert model.step_seconds == pytest.approx(STEP, rel=0.01)
    assert model.token_seconds == pytest.approx(TOKEN, rel=0.01)
    assert model.pair_seconds == pytest.approx(PAIR, rel=0.01)


def test_noise_moves_it_little() -> None:
    assert worst_error(fitted(noise=0.1)) < 0.15


def test_it_follows_a_machine_that_becomes_slower() -> None:
    model, draw = fitted(), random.Random(2)
    for _ in range(300):
        step = mixed_step(draw)
        model.observe(*step, seconds(*step, slower=5.0))
    assert worst_error(model, slower=5.0) < 0.1


def test_one_step_that_was_held_up_counts_little() -> None:
    model = fitted()
    before = model.predict(64, 64_000)
    model.observe(64, 64_000, 30.0)
    assert model.predict(64, 64_000) < 1.2 * before


def test_equal_decode_steps_do_not_make_it_forget_what_a_prefill_costs() -> None:
    model = fitted(noise=0.0)
    for _ in range(20_000):
        model.observe(16, 16 * 300, seconds(16, 16 * 300))
    assert worst_error(model) < 0.1


def test_nothing_costs_less_than_nothing() -> None:
    model = StepTime()
    for tokens in (1, 2, 3, 4) * 10:
        model.observe(tokens, 100.0 * tokens, 0.01 / tokens)
    assert min(model.step_seconds, model.token_seconds, model.pair_seconds) == 0
    assert model.predict(5, 1e6) > 0


def test_it_predicts_after_a_few_steps_and_not_before() -> None:
    assert not StepTime().is_fitted
    assert not fitted(steps=7).is_fitted
    assert fitted(steps=8).is_fitted


def test_what_costs_nothing_yet_has_no_bound() -> None:
    assert StepTime().tokens_within(0.1, 0) == 2**62


@given(budget=st.floats(1e-4, 10), start=st.integers(0, 10**6))
def test_a_chunk_sized_by_time_takes_that_time(budget: float, start: int) -> None:
    model = fitted(noise=0.0)
    tokens = model.tokens_within(budget, start)
    assert model.chunk_seconds(start, tokens) <= budget * (1 + 1e-9)
    assert model.chunk_seconds(start, tokens + 1) > budget * (1 - 1e-9)


def test_a_deep_chunk_is_smaller() -> None:
    model = fitted(noise=0.0)
    assert model.tokens_within(0.1, 0) > 1900
    assert 40 < model.tokens_within(0.1, 10**6) < 60
    assert model.tokens_within(0.0, 0) == 0
