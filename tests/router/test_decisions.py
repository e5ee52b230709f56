"""The ring of the newest decisions."""

from m3_console.scene import bill
from m3_router.telemetry.decisions import Decisions


def test_the_newest_come_first_and_the_oldest_make_room() -> None:
    decisions = Decisions(capacity=3)

    for number in range(5):
        decisions.read([bill(request_id=str(number))])

    assert [one.request_id for one in decisions.newest(10)] == ["4", "3", "2"]
    assert [one.request_id for one in decisions.newest(1)] == ["4"]


def test_a_decision_says_what_its_bill_says() -> None:
    decisions = Decisions()

    decisions.read([bill(queue_ms=12.5, attempts=2, error="x")])

    (one,) = decisions.newest(1)
    assert (one.worker, one.tenant, one.service_tier, one.queue_ms, one.attempts, one.error) == (
        "worker-0",
        "acme",
        "standard",
        12.5,
        2,
        "x",
    )


def test_a_batch_larger_than_the_ring_leaves_its_newest() -> None:
    decisions = Decisions(capacity=10)

    decisions.read([bill(request_id=str(number)) for number in range(64)])

    assert [int(one.request_id) for one in decisions.newest(100)] == list(range(63, 53, -1))


def test_a_request_that_never_had_a_lane_is_no_decision() -> None:
    decisions = Decisions()

    decisions.read([bill(service_tier=None, status=400, outcome="rejected")])

    assert decisions.newest(10) == []
