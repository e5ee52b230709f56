"""The example of the three plans is what the documentation says that it is."""

from pathlib import Path

import pytest

from m3_router.config import Access, access_from_yaml
from m3_router.errors import Refusal
from m3_router.tenants.tenants import Tenant, Tenants

EXAMPLE = Path(__file__).parents[2] / "manifests" / "examples" / "plans.yaml"
NOON = 1_795_003_200.0


def tenant(plan: str) -> Tenant:
    file = access_from_yaml(EXAMPLE.read_text())
    access = Access(plans=file.plans, tenants=file.tenants, keys=file.keys)
    return Tenants(access).identify({b"x-api-key": f"example-key-{plan}".encode()})


@pytest.mark.parametrize(("plan", "tokens"), [("plus", 100_000), ("max", 500_000)])
def test_a_day_has_as_many_tokens_as_the_plan_says(plan: str, tokens: int) -> None:
    quota = tenant(plan).quota
    quota.settle(quota.reserve(tokens, 0, NOON, 0.0), tokens, 0)
    with pytest.raises(Refusal, match=f"tokensPerDay: .* {tokens} tokens in each day"):
        quota.reserve(1, 0, NOON, 0.0)


def test_ultra_is_unlimited() -> None:
    quota = tenant("ultra").quota
    for _ in range(1000):
        quota.reserve(10**9, 10**12, NOON, 0.0)


@pytest.mark.parametrize(("plan", "opens"), [("plus", False), ("max", True), ("ultra", True)])
def test_priority_is_for_max_and_ultra(plan: str, opens: bool) -> None:
    assert ("priority" in tenant(plan).service_tiers) is opens
