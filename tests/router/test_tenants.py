"""Keys, the tenants behind them, entitlement, and what a change of the table does to those identified before it."""

import hashlib
from typing import Any

import pytest

from m3_router.config import Access, KeySettings, PlanSettings, TenantSettings
from m3_router.errors import Refusal
from m3_router.tenants.tenants import Tenant, Tenants, salt_of

NOW = 1_795_000_000.0


def digest_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def key(tenant: str, secret: str, *tiers: Any) -> KeySettings:
    return KeySettings(tenant=tenant, sha256=digest_of(secret).hex(), service_tiers=tiers or None)


def access(*keys: KeySettings, plan: PlanSettings | None = None, **tenants: str) -> Access:
    return Access(
        plans={} if plan is None else {"max": plan},
        tenants=tuple(TenantSettings(name=name, plan=plan_name) for name, plan_name in tenants.items()),
        keys=keys,
    )


def bearer(secret: str) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + secret.encode()}


def tenant_with(*tiers: Any) -> Tenant:
    return Tenants(access(key("t", "k", *tiers))).identify(bearer("k"))


def test_a_key_names_its_tenant_in_either_dialect() -> None:
    tenants = Tenants(access(key("acme", "k1"), key("beta", "k2", "standard", "priority")))
    assert tenants.identify({b"authorization": b"Bearer k1"}).name == "acme"
    assert tenants.identify({b"authorization": b"bearer  k2 "}).service_tiers == ("standard", "priority")
    assert tenants.identify({b"x-api-key": b"k2"}) is tenants.identify(bearer("k2"))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"authorization": b""},
        {b"authorization": b"Bearer"},
        {b"authorization": b"Bearer "},
        {b"authorization": b"Basic k1"},
        {b"authorization": b"Bearer k3"},
        {b"authorization": b"k1"},
        {b"x-api-key": b""},
        {b"x-api-key": b"k3"},
        {b"x-api-key": b"k1, k1"},
        {b"authorization": b"Bearer k3", b"x-api-key": b"k1"},
    ],
)
def test_a_missing_or_wrong_key_is_401(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(Refusal) as refused:
        Tenants(access(key("acme", "k1"))).identify(headers)
    assert refused.value.status == 401
    assert "k3" not in refused.value.message


def test_without_keys_everyone_is_anonymous_and_may_do_everything() -> None:
    tenants = Tenants(None)
    tenant = tenants.identify(bearer("whatever"))
    assert tenant.name == "anonymous"
    assert [tenant.entitled_tier(tier) for tier in ("standard", "priority", "batch")] == [
        "standard",
        "priority",
        "batch",
    ]
    assert tenant.version == tenants.version
    tenant.quota.reserve(10**12, 10**15, NOW, 0.0)


@pytest.mark.parametrize(
    ("tiers", "asked", "is_anthropic", "tier"),
    [
        (("standard", "priority"), None, False, "standard"),
        (("standard", "priority"), "auto", False, "standard"),
        (("standard", "priority"), "auto", True, "standard"),
        (("standard", "priority"), "standard_only", True, "standard"),
        (("standard", "priority"), "priority", False, "priority"),
        (("standard", "priority"), "priority", True, "priority"),
        (("priority",), "default", False, "priority"),
        (("standard",), "standard", False, "standard"),
        (("standard", "batch"), "batch", False, "batch"),
        (("standard", "batch"), "flex", False, "batch"),
    ],
)
def test_the_tier_is_what_is_asked_for_and_entitled(
    tiers: tuple[str, ...], asked: str | None, is_anthropic: bool, tier: str
) -> None:
    assert tenant_with(*tiers).entitled_tier(asked, is_anthropic) == tier


@pytest.mark.parametrize(
    ("asked", "is_anthropic", "own"),
    [("scale", False, "flex"), ("standard_only", False, "flex"), ("flex", True, "standard_only")],
)
def test_a_tier_that_the_dialect_does_not_have_is_400_naming_those_it_has(
    asked: str, is_anthropic: bool, own: str
) -> None:
    with pytest.raises(Refusal, match=f"'{asked}' is not one of .*{own}") as refused:
        tenant_with("standard", "batch").entitled_tier(asked, is_anthropic)
    assert (refused.value.status, refused.value.param) == (400, "service_tier")


@pytest.mark.parametrize(("tiers", "asked"), [(("standard",), "priority"), (("priority",), "standard")])
def test_a_tier_that_the_key_does_not_open_is_403_naming_those_it_does(tiers: tuple[str, ...], asked: str) -> None:
    with pytest.raises(
        Refusal, match=f"'t' is not entitled to service_tier '{asked}'; this key opens: {tiers[0]}"
    ) as refused:
        tenant_with(*tiers).entitled_tier(asked)
    assert refused.value.status == 403


def test_a_key_opens_the_tiers_of_its_plan_unless_it_says_otherwise() -> None:
    plan = PlanSettings(service_tiers=("standard", "priority"), weight=3.0, max_context_tokens=200_000)
    tenants = Tenants(access(key("acme", "all"), key("acme", "one", "standard"), plan=plan, acme="max"))
    both, one = tenants.identify(bearer("all")), tenants.identify(bearer("one"))
    assert both.service_tiers == ("standard", "priority")
    assert one.service_tiers == ("standard",)
    assert both.quota is one.quota
    assert (both.plan, both.weight) == ("max", 3.0)


def test_an_input_longer_than_the_plan_allows_is_400() -> None:
    plan = PlanSettings(max_context_tokens=200_000)
    tenant = Tenants(access(key("acme", "k"), plan=plan, acme="max")).identify(bearer("k"))
    tenant.check_context(200_000)
    with pytest.raises(Refusal, match="at least 200001 tokens; plan 'max' of tenant 'acme' allows 200000") as refused:
        tenant.check_context(200_001)
    assert (refused.value.status, refused.value.code) == (400, "context_above_plan")


def test_a_tenant_without_a_plan_has_no_limits_and_the_standard_tier() -> None:
    tenant = Tenants(access(key("acme", "k"))).identify(bearer("k"))
    assert tenant.service_tiers == ("standard",)
    tenant.quota.reserve(10**12, 10**15, NOW, 0.0)


def test_a_key_that_leaves_the_table_is_refused_and_noticed_where_it_was_kept() -> None:
    tenants = Tenants(access(key("acme", "old"), key("acme", "new")))
    old, new = tenants.identify(bearer("old")), tenants.identify(bearer("new"))
    tenants.swap(access(key("acme", "new")))
    assert old.version != tenants.version
    assert new.version == tenants.version
    assert tenants.identify(bearer("new")) is new
    with pytest.raises(Refusal, match="not known"):
        tenants.identify(bearer("old"))


def test_a_key_whose_tiers_change_is_asked_for_again() -> None:
    tenants = Tenants(access(key("acme", "k", "standard")))
    kept = tenants.identify(bearer("k"))
    tenants.swap(access(key("acme", "k", "standard", "priority")))
    assert kept.version != tenants.version
    assert tenants.identify(bearer("k")).service_tiers == ("standard", "priority")


def test_what_was_used_outlives_a_change_of_the_table() -> None:
    def table(limit: int) -> Access:
        return access(key("acme", "k"), plan=PlanSettings(tokens_per_day=limit), acme="max")

    tenants = Tenants(table(1000))
    tenants.identify(bearer("k")).quota.reserve(900, 0, NOW, 0.0)
    tenants.swap(table(950))
    quota = tenants.identify(bearer("k")).quota
    with pytest.raises(Refusal, match="900 tokens are used and 50 tokens left"):
        quota.reserve(51, 0, NOW, 0.0)
    quota.reserve(50, 0, NOW, 0.0)


def test_a_revoked_key_is_refused_until_it_is_taken_back() -> None:
    tenants = Tenants(access(key("acme", "k"), key("beta", "other")))
    kept, other = tenants.identify(bearer("k")), tenants.identify(bearer("other"))
    tenants.revoke({digest_of("k")})
    assert kept.version != tenants.version
    assert other.version == tenants.version
    with pytest.raises(Refusal, match="was revoked") as refused:
        tenants.identify(bearer("k"))
    assert refused.value.status == 401
    tenants.swap(access(key("acme", "k")))
    assert kept.version != tenants.version
    tenants.revoke(())
    assert tenants.identify(bearer("k")) is kept
    assert kept.version == tenants.version


def test_keys_that_come_with_a_reload_end_the_anonymous_tenant() -> None:
    tenants = Tenants(None)
    anonymous = tenants.identify({})
    tenants.swap(access(key("acme", "k")))
    assert anonymous.version != tenants.version
    with pytest.raises(Refusal):
        tenants.identify({})


def test_salts_differ_by_tenant_and_are_the_same_everywhere() -> None:
    assert salt_of("acme") != salt_of("beta")
    expected = int.from_bytes(hashlib.sha256(b"m3 tenant acme").digest()[:8], "little")
    assert salt_of("acme") == expected
