"""Who asks, and what they may: API keys by digest, and the service tier that a request gets.

Owns the table of keys. Keys are never held, only their SHA-256 digests, so that looking one up takes the same time
whether it is nearly right or not, and a dump of this process shows none.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from m3_router.config import Access, ServiceTier
from m3_router.errors import Refusal, bad_request, unauthorized

# What OpenAI's clients may put into `service_tier` where they want nothing special.
_UNSPECIFIED: Final = frozenset({None, "auto", "default"})


@dataclass(frozen=True, slots=True)
class Tenant:
    """One customer, and the service tiers that the key in use opens."""

    name: str
    service_tiers: tuple[ServiceTier, ...]

    def entitled_tier(self, asked: str | None) -> ServiceTier:
        """The service tier of a request that asks for `asked`. Raises Refusal (400 or 403)."""
        if asked in _UNSPECIFIED:
            return "standard" if "standard" in self.service_tiers else self.service_tiers[0]
        tier: ServiceTier
        if asked == "standard":
            tier = "standard"
        elif asked == "priority":
            tier = "priority"
        else:
            raise bad_request(
                f"service_tier: {asked!r} is not one of standard, priority, auto, default.", param="service_tier"
            )
        if tier not in self.service_tiers:
            raise Refusal(
                403,
                f"Tenant {self.name!r} is not entitled to service_tier {asked!r}; "
                f"this key opens: {', '.join(self.service_tiers)}.",
                kind="permission_error",
                code="service_tier_not_allowed",
                param="service_tier",
            )
        return tier


ANONYMOUS: Final = Tenant("anonymous", ("standard", "priority"))


class Tenants:
    """The tenants of a router. Without keys there is one, `anonymous`, entitled to every tier."""

    def __init__(self, access: Access | None) -> None:
        self._by_digest: dict[bytes, Tenant] | None = None
        if access is not None:
            self._by_digest = {
                bytes.fromhex(key.sha256): Tenant(key.tenant, tuple(dict.fromkeys(key.service_tiers or ("standard",))))
                for key in access.keys
            }

    def identify(self, authorization: bytes | None) -> Tenant:
        """The tenant of an `Authorization` header's value. Raises Refusal (401)."""
        if self._by_digest is None:
            return ANONYMOUS
        if authorization is None:
            raise unauthorized("No API key. Send it as: Authorization: Bearer KEY.")
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not key:
            raise unauthorized("The Authorization header is not of the form: Bearer KEY.")
        tenant = self._by_digest.get(hashlib.sha256(key.strip()).digest())
        if tenant is None:
            raise unauthorized("The API key is not known here.")
        return tenant
