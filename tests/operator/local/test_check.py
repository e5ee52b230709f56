"""What `m3 up --check` accepts and what it refuses."""

from typing import Any

import pytest
from openai.types import CompletionUsage

from m3_operator.local.check import CheckError, Settled, check_headers, compare_ledger, cost_nanousd
from m3_router.config import PriceSettings

HEADERS = {
    "x-m3-context-tier": "standard",
    "x-m3-service-tier": "standard",
    "x-request-id": "check-M",
    "x-m3-worker": "127.0.0.1:9101",
}
SENT = Settled(request_id="a", model="M", input_tokens=12, cached_tokens=0, output_tokens=16, cost_nanousd=22_800)
ENTRY: dict[str, Any] = {
    "request_id": "a",
    "tenant": "default",
    "model": "M",
    "context_tier": "standard",
    "service_tier": "standard",
    "input_tokens": 12,
    "cached_tokens": 0,
    "output_tokens": 16,
    "cost_nanousd": 22_800,
    "worker": "127.0.0.1:9101",
    "outcome": "ok",
}


def usage(prompt: int, completion: int, cached: int | None = None) -> CompletionUsage:
    details = None if cached is None else {"cached_tokens": cached}
    return CompletionUsage.model_validate(
        {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": details,
        }
    )


@pytest.mark.parametrize(
    ("tokens", "nanousd"),
    [
        (usage(12, 16), 12 * 300 + 16 * 1200),
        (usage(12, 16, cached=8), 4 * 300 + 8 * 60 + 16 * 1200),
        (usage(0, 1), 1200),
    ],
)
def test_the_cost_is_usage_times_the_price_table(tokens: CompletionUsage, nanousd: int) -> None:
    assert cost_nanousd(PriceSettings(), tokens) == nanousd


def test_the_cost_follows_the_configured_prices() -> None:
    prices = PriceSettings.model_validate({"standard": {"input": "0.002", "output": "2", "cacheRead": "0"}})

    assert cost_nanousd(prices, usage(10, 3)) == 10 * 2 + 3 * 2000


def test_the_headers_of_a_short_request_pass() -> None:
    check_headers(HEADERS, "check-M")


@pytest.mark.parametrize(
    ("header", "value", "message"),
    [
        ("x-m3-context-tier", "long", "x-m3-context-tier is 'long', not 'standard'"),
        ("x-m3-service-tier", "priority", "x-m3-service-tier is 'priority', not 'standard'"),
        ("x-request-id", "other", "x-request-id is 'other', not 'check-M'"),
        ("x-m3-worker", "", "the answer names no worker"),
    ],
)
def test_a_wrong_header_is_named(header: str, value: str, message: str) -> None:
    with pytest.raises(CheckError, match=message):
        check_headers({**HEADERS, header: value}, "check-M")


def test_a_ledger_with_exactly_what_was_sent_passes() -> None:
    compare_ledger([ENTRY], [SENT])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], r"the ledger has \[\], but \['a'\] were sent"),
        ([ENTRY, {**ENTRY, "request_id": "b"}], r"the ledger has \['a', 'b'\], but \['a'\] were sent"),
        ([ENTRY, ENTRY], r"the ledger has \['a', 'a'\], but \['a'\] were sent"),
        ([{**ENTRY, "cost_nanousd": 0}], "ledger: a: cost_nanousd is 0, not 22800"),
        ([{**ENTRY, "context_tier": "long"}], "ledger: a: context_tier is 'long', not 'standard'"),
        ([{**ENTRY, "outcome": "client_gone"}], "ledger: a: outcome is 'client_gone', not 'ok'"),
    ],
)
def test_a_ledger_that_differs_says_where(entries: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(CheckError, match=message):
        compare_ledger(entries, [SENT])
