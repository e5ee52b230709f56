"""Keys and entitlement."""

import hashlib

import pytest

from m3_router.config import Access, KeySettings
from m3_router.errors import Refusal
from m3_router.tenants import ANONYMOUS, Tenant, Tenants


def key(tenant: str, secret: str, *tiers: str) -> KeySettings:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return KeySettings(tenant=tenant, sha256=digest, service_tiers=tiers or ("standard",))


def test_a_key_names_its_tenant() -> None:
    tenants = Tenants(Access(keys=(key("acme", "k1"), key("beta", "k2", "standard", "priority"))))
    assert tenants.identify(b"Bearer k1").name == "acme"
    assert tenants.identify(b"bearer k2") == Tenant("beta", ("standard", "priority"))


@pytest.mark.parametrize("header", [None, b"", b"Bearer", b"Bearer ", b"Basic k1", b"Bearer k3", b"k1"])
def test_a_missing_or_wrong_key_is_401(header: bytes | None) -> None:
    with pytest.raises(Refusal) as refused:
        Tenants(Access(keys=(key("acme", "k1"),))).identify(header)
    assert refused.value.status == 401
    assert "k3" not in refused.value.message


def test_without_keys_everyone_is_anonymous_and_entitled_to_every_tier() -> None:
    assert Tenants(None).identify(b"Bearer whatever") is ANONYMOUS
    assert ANONYMOUS.entitled_tier("priority") == "priority"


@pytest.mark.parametrize(
    ("tiers", "asked", "tier"),
    [
        (("standard", "priority"), None, "standard"),
        (("standard", "priority"), "auto", "standard"),
        (("standard", "priority"), "priority", "priority"),
        (("priority",), "default", "priority"),
        (("standard",), "standard", "standard"),
    ],
)
def test_the_tier_is_what_is_asked_for_and_entitled(tiers: tuple[str, ...], asked: str | None, tier: str) -> None:
    assert Tenant("t", tiers).entitled_tier(asked) == tier


@pytest.mark.parametrize(("tiers", "asked"), [(("standard",), "priority"), (("priority",), "standard")])
def test_a_tier_that_the_key_does_not_open_is_403_naming_those_it_does(tiers: tuple[str, ...], asked: str) -> None:
    with pytest.raises(
        Refusal, match=f"'t' is not entitled to service_tier '{asked}'; this key opens: {tiers[0]}"
    ) as refused:
        Tenant("t", tiers).entitled_tier(asked)
    assert refused.value.status == 403
