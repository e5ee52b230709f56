"""The lanes over the last minutes, whole and in parts."""

from m3_router.admin.document import LaneSeries
from m3_router.admin.timeline import TimelineRing

STANDARD = ("m3", "standard")


def ring_of(samples: int, capacity: int = 600) -> TimelineRing:
    ring = TimelineRing(capacity)
    for number in range(1, samples + 1):
        ring.add(1000.0 + number, number, {STANDARD: (number * 10, number % 3)})
    return ring


def test_before_the_first_sample_there_is_an_empty_timeline() -> None:
    empty = TimelineRing().since(0)

    assert (empty.first, empty.last, empty.requests, empty.series) == (1, 0, [], [])


def test_who_asks_for_the_first_time_gets_all_and_then_what_is_new() -> None:
    ring = ring_of(3)
    whole = ring.since(0)
    ring.add(1004.0, 4, {STANDARD: (40, 1)})
    part = ring.since(whole.last)

    assert (whole.first, whole.last, whole.requests) == (1, 3, [1, 2, 3])
    assert whole.series == [LaneSeries("m3", "standard", [10, 20, 30], [1, 2, 0])]
    assert (part.first, part.last, part.time, part.requests) == (4, 4, 1004.0, [4])
    assert part.series == [LaneSeries("m3", "standard", [40], [1])]
    assert ring.since(part.last).requests == []


def test_the_oldest_samples_make_room() -> None:
    timeline = ring_of(10, capacity=4).since(0)

    assert (timeline.first, timeline.last, timeline.requests) == (7, 10, [7, 8, 9, 10])


def test_a_number_that_was_never_given_is_from_before_a_restart_and_gets_all() -> None:
    timeline = ring_of(3).since(500)

    assert (timeline.first, timeline.last) == (1, 3)


def test_a_lane_that_comes_later_is_zero_before() -> None:
    ring = ring_of(2)
    ring.add(1003.0, 0, {("m3", "batch"): (7, 1)})

    series = {one.lane: one.in_flight_tokens for one in ring.since(0).series}

    assert series == {"standard": [10, 20, 0], "batch": [0, 0, 7]}
