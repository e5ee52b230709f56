"""Rows that decode together: what is done for a column is what would have been done row by row."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_worker.scheduling.decoding import NOBODY, Decoding
from m3_worker.scheduling.request import FinishReason, Request, SamplingParameters, Sequence

PAGE_TOKENS = 4
VOCABULARY = 6


def sequence(name: str, prompt_tokens: int, max_tokens: int, stop: int | None = None) -> Sequence:
    """One that has its first token."""
    stops = frozenset() if stop is None else frozenset({stop})
    one = Sequence(Request(name, [0] * prompt_tokens, SamplingParameters(max_tokens, stop_token_ids=stops)))
    one.append(VOCABULARY)
    return one


rows = st.lists(
    st.tuples(st.integers(1, 20), st.integers(2, 9), st.none() | st.integers(0, VOCABULARY - 1)),
    min_size=1,
    max_size=8,
)


@given(rows=rows, tokens=st.lists(st.integers(0, VOCABULARY - 1), min_size=64, max_size=64))
def test_rows_grow_as_each_would_alone(rows: list[tuple[int, int, int | None]], tokens: list[int]) -> None:
    together, alone = ([sequence(str(number), *row) for number, row in enumerate(rows)] for _ in range(2))
    decoding = Decoding(together, [array("q")] * len(rows), PAGE_TOKENS)
    for step in range(64 // len(rows)):
        lengths = [one.total_tokens for one in alone]
        assert (decoding.lengths(), decoding.newest) == (lengths, [one.token_ids[-1] for one in alone])
        for beyond in range(PAGE_TOKENS):
            expected = [one for one, length in zip(together, lengths, strict=True) if length % PAGE_TOKENS == beyond]
            assert decoding.with_tokens_beyond_pages(beyond) == expected
        sampled = tokens[step * len(rows) : (step + 1) * len(rows)]
        reasons = [one.append(token) for one, token in zip(alone, sampled, strict=True)]
        assert list(decoding.append(sampled)) == reasons
        assert [one.token_ids for one in together] == [one.token_ids for one in alone]
        assert [one.computed_tokens for one in together] == [one.computed_tokens for one in alone]
        if any(reasons):
            return  # who is finished leaves, and those who stay are rows of another object


def test_the_last_token_allowed_and_a_stop_token_finish_a_row() -> None:
    decoding = Decoding([sequence("a", 1, 2), sequence("b", 1, 9, stop=5), sequence("c", 1, 9)], [array("q")] * 3)
    assert decoding.append([1, 5, 5]) == [FinishReason.LENGTH, FinishReason.STOP, None]


def test_without_one_row_the_others_stay_in_order() -> None:
    a, b, c = (sequence(name, tokens, 9) for name, tokens in (("a", 1), ("b", 4), ("c", 2)))
    pages = [array("q", [page]) for page in range(3)]
    decoding = Decoding([a, b, c], pages, PAGE_TOKENS)
    others = decoding.without(a)
    assert (others.ids, others.page_ids, others.lengths()) == (("b", "c"), (pages[1], pages[2]), [5, 3])
    assert others.with_tokens_beyond_pages(1) == [b]
    assert others.without(a) is others


def test_nobody_has_no_rows() -> None:
    assert (len(NOBODY), NOBODY.lengths(), NOBODY.newest) == (0, [], [])
    assert (NOBODY.with_tokens_beyond_pages(0), NOBODY.append([])) == ([], ())


@pytest.mark.parametrize("tokens", [[1], [1, 2, 3]])
def test_a_token_too_few_or_too_many_is_refused(tokens: list[int]) -> None:
    decoding = Decoding([sequence("a", 1, 9), sequence("b", 1, 9)], [array("q")] * 2)
    with pytest.raises(ValueError, match=f"{len(tokens)} tokens for 2 rows"):
        decoding.append(tokens)
