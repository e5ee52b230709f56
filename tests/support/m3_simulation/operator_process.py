"""One process of the operator: the real Store, WorkQueue, Feed, Cluster, Reconciler and tasks, wired to the model.

Owns what a process owns: its memory, its clock (which may be wrong), its watches (which may be late, or break) and its
end, which may come between any two of its writes.
"""

import asyncio
import contextvars
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Any, cast

from kubernetes.client import ApiClient

from m3_operator import log
from m3_operator.chance import Chance
from m3_operator.cluster import Cluster
from m3_operator.decide.installation import Installation
from m3_operator.errors import OperatorError
from m3_operator.handlers import Feed
from m3_operator.health import Watches
from m3_operator.observed import Key, owner_uid, uid
from m3_operator.reconcile.cycle import Reconciler
from m3_operator.reconcile.writer import Writer
from m3_operator.resources import CHILD_SELECTORS, OPTIONAL_KINDS
from m3_operator.startup import first_look
from m3_operator.store import Store
from m3_operator.tasks import look_again, work
from m3_operator.workqueue import WorkQueue
from m3_simulation.api_server import ApiServer, Manifest, matches
from m3_simulation.history import BrokenRuleError, History
from m3_simulation.rules import DEFECT, Cycle, Rules
from m3_simulation.virtual_time import Clock
from m3_simulation.wire import Client, Network, Request, Weather

CYCLES_AT_ONCE = 4
WORKER_IMAGE, ROUTER_IMAGE = "worker.test/m3:1", "router.test/m3:1"
_current: contextvars.ContextVar[Cycle | None] = contextvars.ContextVar("cycle", default=None)


@dataclass(frozen=True)
class Wiring:
    """How a process is put together; a planted bug replaces a part."""

    store: Callable[[], Store] = Store
    feed: Callable[[Store, WorkQueue, Watches], Feed] = Feed
    tamper: Callable[[Request], Request] = lambda request: request
    looks_again: bool = True


