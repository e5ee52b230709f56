"""What goes wrong, chosen by the seed: nodes, pods, requests, watches, clocks, and the operator's own life."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from m3_operator.resources import WATCHED_KINDS
from m3_simulation.api_server import ApiServer, identity_of
from m3_simulation.controllers import NodeController, RouterRunner, Scheduler, evict
from m3_simulation.fleet import Fleet
from m3_simulation.history import History
from m3_simulation.operator_process import OperatorProcess, living
from m3_simulation.rules import Rules
from m3_simulation.virtual_time import Clock
from m3_simulation.wire import Weather

_FAILURES = ("409", "410", "429", "500", "before", "after", "late")


@dataclass
class Faults:
    """Makes something go wrong, again and again, until told to stop."""

    server: ApiServer
    clock: Clock
    random: Random
    history: History
    fleet: Fleet
    nodes: NodeController
    scheduler: Scheduler
    routers: RouterRunner
    rules: Rules
    weather: Weather
    processes: list[OperatorProcess]
    start_process: Callable[[], OperatorProcess]
    every_seconds: float = 45.0
    is_active: bool = True

    def start(self) -> None:
        """From now on."""
        self.clock.after(self.random.expovariate(1 / self.every_seconds), self._act)

    def stop(self) -> None:
        """Nothing new goes wrong, and what was wrong is mended."""
        self.is_active = False
        self._clear_up()
        for node in self.fleet.nodes.values():
            self.nodes.restore(node)
            self._uncordon(node.name)
        self.scheduler.retry()
        self.routers.broken.clear()
        for found in self.server.of_kind("Deployment"):
            self.routers.sync(identity_of(found))

    def _act(self) -> None:
        if not self.is_active:
            return
        faults: tuple[tuple[int, str, Callable[[], bool]], ...] = (
            (2, "node lost", self._lose_node),
            (2, "node cut off", self._cut_off_node),
            (4, "pod crashed", self._crash),
            (2, "pod killed", self._kill_pod),
            (2, "node drained", self._drain_node),
            (1, "routers down", self._break_routers),
            (5, "API failing", self._fail_requests),
            (2, "API slow", self._slow_down),
            (3, "watch broken", self._break_watch),
            (3, "watch events lost", self._lose_events),
            (3, "watch late", self._delay_events),
            (6, "operator killed", self._kill_operator),
            (1, "two operators", self._two_operators),
            (2, "clock jumped", self._jump),
        )
        _, name, do = self.random.choices(faults, [weight for weight, _, _ in faults])[0]
        if do():
            self.history.faults[name] += 1
        self.clock.after(self.random.expovariate(1 / self.every_seconds), self._act)

    def _say(self, what: str) -> None:
        self.history.add(self.clock.seconds, "fault", what)

    def _lose_node(self) -> bool:
        return self._disconnect("is lost", self.random.choice((20.0, 100.0, 600.0)), is_running=False)

    def _cut_off_node(self) -> bool:
        """Nobody reaches it, and what it runs goes on: for about as long, too, as operators wait for a node."""
        return self._disconnect("is cut off", self.random.choice((20.0, 98.0, 200.0, 600.0)), is_running=True)

    def _disconnect(self, how: str, seconds: float, *, is_running: bool) -> bool:
        up = [node for node in self.fleet.nodes.values() if node.is_connected]
        if len(up) < 2:
            return False
        node = self.random.choice(up)
        self._say(f"{node.name} {how} for {seconds:.0f} s")
        self.nodes.lose(node, seconds, is_running=is_running)
        return True

    def _crash(self) -> bool:
        running = [worker for worker in self.fleet.workers.values() if worker.is_up and worker.node.is_connected]
        if not running:
            return False
        worker = self.random.choice(running)
        self._say(f"{worker.identity[2]} crashes")
        self.fleet.crash(worker)
        return True

    def _kill_pod(self) -> bool:
        pods = self.server.of_kind("Pod")
        if not pods:
            return False
        pod = self.random.choice(pods)
        self.server.delete(identity_of(pod), "fault", preconditions={"uid": pod["metadata"]["uid"]}, grace=0)
        return True

    def _drain_node(self) -> bool:
        node = self.random.choice(list(self.fleet.nodes.values()))
        self._say(f"{node.name} is drained")
        node.is_cordoned = True
        self.fleet.publish(node)
        for pod in self.server.of_kind("Pod"):
            if pod["spec"].get("nodeName") == node.name:
                evict(self.server, pod, "drain")
        self.clock.after(self.random.choice((60.0, 400.0)), self._uncordon, node.name)
        return True

    def _uncordon(self, name: str) -> None:
        node = self.fleet.nodes[name]
        node.is_cordoned = False
        self.fleet.publish(node)
        self.scheduler.retry()

    def _break_routers(self) -> bool:
        found = self.server.of_kind("Deployment")
        if not found:
            return False
        identity = identity_of(self.random.choice(found))
        self._say(f"the routers of {identity[2]} do not answer")
        self.routers.broken.add(identity)
        self.routers.sync(identity)
        self.clock.after(self.random.uniform(5.0, 120.0), self._mend_routers, identity)
        return True

    def _mend_routers(self, identity: tuple[str, str, str]) -> None:
        self.routers.broken.discard(identity)
        self.routers.sync(identity)

    def _fail_requests(self) -> bool:
        count = self.random.randint(1, len(_FAILURES))
        self.weather.failures = tuple(self.random.sample(_FAILURES, count))
        self.weather.failing_share = self.random.choice((0.1, 0.3, 0.9))
        self._say(f"{self.weather.failing_share:.0%} of requests meet one of {', '.join(self.weather.failures)}")
        self.clock.after(self.random.uniform(5.0, 90.0), self._clear_up)
        return True

    def _slow_down(self) -> bool:
        self.weather.slowest_seconds = self.random.choice((1.0, 5.0, 20.0))
        self._say(f"requests take up to {self.weather.slowest_seconds:.0f} s, twice")
        self.clock.after(self.random.uniform(5.0, 90.0), self._clear_up)
        return True

    def _clear_up(self) -> None:
        self.weather.failing_share, self.weather.slowest_seconds = 0.0, 0.04
        for process in self.processes:
            process.lost_share, process.delay_seconds = 0.0, process.usual_delay_seconds
            process.skew_seconds = 0.0 if not self.is_active else process.skew_seconds

    def _break_watch(self) -> bool:
        for process in living(self.processes):
            for kind in self.random.sample(WATCHED_KINDS, 3):
                process.break_watch(kind, self.random.uniform(1.0, 60.0))
                self._say(f"{process.name}: the watch of {kind} is broken")
        return True

    def _lose_events(self) -> bool:
        for process in living(self.processes):
            process.lost_share = self.random.choice((0.1, 0.5, 1.0))
            self._say(f"{process.name} is not told of {process.lost_share:.0%} of what happens")
        self.clock.after(self.random.uniform(5.0, 60.0), self._clear_up)
        return True

    def _delay_events(self) -> bool:
        for process in living(self.processes):
            process.delay_seconds = self.random.choice((2.0, 10.0, 30.0))
            self._say(f"{process.name} is told up to {process.delay_seconds:.0f} s late")
        self.clock.after(self.random.uniform(5.0, 90.0), self._clear_up)
        return True

    def _kill_operator(self) -> bool:
        for process in living(self.processes):
            process.dies_after_writes = self.random.randint(1, 6)
            self._say(f"{process.name} will die after {process.dies_after_writes} writes")
        return True

    def _two_operators(self) -> bool:
        first = living(self.processes)
        if len(first) != 1:
            return False
        seconds = self.random.uniform(2.0, 15.0)
        self._say(f"{first[0].name} has lost its lease, and notices in {seconds:.0f} s")
        self.rules.several_until = self.clock.seconds + seconds + 120.0
        self.start_process()
        self.clock.after(seconds, first[0].kill)
        return True

    def _jump(self) -> bool:
        for process in living(self.processes):
            process.skew_seconds += self.random.choice((-2.0, -0.5, 5.0, 30.0))
            process.skew_seconds = min(max(process.skew_seconds, -10.0), 45.0)
            self._say(f"{process.name}: its clock is {process.skew_seconds:+.1f} s wrong")
        return True
