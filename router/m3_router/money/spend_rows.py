"""Rows of usage: what one tenant used of one model in one pair of tiers on one day, as other processes are told.

Owns the record, the order of rows, and how rows of several replicas are put together. Who counts them is `spend`.
"""

from collections.abc import Iterable

import msgspec

from m3_router.config import ContextTier, ServiceTier


class Row(msgspec.Struct, gc=False):
    """What was used. `day` is YYYY-MM-DD, UTC."""

    tenant: str
    day: str
    model: str
    service_tier: ServiceTier | None
    context_tier: ContextTier | None
    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    cost_nanousd: int = 0


def summed(parts: Iterable[Iterable[Row]]) -> list[Row]:
    """The rows of several sums as one, in their order. The rows that were given stay as they were."""
    total: dict[tuple[str, str, str, ServiceTier | None, ContextTier | None], Row] = {}
    for rows in parts:
        for row in rows:
            key = (row.day, row.tenant, row.model, row.service_tier, row.context_tier)
            own = total.get(key)
            if own is None:
                total[key] = msgspec.structs.replace(row)
            else:
                _add(own, row)
    return in_order(total.values())


def in_order(rows: Iterable[Row]) -> list[Row]:
    """The newest day first, then by tenant, model and tiers."""
    return sorted(rows, key=_by_day_then_name)


def _add(row: Row, more: Row) -> None:
    row.requests += more.requests
    row.input_tokens += more.input_tokens
    row.cached_tokens += more.cached_tokens
    row.cache_write_tokens += more.cache_write_tokens
    row.output_tokens += more.output_tokens
    row.cost_nanousd += more.cost_nanousd


def _by_day_then_name(row: Row) -> tuple[int, str, str, str, str]:
    year, month, day = row.day.split("-")
    return -int(year + month + day), row.tenant, row.model, row.service_tier or "", row.context_tier or ""
