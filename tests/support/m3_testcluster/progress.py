"""Progress lines for steps that take longer than a person likes to wait in silence.

Owns the form of the line and the clock behind it; what a step does is its caller's business. Lines go to a plain
callable, so that they read the same on a terminal, in a CI log and under pytest.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[str], None]
"""Receives one line without its newline."""


def to_stderr(line: str) -> None:
    """The default report: one line on standard error, at once."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def step(title: str, report: Report = to_stderr, every_seconds: float = 5.0) -> Iterator[None]:
    """Reports `title` when the block starts, and again with the elapsed time every `every_seconds` until it ends."""
    started = time.monotonic()
    finished = threading.Event()

    def tick() -> None:
        while not finished.wait(every_seconds):
            report(f"{title} ... {time.monotonic() - started:.0f} s")

    report(title)
    ticker = threading.Thread(target=tick, name="progress", daemon=True)
    ticker.start()
    try:
        yield
    finally:
        finished.set()
        ticker.join()
