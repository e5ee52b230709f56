"""One seed: a world in trouble for an hour, then left in peace, then judged."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from m3_operator.resources import OPTIONAL_KINDS
from m3_simulation.api_server import ApiServer
from m3_simulation.controllers import GarbageCollector, NodeController, RouterRunner, Scheduler
from m3_simulation.ending import QUIET, judge_ending
from m3_simulation.faults import Faults
from m3_simulation.fleet import Fleet, Node
from m3_simulation.history import BrokenRuleError, History
from m3_simulation.operator_process import OperatorProcess, Wiring, living
from m3_simulation.rules import DEFECT, Rules
from m3_simulation.specs import GPUS_PER_NODE
from m3_simulation.standing import Standing
from m3_simulation.users import Traffic, Users
from m3_simulation.virtual_time import Clock, run_in_virtual_time
from m3_simulation.wire import Weather

_TROUBLE_SECONDS = 3600.0
_PEACE_SECONDS = 2700.0  # backoff of 5 min, eviction of 5 min, drains of 5 min, one after the other
_FORGETTING_SECONDS = 2000.0  # with the peace: longer than any memory (a blamed node is avoided for an hour)
_LOOKS_IN_QUIET = 3
_RESTART_SECONDS = 4.0
_TURN_SECONDS = 5.0


@dataclass(frozen=True)
class Plan:
    """How a simulation runs, beside its seed."""

    wiring: Wiring = field(default_factory=Wiring)
    trouble_seconds: float = _TROUBLE_SECONDS
    fault_every_seconds: float = 45.0
    change_every_seconds: float = 60.0
    watch_delay_seconds: float = 0.1  # of an event, at most, while nothing is wrong with the watch


@dataclass(frozen=True)
class Outcome:
    """What one seed showed."""

    seed: int
    steps: int
    requests: int
    faults: Counter[str]
    checks: Counter[str]
    broken: BrokenRuleError | None
    history: History


class World:
    """Everything there is, and the operator in it."""

    def __init__(self, clock: Clock, seed: int, plan: Plan) -> None:
        self.clock, self.plan = clock, plan
        self.history = History()
        self.random = Random(seed)
        self.weather = Weather()
        self.server = ApiServer(clock, self.history, self._chance())
        standing = Standing(self.server)
        self.rules = Rules(self.server, clock, self.history, standing)
        self.fleet = Fleet(
            self.server,
            clock,
            self._chance(),
            self.history,
            self.rules.on_loss,
            self.rules.on_serving,
            self.rules.on_crash,
        )
        self.rules.fleet = self.fleet
        self._absent_kinds = OPTIONAL_KINDS - ({"Node"} if self.random.random() < 0.7 else set())
        for index in range(self.random.randint(5, 9)):
            node = Node(f"node-{index}", gpus=GPUS_PER_NODE)
            self.fleet.add(node)
        self.scheduler = Scheduler(self.server, clock, self._chance(), self.fleet)
        self.routers = RouterRunner(self.server, clock, self._chance())
        self.collector = GarbageCollector(self.server, clock, self._chance())
        nodes = NodeController(self.server, clock, self._chance(), self.fleet, self.scheduler, self.history)
        for part in (standing, self.fleet, self.scheduler, self.routers, self.collector):
            self.server.watchers.append(part.on_change)
        self.users = Users(self.server, clock, self._chance(), self.history, plan.change_every_seconds)
        self.traffic = Traffic(clock, self._chance(), self.fleet)
        self.processes: list[OperatorProcess] = []
        self._starts: list[asyncio.Task[None]] = []
        self.faults = Faults(
            self.server,
            clock,
            self._chance(),
            self.history,
            self.fleet,
            nodes,
            self.scheduler,
            self.routers,
            self.rules,
            self.weather,
            self.processes,
            self.start_process,
            plan.fault_every_seconds,
        )

    def start_process(self) -> OperatorProcess:
        """Start the operator."""
        process = OperatorProcess(
            f"operator-{len(self._starts) + 1}",
            server=self.server,
            clock=self.clock,
            random=self._chance(),
            history=self.history,
            rules=self.rules,
            weather=self.weather,
            wiring=self.plan.wiring,
            absent_kinds=self._absent_kinds,
            usual_delay_seconds=self.plan.watch_delay_seconds,
        )
        self.processes.append(process)
        start = asyncio.create_task(process.run())
        start.add_done_callback(process.judge_end)
        self._starts.append(start)
        return process

    async def run(self) -> None:
        """Trouble, peace, judgement. Raises BrokenRuleError."""
        self.start_process()
        self.users.start()
        self.traffic.start()
        self.faults.start()
        await self.pass_time(self.plan.trouble_seconds)
        self.history.add(self.clock.seconds, "simulation", "no more faults; people mend what they broke")
        self.faults.stop()
        self.users.settle()
        await self.pass_time(_PEACE_SECONDS)
        self.traffic.is_active = False
        await self.pass_time(_FORGETTING_SECONDS)
        judge_ending(self.server, self.fleet, self.rules)
        await self._stay_quiet()
        self._raise_if_broken()

    async def pass_time(self, seconds: float) -> None:
        """Let things happen; a process of the operator that ended is started again. Raises BrokenRuleError."""
        until = self.clock.seconds + seconds
        while self.clock.seconds < until:
            await asyncio.sleep(min(_TURN_SECONDS, until - self.clock.seconds))
            self._raise_if_broken()
            if not living(self.processes):
                await asyncio.sleep(self.random.uniform(0.0, 2 * _RESTART_SECONDS))
                self.start_process()
            self.processes[:] = living(self.processes)

    async def _stay_quiet(self) -> None:
        """Cycles of everything, full lists and a restart write nothing."""
        for look in range(_LOOKS_IN_QUIET):
            for process in living(self.processes):
                process.client.writes = 0
                if look == _LOOKS_IN_QUIET - 1:
                    process.kill()
                else:
                    process.look_at_everything()
            await self.pass_time(30.0)
            for process in living(self.processes):
                told = f"{process.client.writes} writes of {process.name}"
                self.rules.require(QUIET, holds=process.client.writes == 0, message=told)

    def on_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback failed: the simulation itself has a defect, or what it called."""
        self.rules.report(BrokenRuleError(DEFECT, f"{context['message']}: {context.get('exception')!r}"))

    def _raise_if_broken(self) -> None:
        if self.rules.broken is not None:
            raise self.rules.broken

    def _chance(self) -> Random:
        """A source of its own for each part, so that one more draw in one of them leaves the others as they were."""
        return Random(self.random.getrandbits(64))


class _IntoHistory(logging.Handler):
    """The operator's own log, as part of the history."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.INFO)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        self._world.history.add(self._world.clock.seconds, "log", record.getMessage()[:300])


@contextmanager
def _logged(world: World) -> Iterator[None]:
    logger, handler = logging.getLogger("m3_operator"), _IntoHistory(world)
    level, propagates = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


def simulate(seed: int, plan: Plan | None = None) -> Outcome:
    """Run one seed from its beginning to its end, or to the first rule that is broken."""

    async def main(clock: Clock) -> Outcome:
        world = World(clock, seed, plan or Plan())
        asyncio.get_running_loop().set_exception_handler(world.on_error)
        broken: BrokenRuleError | None = None
        with _logged(world):
            try:
                await world.run()
            except BrokenRuleError as error:
                broken = error
            for process in world.processes:
                process.kill()
        history = world.history
        return Outcome(seed, history.steps, world.traffic.sent, history.faults, history.checks, broken, history)

    return run_in_virtual_time(main)
