"""Prices, against a table worked out by hand."""

from decimal import Decimal

import pytest

from m3_router.bill import Usage
from m3_router.config import ContextTierSettings, PriceSettings, RateSettings
from m3_router.prices import PriceTable, format_usd

DEFAULT = PriceTable(PriceSettings(), ContextTierSettings())

# Nano-dollars per token = USD per million tokens x 1,000:
#   standard: input 300, cache read 60, output 1,200      priority x 1.5: 450, 90, 1,800
#   long:     input 600, cache read 120, output 2,400     priority x 1.5: 900, 180, 3,600
BY_HAND = [
    # (input, of them cached, output), service tier, nano-dollars
    ((1, 0, 0), "standard", 300),
    ((0, 0, 1), "standard", 1_200),
    ((1_000_000, 0, 0), "standard", 600_000_000),  # a million is long: 0.60 USD
    ((100_000, 0, 1_000), "standard", 31_200_000),  # 100,000 x 300 + 1,000 x 1,200
    ((100_000, 90_000, 1_000), "standard", 9_600_000),  # 10,000 x 300 + 90,000 x 60 + 1,000 x 1,200 = 3.0 + 5.4 + 1.2 M
    ((100_000, 90_000, 1_000), "priority", 14_400_000),  # 1.5 x 9.6 M
    ((512_000, 0, 1_000), "standard", 154_800_000),  # 512,000 x 300 + 1,000 x 1,200 = 153.6 + 1.2 M
    ((512_001, 0, 1_000), "standard", 309_600_600),  # 512,001 x 600 + 1,000 x 2,400 = 307.2006 + 2.4 M
    ((512_001, 0, 1_000), "priority", 464_400_900),  # 1.5 x 309,600,600
    ((512_001, 512_001, 0), "priority", 92_160_180),  # 512,001 x 180
    ((0, 0, 0), "priority", 0),
]


@pytest.mark.parametrize(("tokens", "tier", "nanousd"), BY_HAND)
def test_costs_are_those_worked_out_by_hand(tokens: tuple[int, int, int], tier: str, nanousd: int) -> None:
    assert DEFAULT.price(Usage(*tokens), tier)[1] == nanousd


@pytest.mark.parametrize(
    ("threshold", "inclusive", "last_standard"), [(512, True, 512), (512, False, 511), (524_288, False, 524_287)]
)
def test_the_threshold_belongs_to_the_tier_that_the_configuration_says(
    threshold: int, inclusive: bool, last_standard: int
) -> None:
    table = PriceTable(PriceSettings(), ContextTierSettings(threshold_tokens=threshold, inclusive=inclusive))
    assert table.context_tier(last_standard) == "standard"
    assert table.context_tier(last_standard + 1) == "long"


def test_a_factor_that_gives_whole_nano_dollars_from_fractions_of_a_cent_is_exact() -> None:
    rates = RateSettings(input=Decimal("0.002"), output=Decimal("0.004"), cache_read=Decimal("0.002"))
    prices = PriceSettings(standard=rates, long=rates, priority_factor=Decimal("2.5"))
    table = PriceTable(prices, ContextTierSettings())
    assert table.price(Usage(10, 0, 1), "priority")[1] == 10 * 5 + 10


@pytest.mark.parametrize(
    ("nanousd", "text"),
    [(0, b"0.000000000"), (1, b"0.000000001"), (28_800, b"0.000028800"), (12_000_000_001, b"12.000000001")],
)
def test_dollars_are_written_exactly(nanousd: int, text: bytes) -> None:
    assert format_usd(nanousd) == text
