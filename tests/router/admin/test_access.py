"""Who may see and change what on the admin port."""

import pytest

from m3_console.scene import ADMIN_DIGEST, ADMIN_KEY
from m3_router.admin.access import Access, DeniedError

LOCAL = {"host": "127.0.0.1:9090"}
KEYED = {"host": "router.example:9090", "authorization": f"Bearer {ADMIN_KEY}"}


@pytest.mark.parametrize("host", ["127.0.0.1:9090", "localhost:9090", "[::1]:9090", "localhost", "127.8.0.1"])
def test_this_machine_may_read_and_change_without_a_key(host: str) -> None:
    assert Access(None).reader("127.0.0.1", {"host": host}) == "this machine"
    assert Access(ADMIN_DIGEST).changer("::1", {"host": host}) == "this machine"


def test_the_admin_key_opens_from_anywhere() -> None:
    assert Access(ADMIN_DIGEST).reader("10.1.2.3", KEYED) == "admin key"
    assert Access(ADMIN_DIGEST).changer("10.1.2.3", KEYED) == "admin key"


def test_a_wrong_key_is_refused_even_from_this_machine() -> None:
    with pytest.raises(DeniedError) as denied:
        Access(ADMIN_DIGEST).reader("127.0.0.1", {**LOCAL, "authorization": "Bearer wrong"})
    assert denied.value.status == 401


@pytest.mark.parametrize(
    ("peer", "headers"),
    [
        ("10.1.2.3", LOCAL),
        ("", LOCAL),
        ("127.0.0.1", {"host": "evil.example"}),
        ("127.0.0.1", {"host": "127.0.0.1.evil.example:9090"}),
        ("127.0.0.1", {"host": "[::1"}),
        ("127.0.0.1", {}),
        ("127.0.0.1", {**LOCAL, "x-forwarded-for": "127.0.0.1"}),
        ("127.0.0.1", {**LOCAL, "forwarded": "for=10.0.0.1"}),
    ],
    ids=["peer", "no peer", "rebound name", "name like an address", "broken host", "no host", "proxied", "forwarded"],
)
def test_who_only_seems_to_be_here_needs_the_key(peer: str, headers: dict[str, str]) -> None:
    with pytest.raises(DeniedError) as denied:
        Access(ADMIN_DIGEST).reader(peer, headers)
    assert denied.value.status == 401
    with pytest.raises(DeniedError) as denied:
        Access(None).reader(peer, headers)
    assert denied.value.status == 403
    assert "adminKeySha256" in denied.value.message


@pytest.mark.parametrize(
    "foreign",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
@pytest.mark.parametrize("caller", [LOCAL, KEYED])
def test_a_page_of_another_origin_may_change_nothing(foreign: dict[str, str], caller: dict[str, str]) -> None:
    with pytest.raises(DeniedError) as denied:
        Access(ADMIN_DIGEST).changer("127.0.0.1", {**caller, **foreign})
    assert denied.value.status == 403


def test_the_consoles_own_page_may_change_things() -> None:
    own = {**LOCAL, "origin": "http://127.0.0.1:9090", "sec-fetch-site": "same-origin"}

    assert Access(None).changer("127.0.0.1", own) == "this machine"
