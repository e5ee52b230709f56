"""The administrator's view of what all tenants have used, as sums and as a table."""

import csv
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from m3_console.scene import ADMIN_DIGEST, ADMIN_KEY, Scene, bill
from m3_mock import MockEngine
from m3_mock.running import StartRouter
from m3_router.admin import UsageSource
from m3_router.money.bill import Bill
from m3_router.money.bill_lines import line_of
from m3_router.money.journal import Journal
from m3_router.money.spend import CSV_COLUMNS, Spend
from m3_router.money.spend_rows import summed

MONDAY = datetime(2026, 11, 16, 12, tzinfo=UTC).timestamp()
KEY = {"authorization": f"Bearer {ADMIN_KEY}"}


def bills() -> list[Bill]:
    return [
        bill(time=MONDAY + day * 86_400, tenant=tenant, number=1)
        for day in range(3)
        for tenant in ("acme", "zeta")
    ]  # fmt: skip


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(admin_digest=ADMIN_DIGEST, journal_directory=tmp_path)
    scene.spend.count(bills())
    journal = Journal(tmp_path, 2**16, 100, awaits_redis=False)
    for one in bills():
        one.number = journal.opened(0, line_of(one))
        journal.settled(one.number, line_of(one))
    journal.close()
    return scene


def client_of(scene: Scene, peer: str = "127.0.0.1") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(scene.app(), client=(peer, 4711))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9090")


async def test_the_sums_are_of_all_tenants_with_exact_costs(scene: Scene) -> None:
    async with client_of(scene) as client:
        usage = (await client.get("/api/usage")).json()
    assert (usage["object"], usage["scope"], usage["requests"]) == ("usage", "replica", 6)
    assert (usage["cost_nanousd"], usage["cost_usd"]) == (6 * 216_000, "0.001296000")
    assert [(row["day"], row["tenant"]) for row in usage["rows"]][:3] == [
        ("2026-11-18", "acme"), ("2026-11-18", "zeta"), ("2026-11-17", "acme"),
    ]  # fmt: skip
    assert usage["rows"][0]["cost_usd"] == "0.000216000"


@pytest.mark.parametrize(
    ("terms", "requests"),
    [
        ({"tenant": "zeta"}, 3),
        ({"from": "2026-11-17"}, 4),
        ({"to": "2026-11-16"}, 2),
        ({"from": "2026-11-17", "to": "2026-11-17", "tenant": "acme"}, 1),
        ({"tenant": "nobody"}, 0),
    ],
)
async def test_days_and_a_tenant_narrow_both_answers_alike(scene: Scene, terms: dict[str, str], requests: int) -> None:
    async with client_of(scene) as client:
        usage = (await client.get("/api/usage", params=terms)).json()
        table = (await client.get("/api/usage.csv", params=terms)).text
    assert usage["requests"] == requests
    assert len(list(csv.DictReader(io.StringIO(table, newline="")))) == requests


async def test_the_table_has_every_settled_request_of_the_journal(scene: Scene) -> None:
    async with client_of(scene) as client:
        answer = await client.get("/api/usage.csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="m3-usage.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert sum(int(row["cost_nanousd"]) for row in rows) == 6 * 216_000


@pytest.mark.parametrize("path", ["/api/usage", "/api/usage.csv"])
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("from=today", "from: 'today' is not a day such as 2026-11-21."),
        ("tenants=a", "tenants: there is no such parameter; there are: from, to, tenant."),
        ("&".join(["tenant=a"] * 17), "The query has more than 16 parameters."),
    ],
    ids=["day", "name", "count"],
)
async def test_a_query_that_cannot_be_is_refused_with_its_rule(
    scene: Scene, path: str, query: str, message: str
) -> None:
    async with client_of(scene) as client:
        answer = await client.get(f"{path}?{query}")
    assert (answer.status_code, answer.json()) == (400, {"error": message})


@pytest.mark.parametrize("path", ["/api/usage", "/api/usage.csv"])
async def test_usage_is_for_this_machine_and_for_the_admin_key(scene: Scene, path: str) -> None:
    async with client_of(scene, peer="10.0.0.9") as client:
        assert (await client.get(path)).status_code == 401
        assert (await client.get(path, headers=KEY)).status_code == 200


async def test_without_a_journal_there_is_no_table_and_it_says_why() -> None:
    async with client_of(Scene()) as client:
        answer = await client.get("/api/usage.csv")
    assert (answer.status_code, answer.json()) == (
        404, {"error": "There is no journal to read: set ledger.directory."},
    )  # fmt: skip


def test_the_fleet_is_this_replica_and_the_others_and_neither_is_changed_by_asking() -> None:
    own, others = Spend(), Spend()
    own.count(bills())
    others.count(bills()[:1])
    source = UsageSource([own, others], None)
    for _ in range(2):
        rows = source.rows("acme", "", "")
        assert source.scope == "fleet"
        assert [(row.day, row.requests) for row in rows] == [
            ("2026-11-18", 1), ("2026-11-17", 1), ("2026-11-16", 2),
        ]  # fmt: skip
    assert summed([own.rows()]) == own.rows()


async def test_a_router_tells_of_requests_that_went_through_it(
    start_router: StartRouter, engine: MockEngine, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"ledger": {"directory": str(tmp_path)}}
    running = await start_router([engine], **settings)
    for _ in range(2):
        assert (await running.chat()).status_code == 200
    settled = await running.ledger()
    usage = (await running.admin.get("/api/usage")).json()
    table = csv.DictReader(io.StringIO((await running.admin.get("/api/usage.csv")).text, newline=""))
    assert usage["cost_nanousd"] == sum(one["cost_nanousd"] for one in settled) > 0
    assert {row["request_id"] for row in table} == {one["request_id"] for one in settled}
