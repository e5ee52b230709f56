"""Pages: every page is free or in exactly one table, whatever is reserved and released."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_worker.pages import Pages

ids = st.sampled_from(["a", "b", "c", "d"])


def test_a_sequence_gets_just_the_pages_its_tokens_need() -> None:
    pages = Pages(10, page_tokens=16)
    assert pages.reserve("a", 33)
    assert len(pages.table("a")) == 3
    assert pages.reserve("a", 48)
    assert len(pages.table("a")) == 3
    assert pages.reserve("a", 49)
    assert len(pages.table("a")) == 4
    assert pages.free_pages == 6
    assert pages.used_ratio == pytest.approx(0.4)


def test_a_reservation_that_does_not_fit_changes_nothing() -> None:
    pages = Pages(4, page_tokens=16)
    assert pages.reserve("a", 48)
    assert not pages.reserve("b", 17)
    assert pages.free_pages == 1
    pages.check(["a"])


def test_a_table_keeps_its_pages_in_order_when_it_grows() -> None:
    pages = Pages(8, page_tokens=4)
    pages.reserve("a", 4)
    pages.reserve("b", 4)
    before = list(pages.table("a"))
    pages.reserve("a", 12)
    assert list(pages.table("a"))[:1] == before


def test_the_page_freed_longest_ago_is_used_first() -> None:
    pages = Pages(2, page_tokens=4)
    pages.reserve("a", 4)
    first = pages.table("a")[0]
    pages.release("a")
    pages.reserve("b", 4)
    assert pages.table("b")[0] != first


@pytest.mark.parametrize(("pages", "page_tokens"), [(0, 16), (4, 0)])
def test_a_cache_without_room_is_refused(pages: int, page_tokens: int) -> None:
    with pytest.raises(ValueError, match="both must be at least 1"):
        Pages(pages, page_tokens)


def test_the_check_tells_of_a_table_without_a_holder() -> None:
    pages = Pages(4, page_tokens=4)
    pages.reserve("a", 4)
    with pytest.raises(RuntimeError, match=r"\['a'\] do not match"):
        pages.check([])


def test_the_check_tells_of_a_page_held_twice() -> None:
    pages = Pages(4, page_tokens=4)
    pages.reserve("a", 4)
    pages.table("a").append(pages.table("a")[0])
    with pytest.raises(RuntimeError, match="2 held and 3 free pages are not the 4"):
        pages.check(["a"])


@given(st.lists(st.tuples(ids, st.none() | st.integers(1, 200)), max_size=60))
def test_no_page_is_lost_or_given_twice(operations: list[tuple[str, int | None]]) -> None:
    pages = Pages(20, page_tokens=8)
    sizes: dict[str, int] = {}
    for sequence_id, tokens in operations:
        if tokens is None:
            pages.release(sequence_id)
            sizes.pop(sequence_id, None)
        elif pages.reserve(sequence_id, tokens):
            sizes[sequence_id] = max(sizes.get(sequence_id, 0), tokens)
        pages.check(sizes)
        assert pages.free_pages == 20 - sum(-(-size // 8) for size in sizes.values())
