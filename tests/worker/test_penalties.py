"""Penalties: the published formulas, over the right tokens, counted as they come."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_worker.penalties import penalise
from m3_worker.scheduling.request import Request, SamplingParameters, Sequence

LOGITS = [2.0, 1.0, 0.5, -1.0, -3.0]


def sequence(prompt: list[int], output: list[int], **sampling: float) -> Sequence:
    one = Sequence(Request("a", prompt, SamplingParameters(max_tokens=100, **sampling)))  # type: ignore[arg-type]
    for token in output:
        one.append(token)
    return one


def bent(one: Sequence) -> list[float]:
    logits = torch.tensor([LOGITS])
    penalise(logits, [(0, one)])
    values: list[float] = logits[0].tolist()
    return values


def test_repetition_counts_prompt_and_output_and_pushes_both_signs_down() -> None:
    assert bent(sequence([0, 3], [1, 1], repetition_penalty=2.0)) == [1.0, 0.5, 0.5, -2.0, -3.0]
    assert bent(sequence([4], [], repetition_penalty=0.5)) == [2.0, 1.0, 0.5, -1.0, -1.5]


def test_frequency_counts_each_time_in_the_output_alone() -> None:
    assert bent(sequence([0, 0], [1, 3, 3], frequency_penalty=0.5)) == [2.0, 0.5, 0.5, -2.0, -3.0]


def test_presence_counts_once_in_the_output_alone() -> None:
    assert bent(sequence([0, 0], [1, 3, 3], presence_penalty=0.5)) == [2.0, 0.5, 0.5, -1.5, -3.0]
    assert bent(sequence([], [2], presence_penalty=-2.0)) == [2.0, 1.0, 2.5, -1.0, -3.0]


def test_repetition_comes_before_the_other_two() -> None:
    one = sequence([], [0, 0], repetition_penalty=2.0, frequency_penalty=0.25, presence_penalty=0.5)
    assert bent(one)[0] == pytest.approx(2.0 / 2 - 0.25 * 2 - 0.5)


def test_what_is_forbidden_stays_forbidden() -> None:
    logits = torch.full((1, 5), -torch.inf)
    penalise(logits, [(0, sequence([0], [1], repetition_penalty=2.0, frequency_penalty=-2.0, presence_penalty=-2.0))])
    assert logits.tolist() == [[-torch.inf] * 5]


def test_rows_without_penalties_are_left_alone() -> None:
    rows = [sequence([0], [0]), sequence([0], [0], presence_penalty=1.0), sequence([0], [0], repetition_penalty=2.0)]
    logits = torch.tensor([LOGITS] * 3)
    penalise(logits, list(enumerate(rows)))
    assert logits[:, 0].tolist() == [2.0, 1.0, 1.0]
    assert logits[:, 1:].tolist() == [LOGITS[1:]] * 3
    assert rows[0].occurrences is None


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1),
    st.lists(st.integers(0, 4), max_size=12),
    st.sets(st.integers(0, 12)),
)
def test_counts_kept_from_step_to_step_are_those_of_all_tokens(
    prompt: list[int], output: list[int], skipped: set[int]
) -> None:
    wanted = {"repetition_penalty": 1.5, "frequency_penalty": 0.25, "presence_penalty": 0.5}
    growing = sequence(prompt, [], **wanted)
    for number, token in enumerate(output):
        if number not in skipped:
            bent(growing)
        growing.append(token)
    assert bent(growing) == bent(sequence(prompt, output, **wanted))
    for token, logit in enumerate(LOGITS):
        factor = (1 / 1.5 if logit > 0 else 1.5) if token in prompt + output else 1
        expected = logit * factor - 0.25 * output.count(token) - 0.5 * (token in output)
        assert bent(growing)[token] == pytest.approx(expected)
