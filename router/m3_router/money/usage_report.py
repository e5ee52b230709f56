"""What `GET /v1/usage` says: what a tenant has used and what it cost, by day, model and tiers; and what its limits have
left.

Owns the query's rules and the shape of the answer. The sums are `spend`'s: of this replica since its journal began, and
of all replicas where they share Redis. The administrator's view over all tenants, and CSV, are on the admin port.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import parse_qsl

import msgspec

from m3_router.config import NANOUSD_PER_USD
from m3_router.errors import bad_request
from m3_router.money.prices import format_usd
from m3_router.money.spend import Spend
from m3_router.money.spend_rows import Row, summed
from m3_router.tenants.meters import NANOUSD
from m3_router.tenants.tenants import Tenant

_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_DAYS: Final = ("from", "to")
_MAX_TERMS: Final = 16


class UsageReport:
    """Answers for every tenant, from the sums of this replica and those of the others, where they are known.

    wall_clock: seconds since the epoch.
    """

    def __init__(self, spends: Sequence[Spend], wall_clock: Callable[[], float]) -> None:
        self._spends = tuple(spends)
        self._wall_clock = wall_clock

    def of_tenant(self, tenant: Tenant, query: str) -> bytes:
        """The answer as JSON. query: `from` and `to`, days as YYYY-MM-DD (UTC), inclusive. Raises Refusal (400)."""
        terms = terms_of(query, _DAYS)
        rows = summed(
            spend.rows(tenant=tenant.name, first_day=terms["from"], last_day=terms["to"]) for spend in self._spends
        )
        return msgspec.json.encode(
            {
                "object": "usage",
                "tenant": tenant.name,
                "plan": tenant.plan,
                "requests": sum(row.requests for row in rows),
                "cost_usd": usd(sum(row.cost_nanousd for row in rows)),
                "limits": self._limits(tenant),
                "rows": [row_document(row) for row in rows],
            }
        )

    def _limits(self, tenant: Tenant) -> list[dict[str, object]]:
        tenant.quota.turn(self._wall_clock())
        return [
            {
                "name": meter.name,
                "limit": meter.limit / NANOUSD_PER_USD if meter.unit == NANOUSD else meter.limit,
                "used_here": meter.used / NANOUSD_PER_USD if meter.unit == NANOUSD else meter.used,
                "ends_at": None if meter.ends_at == float("inf") else meter.ends_at,
            }
            for meter in tenant.quota.meters
        ]


def terms_of(query: str, names: Sequence[str]) -> dict[str, str]:
    """What a query says under each of these names, "" where it does not. Raises Refusal (400)."""
    found = dict.fromkeys(names, "")
    try:
        terms = parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_TERMS)
    except ValueError:
        raise bad_request(f"The query has more than {_MAX_TERMS} parameters.") from None
    for name, value in terms:
        if name not in found:
            raise bad_request(
                f"{name[:40]}: there is no such parameter; there are: {', '.join(names)}.", param=name[:40]
            )
        if name in _DAYS and not _DAY.fullmatch(value):
            raise bad_request(f"{name}: {value[:40]!r} is not a day such as 2026-11-21.", param=name)
        found[name] = value
    return found


def row_document(row: Row) -> dict[str, object]:
    """One row as people and programs read it, its cost as an exact decimal."""
    document = msgspec.structs.asdict(row)
    document["cost_usd"] = usd(document.pop("cost_nanousd"))
    return document


def usd(nanousd: int) -> str:
    """An exact decimal number of US dollars."""
    return format_usd(nanousd).decode()
