"""Sampling: greedy, the limits, masks, bias, seeds that do not depend on the batch, and what is reported."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_worker.byte_vocabulary import byte_level_tokenizer
from m3_worker.grammar import Grammars, GrammarSpec
from m3_worker.sampling import draw, sample
from m3_worker.scheduling.request import FinishReason, Request, SamplingParameters, Sequence
from m3_worker.tokenizer import Tokenizer

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


def test_min_p_keeps_what_is_at_least_that_share_as_likely_as_the_most_likely() -> None:
    # as shares of the most likely one's probability: 1, 0.368, 0.135, 0.050, 0.018
    assert set(drawn(min_p=0.36)) == {4, 0}
    assert set(drawn(min_p=0.37)) == {4}
    assert set(drawn(min_p=1.0)) == {4}
    assert set(drawn(min_p=0.13, temperature=2.0)) == {4, 0, 1, 2, 3}  # of the distribution that is drawn from


def test_top_p_counts_what_min_p_left() -> None:
    assert set(drawn(min_p=0.36, top_p=0.73)) == {4}  # of the two that are left, 4 has 0.731
    assert set(drawn(min_p=0.36, top_p=0.74)) == {4, 0}


def test_of_equally_likely_tokens_the_limits_keep_those_of_lower_ids() -> None:
    parameters = [SamplingParameters(max_tokens=1, top_k=3)] * 300
    uniforms = [(number + 0.5) / 300 for number in range(300)]
    logits = torch.zeros(300, 1000)
    logits[:, 500:] = -0.0
    assert set(draw(logits, parameters, uniforms).tolist()) == {0, 1, 2}
    assert draw(torch.tensor([[-1.0, -2.0, -1.0]]), parameters[:1], [0.6]).tolist() == [2]


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


def chosen_of(step: list[float], **sampling: object) -> int:
    return sample(torch.tensor([step]), [sequence(temperature=0.0, **sampling)])[0].token_id


def test_a_bias_is_added_to_the_logit() -> None:
    assert chosen_of(LOGITS, logit_bias=((0, 0.9),)) == 4
    assert chosen_of(LOGITS, logit_bias=((0, 1.1),)) == 0
    assert chosen_of(LOGITS, logit_bias=((4, -1.5), (1, 1.2))) == 1


def test_a_bias_of_a_hundred_forbids_or_forces_whatever_the_logits_are() -> None:
    steep = [2.0, 1.0, 0.0, -1500.0, 3000.0]
    assert chosen_of(steep, logit_bias=((4, -100.0),)) == 0
    assert chosen_of(steep, logit_bias=((3, 100.0),)) == 3
    one = sequence(temperature=2.0, seed=1, logit_bias=((3, 100.0), (2, 100.0)))
    assert {sample(torch.tensor([LOGITS]), [one])[0].token_id for _ in range(60)} == {2, 3}


@st.composite
def wishes(draw_one: st.DrawFn) -> dict[str, Any]:
    """Parameters of one sequence, its prompt aside; always with a seed."""
    share = st.sampled_from([0.0, 0.05, 0.3])
    return {
        "seed": draw_one(st.integers(0, 5)),
        "temperature": draw_one(st.sampled_from([0.0, 0.3, 1.0, 2.0])),
        "top_k": draw_one(st.sampled_from([0, 1, 7, 200])),
        "top_p": draw_one(st.sampled_from([0.2, 0.9, 1.0])),
        "min_p": draw_one(share),
        "repetition_penalty": draw_one(st.sampled_from([1.0, 1.3, 0.8])),
        "frequency_penalty": draw_one(st.sampled_from([0.0, 0.4, -1.0])),
        "presence_penalty": draw_one(st.sampled_from([0.0, 1.5])),
        "logit_bias": draw_one(st.sampled_from([(), ((3, 1.0), (80, -100.0)), ((97, 2.5),)])),
        "min_tokens": draw_one(st.sampled_from([0, 3])),
        "stop_token_ids": frozenset({256}),
        "logprobs": draw_one(st.sampled_from([None, 0, 3])),
        "grammar": draw_one(st.sampled_from([None, None, LETTERS])),
    }


VOCABULARY = 270
GRAMMARS = Grammars(Tokenizer(byte_level_tokenizer([("[e~[", True)])), VOCABULARY, {256})
LETTERS = GRAMMARS.compile(GrammarSpec("regex", "[a-z]{4,}"))


def generated(company: list[dict[str, Any]], steps: list[torch.Tensor], arrivals: list[int]) -> list[list[Any]]:
    """Tokens of each of some sequences that decode side by side, each from its own step on, to the end."""
    sequences = [sequence(**one) for one in company]
    tokens: list[list[Any]] = [[] for _ in company]
    for number, logits in enumerate(steps):
        rows = [row for row, arrival in enumerate(arrivals) if arrival <= number and len(tokens[row]) < 5]
        rows = rows[:: -1 if number % 2 else 1]
        own = torch.stack([logits[len(tokens[row])] for row in rows]) if rows else torch.empty(0, VOCABULARY)
        for row, token in zip(rows, sample(own, [sequences[row] for row in rows]), strict=True):
            tokens[row].append(token)
            sequences[row].append(token.token_id)
    return tokens


@settings(max_examples=25, deadline=None)
@given(st.lists(wishes(), min_size=2, max_size=4), st.integers(0, 2**32), st.booleans())
def test_what_is_sampled_does_not_depend_on_the_company(
    company: list[dict[str, Any]], noise: int, has_equals: bool
) -> None:
    logits = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(noise)) * 3
    if has_equals:
        logits = logits.round()  # as bf16 has them
    steps = [logits] * 12
    together = generated(company, steps, [2 * row for row in range(len(company))])
    alone = [generated([one], steps, [0])[0] for one in company]
    assert together == alone


def test_a_grammar_binds_its_row_alone() -> None:
    rows = [sequence(temperature=0.0), sequence(temperature=0.0, grammar=LETTERS)]
    logits = torch.zeros(2, VOCABULARY)
    logits[:, 65], logits[:, 99] = 5.0, 1.0
    assert [token.token_id for token in sample(logits.clone(), rows)] == [65, 99]


def test_a_grammar_is_stronger_than_any_bias() -> None:
    one = sequence(temperature=0.0, grammar=LETTERS, logit_bias=((65, 100.0), (97, -100.0)))
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 97] = 9.0
    assert sample(logits, [one])[0].token_id == 98


def test_an_answer_that_its_grammar_leaves_no_choice_ends_before_min_tokens() -> None:
    grammar = GRAMMARS.compile(GrammarSpec("regex", "ab?"))
    one = sequence(temperature=0.0, grammar=grammar, min_tokens=10, stop_token_ids=frozenset({256}))
    ends = []
    for _ in range(3):
        token = sample(torch.zeros(1, VOCABULARY), [one])[0].token_id
        ends.append((token, one.append(token)))
    assert ends == [(97, None), (98, None), (256, None)]  # the last is past what min_tokens can ask for


def test_a_grammar_that_becomes_too_complex_ends_its_sequence_with_the_reason() -> None:
    many = ",".join(f'"p{number}":{{"type":"integer"}}' for number in range(600))
    spec = GrammarSpec("json_schema", f'{{"properties":{{"a":{{"properties":{{{many}}}}}}},"required":["a"]}}')
    one = sequence(temperature=0.0, grammar=GRAMMARS.compile(spec))
    for byte in b'{"a":{':
        logits = torch.zeros(1, VOCABULARY)
        logits[0, byte] = 1.0
        (token,) = sample(logits, [one])
        reason = one.append(token.token_id)
        assert (token.failure is None) == (reason is None)
    assert "Current row has" in (token.failure or "")
    assert reason is FinishReason.STOP


def test_the_logits_of_a_model_that_only_infers_can_be_bent() -> None:
    one = sequence(grammar=LETTERS, min_tokens=2, stop_token_ids=frozenset({99}), presence_penalty=1.0)
    with torch.inference_mode():
        logits = torch.zeros(1, VOCABULARY)
    assert sample(logits, [one])[0].failure is None


def test_only_what_is_wanted_makes_a_request_more_than_plain() -> None:
    assert sequence(temperature=0.0, top_p=0.5, top_k=3, seed=5).request.sampling.is_plain
    for wish in ({"temperature": 1.0}, {"logprobs": 0}, {"min_tokens": 1}, {"presence_penalty": 0.1}):
        assert not sequence(**{"temperature": 0.0, **wish}).request.sampling.is_plain
