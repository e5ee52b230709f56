"""Who asks, and what they may: API keys by digest, the tenant behind each, and the service tier that a request gets.

Owns the table of keys, and which of them were revoked. Keys are never held, only their SHA-256 digests, so that looking
one up takes the same time whether it is nearly right or not, and a dump of this process shows none. What a tenant may
use is its `quotas.Quota`; it outlives changes of the table.

What was identified once may be kept for as long as `tenant.version == tenants.version`. A change of the table gives
every tenant it leaves alone the new version; a key that it took away keeps the old one, and must be asked for again.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

from m3_router.config import UNLIMITED, Access, KeySettings, PlanSettings, ServiceTier
from m3_router.errors import Refusal, bad_request, unauthorized
from m3_router.tenants.quotas import Quota, Quotas

# What clients put into `service_tier` where they want nothing special, and other names of the same tiers.
_UNSPECIFIED: Final = frozenset({None, "auto", "default"})
_TIERS: Final[dict[str, ServiceTier]] = {
    "standard": "standard",
    "standard_only": "standard",  # Anthropic's
    "priority": "priority",
    "batch": "batch",
    "flex": "batch",  # OpenAI's name for what is cheap and may wait
}
_ANTHROPIC_ONLY: Final = "standard_only"
_OPENAI_ONLY: Final = "flex"
_NO_PLAN: Final = PlanSettings()


class Tenant:
    """One customer as one of its keys shows it: the quota is the customer's, the service tiers are the key's."""

    __slots__ = ("max_context_tokens", "name", "plan", "quota", "salt", "service_tiers", "version", "weight")

    def __init__(
        self,
        name: str,
        service_tiers: tuple[ServiceTier, ...],
        *,
        plan: str,
        weight: float,
        max_context_tokens: int | None,
        quota: Quota,
    ) -> None:
        self.name = name
        self.service_tiers = service_tiers
        self.plan = plan  # its name; "" for a tenant without one
        self.weight = weight  # its share against other tenants
        self.max_context_tokens = max_context_tokens
        self.quota = quota
        self.salt = salt_of(name)  # keeps its cached prefixes apart from others'
        self.version = 0

    def __repr__(self) -> str:
        return f"<Tenant {self.name} plan {self.plan or 'none'}, {', '.join(self.service_tiers)}>"

    def entitled_tier(self, asked: str | None, is_anthropic: bool = False) -> ServiceTier:
        """The service tier of a request that asks for `asked`. Raises Refusal (400 or 403)."""
        if asked in _UNSPECIFIED:
            return "standard" if "standard" in self.service_tiers else self.service_tiers[0]
        foreign = _OPENAI_ONLY if is_anthropic else _ANTHROPIC_ONLY
        tier = _TIERS.get(asked) if asked is not None and asked != foreign else None
        if tier is None:
            own = _ANTHROPIC_ONLY if is_anthropic else _OPENAI_ONLY
            raise bad_request(
                f"service_tier: {asked!r} is not one of standard, priority, batch, auto, default, {own}.",
                param="service_tier",
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

    def check_context(self, input_tokens: int) -> None:
        """Refuse an input that is certainly longer than the plan allows. Raises Refusal (400)."""
        longest = self.max_context_tokens
        if longest is not None and input_tokens > longest:
            raise bad_request(
                f"The input has at least {input_tokens} tokens; "
                f"plan {self.plan!r} of tenant {self.name!r} allows {longest}.",
                code="context_above_plan",
            )

    def is_alike(self, other: "Tenant") -> bool:
        """Whether a change of the table has left this one alone."""
        return (
            self.name == other.name
            and self.service_tiers == other.service_tiers
            and self.plan == other.plan
            and self.weight == other.weight
            and self.max_context_tokens == other.max_context_tokens
            and self.quota is other.quota
        )


class Tenants:
    """The tenants of a router. Without keys (`access` None) there is one, `anonymous`, which may do everything."""

    __slots__ = ("_by_digest", "_has_keys", "_plan_names", "_revoked", "anonymous", "quotas", "version")

    def __init__(self, access: Access | None, quotas: Quotas | None = None) -> None:
        self.quotas = Quotas() if quotas is None else quotas
        self.version = 0
        self.anonymous = Tenant(
            "anonymous",
            UNLIMITED.service_tiers,
            plan="",
            weight=UNLIMITED.weight,
            max_context_tokens=None,
            quota=Quota("anonymous", UNLIMITED, self.quotas),
        )
        self._has_keys = False
        self._by_digest: dict[bytes, Tenant] = {}
        self._revoked: frozenset[bytes] = frozenset()
        self._plan_names: dict[str, str] = {}
        self.swap(access)

    def identify(self, known: Mapping[bytes, bytes]) -> Tenant:
        """The tenant of a request's headers (lower-case names). Raises Refusal (401).

        `authorization: Bearer KEY` as OpenAI's clients send it, else `x-api-key: KEY` as Anthropic's do.
        """
        if not self._has_keys:
            return self.anonymous
        authorization = known.get(b"authorization")
        if authorization is not None:
            scheme, _, key = authorization.partition(b" ")
            if scheme.lower() != b"bearer":
                raise unauthorized("The Authorization header is not of the form: Bearer KEY.")
        else:
            key = known.get(b"x-api-key", b"")
        key = key.strip()
        if not key:
            raise unauthorized("No API key. Send it as Authorization: Bearer KEY, or as x-api-key: KEY.")
        digest = hashlib.sha256(key).digest()
        tenant = self._by_digest.get(digest)
        if tenant is None:
            raise unauthorized("The API key is not known here.")
        if digest in self._revoked:
            raise unauthorized("The API key was revoked.")
        return tenant

    def swap(self, access: Access | None) -> None:
        """Another table from now on."""
        before = self._by_digest
        self._has_keys = access is not None
        self._by_digest = {}
        for digest, tenant in ({} if access is None else self._table(access)).items():
            known = before.get(digest)
            self._by_digest[digest] = known if known is not None and known.is_alike(tenant) else tenant
        self._take_version()

    def revoke(self, digests: Iterable[bytes]) -> None:
        """From now on exactly these keys (SHA-256 digests) are revoked, whatever the table says."""
        revoked = frozenset(digests)
        if revoked == self._revoked:
            return
        self._revoked = revoked
        self._take_version()

    @property
    def revoked(self) -> frozenset[bytes]:
        """The digests of the keys that were revoked."""
        return self._revoked

    def has_key(self, digest: bytes) -> bool:
        """Whether the table still has this key, revoked or not."""
        return digest in self._by_digest

    def _take_version(self) -> None:
        self.version += 1
        self.anonymous.version = 0 if self._has_keys else self.version
        for digest, tenant in self._by_digest.items():
            tenant.version = 0 if digest in self._revoked else self.version

    def plan_of(self, name: str) -> str | None:
        """The plan of a tenant, by name; None if it has none."""
        return self._plan_names.get(name)

    def _table(self, access: Access) -> dict[bytes, Tenant]:
        settings = {tenant.name: tenant for tenant in access.tenants}
        self._plan_names = {tenant.name: tenant.plan for tenant in access.tenants}
        plans = {name: access.plans[tenant.plan] for name, tenant in settings.items()}
        for key in access.keys:
            plans.setdefault(key.tenant, _NO_PLAN)
        self.quotas.replace(plans)
        table: dict[bytes, Tenant] = {}
        for key in access.keys:
            entry = settings.get(key.tenant)
            plan = plans[key.tenant]
            quota = self.quotas.get(key.tenant)
            assert quota is not None  # noqa: S101 - replace has just made one for every plan
            table[bytes.fromhex(key.sha256)] = Tenant(
                key.tenant,
                _tiers_of(key, plan),
                plan="" if entry is None else entry.plan,
                weight=plan.weight if entry is None or entry.weight is None else entry.weight,
                max_context_tokens=plan.max_context_tokens,
                quota=quota,
            )
        return table


def salt_of(name: str) -> int:
    """64 bits that differ from tenant to tenant, and are the same on every replica."""
    return int.from_bytes(hashlib.sha256(b"m3 tenant " + name.encode()).digest()[:8], "little")


def _tiers_of(key: KeySettings, plan: PlanSettings) -> tuple[ServiceTier, ...]:
    return tuple(dict.fromkeys(plan.service_tiers if key.service_tiers is None else key.service_tiers))
