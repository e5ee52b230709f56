"""What the bills of the last minutes say, by lane and by worker."""

import random
from statistics import quantiles

import pytest

from m3_console.scene import bill
from m3_router.admin.document import LaneLatency
from m3_router.admin.recent import Recent
from m3_router.config import LaneSettings

LANES = LaneSettings(standard_first_byte_target_seconds=2, priority_first_byte_target_seconds=0.5)


def the_lane(recent: Recent, name: str, now: float) -> LaneLatency:
    (lane,) = [lane for lane in recent.latency(now) if lane.name == name]
    return lane


def test_a_first_byte_at_the_target_is_within_and_one_above_is_not() -> None:
    recent = Recent(LANES)

    recent.read([bill(first_byte_ms=value) for value in (100.0, 2000.0, 2000.1, 9000.0)], now=100)

    lane = the_lane(recent, "standard", 100)
    assert (lane.requests, lane.within, lane.target_ms) == (4, 2, 2000)


def test_burn_is_the_share_that_missed_over_the_share_that_may() -> None:
    recent = Recent(LANES)

    recent.read([bill(first_byte_ms=10.0)] * 90 + [bill(first_byte_ms=5000.0)] * 10, now=100)

    assert the_lane(recent, "standard", 100).burn == pytest.approx(2.0)  # 10 % missed, 5 % may


def test_lanes_have_targets_of_their_own_and_long_requests_a_lane_of_their_own() -> None:
    recent = Recent(LANES)

    recent.read(
        [
            bill(first_byte_ms=900.0, service_tier=tier, context_tier=context)
            for tier in ("priority", "standard", "batch")
            for context in ("standard", "long")
        ],
        now=100,
    )

    assert [(lane.name, lane.within) for lane in recent.latency(100)] == [
        ("priority", 0),
        ("priority-long", 0),
        ("standard", 1),
        ("standard-long", 1),
    ]  # and none for batch, which has no target


def test_a_worker_that_failed_missed_the_target_and_a_client_that_left_early_says_nothing() -> None:
    recent = Recent(LANES)

    recent.read(
        [
            bill(outcome="worker_error", status=502, first_byte_ms=None),
            bill(outcome="worker_error", first_byte_ms=10.0),
            bill(outcome="client_gone", first_byte_ms=None),
            bill(outcome="client_gone", first_byte_ms=10.0),
        ],
        now=100,
    )

    lane = the_lane(recent, "standard", 100)
    assert (lane.requests, lane.within) == (3, 1)


def test_a_lane_without_a_place_refuses_and_a_bad_request_does_not_count() -> None:
    recent = Recent(LANES)

    recent.read([bill(outcome="rejected", status=status, worker="") for status in (429, 503, 529, 400, 403)], now=100)

    lane = the_lane(recent, "standard", 100)
    assert (lane.requests, lane.refused, lane.p50_ms, lane.burn) == (0, 3, None, None)


def test_quantiles_are_right_within_five_per_cent() -> None:
    randomness = random.Random(3)
    values = [randomness.lognormvariate(5, 1.2) for _ in range(5000)]
    recent = Recent(LANES)

    recent.read([bill(first_byte_ms=value) for value in values], now=100)

    exact = quantiles(values, n=20)
    lane = the_lane(recent, "standard", 100)
    assert lane.p50_ms == pytest.approx(exact[9], rel=0.05)
    assert lane.p95_ms == pytest.approx(exact[18], rel=0.05)


def test_what_is_older_than_five_minutes_counts_for_the_hour_alone_and_then_not_at_all() -> None:
    recent = Recent(LANES)
    recent.read([bill(first_byte_ms=9000.0)], now=0)

    recent.read([bill()], now=1000)
    lane = the_lane(recent, "standard", 1000)
    assert (lane.requests, lane.within, lane.hour_requests, lane.hour_within) == (1, 1, 2, 1)

    assert the_lane(recent, "standard", 3700).hour_requests == 1
    assert recent.latency(5000) == []


def test_the_slots_of_days_do_not_pile_up() -> None:
    recent = Recent(LANES)

    for now in range(0, 3 * 86_400, 10):
        recent.read([bill()], now=float(now))

    assert len(recent._slots) == 360


def test_a_workers_cache_is_what_was_answered_of_what_was_predicted() -> None:
    recent = Recent(LANES)

    recent.read(
        [
            bill(worker="a"),
            bill(worker="a", cached_tokens=0),
            bill(worker="b", outcome="worker_error", cached_tokens=0),
        ],
        now=100,
    )

    workers = recent.workers(100)
    assert (workers["a"].requests, workers["a"].input_tokens, workers["a"].cached_tokens) == (2, 2000, 600)
    assert (workers["b"].requests, workers["b"].failures, workers["b"].input_tokens) == (1, 1, 0)
    assert recent.workers(1000) == {}


def test_rates_are_per_second_of_the_time_that_they_cover() -> None:
    recent = Recent(LANES)

    recent.read([bill()] * 30, now=100)
    rates = recent.rates(now=105)

    assert rates.seconds == 15  # the slot from 90, and the one that runs
    assert rates.requests_per_second == pytest.approx(2)
    assert rates.output_tokens_per_second == pytest.approx(100)
    assert rates.cost_nanousd_per_hour == round(30 * 216_000 / 15 * 3600)
    assert recent.rates(now=500).requests_per_second == 0


def test_a_request_that_never_had_a_lane_is_not_there() -> None:
    recent = Recent(LANES)

    recent.read([bill(service_tier=None, context_tier=None, outcome="rejected", status=400, worker="")], now=100)

    assert recent.latency(100) == []
    assert recent.rates(100).requests_per_second == 0
