"""What a client says it will pay at most: read from headers, held against quotes."""

import pytest

from m3_router.config import RouterConfig
from m3_router.errors import Refusal
from m3_router.money.ceilings import Ceilings
from m3_router.money.prices import PriceTable, Quote

POOLS = [{"name": "p", "models": ["m3"], "workers": ["http://127.0.0.1:1"]}]
PRICES = PriceTable(RouterConfig.model_validate({"auth": "none", "pools": POOLS}))


def quote(low: int, high: int, output: int = 0) -> Quote:
    return PRICES.quote("m3", "standard", low, low, high, output, 0.0)


def parsed(**headers: str) -> Ceilings:
    known = {f"x-m3-max-{name.replace('_', '-')}".encode(): value.encode() for name, value in headers.items()}
    ceilings = Ceilings.parse(known)
    assert ceilings is not None
    return ceilings


def test_without_the_headers_there_is_no_ceiling() -> None:
    assert Ceilings.parse({}) is None
    assert Ceilings.parse({b"host": b"m3", b"authorization": b"Bearer x"}) is None


@pytest.mark.parametrize(
    ("text", "nanousd"),
    [
        ("0", 0),
        ("1", 1_000_000_000),
        ("0.25", 250_000_000),
        ("0.000000001", 1),
        ("00.5", 500_000_000),
        ("999999999.999999999", 999_999_999_999_999_999),
    ],
)
def test_dollars_are_read_exactly(text: str, nanousd: int) -> None:
    assert parsed(cost_usd=text).max_cost_nanousd == nanousd


@pytest.mark.parametrize(
    "text", ["", " ", "-1", "+1", "1e-3", ".5", "5.", "0,5", "1_000", "0.0000000001", "NaN", "1, 2", "\u0661", "1" * 10]
)
def test_what_is_not_an_amount_is_refused_by_name(text: str) -> None:
    with pytest.raises(Refusal) as refused:
        parsed(cost_usd=text)
    assert (refused.value.status, refused.value.code) == (400, "invalid_header")
    assert refused.value.param == "x-m3-max-cost-usd"
    assert "must be US dollars such as 0.25" in refused.value.message


@pytest.mark.parametrize("text", ["", "LONG", "short", "standard, long", "\x00"])
def test_what_is_not_a_context_tier_is_refused_by_name(text: str) -> None:
    with pytest.raises(Refusal) as refused:
        parsed(context_tier=text)
    assert (refused.value.status, refused.value.param) == (400, "x-m3-max-context-tier")
    assert refused.value.message.endswith("must be standard or long.")


def test_a_long_request_under_a_standard_ceiling_is_refused_with_the_numbers() -> None:
    ceilings = parsed(context_tier="standard")
    ceilings.check(quote(512_000, 512_000))
    with pytest.raises(Refusal) as refused:
        ceilings.check(quote(512_001, 512_001))
    assert (refused.value.status, refused.value.code) == (400, "context_tier_above_ceiling")
    assert refused.value.message == (
        "This request has 512001 input tokens, above the 512000 tokens up to which the context tier is standard, so "
        "all of it would be priced as long, and x-m3-max-context-tier allows standard only. Send less input, or set "
        "x-m3-max-context-tier: long."
    )


def test_a_ceiling_of_long_lets_everything_through() -> None:
    parsed(context_tier="long").check(quote(900_000, 1_000_000))


def test_only_a_request_that_could_be_either_wants_the_exact_number() -> None:
    ceilings = parsed(context_tier="standard")
    assert not ceilings.wants_exact(quote(1, 512_000))
    assert ceilings.wants_exact(quote(512_000, 512_001))
    assert not ceilings.wants_exact(quote(512_001, 900_000))
    assert not parsed(context_tier="long").wants_exact(quote(512_000, 512_001))


def test_without_an_exact_number_the_upper_bound_holds() -> None:
    with pytest.raises(Refusal, match=r"has up to 512001 input tokens \(estimated from its size\)"):
        parsed(context_tier="standard").check(quote(1, 512_001))


def test_a_request_may_cost_its_ceiling_and_not_a_nano_dollar_more() -> None:
    dear = quote(1_000, 1_000, 100)  # 1,000 x 300 + 100 x 1,200 = 420,000
    parsed(cost_usd="0.00042").check(dear)
    with pytest.raises(Refusal) as refused:
        parsed(cost_usd="0.000419999").check(dear)
    assert (refused.value.status, refused.value.code) == (400, "cost_above_ceiling")
    assert refused.value.message == (
        "This request can cost up to 0.000420000 USD (1000 input tokens in context tier standard, and at most 100 "
        "output tokens), and x-m3-max-cost-usd allows 0.000419999. Lower max_tokens, send less input, or raise the "
        "ceiling."
    )


def test_a_cost_ceiling_between_the_ends_of_a_quote_wants_the_exact_number() -> None:
    between = quote(1_000, 2_000)  # 300,000 to 600,000
    assert not parsed(cost_usd="0.000299999").wants_exact(between)  # refused whatever it is
    assert parsed(cost_usd="0.0003").wants_exact(between)
    assert parsed(cost_usd="0.000599999").wants_exact(between)
    assert not parsed(cost_usd="0.0006").wants_exact(between)  # allowed whatever it is


def test_both_ceilings_hold_together() -> None:
    both = parsed(context_tier="standard", cost_usd="1000")
    with pytest.raises(Refusal, match="context tier is standard"):
        both.check(quote(600_000, 600_000))
    both = parsed(context_tier="long", cost_usd="0.1")
    with pytest.raises(Refusal, match=r"can cost up to 0\.360000000 USD"):
        both.check(quote(600_000, 600_000))
