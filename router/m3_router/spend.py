"""Who has used how much on which day: sums of settled bills by tenant, day, model and both tiers.

Owns the sums, and the rows of the CSV export. Days are UTC, by when a request came. A bill counts once it is settled;
the sums are rebuilt at start from the journal, so they reach back as far as its segments do. MAX_ROWS bound the memory:
beyond it the oldest days are let go (`first_day` says since when the sums are whole). Fed by the ledger's batches.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from m3_router.bill import Bill
from m3_router.config import ContextTier, ServiceTier
from m3_router.segments import SETTLED, read_records, segment_paths

MAX_ROWS: Final = 100_000
_DAY_SECONDS: Final = 86_400
_CSV_ROWS_AT_ONCE: Final = 500

_decode: Final = msgspec.json.Decoder(Bill).decode

CSV_COLUMNS: Final = tuple(name for name in Bill.__struct_fields__)


class Row(msgspec.Struct, gc=False):
    """What one tenant used of one model in one pair of tiers on one day."""

    tenant: str
    day: str  # YYYY-MM-DD
    model: str
    service_tier: ServiceTier | None
    context_tier: ContextTier | None
    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    cost_nanousd: int = 0


_Key = tuple[str, str, ServiceTier | None, ContextTier | None]


class Spend:
    """The sums of this replica."""

    def __init__(self, max_rows: int = MAX_ROWS) -> None:
        self._max_rows = max_rows
        self._days: dict[int, dict[_Key, Row]] = {}  # by days since the epoch
        self._rows = 0
        self._first_day = 0  # older days were let go

    def count(self, bills: Iterable[Bill]) -> None:
        """Add settled bills. Those that were never dispatched used nothing and are not counted."""
        for bill in bills:
            if bill.number == 0:
                continue
            row = self._row(bill)
            if row is None:
                continue
            row.requests += 1
            row.input_tokens += bill.input_tokens
            row.cached_tokens += bill.cached_tokens
            row.cache_write_tokens += bill.cache_write_tokens
            row.output_tokens += bill.output_tokens
            row.cost_nanousd += bill.cost_nanousd

    def add(self, earlier: "Spend") -> None:
        """Add the sums of another period, such as those that were rebuilt beside the event loop."""
        for day, rows in earlier._days.items():
            for key, row in rows.items():
                own = self._row_of(day, key)
                if own is not None:
                    _add(own, row)

    def rows(self, *, tenant: str | None = None, first_day: str = "", last_day: str = "") -> list[Row]:
        """The sums, the newest day first, then by tenant and model; days are YYYY-MM-DD, inclusive, "" for no bound."""
        found = [
            row
            for day in sorted(self._days, reverse=True)
            for row in self._days[day].values()
            if (tenant is None or row.tenant == tenant)
            and first_day <= row.day
            and (not last_day or row.day <= last_day)
        ]
        return sorted(found, key=_by_day_then_name)

    @property
    def first_day(self) -> str | None:
        """The first day whose sums are whole as far as the journal went; None if none was let go."""
        return _day_name(self._first_day) if self._first_day else None

    def _row(self, bill: Bill) -> Row | None:
        day = int(bill.time) // _DAY_SECONDS
        return self._row_of(day, (bill.tenant, bill.model, bill.service_tier, bill.context_tier))

    def _row_of(self, day: int, key: _Key) -> Row | None:
        if day < self._first_day:
            return None
        rows = self._days.get(day)
        if rows is None:
            rows = self._days[day] = {}
        row = rows.get(key)
        if row is None:
            row = rows[key] = Row(key[0], _day_name(day), key[1], key[2], key[3])
            self._rows += 1
            self._let_go()
        return row

    def _let_go(self) -> None:
        """Of the oldest days, while there are too many rows; never of the newest."""
        while self._rows > self._max_rows and len(self._days) > 1:
            oldest = min(self._days)
            self._rows -= len(self._days.pop(oldest))
            self._first_day = min(self._days)


def summed(parts: Iterable[Iterable[Row]]) -> list[Row]:
    """The rows of several sums as one, in the order of `Spend.rows`. The rows that were given stay as they were."""
    total: dict[tuple[str, _Key], Row] = {}
    for rows in parts:
        for row in rows:
            key = (row.day, (row.tenant, row.model, row.service_tier, row.context_tier))
            own = total.get(key)
            if own is None:
                total[key] = msgspec.structs.replace(row)
            else:
                _add(own, row)
    return sorted(total.values(), key=_by_day_then_name)


def rebuild(directory: Path, before_sequence: int) -> Spend:
    """The sums of what is settled in a journal before a sequence. Reads every file: not for an event loop."""
    spend = Spend()
    for bills in _settled_bills(directory, before_sequence):
        spend.count(bills)
    return spend


def csv_lines(
    directory: Path, *, tenant: str | None = None, first_day: str = "", last_day: str = ""
) -> Iterator[bytes]:
    """Every settled bill of a journal as CSV, a header line first, some hundred rows a piece. Reads files as it goes.

    A text that a spreadsheet would take for a formula is given with a leading quote (OWASP, "CSV Injection").
    """
    yield _csv([CSV_COLUMNS])
    for bills in _settled_bills(directory, None):
        rows = [
            [_csv_value(getattr(bill, name)) for name in CSV_COLUMNS]
            for bill in bills
            if (tenant is None or bill.tenant == tenant) and _is_within(bill, first_day, last_day)
        ]
        if rows:
            yield _csv(rows)


def _add(row: Row, more: Row) -> None:
    row.requests += more.requests
    row.input_tokens += more.input_tokens
    row.cached_tokens += more.cached_tokens
    row.cache_write_tokens += more.cache_write_tokens
    row.output_tokens += more.output_tokens
    row.cost_nanousd += more.cost_nanousd


def _settled_bills(directory: Path, before_sequence: int | None) -> Iterator[list[Bill]]:
    bills: list[Bill] = []
    for path in segment_paths(directory):
        try:
            records = read_records(path)
            for record in records:
                if record.kind != SETTLED:
                    continue
                if before_sequence is not None and record.sequence >= before_sequence:
                    break
                bills.append(_decode(record.payload))
                if len(bills) >= _CSV_ROWS_AT_ONCE:
                    yield bills
                    bills = []
        except FileNotFoundError:
            continue  # retired meanwhile
    if bills:
        yield bills


def _is_within(bill: Bill, first_day: str, last_day: str) -> bool:
    day = _day_name(int(bill.time) // _DAY_SECONDS)
    return first_day <= day and (not last_day or day <= last_day)


def _day_name(day: int) -> str:
    return datetime.fromtimestamp(day * _DAY_SECONDS, UTC).strftime("%Y-%m-%d")


def _csv(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()


def _csv_value(value: object) -> object:
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _by_day_then_name(row: Row) -> tuple[int, str, str, str, str]:
    year, month, day = row.day.split("-")
    return -int(year + month + day), row.tenant, row.model, row.service_tier or "", row.context_tier or ""
