"""Who may see and change what on the admin port. Pure: decides from the peer's address and the headers.

Everyone may read `/healthz`, `/readyz`, `/metrics` and the page itself, which holds no data. All else is for a caller
on this machine, or one that sends the admin key as `Authorization: Bearer KEY`. "On this machine" is more than a
loopback peer, because browsers and proxies run there too:

- the Host that was asked for must be a loopback one, or a page elsewhere could reach in by rebinding its name;
- nobody may have forwarded the request, or a sidecar would lend its address to everyone;
- what changes something must not come from a page of another origin, whether a key was sent or not.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from m3_router.config import is_loopback

_FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


class DeniedError(Exception):
    """The caller may not do this. `status` is 401 where a key would help, else 403."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Access:
    """The rule of one router; `key_sha256` is the digest of the admin key, None if there is none."""

    def __init__(self, key_sha256: str | None) -> None:
        self._digest = None if key_sha256 is None else bytes.fromhex(key_sha256)

    def reader(self, peer: str, headers: Mapping[str, str]) -> str:
        """Who asks, in words for the audit. Raises DeniedError. Names of headers are in lower case."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if key and scheme.lower() == "bearer" and self._digest is not None:
            if hmac.compare_digest(hashlib.sha256(key.strip().encode()).digest(), self._digest):
                return "admin key"
            raise DeniedError(401, "The admin key is not the right one.")
        if (
            is_loopback(peer)
            and _is_loopback_host(headers.get("host", ""))
            and not any(h in headers for h in _FORWARDED)
        ):
            return "this machine"
        if self._digest is None:
            raise DeniedError(
                403, "This router has no admin key: only callers on its own machine may see this. Set adminKeySha256."
            )
        raise DeniedError(401, "Send the admin key as: Authorization: Bearer KEY.")

    def changer(self, peer: str, headers: Mapping[str, str]) -> str:
        """Like `reader`, for what changes something."""
        who = self.reader(peer, headers)
        origin = headers.get("origin")
        is_foreign = origin is not None and urlsplit(origin).netloc != headers.get("host", "")
        if is_foreign or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise DeniedError(403, "A page of another origin may not change anything here.")
        return who


def _is_loopback_host(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and is_loopback(name)
