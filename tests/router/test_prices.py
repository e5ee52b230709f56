"""Prices, against tables worked out by hand."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_router.config import RouterConfig, ServiceTier
from m3_router.money.bill import Usage
from m3_router.money.prices import EXPECTED_OUTPUT_TOKENS, PriceTable, format_usd

NOW = 1_800_000_000.0  # any time: these prices are not dated
MODELS = ["m3", "reviewer", "judge", "late", "small", "other", "third", "free"]


def table(**sections: Any) -> PriceTable:
    pools = [{"name": "p", "models": MODELS, "workers": ["http://127.0.0.1:1"]}]
    return PriceTable(RouterConfig.model_validate({"auth": "none", "pools": pools, **sections}))


def rates(input_usd: str, output_usd: str, read_usd: str, write_usd: str | None = None) -> dict[str, str]:
    found = {"input": input_usd, "output": output_usd, "cacheRead": read_usd}
    return found if write_usd is None else {**found, "cacheWrite": write_usd}


DEFAULT = table()

# Nano-dollars per token = USD per million tokens x 1,000:
#                     input  read  write  output
#   standard/standard   300    60    300   1,200     (without a rate of its own, a cache write costs what input does)
#   long/standard       600   120    600   2,400
#   priority = x 1.5: standard 450, 90, 450, 1,800;  long 900, 180, 900, 3,600
#   batch = x 1: as standard
BY_HAND = [
    # (input, of them cached, of them written to the cache, output), service tier, context tier, nano-dollars
    ((0, 0, 0, 0), "priority", "standard", 0),
    ((1, 0, 0, 0), "standard", "standard", 300),
    ((0, 0, 0, 1), "standard", "standard", 1_200),
    ((100_000, 0, 0, 1_000), "standard", "standard", 31_200_000),  # 30.0 M + 1.2 M
    # cached: 10,000 x 300 + 90,000 x 60 + 1,000 x 1,200 = 3.0 + 5.4 + 1.2 M
    ((100_000, 90_000, 0, 1_000), "standard", "standard", 9_600_000),
    ((100_000, 90_000, 10_000, 1_000), "standard", "standard", 9_600_000),  # the rest is written, at the same 300
    ((100_000, 90_000, 0, 1_000), "priority", "standard", 14_400_000),  # x 1.5
    ((100_000, 90_000, 0, 1_000), "batch", "standard", 9_600_000),
    # the boundary: 511,999 x 300 + 1.2 M; 512,000 x 300 + 1.2 M; 512,001 x 600 + 1,000 x 2,400
    ((511_999, 0, 0, 1_000), "standard", "standard", 154_799_700),
    ((512_000, 0, 0, 1_000), "standard", "standard", 154_800_000),
    ((512_001, 0, 0, 1_000), "standard", "long", 309_600_600),
    # cached input counts for the tier as all input does: 512,000 x 60; 512,001 x 120; 1 x 600 + 512,000 x 120
    ((512_000, 512_000, 0, 0), "standard", "standard", 30_720_000),
    ((512_001, 512_001, 0, 0), "standard", "long", 61_440_120),
    ((512_001, 512_000, 0, 0), "standard", "long", 61_440_600),
    # priority at the boundary: 512,000 x 450 + 1,000 x 1,800; 512,001 x 900 + 1,000 x 3,600; 512,001 x 180
    ((512_000, 0, 0, 1_000), "priority", "standard", 232_200_000),
    ((512_001, 0, 0, 1_000), "priority", "long", 464_400_900),
    ((512_001, 512_001, 0, 0), "priority", "long", 92_160_180),
    # output does not move the tier: 512,000 x 300 + 500,000 x 1,200 = 153.6 + 600 M
    ((512_000, 0, 0, 500_000), "standard", "standard", 753_600_000),
    ((1_048_576, 0, 0, 0), "standard", "long", 629_145_600),  # 1,048,576 x 600
]


@pytest.mark.parametrize(("tokens", "tier", "context", "nanousd"), BY_HAND)
def test_costs_are_those_worked_out_by_hand(
    tokens: tuple[int, int, int, int], tier: ServiceTier, context: str, nanousd: int
) -> None:
    assert DEFAULT.cost("m3", tier, Usage(*tokens), NOW) == (context, nanousd)


# 1,200 input tokens, 800 of them cached, and 64 of 500 output tokens came before it ended:
#   input 400 x 300 = 120,000; cached 800 x 60 = 48,000; output 64 x 1,200 = 76,800
ENDINGS = [
    ("aborted by its client after 64 tokens", Usage(1_200, 800, 0, 64), 244_800),
    ("aborted during the prefill", Usage(1_200, 800, 0, 0), 168_000),
    # Gone on with by another worker: the input once, and of the output 64 tokens of the first and 436 of the second.
    # 120,000 + 48,000 + 500 x 1,200
    ("continued by another worker", Usage(1_200, 800, 0, 64 + 436), 768_000),
    # Sent again before the first byte: the second worker had nothing cached. 1,200 x 300 + 500 x 1,200
    ("retried on a worker without the cached prefix", Usage(1_200, 0, 0, 500), 960_000),
]


@pytest.mark.parametrize(("ending", "usage", "nanousd"), ENDINGS, ids=[ending for ending, _, _ in ENDINGS])
def test_a_request_costs_what_was_used_however_it_ended(ending: str, usage: Usage, nanousd: int) -> None:
    assert DEFAULT.cost("m3", "standard", usage, NOW) == ("standard", nanousd)


@pytest.mark.parametrize(
    ("threshold", "is_inclusive", "costs"),
    [  # of threshold - 1, threshold and threshold + 1 input tokens: x 300 if standard, x 600 if long
        (512_000, True, (153_599_700, 153_600_000, 307_200_600)),
        (512_000, False, (153_599_700, 307_200_000, 307_200_600)),
        (524_288, True, (157_286_100, 157_286_400, 314_573_400)),
        (524_288, False, (157_286_100, 314_572_800, 314_573_400)),
        (1, True, (0, 300, 1_200)),
        (1, False, (0, 600, 1_200)),
    ],
)
def test_the_threshold_belongs_to_the_tier_that_the_configuration_says(
    threshold: int, is_inclusive: bool, costs: tuple[int, int, int]
) -> None:
    prices = table(contextTier={"thresholdTokens": threshold, "inclusive": is_inclusive})
    inputs = (threshold - 1, threshold, threshold + 1)
    assert tuple(prices.cost("m3", "standard", Usage(tokens, 0, 0, 0), NOW)[1] for tokens in inputs) == costs
    expected = ["standard", "standard" if is_inclusive else "long", "long"]
    assert [prices.context_tier("m3", tokens, NOW) for tokens in inputs] == expected


def test_cache_writes_cost_their_own_rate_where_there_is_one() -> None:
    prices = table(
        prices={"standard": rates("3.00", "15.00", "0.30", "3.75"), "long": rates("6", "22.5", "0.6", "7.5")}
    )
    # 100 plain x 3,000 + 200 read x 300 + 700 written x 3,750 + 10 x 15,000 = 300,000 + 60,000 + 2,625,000 + 150,000
    assert prices.cost("m3", "standard", Usage(1_000, 200, 700, 10), NOW) == ("standard", 3_135_000)
    assert prices.cost("m3", "priority", Usage(1_000, 200, 700, 10), NOW) == ("standard", 4_702_500)  # x 1.5
    # long, of 600,000: 1,000 plain x 6,000 + 599,000 written x 7,500 = 6 M + 4,492.5 M
    assert prices.cost("m3", "standard", Usage(600_000, 0, 599_000, 0), NOW) == ("long", 4_498_500_000)


def test_batch_takes_its_factor_and_a_written_tier_takes_the_place_of_the_factor() -> None:
    halved = table(prices={"batchFactor": "0.5"})
    assert halved.cost("m3", "batch", Usage(1_000, 500, 0, 10), NOW)[1] == 96_000  # 500 x 150 + 500 x 30 + 10 x 600
    written = table(
        prices={"priority": {"standard": rates("1", "5", "0.1"), "long": rates("3", "9", "0.5")}, "priorityFactor": "2"}
    )
    assert written.cost("m3", "priority", Usage(1_000, 500, 0, 10), NOW)[1] == 600_000  # 500 x 1,000 + 500 x 100 + 50 K
    assert written.cost("m3", "priority", Usage(600_000, 0, 0, 1), NOW) == ("long", 1_800_009_000)  # x 3,000 + 9,000


def test_a_factor_that_gives_whole_nano_dollars_from_fractions_of_a_cent_is_exact() -> None:
    cheap = rates("0.002", "0.004", "0.002")
    prices = table(prices={"standard": cheap, "long": cheap, "priorityFactor": "2.5"})
    assert prices.cost("m3", "priority", Usage(10, 0, 0, 1), NOW)[1] == 10 * 5 + 10


def dated(models: list[str], input_usd: str, effective_from: str | None = None, **more: Any) -> dict[str, Any]:
    """An entry whose only rate is that of input, in both context tiers."""
    same = rates(input_usd, "0", "0")
    return {"models": models, "standard": same, "long": same, "effectiveFrom": effective_from, **more}


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def test_dated_prices_turn_at_midnight_utc() -> None:
    prices = table(
        modelPrices=[
            dated(["m3"], "0.20", "2026-12-01T00:00:00Z"),
            dated(["m3"], "0.10", "2027-01-01T00:00:00Z"),
        ]
    )
    usage = Usage(1_000, 0, 0, 0)
    in_order = [
        ("2026-11-30T23:59:59.999", 300_000),  # `prices`, until the first entry begins
        ("2026-12-01T00:00:00", 200_000),
        ("2026-12-31T23:59:59.999", 200_000),
        ("2027-01-01T00:00:00", 100_000),
        ("2030-06-15T12:00:00", 100_000),
        ("2026-12-01T00:00:00", 200_000),  # settled late: what held when the request came
        ("2001-01-01T00:00:00", 300_000),
    ]
    for moment, nanousd in in_order:
        assert prices.cost("m3", "standard", usage, at(moment)) == ("standard", nanousd), moment
        quote = prices.quote("m3", "standard", 1_000, 1_000, 1_000, 0, at(moment))
        assert quote.cost_high_nanousd == nanousd, moment


def test_a_date_with_an_offset_is_the_moment_that_it_names() -> None:
    prices = table(modelPrices=[dated(["m3"], "0.20", "2026-12-01T08:00:00+08:00")])
    assert prices.cost("m3", "standard", Usage(1, 0, 0, 0), at("2026-11-30T23:59:59"))[1] == 300
    assert prices.cost("m3", "standard", Usage(1, 0, 0, 0), at("2026-12-01T00:00:00"))[1] == 200


def test_each_model_has_the_newest_of_its_own_prices_then_those_of_all_then_the_router_s() -> None:
    prices = table(
        modelPrices=[
            dated(["reviewer", "judge"], "5"),
            dated(["judge"], "7", "2026-12-01T00:00:00Z"),
            dated(["late"], "9", "2026-12-01T00:00:00Z"),
            dated(["*"], "2", "2026-11-01T00:00:00Z"),
        ]
    )
    per_token = {
        # moment: reviewer, judge, late, any other
        "2026-10-31T23:59:59": (5_000, 5_000, 300, 300),
        "2026-11-01T00:00:00": (5_000, 5_000, 2_000, 2_000),
        "2026-12-01T00:00:00": (5_000, 7_000, 9_000, 2_000),
    }
    for moment, expected in per_token.items():
        models = ("reviewer", "judge", "late", "m3")
        found = tuple(prices.cost(model, "standard", Usage(1, 0, 0, 0), at(moment))[1] for model in models)
        assert found == expected, moment


def test_a_model_may_have_a_threshold_of_its_own() -> None:
    prices = table(modelPrices=[dated(["small"], "1", contextTier={"thresholdTokens": 8_192, "inclusive": False})])
    assert [prices.context_tier("small", tokens, NOW) for tokens in (8_191, 8_192)] == ["standard", "long"]
    tariff = prices.tariff("small", NOW)
    assert (tariff.threshold_tokens, tariff.is_inclusive, tariff.standard_up_to_tokens) == (8_192, False, 8_191)
    assert prices.context_tier("m3", 8_192, NOW) == "standard"


@settings(deadline=None)
@given(
    entries=st.lists(
        st.tuples(st.sampled_from(["m3", "other", "*"]), st.sampled_from([None, *range(1, 9)])), unique=True, max_size=8
    ),
    moments=st.lists(st.integers(0, 19), min_size=1, max_size=20),
)
def test_what_holds_at_a_moment_does_not_depend_on_what_was_asked_before(
    entries: list[tuple[str, int | None]], moments: list[int]
) -> None:
    # Day n of May 2027, and an input rate of 1 + its number for the entry that begins with it.
    dates = [
        dated([model], str(1 + number), None if day is None else f"2027-05-{day:02}T00:00:00Z")
        for number, (model, day) in enumerate(entries)
    ]
    prices = table(modelPrices=dates)
    for half_days in moments:
        wall = at("2027-05-01T00:00:00") + half_days * 43_200
        for model in ("m3", "other", "third"):
            in_force = 300
            for name in ("*", model):  # the model's own outrank those of all
                begun = [
                    (day or 0, 1_000 * (1 + number))
                    for number, (entry, day) in enumerate(entries)
                    if entry == name and (day or 0) <= 1 + half_days // 2
                ]
                in_force = max(begun)[1] if begun else in_force
            assert prices.cost(model, "standard", Usage(1, 0, 0, 0), wall)[1] == in_force


# low, likely, high, output -> tiers at both ends, most at low, most at high, whether the exact number decides
QUOTES = [
    ((1_000, 2_000, 3_000, 100), ("standard", "standard"), 420_000, 1_020_000, False),  # 1,000 x 300 + 100 x 1,200
    ((512_000, 512_000, 512_000, 0), ("standard", "standard"), 153_600_000, 153_600_000, False),
    ((512_000, 512_000, 512_001, 0), ("standard", "long"), 153_600_000, 307_200_600, True),
    ((512_001, 600_000, 700_000, 10), ("long", "long"), 307_224_600, 420_024_000, False),
]


@pytest.mark.parametrize(("asked", "tiers", "at_low", "at_high", "needs_exact"), QUOTES)
def test_a_quote_names_both_ends_and_whether_they_differ(
    asked: tuple[int, int, int, int], tiers: tuple[str, str], at_low: int, at_high: int, needs_exact: bool
) -> None:
    quote = DEFAULT.quote("m3", "standard", *asked, NOW)
    assert (quote.context_tier_low, quote.context_tier_high) == tiers
    assert (quote.cost_low_nanousd, quote.cost_high_nanousd) == (at_low, at_high)
    assert quote.needs_exact is needs_exact


def test_a_quote_bounds_the_cost_where_long_requests_are_the_cheaper_ones() -> None:
    prices = table(prices={"standard": rates("3", "1.2", "0.06"), "long": rates("0.6", "1.2", "0.06")})
    quote = prices.quote("m3", "standard", 500_000, 510_000, 520_000, 0, NOW)
    assert quote.cost_high_nanousd == 1_536_000_000  # 512,000 x 3,000, though 520,000 x 600 = 312 M


def test_a_quote_counts_on_the_dearest_kind_of_input() -> None:
    prices = table(prices={"standard": rates("3", "0", "0.30", "3.75"), "long": rates("6", "0", "0.6", "7.5")})
    assert prices.quote("m3", "standard", 10, 10, 100, 0, NOW).cost_high_nanousd == 375_000  # all written to the cache


@pytest.mark.parametrize(
    ("likely", "output", "tier", "tokens"),
    [
        (1_000, 100, "standard", 1_400),  # 1,000 + 100 x 1,200 / 300
        (1_000, 100, "priority", 2_100),  # x 1.5
        (1_000, 100_000, "standard", 3_048),  # of a long answer 512 tokens are expected: 1,000 + 512 x 4
        (600_000, 0, "standard", 1_200_000),  # long input is twice as dear
        (0, 0, "standard", 1),  # nothing is ever for nothing in a queue
    ],
)
def test_the_weight_of_a_request_is_its_price_in_tokens_of_plain_input(
    likely: int, output: int, tier: ServiceTier, tokens: int
) -> None:
    assert EXPECTED_OUTPUT_TOKENS == 512
    quote = DEFAULT.quote("m3", tier, likely, likely, likely, output, NOW)
    assert quote.weighted_tokens == tokens


def test_the_weight_of_what_was_used_corrects_the_weight_that_was_expected() -> None:
    usage = Usage(100_000, 90_000, 0, 1_000)
    _, nanousd = DEFAULT.cost("m3", "standard", usage, NOW)
    assert DEFAULT.weighted_tokens("m3", usage, nanousd, NOW) == 32_000  # 10,000 + 90,000 x 0.2 + 1,000 x 4


def test_a_model_for_nothing_is_weighed_by_its_tokens() -> None:
    free = table(modelPrices=[dated(["free"], "0")])
    assert free.quote("free", "standard", 10, 40, 90, 100, NOW).weighted_tokens == 140
    assert free.weighted_tokens("free", Usage(40, 0, 0, 7), 0, NOW) == 47


@settings(deadline=None)
@given(
    low=st.integers(0, 2_000_000),
    more=st.integers(0, 2_000_000),
    part=st.floats(0, 1),
    cached=st.floats(0, 1),
    output=st.integers(0, 200_000),
    tier=st.sampled_from(["standard", "priority", "batch"]),
    write=st.sampled_from([None, "0.01", "9"]),
    long_input=st.sampled_from(["0.10", "0.60"]),
)
def test_no_use_within_a_quote_costs_more_than_its_bound(  # noqa: PLR0917 - drawn by hypothesis
    low: int, more: int, part: float, cached: float, output: int, tier: ServiceTier, write: str | None, long_input: str
) -> None:
    prices = table(
        prices={"standard": rates("0.30", "1.20", "0.06", write), "long": rates(long_input, "2.40", "0.12", write)}
    )
    input_tokens = low + int(more * part)
    cached_tokens = int(input_tokens * cached)
    quote = prices.quote("m3", tier, low, low, low + more, output, NOW)
    for usage in (
        Usage(input_tokens, cached_tokens, 0, output),
        Usage(input_tokens, cached_tokens, input_tokens - cached_tokens, output),
        Usage(input_tokens, 0, 0, 0),
    ):
        context_tier, nanousd = prices.cost("m3", tier, usage, NOW)
        assert nanousd <= quote.cost_high_nanousd
        assert context_tier in (quote.context_tier_low, quote.context_tier_high)


@pytest.mark.parametrize(
    ("nanousd", "text"),
    [
        (0, b"0.000000000"),
        (1, b"0.000000001"),
        (28_800, b"0.000028800"),
        (999_999_999, b"0.999999999"),
        (10**9, b"1.000000000"),
        (12_000_000_001, b"12.000000001"),
    ],
)
def test_dollars_are_written_exactly(nanousd: int, text: bytes) -> None:
    assert format_usd(nanousd) == text
