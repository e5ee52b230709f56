"""Sampling: greedy, the three limits, seeds that do not depend on the batch, and what is reported."""

import math
from collections import Counter

import pytest
import torch

from m3_worker.request import Request, SamplingParameters, Sequence
from m3_worker.sampling import draw, sample

LOGITS = [2.0, 1.0, 0.0, -1.0, 3.0]  # the order of likelihood is 4, 0, 1, 2, 3


def sequence(**sampling: object) -> Sequence:
    parameters = SamplingParameters(**{"max_tokens": 100, **sampling})  # type: ignore[arg-type] # spelled by the test
    return Sequence(Request("a", [1, 2, 3], parameters))


def drawn(count: int = 400, **sampling: object) -> Counter[int]:
    """What is drawn from LOGITS by `count` numbers that cover 0 to 1 evenly."""
    parameters = sequence(**sampling).request.sampling
    uniforms = [(number + 0.5) / count for number in range(count)]
    return Counter(draw(torch.tensor([LOGITS] * count), [parameters] * count, uniforms).tolist())


def test_temperature_zero_takes_the_most_likely_token() -> None:
    greedy = sequence(temperature=0.0)
    assert [sample(torch.tensor([LOGITS]), [greedy])[0].token_id for _ in range(3)] == [4, 4, 4]


def test_top_k_keeps_the_k_most_likely() -> None:
    assert set(drawn(top_k=2)) == {4, 0}
    assert set(drawn(top_k=1)) == {4}


def test_top_p_keeps_the_least_set_that_reaches_it() -> None:
    # softmax of LOGITS, by likelihood: 0.636, 0.234, 0.086, 0.032, 0.012
    assert set(drawn(top_p=0.6)) == {4}
    assert set(drawn(top_p=0.64)) == {4, 0}
    assert set(drawn(top_p=0.9)) == {4, 0, 1}
    assert set(drawn(top_p=0.0001)) == {4}


def test_top_p_counts_what_top_k_left() -> None:
    # of the two that are left, 4 has 0.731
    assert set(drawn(top_k=2, top_p=0.73)) == {4}
    assert set(drawn(top_k=2, top_p=0.74)) == {4, 0}


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    counts = drawn(temperature=2.0)
    weights = [math.exp(value / 2.0) for value in LOGITS]
    for token, weight in enumerate(weights):
        assert counts[token] / 400 == pytest.approx(weight / sum(weights), abs=1 / 400)


def test_a_very_low_temperature_is_greedy_and_does_not_overflow() -> None:
    assert set(drawn(temperature=1e-30)) == {4}


def test_a_seed_gives_the_same_tokens_whatever_else_is_in_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(3, 50, generator=generator) for _ in range(30)]
    alone = sequence(seed=5, top_k=20, top_p=0.9)
    expected = [sample(step[1:2].clone(), [alone])[0].token_id for step in steps]
    mixed = [sequence(temperature=0.0), sequence(seed=5, top_k=20, top_p=0.9), sequence(seed=9, temperature=1.5)]
    assert [sample(step.clone(), mixed)[1].token_id for step in steps] == expected
    other = sequence(seed=6, top_k=20, top_p=0.9)
    assert [sample(step[1:2].clone(), [other])[0].token_id for step in steps] != expected


def test_without_a_seed_two_requests_differ() -> None:
    logits = torch.zeros(2, 1000)
    pair = [sequence(), sequence()]
    tokens = [[token.token_id for token in sample(logits.clone(), pair)] for _ in range(10)]
    assert any(first != second for first, second in tokens)


def test_the_extreme_numbers_of_a_generator_stay_among_what_is_kept() -> None:
    parameters = [SamplingParameters(max_tokens=1, top_k=3), SamplingParameters(max_tokens=1, top_p=0.64)]
    nearly_one = math.nextafter(1.0, 0.0)
    assert draw(torch.tensor([LOGITS, LOGITS]), parameters, [nearly_one, nearly_one]).tolist() == [1, 0]
    assert draw(torch.tensor([LOGITS, LOGITS]), parameters, [0.0, 0.0]).tolist() == [4, 4]


def test_log_probabilities_are_those_of_the_model_itself() -> None:
    plain = sequence(temperature=0.0)
    asking = sequence(temperature=0.5, top_k=1, logprobs=2)
    chosen_only = sequence(temperature=0.0, logprobs=0)
    tokens = sample(torch.tensor([LOGITS] * 3), [plain, asking, chosen_only])
    norm = math.log(sum(math.exp(value) for value in LOGITS))
    assert tokens[0].logprob is None
    assert tokens[1].logprob == pytest.approx(3.0 - norm, abs=1e-5)
    assert [token for token, _ in tokens[1].top_logprobs] == [4, 0]
    assert tokens[1].top_logprobs[1][1] == pytest.approx(2.0 - norm, abs=1e-5)
    assert tokens[2].logprob == pytest.approx(3.0 - norm, abs=1e-5)
    assert tokens[2].top_logprobs == ()


def test_stop_tokens_are_not_chosen_before_min_tokens() -> None:
    one = sequence(temperature=0.0, min_tokens=2, stop_token_ids=frozenset({4}))
    chosen = []
    for _ in range(3):
        chosen.append(sample(torch.tensor([LOGITS]), [one])[0].token_id)
        one.append(chosen[-1])
    assert chosen == [0, 0, 4]
