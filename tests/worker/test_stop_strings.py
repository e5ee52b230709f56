"""Stop strings: never passed on, wherever the text is cut, and nothing else is lost or held longer than it must be."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_worker.stop_strings import StopStrings, held_back


def passed_on(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    found = StopStrings(stops)
    text = "".join(map(found.push, pieces))
    return (text if found.stopped else text + found.finish()), found.stopped


@pytest.mark.parametrize(
    ("stops", "pieces", "expected", "stopped"),
    [
        (["END"], ["one END two"], "one ", True),
        (["END"], ["one E", "N", "D two"], "one ", True),
        (["END"], ["one E", "N", "o"], "one ENo", False),
        (["END"], ["one EN"], "one EN", False),
        (["aab"], ["aa", "ab"], "a", True),
        (["later", "now"], ["and now, later"], "and ", True),
        (["\n\n"], ["line\n", "\nmore"], "line", True),
        ([], ["any", "thing"], "anything", False),
    ],
)
def test_text_is_passed_on_up_to_the_first_stop(
    stops: list[str], pieces: list[str], expected: str, stopped: bool
) -> None:
    assert passed_on(stops, pieces) == (expected, stopped)


def test_text_is_held_only_while_it_could_become_a_stop() -> None:
    found = StopStrings(["STOP"])
    assert found.push("go on S") == "go on "
    assert found.push("T") == ""
    assert found.push("ART") == "START"


def test_the_longest_end_that_begins_a_needle_is_held_back() -> None:
    assert held_back("abcab", ["abd", "cabx"]) == 3
    assert held_back("abc", ["abc"]) == 0
    assert held_back("", ["abc"]) == 0


@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
def test_how_the_text_is_cut_does_not_matter(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges)]
    found = [place for place in map(text.find, stops) if place >= 0]
    result, stopped = passed_on(stops, pieces)
    assert stopped == bool(found)
    if not found:
        assert result == text
    else:  # what is found first is what is complete first; it may begin after another that is still incomplete
        assert text.startswith(result)
        assert not any(stop in result for stop in stops)
        assert any(text.startswith(stop, len(result)) for stop in stops)


def test_which_string_ended_the_text_is_known() -> None:
    stops = StopStrings(["never", "b", "bc"])
    assert (stops.found, stops.stopped) == (None, False)
    assert stops.push("abc") == "a"
    assert (stops.found, stops.stopped) == ("b", True)
