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

from m3_router.config import ContextTier, ServiceTier
from m3_router.money.bill import Bill
from m3_router.money.bill_records import Line, decode_line
from m3_router.money.segments import SETTLED, read_records, segment_paths
from m3_router.money.spend_rows import Row, in_order

MAX_ROWS: Final = 100_000
_DAY_SECONDS: Final = 86_400
_CSV_ROWS_AT_ONCE: Final = 500

CSV_COLUMNS: Final = Line.__struct_fields__

_Key = tuple[str, str, ServiceTier | None, ContextTier | None]  # tenant, model and tiers


class _Sums:
    """What one row comes to."""

    __slots__ = ("cache_write_tokens", "cached_tokens", "cost_nanousd", "input_tokens", "output_tokens", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.input_tokens = self.cached_tokens = self.cache_write_tokens = self.output_tokens = 0
        self.cost_nanousd = 0

    def count(self, bill: Bill) -> None:
        self.requests += 1
        self.input_tokens += bill.input_tokens
        self.cached_tokens += bill.cached_tokens
        self.cache_write_tokens += bill.cache_write_tokens
        self.output_tokens += bill.output_tokens
        self.cost_nanousd += bill.cost_nanousd

    def count_line(self, line: Line) -> None:
        self.requests += 1
        self.input_tokens += line.input_tokens
        self.cached_tokens += line.cached_tokens
        self.cache_write_tokens += line.cache_write_tokens
        self.output_tokens += line.output_tokens
        self.cost_nanousd += line.cost_nanousd

    def add(self, more: "_Sums") -> None:
        self.requests += more.requests
        self.input_tokens += more.input_tokens
        self.cached_tokens += more.cached_tokens
        self.cache_write_tokens += more.cache_write_tokens
        self.output_tokens += more.output_tokens
        self.cost_nanousd += more.cost_nanousd


class Spend:
    """The sums of this replica."""

    def __init__(self, max_rows: int = MAX_ROWS) -> None:
        self._max_rows = max_rows
        self._days: dict[int, dict[_Key, _Sums]] = {}  # by days since the epoch
        self._rows = 0
        self._first_day = 0  # older days were let go

    def count(self, bills: Iterable[Bill]) -> None:
        """Add settled bills. Those that were never dispatched used nothing and are not counted."""
        for bill in bills:
            if bill.number == 0:
                continue
            key: _Key = (bill.tenant, bill.model, bill.service_tier, bill.context_tier)
            sums = self._sums(int(bill.time) // _DAY_SECONDS, key)
            if sums is not None:
                sums.count(bill)

    def count_lines(self, lines: Iterable[Line]) -> None:
        """Add bills as they are read back: of this replica's earlier processes, or of others."""
        for line in lines:
            if line.number == 0:
                continue
            key: _Key = (line.tenant, line.model, line.service_tier, line.context_tier)
            sums = self._sums(int(line.time) // _DAY_SECONDS, key)
            if sums is not None:
                sums.count_line(line)

    def add(self, earlier: "Spend") -> None:
        """Add the sums of another period, such as those that were rebuilt beside the event loop."""
        for day, rows in earlier._days.items():
            for key, more in rows.items():
                sums = self._sums(day, key)
                if sums is not None:
                    sums.add(more)

    def rows(self, *, tenant: str | None = None, first_day: str = "", last_day: str = "") -> list[Row]:
        """The sums, the newest day first, then by tenant and model; days are YYYY-MM-DD, inclusive, "" for no bound."""
        found: list[Row] = []
        for day, rows in self._days.items():
            name = _day_name(day)
            if _is_within(name, first_day, last_day):
                found += [_row(name, key, sums) for key, sums in rows.items() if tenant is None or key[0] == tenant]
        return in_order(found)

    @property
    def first_day(self) -> str | None:
        """The first day whose sums are whole as far as the journal went; None if none was let go."""
        return _day_name(self._first_day) if self._first_day else None

    def _sums(self, day: int, key: _Key) -> _Sums | None:
        if day < self._first_day:
            return None
        rows = self._days.get(day)
        if rows is None:
            rows = self._days[day] = {}
        sums = rows.get(key)
        if sums is None:
            sums = rows[key] = _Sums()
            self._rows += 1
            self._let_go()
        return sums

    def _let_go(self) -> None:
        """Of the oldest days, while there are too many rows; never of the newest."""
        while self._rows > self._max_rows and len(self._days) > 1:
            oldest = min(self._days)
            self._rows -= len(self._days.pop(oldest))
            self._first_day = min(self._days)


def rebuild(directory: Path, before_sequence: int) -> Spend:
    """The sums of what is settled in a journal before a sequence. Reads every file: not for an event loop."""
    spend = Spend()
    for lines in _settled_lines(directory, before_sequence):
        spend.count_lines(lines)
    return spend


def csv_lines(
    directory: Path, *, tenant: str | None = None, first_day: str = "", last_day: str = ""
) -> Iterator[bytes]:
    """Every settled bill of a journal as CSV, a header line first, some hundred rows a piece. Reads files as it goes.

    A text that a spreadsheet would take for a formula is given with a leading quote (OWASP, "CSV Injection").
    """
    yield _csv([CSV_COLUMNS])
    for lines in _settled_lines(directory, None):
        rows = [
            [_csv_value(getattr(line, name)) for name in CSV_COLUMNS]
            for line in lines
            if (tenant is None or line.tenant == tenant) and _is_within(_day_of(line), first_day, last_day)
        ]
        if rows:
            yield _csv(rows)


def _settled_lines(directory: Path, before_sequence: int | None) -> Iterator[list[Line]]:
    lines: list[Line] = []
    for path in segment_paths(directory):
        try:
            records = read_records(path)
            for record in records:
                if record.kind != SETTLED:
                    continue
                if before_sequence is not None and record.sequence >= before_sequence:
                    break
                lines.append(decode_line(record.payload))
                if len(lines) >= _CSV_ROWS_AT_ONCE:
                    yield lines
                    lines = []
        except FileNotFoundError:
            continue  # retired meanwhile
    if lines:
        yield lines


def _row(day: str, key: _Key, sums: _Sums) -> Row:
    tenant, model, service_tier, context_tier = key
    return Row(
        tenant,
        day,
        model,
        service_tier,
        context_tier,
        requests=sums.requests,
        input_tokens=sums.input_tokens,
        cached_tokens=sums.cached_tokens,
        cache_write_tokens=sums.cache_write_tokens,
        output_tokens=sums.output_tokens,
        cost_nanousd=sums.cost_nanousd,
    )


def _is_within(day: str, first_day: str, last_day: str) -> bool:
    return first_day <= day and (not last_day or day <= last_day)


def _day_of(line: Line) -> str:
    return _day_name(int(line.time) // _DAY_SECONDS)


def _day_name(day: int) -> str:
    return datetime.fromtimestamp(day * _DAY_SECONDS, UTC).strftime("%Y-%m-%d")


def _csv(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()


def _csv_value(value: object) -> object:
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
