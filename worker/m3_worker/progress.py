"""How far loading has come, for people: a bar on a terminal, a few log lines elsewhere."""

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

log = logging.getLogger(__name__)

LINE_SECONDS = 5.0


class LoadReport(Protocol):
    """Told of bytes while a checkpoint is read; a context manager around the reading."""

    def update(self, read_bytes: int, needed_bytes: int) -> None:
        """So many of so many bytes are read."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def load_report(console: Console, title: str, clock: Callable[[], float] = time.monotonic) -> LoadReport:
    """The form that suits where `console` writes to."""
    return _Bar(console, title) if console.is_terminal else _Lines(title, clock)


class _Bar:
    def __init__(self, console: Console, title: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        self._bar = Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console, transient=True)
        self._task = self._bar.add_task(title, total=None)

    def update(self, read_bytes: int, needed_bytes: int) -> None:
        self._bar.update(self._task, completed=read_bytes, total=needed_bytes)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


class _Lines:
    """A line at most every LINE_SECONDS, so that a load of an hour is told of and one of a second is not."""

    def __init__(self, title: str, clock: Callable[[], float]) -> None:
        self._title = title
        self._clock = clock
        self._last_line = clock()

    def update(self, read_bytes: int, needed_bytes: int) -> None:
        now = self._clock()
        if now - self._last_line < LINE_SECONDS:
            return
        self._last_line = now
        share = read_bytes / max(needed_bytes, 1)
        log.info("%s: %.1f of %.1f GB (%.0f%%)", self._title, read_bytes / 1e9, needed_bytes / 1e9, 100 * share)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
