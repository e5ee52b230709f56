"""What all tenants have used: the sums as JSON, and every settled request as CSV.

Owns the two answers and their shape. The sums are those of this replica, and of all replicas where they share Redis
(`scope`); the CSV is of this replica's own journal, read off its files while it is sent.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from m3_router.errors import Refusal
from m3_router.money.spend import Spend, csv_lines
from m3_router.money.spend_rows import Row, summed
from m3_router.money.usage_report import row_document, terms_of, usd

Scope = Literal["replica", "fleet"]
TERMS: Final = ("from", "to", "tenant")
_FILE_NAME: Final = "m3-usage.csv"


class Usage(msgspec.Struct):
    """As much of the JSON answer as putting several together takes."""

    scope: Scope
    rows: list[Row]


class UsageSource:
    """Where the answers come from. directory: of the journal; None: there is none, and so no CSV.

    spends: this replica's own, and that of the others where it is known.
    """

    def __init__(self, spends: Sequence[Spend], directory: Path | None) -> None:
        self.scope: Scope = "fleet" if len(spends) > 1 else "replica"
        self.directory = directory
        self._spends = tuple(spends)

    def rows(self, tenant: str | None, first_day: str, last_day: str) -> list[Row]:
        """The sums, the newest day first."""
        return summed(spend.rows(tenant=tenant, first_day=first_day, last_day=last_day) for spend in self._spends)


def usage_document(rows: Sequence[Row], scope: Scope) -> bytes:
    """The answer as JSON; money as integer nano-dollars, and as an exact decimal number of dollars."""
    cost_nanousd = sum(row.cost_nanousd for row in rows)
    return msgspec.json.encode(
        {
            "object": "usage",
            "scope": scope,
            "requests": sum(row.requests for row in rows),
            "cost_nanousd": cost_nanousd,
            "cost_usd": usd(cost_nanousd),
            "rows": [{**row_document(row), "cost_nanousd": row.cost_nanousd} for row in rows],
        }
    )


def usage_routes(source: UsageSource) -> APIRouter:
    """The paths; who may ask is decided by whoever includes them."""
    routes = APIRouter()

    @routes.get("/api/usage")
    async def usage(request: Request) -> Response:
        try:
            terms = terms_of(request.url.query, TERMS)
        except Refusal as refusal:
            return JSONResponse({"error": refusal.message}, refusal.status)
        rows = source.rows(terms["tenant"] or None, terms["from"], terms["to"])
        return Response(usage_document(rows, source.scope), media_type="application/json")

    @routes.get("/api/usage.csv")
    async def usage_csv(request: Request) -> Response:
        try:
            terms = terms_of(request.url.query, TERMS)
        except Refusal as refusal:
            return JSONResponse({"error": refusal.message}, refusal.status)
        if source.directory is None:
            return JSONResponse({"error": "There is no journal to read: set ledger.directory."}, 404)
        # A plain iterator: it waits for the disk, and so runs in a thread.
        lines = csv_lines(
            source.directory, tenant=terms["tenant"] or None, first_day=terms["from"], last_day=terms["to"]
        )
        headers = {"content-disposition": f'attachment; filename="{_FILE_NAME}"'}
        return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)

    return routes
