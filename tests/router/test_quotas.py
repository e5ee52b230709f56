"""Reservations against limits: what is admitted, what is refused and with which words, and how windows turn."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from m3_router.config import UNLIMITED, PlanSettings
from m3_router.errors import Refusal
from m3_router.tenants.quotas import Quota, Quotas, reserved_tokens
from m3_router.tenants.rate_limits import go_duration, retry_headers

NOON = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC).timestamp()
USD = 10**9


def quota_of(quotas: Quotas | None = None, **limits: Any) -> Quota:
    return Quota("acme", PlanSettings(**limits), Quotas() if quotas is None else quotas)


def refused(quota: Quota, tokens: int = 1, nanousd: int = 0, wall: float = NOON) -> Refusal:
    with pytest.raises(Refusal) as caught:
        quota.reserve(tokens, nanousd, wall, 0.0)
    return caught.value


def used(quota: Quota) -> dict[str, int]:
    return {meter.name: meter.used for meter in quota.meters}


def test_one_replica_may_use_the_whole_of_every_limit() -> None:
    quota = quota_of(tokens_per_minute=1000)
    quota.reserve(1000, 0, NOON, 0.0)
    assert refused(quota).status == 429


def test_what_was_not_used_is_given_back_when_it_is_settled() -> None:
    quota = quota_of(tokens_per_day=1000, budget_usd=Decimal(1))
    reservation = quota.reserve(900, USD, NOON, 0.0)
    quota.settle(reservation, 100, USD // 4)
    assert used(quota) == {"tokensPerDay": 100, "budgetUsd": USD // 4}
    quota.reserve(900, 3 * USD // 4, NOON, 0.0)


def test_an_answer_longer_than_its_reservation_is_counted_in_full() -> None:
    quota = quota_of(tokens_per_day=1000)
    quota.settle(quota.reserve(10, 0, NOON, 0.0), 1500, 0)
    assert used(quota) == {"tokensPerDay": 1500}
    assert "1500 tokens are used and 0 tokens left" in refused(quota).message


def test_a_refused_request_takes_nothing_of_any_limit() -> None:
    quota = quota_of(requests_per_minute=10, concurrent_requests=10, tokens_per_minute=100, tokens_per_day=1000)
    refused(quota, tokens=101)
    assert set(used(quota).values()) == {0}


def test_a_released_reservation_counts_not_even_as_a_request() -> None:
    quota = quota_of(requests_per_minute=10, concurrent_requests=10, tokens_per_minute=100)
    quota.release(quota.reserve(50, 0, NOON, 0.0))
    assert set(used(quota).values()) == {0}


def test_a_settled_request_counts_in_its_minute_and_is_no_longer_concurrent() -> None:
    quota = quota_of(requests_per_minute=10, concurrent_requests=1)
    quota.settle(quota.reserve(0, 0, NOON, 0.0), 0, 0)
    assert used(quota) == {"concurrentRequests": 0, "requestsPerMinute": 1}


def test_a_reservation_is_closed_once() -> None:
    quota = quota_of(tokens_per_day=1000)
    reservation = quota.reserve(10, 0, NOON, 0.0)
    quota.settle(reservation, 5, 0)
    with pytest.raises(ValueError, match="'acme' was closed before"):
        quota.release(reservation)
    assert used(quota) == {"tokensPerDay": 5}


@pytest.mark.parametrize(
    ("limits", "last", "first"),
    [
        ({"tokens_per_minute": 100}, "2026-11-21T12:00:59.999+00:00", "2026-11-21T12:01:00+00:00"),
        ({"tokens_per_day": 100}, "2026-12-31T23:59:59.999+00:00", "2027-01-01T00:00:00+00:00"),
        ({"budget_usd": 1}, "2028-02-29T23:59:59.999+00:00", "2028-03-01T00:00:00+00:00"),
        ({"budget_usd": 1, "budget_period": "day"}, "2026-11-21T23:59:59.999+00:00", "2026-11-22T00:00:00+00:00"),
    ],
)
def test_a_window_turns_at_its_utc_edge(limits: dict[str, Any], last: str, first: str) -> None:
    quota = quota_of(**{name: Decimal(value) if name == "budget_usd" else value for name, value in limits.items()})
    before, after = datetime.fromisoformat(last).timestamp(), datetime.fromisoformat(first).timestamp()
    quota.reserve(100, USD, before, 0.0)
    assert refused(quota, 1, 1, before).status == 429
    quota.reserve(100, USD, after, 0.0)
    assert refused(quota, 1, 1, after).status == 429


def test_what_ends_in_a_later_window_does_not_change_that_window() -> None:
    quota = quota_of(tokens_per_minute=100, concurrent_requests=5)
    reservation = quota.reserve(100, 0, NOON, 0.0)
    quota.reserve(60, 0, NOON + 61, 0.0)
    quota.settle(reservation, 10, 0)
    assert used(quota) == {"concurrentRequests": 1, "tokensPerMinute": 60}


def test_a_clock_that_is_put_back_a_little_opens_no_past_window() -> None:
    quota = quota_of(tokens_per_minute=100)
    quota.reserve(100, 0, NOON, 0.0)
    assert refused(quota, wall=NOON - 30).status == 429
    quota.reserve(100, 0, NOON - 3600, 0.0)  # it was an hour ahead: nobody is locked out for that hour


def test_a_budget_for_all_time_does_not_turn() -> None:
    quota = quota_of(budget_usd=Decimal(2), budget_period="total")
    quota.reserve(0, 2 * USD, NOON, 0.0)
    refusal = refused(quota, 1, 1, NOON + 10 * 365 * 86_400)
    assert (refusal.code, refusal.kind, refusal.retry_after_seconds) == (
        "insufficient_quota",
        "insufficient_quota",
        None,
    )
    assert "budgetUsd: tenant 'acme' may use 2.000000000 USD in all" in refusal.message


def test_a_refusal_names_the_limit_what_is_used_what_is_left_and_when_it_turns() -> None:
    quota = quota_of(tokens_per_minute=20_000)
    quota.reserve(19_500, 0, NOON + 12, 0.0)
    refusal = refused(quota, 1200, 0, NOON + 12.5)
    assert refusal.message == (
        "tokensPerMinute: tenant 'acme' may use 20000 tokens in each minute, of which 19500 tokens are used and "
        "500 tokens left; this request may need 1200 tokens. It turns at 2026-11-21T12:01:00Z."
    )
    assert (refusal.status, refusal.code, refusal.retry_after_seconds) == (429, "rate_limit_exceeded", 48)
    assert retry_headers(refusal) == b""


def test_of_two_exceeded_limits_the_one_that_turns_later_is_told() -> None:
    quota = quota_of(tokens_per_minute=100, tokens_per_day=100)
    quota.reserve(100, 0, NOON, 0.0)
    refusal = refused(quota, 10)
    assert refusal.message.startswith("tokensPerDay")
    assert refusal.retry_after_seconds == 12 * 3600
    assert retry_headers(refusal) == b"x-should-retry: false\r\n"


def test_a_request_above_a_whole_limit_is_not_told_to_wait() -> None:
    refusal = refused(quota_of(tokens_per_minute=100), 101)
    assert refusal.retry_after_seconds is None
    assert "more than the whole limit" in refusal.message
    assert retry_headers(refusal) == b"x-should-retry: false\r\n"


def test_too_many_at_a_time_is_told_as_such() -> None:
    quota = quota_of(concurrent_requests=2)
    quota.reserve(1, 0, NOON, 0.0)
    first = quota.reserve(1, 0, NOON, 0.0)
    refusal = refused(quota)
    assert "may have 2 requests at a time, and 2 are running" in refusal.message
    assert refusal.retry_after_seconds == 1
    quota.settle(first, 1, 0)
    quota.reserve(1, 0, NOON, 0.0)


def test_a_tenant_without_limits_is_never_refused_and_has_no_headers() -> None:
    quota = Quota("acme", UNLIMITED, Quotas())
    quota.settle(quota.reserve(10**12, 10**15, NOON, 0.0), 10**13, 10**16)
    assert quota.headers(is_anthropic=False, wall=NOON) == b""


def test_headers_of_openai() -> None:
    quota = quota_of(requests_per_minute=60, tokens_per_minute=20_000)
    quota.reserve(1500, 0, NOON + 18.5, 0.0)
    assert quota.headers(is_anthropic=False, wall=NOON + 18.5) == (
        b"x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 59\r\nx-ratelimit-reset-requests: 42s\r\n"
        b"x-ratelimit-limit-tokens: 20000\r\nx-ratelimit-remaining-tokens: 18500\r\nx-ratelimit-reset-tokens: 42s\r\n"
    )


def test_headers_of_anthropic() -> None:
    quota = quota_of(requests_per_minute=60, tokens_per_minute=20_000)
    quota.reserve(1500, 0, NOON, 0.0)
    assert quota.headers(is_anthropic=True, wall=NOON) == (
        b"anthropic-ratelimit-requests-limit: 60\r\nanthropic-ratelimit-requests-remaining: 59\r\n"
        b"anthropic-ratelimit-requests-reset: 2026-11-21T12:01:00Z\r\n"
        b"anthropic-ratelimit-tokens-limit: 20000\r\nanthropic-ratelimit-tokens-remaining: 18500\r\n"
        b"anthropic-ratelimit-tokens-reset: 2026-11-21T12:01:00Z\r\n"
    )


def test_headers_tell_the_limit_on_tokens_with_the_least_left() -> None:
    quota = quota_of(tokens_per_minute=1000, tokens_per_day=1500)
    assert b"limit-tokens: 1000" in quota.headers(is_anthropic=False, wall=NOON)
    quota.reserve(1000, 0, NOON, 0.0)
    assert b"remaining-tokens: 0\r\nx-ratelimit-reset-tokens: 1m0s" in quota.headers(is_anthropic=False, wall=NOON)
    told = quota.headers(is_anthropic=False, wall=NOON + 60)
    assert b"limit-tokens: 1500\r\nx-ratelimit-remaining-tokens: 500\r\nx-ratelimit-reset-tokens: 11h59m0s" in told


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (59, "59s"), (360, "6m0s"), (10_812, "3h0m12s")])
def test_durations_are_written_as_openai_writes_them(seconds: int, text: str) -> None:
    assert go_duration(seconds) == text


def test_the_shares_of_all_replicas_make_up_the_limit() -> None:
    for replicas in (1, 2, 3, 7):
        allowances = []
        for index in range(replicas):
            quota = quota_of(Quotas(replicas, index), requests_per_minute=10)
            quota.turn(NOON)
            allowances.append(quota.meters[0].allowance)
        assert sum(allowances) == 10


def test_what_other_replicas_hold_is_asked_for_and_the_client_told_to_try_again_soon() -> None:
    quotas = Quotas(2, 0)
    quotas.can_grow = True
    woken: list[None] = []
    quotas.on_hunger = lambda: woken.append(None)
    quota = quota_of(quotas, tokens_per_day=1000)
    refusal = refused(quota, 600)
    assert refusal.retry_after_seconds == 1
    assert "1000 tokens left" in refusal.message
    assert quota.meters[0].wanted == 600
    assert len(woken) == 1
    assert quotas.take_touched() == [quota]


def test_replicas_that_cannot_reach_each_other_say_so() -> None:
    refusal = refused(quota_of(Quotas(2, 0), tokens_per_day=1000), 600)
    assert "cannot reach each other" in refusal.message
    assert refusal.retry_after_seconds == 12 * 3600


def test_fewer_replicas_in_the_middle_of_a_window_do_not_make_larger_shares_of_it() -> None:
    quotas = Quotas(2, 0)
    quota = quota_of(quotas, tokens_per_minute=1000)
    quotas.share_among(1, 0, NOON + 30)
    assert refused(quota, 501, wall=NOON + 31).status == 429
    quota.reserve(1000, 0, NOON + 60, 0.0)


def test_another_plan_keeps_what_was_counted() -> None:
    quotas = Quotas()
    quotas.replace({"acme": PlanSettings(tokens_per_day=1000, requests_per_minute=5)})
    quota = quotas.get("acme")
    assert quota is not None
    reservation = quota.reserve(800, 0, NOON, 0.0)
    quotas.replace({"acme": PlanSettings(tokens_per_day=1500, concurrent_requests=1)})
    assert quotas.get("acme") is quota
    quota.reserve(700, 0, NOON + 1, 0.0)
    assert refused(quota, wall=NOON + 1).status == 429
    quota.settle(reservation, 100, 0)
    assert used(quota) == {"concurrentRequests": 1, "tokensPerDay": 800}


def test_what_was_used_before_the_process_began_counts() -> None:
    quota = quota_of(tokens_per_day=1000, tokens_per_minute=1000, budget_usd=Decimal(1))
    quota.begin_with(900, USD // 2, NOON)
    assert used(quota) == {"tokensPerMinute": 0, "tokensPerDay": 900, "budgetUsd": USD // 2}


@pytest.mark.parametrize(("stated", "choices", "tokens"), [(50, 1, 150), (50, 3, 250), (None, 1, 4196)])
def test_an_answer_without_a_stated_bound_reserves_a_guess(stated: int | None, choices: int, tokens: int) -> None:
    assert reserved_tokens(100, stated, choices) == tokens
