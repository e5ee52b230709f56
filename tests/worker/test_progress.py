"""Progress of a load: a bar for a terminal, rare lines for a log."""

import io
import logging

import pytest
from rich.console import Console

from m3_worker.progress import load_report


def test_a_terminal_gets_a_bar() -> None:
    written = io.StringIO()
    with load_report(Console(file=written, force_terminal=True, width=100), "loading tiny") as report:
        report.update(500, 1000)
    assert "loading tiny" in written.getvalue()


def test_a_log_gets_a_line_only_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    times = iter([100.0, 104.9, 105.0, 109.9])
    report = load_report(Console(file=io.StringIO()), "loading M3", clock=lambda: next(times))
    with caplog.at_level(logging.INFO), report:
        for read_bytes in (10, 427_000_000_000, 500_000_000_000):
            report.update(read_bytes, 854_000_000_000)
    assert [record.getMessage() for record in caplog.records] == ["loading M3: 427.0 of 854.0 GB (50%)"]
