"""A worker's breaker: when it opens, who finds out, and when it closes."""

from m3_router.workers.breaker import FAILURES_TO_OPEN, FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS, Breaker


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(now)
    return breaker


def test_only_failures_in_a_row_open_it() -> None:
    breaker = Breaker()
    for _ in range(10):
        for _ in range(FAILURES_TO_OPEN - 1):
            breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.state == "closed"
    assert breaker.may_try(0.0)
    assert opened().state == "open"


def test_one_request_at_a_time_finds_out_after_the_back_off() -> None:
    breaker = opened(10.0)
    assert not breaker.may_try(10.0 + FIRST_BACKOFF_SECONDS - 0.01)
    assert breaker.may_try(10.0 + FIRST_BACKOFF_SECONDS)
    assert breaker.begin()
    assert breaker.state == "half_open"
    assert not breaker.may_try(100.0)
    assert not breaker.begin()
    breaker.succeeded()
    assert breaker.state == "closed"
    assert not breaker.begin()


def test_the_back_off_doubles_up_to_its_bound_and_begins_anew_after_a_success() -> None:
    breaker = opened()
    now, waits = 0.0, []
    for _ in range(8):
        waits.append(breaker.retry_at - now)
        now = breaker.retry_at
        breaker.begin()
        breaker.failed(now)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert waits[-1] == MAX_BACKOFF_SECONDS
    breaker.succeeded()
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(now)
    assert breaker.retry_at == now + FIRST_BACKOFF_SECONDS


def test_late_failures_of_requests_from_before_do_not_prolong_it() -> None:
    breaker = opened(0.0)
    breaker.failed(0.9)
    assert breaker.may_try(FIRST_BACKOFF_SECONDS)


def test_a_request_that_ended_without_an_answer_leaves_the_question_open() -> None:
    breaker = opened(0.0)
    breaker.begin()
    breaker.abandon()
    assert breaker.may_try(FIRST_BACKOFF_SECONDS)
    breaker.succeeded()
    breaker.abandon()
    assert breaker.state == "closed"
