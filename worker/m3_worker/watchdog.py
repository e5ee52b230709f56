"""Noticing that the engine hangs: no step finished within the deadline while there was work.

Owns that judgement. A step that raises fails the engine by itself; one that never returns (a device that hangs, a rank
that is gone) is only seen from outside, on the event loop, which the engine's thread does not hold up.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from m3_worker.engine import Engine

_LOOKS = 8
"""Within one deadline; so a hang is noticed an eighth of it late."""
_LONGEST_SLEEP_SECONDS = 1.0


@dataclass(slots=True)
class Watchdog:
    """What the last look saw."""

    deadline_seconds: float
    _steps: int = -1
    _since: float = 0.0

    def idle_seconds(self, steps: int, is_busy: bool, now: float) -> float:
        """Seconds for which there was work and no step was finished; `steps` have been finished in all."""
        if not is_busy or steps != self._steps:
            self._steps, self._since = steps, now
        return now - self._since

    def is_overdue(self, idle_seconds: float) -> bool:
        """Whether that is too long."""
        return idle_seconds > self.deadline_seconds


async def watch(engine: Engine, deadline_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
    """Fail the engine when it hangs, and return then; until then it runs until cancelled."""
    watchdog = Watchdog(deadline_seconds)
    while engine.failure is None:
        await asyncio.sleep(min(deadline_seconds / _LOOKS, _LONGEST_SLEEP_SECONDS))
        waiting = engine.in_flight_count
        is_busy = waiting > 0 or engine.step_began_seconds is not None
        idle_seconds = watchdog.idle_seconds(engine.counters.steps, is_busy, clock())
        if watchdog.is_overdue(idle_seconds):
            engine.fail(
                f"no step was finished for {idle_seconds:.1f} s while {waiting} requests wait: the engine hangs "
                f"(--step-deadline-seconds {deadline_seconds:g})"
            )
