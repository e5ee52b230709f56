"""Who asks, and what the head of their request says: made once for all requests of a connection with an equal head.

Owns the reading of our own request headers; pure.

    x-m3-max-context-tier, x-m3-max-cost-usd    ceilings: refuse rather than cost more
    x-m3-first-byte-ms                          when the first byte is wanted: orders priority requests that wait
    x-session-id                                requests of one session go to one worker, while that is reasonable
    traceparent                                 W3C trace context
"""

from typing import Final

from m3_router.bodies.dialects import Dialect
from m3_router.errors import bad_request
from m3_router.money.ceilings import Ceilings
from m3_router.placement.prefix import seed
from m3_router.tenants.tenants import Tenant

FIRST_BYTE_HEADER: Final = b"x-m3-first-byte-ms"
SESSION_HEADER: Final = b"x-session-id"
MAX_SESSION_BYTES: Final = 256


class Caller:
    """One tenant, and the wishes of one head. dialect: None for what the router answers itself."""

    __slots__ = (
        "_seeds",
        "ceilings",
        "dialect",
        "first_byte_seconds",
        "session",
        "tenant",
        "traceparent",
    )

    def __init__(self, tenant: Tenant, dialect: Dialect | None, known: dict[bytes, bytes]) -> None:
        """Raises Refusal (400) for a header of ours that cannot be read."""
        self.tenant = tenant
        self.dialect = dialect
        self.ceilings: Ceilings | None = Ceilings.parse(known)
        self.first_byte_seconds: float | None = _first_byte_seconds(known.get(FIRST_BYTE_HEADER))
        self.session: str = known.get(SESSION_HEADER, b"")[:MAX_SESSION_BYTES].decode("latin-1")
        self._seeds: dict[str, int] = {}
        self.traceparent: bytes | None = known.get(b"traceparent")

    def seed(self, model: str) -> int:
        """What the chains of this tenant's requests for a model begin with."""
        value = self._seeds.get(model)
        if value is None:
            value = self._seeds[model] = seed(model, str(self.tenant.salt))
        return value


def _first_byte_seconds(value: bytes | None) -> float | None:
    if value is None:
        return None
    if not value.isdigit() or not 1 <= len(value) <= 8 or int(value) == 0:
        raise bad_request(
            f"{FIRST_BYTE_HEADER.decode()}: {value[:20].decode('latin-1')!r} must be milliseconds, 1 to 99999999.",
            param=FIRST_BYTE_HEADER.decode(),
            code="invalid_header",
        )
    return int(value) / 1000