class _WatchedReconciler(Reconciler):
    """Says which cycle makes a request, and that a cycle had a defect."""

    def __init__(self, process: "OperatorProcess", *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._process = process

    async def cycle(self, key: Key) -> float | None:
        cycle = self._process.cycle_of(key)
        token = _current.set(cycle)
        try:
            return await super().cycle(key)
        except BrokenRuleError as broken:
            self._process.rules.report(broken)
            raise
        except Exception as defect:
            where = traceback.extract_tb(defect.__traceback__)[-1]
            told = f"{key}: {defect!r} in {where.filename.rpartition('/')[2]}:{where.lineno}"
            self._process.rules.report(BrokenRuleError(DEFECT, told))
            raise
        finally:
            _current.reset(token)


class _Witness:
    """A writer that shows each status to the rules at the moment at which it was built."""

    def __init__(self, writer: Writer, judge: Callable[[Manifest, dict[str, Any]], None]) -> None:
        self._writer, self._judge = writer, judge

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    async def write_status(self, owner: Manifest, status: dict[str, Any]) -> dict[str, Any]:
        self._judge(owner, status)
        return await self._writer.write_status(owner, status)


class OperatorProcess:
    """One life of the operator."""

    def __init__(
        self,
        name: str,
        *,
        server: ApiServer,
        clock: Clock,
        random: Random,
        history: History,
        rules: Rules,
        weather: Weather,
        wiring: Wiring,
        absent_kinds: frozenset[str],
        usual_delay_seconds: float,
    ) -> None:
        self.name = name
        self.rules = rules
        self.skew_seconds = 0.0  # by which its clock is wrong
        self.is_alive = True
        self.usual_delay_seconds = usual_delay_seconds  # of watch events, at most
        self.delay_seconds = usual_delay_seconds  # the same now
        self.lost_share = 0.0  # of watch events
        self.broken_until: dict[str, float] = {}  # by kind: when its watch is back
        self.dies_after_writes: int | None = None
        self.told: dict[str, tuple[int, float]] = {}  # by uid: newest version it was shown, and when
        self._server, self._clock, self._random, self._history = server, clock, random, history
        self._wiring = wiring
        self._watched: tuple[str, ...] = ()
        self._delivered: dict[str, float] = {}  # by kind: when the last event of its stream arrives
        self._tasks: list[asyncio.Task[Any]] = []
        self.client = Client(
            server,
            clock,
            random,
            history,
            weather,
            name,
            before_write=self._before_write,
            after_write=self._after_write,
            told=lambda manifest: self._was_told(manifest, weather.slowest_seconds),  # the answer is still on its way
            on_late=rules.on_late,
            tamper=wiring.tamper,
            absent_kinds=absent_kinds,
        )
        self.store, self.queue = wiring.store(), WorkQueue()
        self._watches = Watches()
        self._feed = wiring.feed(self.store, self.queue, self._watches)
        network = Network(clock, random, weather, lambda: self.is_alive)
        self._cluster = Cluster(cast(ApiClient, self.client), network)

    async def run(self) -> None:
        """Start up, as main.run does, and work until killed. A start that fails ends the process."""
        try:
            kinds = await first_look(self._cluster, self.store, None)
        except OperatorError as error:
            self._history.add(self._clock.seconds, self.name, f"cannot start: {error}")
            self.kill()
            return
        installation = Installation(
            worker_image=WORKER_IMAGE,
            router_image=ROUTER_IMAGE,
            optional_kinds=frozenset(kinds).intersection(OPTIONAL_KINDS),
        )
        chance = Chance(self._random.uniform, lambda size: f"{self._random.getrandbits(8 * size):x}")
        writer = cast(Writer, _Witness(self._cluster, partial(self.rules.judge_status, self.store)))
        reconciler = _WatchedReconciler(
            self, writer, self.store, installation, clock=self._now, wake=self.queue.wake_all, chance=chance
        )
        self.queue.wake_all(self.store.owners())
        self._watched = kinds
        for kind in kinds:
            self._watch(kind)
        self._server.watchers.append(self._on_change)
        self._tasks = [asyncio.create_task(work(self.queue, reconciler, log.Cycles())) for _ in range(CYCLES_AT_ONCE)]
        if self._wiring.looks_again:
            again = look_again(
                self._cluster, self.store, self.queue, kinds, namespace=None, chance=chance, watches=self._watches
            )
            self._tasks.append(asyncio.create_task(again))
        for task in self._tasks:
            task.add_done_callback(self.judge_end)
        self._history.add(self._clock.seconds, self.name, f"serves: {self.store!r}")

    def kill(self) -> None:
        """End at once: what it was waiting for is dropped."""
        if not self.is_alive:
            return
        self.is_alive = False
        self._history.add(self._clock.seconds, self.name, "is gone")
        if self._on_change in self._server.watchers:
            self._server.watchers.remove(self._on_change)
        for task in self._tasks:
            task.cancel()

    def judge_end(self, task: "asyncio.Task[Any]") -> None:
        """A task that fails ends the process, as it does in the task group of main.run."""
        if not task.cancelled() and task.exception() is not None:
            told = f"{self.name}: {task.exception()!r} ends the process"
            self.rules.report(BrokenRuleError(DEFECT, told))

    def break_watch(self, kind: str, seconds: float) -> None:
        """Nothing of this kind is told for a while; then the watch starts anew with what there is."""
        self.broken_until[kind] = self._clock.seconds + seconds
        self._clock.after(seconds, self._watch, kind)

    def look_at_everything(self) -> None:
        """Give every object a cycle, though nothing has happened."""
        self.queue.wake_all(self.store.owners())

    def cycle_of(self, key: Key) -> Cycle:
        """What a cycle that begins now sees."""
        manifest = self.store.get(key)
        seen: set[str] = set()
        if manifest is not None:
            seen.add(uid(manifest))
            if key.kind == "M3Deployment" and (found := self.store.deployment_snapshot(key)) is not None:
                seen |= {pod.uid for pod in found.pods} | {uid(child) for child in found.children.values()}
                if found.namesake is not None and owner_uid(found.namesake) == uid(manifest):
                    seen.add(uid(found.namesake))
            elif (routed := self.store.router_snapshot(key)) is not None:
                seen |= {uid(child) for child in routed.children.values()}
        now = self._clock.seconds
        known = {found: version for found, (version, at) in self.told.items() if at < now}
        return Cycle(self.name, key, manifest, frozenset(seen), now, self.store, self.told, known, self.skew_seconds)

    def _now(self) -> datetime:
        return self._clock.now + timedelta(seconds=self.skew_seconds)

    def _before_write(self, request: Request) -> None:
        cycle = _current.get()
        if cycle is not None:
            self.rules.before_write(cycle, request)

    def _after_write(self, request: Request, before: Manifest | None, after: Manifest | None) -> None:
        cycle = _current.get()
        if cycle is not None:
            self.rules.after_write(cycle, request, before, after, self.told)
        if self.dies_after_writes is not None:
            self.dies_after_writes -= 1
            if self.dies_after_writes <= 0:
                self._clock.after(0.0, self.kill)

    def _was_told(self, manifest: Manifest, seconds_from_now: float = 0.0) -> None:
        version, key = int(manifest["metadata"]["resourceVersion"]), manifest["metadata"]["uid"]
        if version > self.told.get(key, (0, 0.0))[0]:
            self.told[key] = version, self._clock.seconds + seconds_from_now

    def _watch(self, kind: str) -> None:
        """A watch begins by telling what there is."""
        if not self.is_alive:
            return
        for manifest in self._server.of_kind(kind):
            if matches(manifest, CHILD_SELECTORS.get(kind, "")):
                self._send(kind, {"type": None, "object": manifest})

    def _on_change(self, event: str, kind: str, new: Manifest, old: Manifest | None) -> None:
        if kind not in self._watched:
            return
        selector = CHILD_SELECTORS.get(kind, "")
        is_shown, was_shown = matches(new, selector), old is not None and matches(old, selector)
        if is_shown or was_shown:
            left = was_shown and not is_shown
            self._send(kind, {"type": "DELETED" if left else event, "object": new})

    def _send(self, kind: str, event: dict[str, Any]) -> None:
        if self._clock.seconds < self.broken_until.get(kind, 0.0):
            return
        if self.lost_share and self._random.random() < self.lost_share:
            self._history.faults["watch event lost"] += 1
            identity = f"{event['type']} {kind} {event['object']['metadata']['name']}"
            self._history.add(self._clock.seconds, "fault", f"{self.name} is not told: {identity}")
            return
        arrives = max(
            self._delivered.get(kind, 0.0), self._clock.seconds + self._random.uniform(0.001, self.delay_seconds)
        )
        self._delivered[kind] = arrives
        self._clock.after(arrives - self._clock.seconds, self._deliver, kind, event)

    def _deliver(self, kind: str, event: dict[str, Any]) -> None:
        if self.is_alive and self._clock.seconds >= self.broken_until.get(kind, 0.0):
            self._was_told(event["object"])
            self._feed.on_event(kind, event)


def living(processes: Iterable[OperatorProcess]) -> list[OperatorProcess]:
    """Those that run."""
    return [process for process in processes if process.is_alive]
