"""An event loop whose time is a number: where a real one would wait, this one moves the number.

Everything in the simulation happens in callbacks and tasks of one such loop, so that the order of events depends on
nothing but the code and the seed. Nothing here reads a clock or opens a socket.
"""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

_Result = TypeVar("_Result")
EPOCH = datetime(2026, 11, 22, tzinfo=UTC)


class _Leap:
    """Stands where a loop has its selector: waiting means that the time has come."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("the simulation waits for something that nobody will do")
        self._loop.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs callbacks in the order of their virtual times."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._selector = _Leap(self)

    def time(self) -> float:
        """Seconds since the simulation began."""
        return self.now

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no sockets."""

    def _write_to_self(self) -> None:
        """There is no other thread that would have to wake this one."""


class Clock:
    """The virtual time, for those who are no coroutine."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    @property
    def seconds(self) -> float:
        """Since the simulation began."""
        return self._loop.time()

    @property
    def now(self) -> datetime:
        """As the API server's host sees it."""
        return EPOCH + timedelta(seconds=self._loop.time())

    def after(self, seconds: float, do: Callable[..., object], *arguments: object) -> None:
        """Do something later."""
        self._loop.call_later(seconds, do, *arguments)


def run_in_virtual_time(main: Callable[[Clock], Coroutine[Any, Any, _Result]]) -> _Result:
    """Run a coroutine to its end on a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main(Clock(runner.get_loop())))
