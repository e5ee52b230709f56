"""What a person sees of `m3 up`: progress while it starts, the way in when it is up, and what happens after.

Owns the words and their place: progress and events go to standard error, what one may want to keep (URL, key, curl
line) to standard output. On a terminal the start is a live table; elsewhere every change is a line. Decides nothing.
"""

import contextlib
import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

from m3_operator.local.supervisor import State, Status

if TYPE_CHECKING:
    from m3_operator.local.processes import Endpoint

REFRESH_PER_SECOND = 4
_STYLES = {
    State.READY: "green",
    State.DONE: "green",
    State.STARTING: "yellow",
    State.RESTARTING: "yellow",
    State.FAILED: "red",
}
_QUIET_WHILE_LIVE = frozenset({State.STARTING, State.READY, State.DONE})


class Display:
    """The two streams of one `m3 up`."""

    def __init__(self) -> None:
        self._out = Console(soft_wrap=True, highlight=False, markup=False)
        self._err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        self._live = False

    def status(self, status: Status) -> None:
        """One process has changed."""
        if not (self._live and status.state in _QUIET_WHILE_LIVE):
            self.say(describe(status))

    def say(self, line: str) -> None:
        """One line about what is going on."""
        self._err.print(line)

    def show(self, line: str) -> None:
        """One line of what was asked for."""
        self._out.print(line)

    @contextlib.contextmanager
    def starting(self, statuses: Callable[[], Sequence[Status]]) -> Iterator[None]:
        """Show a table of `statuses()` that follows them, where there is a terminal for it."""
        if not self._err.is_terminal:
            yield
            return
        self._live = True
        try:
            with Live(
                get_renderable=lambda: _table(statuses(), time.monotonic()),
                console=self._err,
                refresh_per_second=REFRESH_PER_SECOND,
            ):
                yield
        finally:
            self._live = False

    def endpoint(self, endpoint: "Endpoint") -> None:
        """The way in: URL, models, key, and a line to paste."""
        self.show("")
        self.show(f"  {', '.join(endpoint.models)}")
        self.show(f"  URL   {endpoint.url}/v1")
        self.show(f"  key   {endpoint.key or 'none needed'}")
        self.show("")
        self.show(curl_line(endpoint))
        self.show("")


def describe(status: Status) -> str:
    """One line for one change."""
    match status.state:
        case State.READY if status.started_at is not None:
            return f"{status.name}: ready after {status.since - status.started_at:.1f} s"
        case State.DONE if status.started_at is not None:
            return f"{status.name}: written in {status.since - status.started_at:.1f} s"
        case State.DONE:
            return f"{status.name}: there already"
        case State.STARTING if status.restarts:
            return f"{status.name}: starting again (restart {status.restarts})"
        case _:
            return f"{status.name}: {status.detail or status.state}"


def curl_line(endpoint: "Endpoint") -> str:
    """A command that a shell runs as it is: one chat request to the first model."""
    body = {"model": endpoint.models[0], "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}
    words = ["curl", f"{endpoint.url}/v1/chat/completions", "-H", "Content-Type: application/json"]
    if endpoint.key:
        words += ["-H", f"Authorization: Bearer {endpoint.key}"]
    return shlex.join([*words, "-d", json.dumps(body)])


def _table(statuses: Sequence[Status], now: float) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("process", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("seconds", justify="right")
    for status in statuses:
        settled = status.state in (State.READY, State.DONE, State.FAILED)
        begun = status.started_at if status.started_at is not None else status.since
        seconds = (status.since if settled else now) - begun
        waited = "" if status.state is State.WAITING or status.started_at is None else f"{seconds:.1f}"
        table.add_row(status.name, status.state, waited, style=_STYLES.get(status.state))
    return table
