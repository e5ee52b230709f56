"""Pages: every page is free or held, what was computed is found as long as it is there, and nothing else ever is."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_worker.scheduling.host_pages import CopyIn, CopyOut, HostPages
from m3_worker.scheduling.kv_events import Cleared, Medium, Removed, Stored
from m3_worker.scheduling.pages import Pages
from m3_worker.scheduling.request import Request, SamplingParameters, Sequence

ids = st.sampled_from(["a", "b", "c", "d"])


def sequence(name: str, prompt: list[int], salt: bytes = b"") -> Sequence:
    return Sequence(Request(name, prompt, SamplingParameters(max_tokens=8), cache_salt=salt))


def start(pages: Pages, name: str, prompt: list[int], salt: bytes = b"") -> Sequence:
    """Admit a sequence; tells by its cached_tokens what it found."""
    started = sequence(name, prompt, salt)
    cached_tokens = pages.admit(started, pages.found(started))
    assert cached_tokens is not None
    started.admit(cached_tokens)
    return started


def compute(pages: Pages, started: Sequence) -> None:
    started.advance(started.remaining_tokens)
    pages.commit(started)


def serve(pages: Pages, name: str, prompt: list[int], salt: bytes = b"") -> int:
    """Admit, compute and release; returns the tokens that were found."""
    served = start(pages, name, prompt, salt)
    compute(pages, served)
    pages.release(name)
    return served.cached_tokens


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


def test_a_page_in_which_nothing_can_be_found_is_used_first() -> None:
    pages = Pages(3, page_tokens=4)
    started = start(pages, "a", [1, 2, 3, 4, 5])
    compute(pages, started)
    unnamed = pages.table("a")[1]
    pages.release("a")
    pages.reserve("b", 4)
    assert pages.table("b")[0] == unnamed


def test_a_prompt_is_found_up_to_its_last_full_page_that_leaves_a_token_to_compute() -> None:
    pages = Pages(16, page_tokens=4)
    assert serve(pages, "a", list(range(12))) == 0
    assert serve(pages, "b", list(range(12))) == 8
    assert serve(pages, "c", list(range(13))) == 12
    assert serve(pages, "d", [*range(6), 99, *range(7, 13)]) == 4
    assert pages.counters.looked_up_tokens == 12 + 12 + 13 + 13
    assert pages.counters.device_hit_tokens == 8 + 12 + 4


def test_sequences_that_run_share_the_pages_of_what_they_have_in_common() -> None:
    pages = Pages(6, page_tokens=4)
    compute(pages, start(pages, "a", list(range(16))))
    start(pages, "b", [*range(12), 50])
    assert list(pages.table("b"))[:3] == list(pages.table("a"))[:3]
    assert pages.free_pages == 1
    pages.release("a")
    assert pages.free_pages == 2
    pages.check(["b"])


def test_a_page_is_not_found_before_its_tokens_are_computed() -> None:
    pages = Pages(16, page_tokens=4)
    first = start(pages, "a", list(range(9)))
    assert pages.found(sequence("b", list(range(9)))) == []
    first.advance(7)
    pages.commit(first)
    assert len(pages.found(sequence("b", list(range(9))))) == 1


def test_it_is_told_who_computes_the_page_that_a_sequence_lacks() -> None:
    pages = Pages(16, page_tokens=4)
    first = start(pages, "a", list(range(9)))
    second = sequence("b", [*range(8), 77])
    assert pages.computing(second, []) == "a"
    assert pages.computing(sequence("c", [5] * 9), []) is None
    compute(pages, first)
    assert pages.computing(second, pages.found(second)) is None
    pages.release("a")
    pages.check([])


def test_generated_tokens_are_found_by_the_next_turn() -> None:
    pages = Pages(16, page_tokens=4)
    first = start(pages, "a", [1, 2, 3])
    compute(pages, first)
    for token in (4, 5, 6):
        first.append(token)
        pages.reserve("a", first.total_tokens)
        compute(pages, first)
    pages.release("a")
    assert serve(pages, "b", [1, 2, 3, 4, 5, 6, 7]) == 4


def test_equal_pages_computed_side_by_side_are_found_once() -> None:
    pages = Pages(16, page_tokens=4)
    both = [start(pages, name, list(range(9))) for name in ("a", "b")]
    for started in both:
        compute(pages, started)
    assert pages.found_pages == 2
    found = start(pages, "c", list(range(9)))
    assert found.cached_tokens == 8
    assert list(pages.table("c"))[:2] == list(pages.table("a"))[:2]
    for name in ("a", "b", "c"):
        pages.release(name)
    pages.check([])
    assert pages.free_pages == 16


def test_a_tenant_finds_nothing_of_another() -> None:
    pages = Pages(16, page_tokens=4)
    assert serve(pages, "a", list(range(9)), salt=b"acme") == 0
    assert serve(pages, "b", list(range(9)), salt=b"other") == 0
    assert serve(pages, "c", list(range(9)), salt=b"acme") == 8


def test_a_pooled_request_neither_finds_nor_leaves_anything() -> None:
    pages = Pages(16, page_tokens=4)
    serve(pages, "a", list(range(9)))
    pooled = Sequence(Request("p", list(range(20)), SamplingParameters(max_tokens=1), pooling="mean"))
    assert pages.found(pooled) == []
    pages.admit(pooled, [])
    compute(pages, pooled)
    assert pages.found_pages == 2
    assert pages.counters.looked_up_tokens == 9


def test_what_was_freed_longest_ago_is_evicted_first_and_tails_before_heads() -> None:
    pages = Pages(6, page_tokens=4)
    serve(pages, "old", [*range(12), 1])
    serve(pages, "new", [50, 51, 52, 53, 54])
    pages.reserve("x", 8)  # the page never used, and the one left unnamed
    assert pages.counters.evicted_pages == 0
    pages.reserve("x", 12)
    assert len(pages.found(sequence("old", [*range(12), 1]))) == 2
    pages.reserve("x", 20)
    assert pages.found(sequence("old", [*range(12), 1])) == []
    assert len(pages.found(sequence("new", [50, 51, 52, 53, 54]))) == 1
    assert pages.counters.evicted_pages == 3


def test_a_page_found_again_is_evicted_after_those_that_were_not() -> None:
    pages = Pages(3, page_tokens=4)
    serve(pages, "a", [1] * 4)
    serve(pages, "b", [2] * 4)
    serve(pages, "a again", [1] * 5)
    pages.reserve("x", 8)
    assert len(pages.found(sequence("a", [1] * 5))) == 1
    assert pages.found(sequence("b", [2] * 5)) == []


def test_followers_are_told_what_is_stored_and_what_is_gone() -> None:
    pages = Pages(3, page_tokens=4)
    prompt = list(range(9))
    first = start(pages, "a", prompt)
    first.advance(4)
    pages.commit(first)
    one, two = first.page_names.of(first.token_ids, 2) if first.page_names is not None else ()
    assert pages.take_events() == [Stored((one,), None, first.token_ids[:4])]
    compute(pages, first)
    assert pages.take_events() == [Stored((two,), one, first.token_ids[4:8], first_page=1)]
    pages.release("a")
    assert pages.take_events() == []
    pages.reserve("x", 12)
    assert pages.take_events() == [Removed((two,)), Removed((one,))]
    pages.forget_content()
    assert pages.take_events() == [Cleared()]


def test_a_victims_pages_that_the_newcomer_shares_are_no_gain() -> None:
    pages = Pages(8, page_tokens=4)
    compute(pages, start(pages, "a", [*range(8), 1, 2]))
    compute(pages, start(pages, "b", [*range(8), 3, 4]))
    newcomer = sequence("c", [*range(8), 5, 6, 7, 8, 9])
    shortfall = pages.shortfall(newcomer, pages.found(newcomer))
    assert shortfall.pages == 2
    shortfall.preempt(pages.table("a"))
    assert shortfall.pages == 1
    shortfall.preempt(pages.table("b"))
    assert shortfall.pages == 0
    other = pages.shortfall(sequence("d", [50] * 9), [])
    other.preempt(pages.table("a"))
    assert other.pages == 3 - 1
    other.preempt(pages.table("b"))
    assert other.pages == 3 - 1 - 3


def test_what_is_forgotten_is_found_no_more_and_its_holders_keep_it() -> None:
    pages = Pages(8, page_tokens=4, host=HostPages(4))
    compute(pages, start(pages, "a", list(range(9))))
    pages.forget_content()
    assert pages.found(sequence("b", list(range(9)))) == []
    assert len(pages.table("a")) == 3
    pages.release("a")
    pages.check([])


def test_evicted_pages_go_to_the_host_and_come_back_when_they_are_found() -> None:
    pages = Pages(3, page_tokens=4, host=HostPages(8))
    serve(pages, "a", list(range(9)))
    device = pages.take_events()
    assert isinstance(device[0], Stored)
    one, two = device[0].names
    pages.reserve("x", 12)
    out = pages.take_copies()
    assert [type(copy) for copy in out] == [CopyOut, CopyOut]
    assert pages.take_events()[:2] == [
        Stored((two,), None, array("q"), Medium.HOST),
        Removed((two,)),
    ]
    pages.release("x")
    back = start(pages, "b", list(range(9)))
    assert back.cached_tokens == 8
    copies = pages.take_copies()
    assert copies == (
        CopyIn(out[1].slot, pages.table("b")[0]),
        CopyIn(out[0].slot, pages.table("b")[1]),
    )
    assert pages.counters.host_hit_tokens == 8
    assert [event.names for event in pages.take_events() if isinstance(event, Stored)] == [(one,), (two,)]
    pages.release("b")
    pages.reserve("x", 12)
    assert pages.take_copies() == ()  # the host has them still
    pages.check(["x"])


def test_the_host_gives_up_what_was_used_longest_ago() -> None:
    pages = Pages(2, page_tokens=4, host=HostPages(2))
    for name, token in (("a", 1), ("b", 2), ("c", 3), ("d", 4)):
        serve(pages, name, [token] * 8)
    # On the device: d, d. On the host: c, c.
    assert len(pages.found(sequence("c", [3] * 9))) == 2
    assert pages.found(sequence("b", [2] * 9)) == []
    assert pages.host_pages == 2


def test_what_is_to_come_back_is_not_pushed_out_by_what_goes_for_it() -> None:
    pages = Pages(3, page_tokens=4, host=HostPages(2))
    serve(pages, "a", [1] * 9)
    serve(pages, "b", [2] * 12)  # a's pages are on the host, b's fill the device
    back = start(pages, "a again", [1] * 9)
    assert back.cached_tokens == 8
    assert [type(copy) for copy in pages.take_copies()[-2:]] == [CopyIn, CopyIn]


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
    with pytest.raises(RuntimeError, match="2 places in tables are not the 1 references"):
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
