"""Sums of what was settled, and the export of the bills themselves."""

import csv
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from m3_router.money.bill import Bill
from m3_router.money.bill_lines import bill_from, line_of
from m3_router.money.bill_records import Line
from m3_router.money.journal import Journal
from m3_router.money.spend import CSV_COLUMNS, Spend, csv_lines, rebuild

MONDAY = datetime(2026, 11, 16, 12, tzinfo=UTC).timestamp()
DAY = 86_400


def bill_of(tenant: str = "t", *, time: float = MONDAY, number: int = 1, **fields: Any) -> Bill:
    return bill_from(Line(
        time, "r", "/v1/completions", tenant, model="m", number=number, service_tier="standard",
        context_tier="standard", input_tokens=10, cached_tokens=4, output_tokens=2, cost_nanousd=1000, **fields
    ))  # fmt: skip


def test_bills_of_a_tenant_a_day_a_model_and_both_tiers_are_one_row() -> None:
    spend = Spend()
    other = bill_of()
    other.service_tier = "priority"
    spend.count([bill_of(), bill_of(), other, bill_of("u"), bill_of(time=MONDAY + DAY)])
    rows = [
        (row.day, row.tenant, row.service_tier, row.requests, row.input_tokens, row.cached_tokens, row.output_tokens)
        for row in spend.rows()
    ]
    assert rows == [
        ("2026-11-17", "t", "standard", 1, 10, 4, 2),
        ("2026-11-16", "t", "priority", 1, 10, 4, 2),
        ("2026-11-16", "t", "standard", 2, 20, 8, 4),
        ("2026-11-16", "u", "standard", 1, 10, 4, 2),
    ]
    assert [row.cost_nanousd for row in spend.rows(tenant="t", last_day="2026-11-16")] == [1000, 2000]
    assert [row.day for row in spend.rows(first_day="2026-11-17")] == ["2026-11-17"]


def test_what_was_never_dispatched_is_not_counted() -> None:
    spend = Spend()
    spend.count([bill_of(number=0)])
    assert spend.rows() == []


def test_days_end_at_midnight_utc() -> None:
    spend = Spend()
    midnight = datetime(2026, 11, 17, tzinfo=UTC).timestamp()
    spend.count([bill_of(time=midnight - 0.001), bill_of(time=midnight)])
    assert [row.day for row in spend.rows()] == ["2026-11-17", "2026-11-16"]


def test_the_oldest_days_are_let_go_and_it_says_so() -> None:
    spend = Spend(max_rows=4)
    for day in range(3):
        spend.count([bill_of(name, time=MONDAY + day * DAY) for name in ("t", "u")])
    assert {row.day for row in spend.rows()} == {"2026-11-17", "2026-11-18"}
    assert spend.first_day == "2026-11-17"
    spend.count([bill_of(time=MONDAY)])  # late, of a day that is not whole any more
    assert len(spend.rows()) == 4
    newest = Spend(max_rows=1)
    newest.count([bill_of(name) for name in "tuv"])
    assert len(newest.rows()) == 3  # the newest day is never let go


def journal_of(directory: Path, bills: list[Bill]) -> list[int]:
    journal = Journal(directory, 2**16, 100, awaits_redis=False)
    sequences = []
    for bill in bills:
        bill.number = journal.opened(0, line_of(bill))
        sequences.append(journal.settled(bill.number, line_of(bill)))
    journal.close()
    return sequences


def test_the_sums_are_the_same_after_a_restart_and_nothing_counts_twice(tmp_path: Path) -> None:
    bills = [bill_of(f"t{number % 7}", time=MONDAY + number * 3600) for number in range(200)]
    sequences = journal_of(tmp_path, bills)
    whole = Spend()
    whole.count(bills)
    assert rebuild(tmp_path, sequences[-1] + 1).rows() == whole.rows()
    # What is settled while the past is read is counted once: before the sequence by the one, from it on by the other.
    now = Spend()
    now.count(bills[150:])
    now.add(rebuild(tmp_path, sequences[150]))
    assert now.rows() == whole.rows()


def test_the_export_has_every_bill_with_every_field(tmp_path: Path) -> None:
    bills = [bill_of(f"t{number % 3}", time=MONDAY + number * 3600, error='a "quoted",\ntext') for number in range(60)]
    journal_of(tmp_path, bills)
    rows = list(csv.DictReader(io.StringIO(b"".join(csv_lines(tmp_path)).decode(), newline="")))
    assert [row["number"] for row in rows] == [str(bill.number) for bill in bills]
    assert tuple(rows[0]) == CSV_COLUMNS
    assert (rows[0]["cost_nanousd"], rows[0]["error"]) == ("1000", 'a "quoted",\ntext')
    mine = b"".join(csv_lines(tmp_path, tenant="t1", first_day="2026-11-17", last_day="2026-11-17")).decode()
    found = [float(row["time"]) for row in csv.DictReader(io.StringIO(mine, newline=""))]
    assert found == [
        bill.time for bill in bills if bill.tenant == "t1" and MONDAY + 12 * 3600 <= bill.time < MONDAY + 36 * 3600
    ]


def test_a_text_that_a_spreadsheet_would_compute_is_quoted(tmp_path: Path) -> None:
    journal_of(tmp_path, [bill_of("=1+1")])
    (row,) = csv.DictReader(io.StringIO(b"".join(csv_lines(tmp_path)).decode()))
    assert row["tenant"] == "'=1+1"
