"""The processes of a local plan: started in order, restarted when they die, stopped together.

Owns every child process of `m3 up` and the state of each; `processes` decides what runs, `console` shows it. A process
that dies before it was ready even once ends the start (its configuration is wrong, trying again would not help); one
that dies later is started again, after a pause that doubles while it keeps dying. Children are in sessions of their
own, so that a Ctrl-C in the terminal reaches `m3 up` alone and the order of stopping is ours: routers drain while
their workers still answer. Each child is tied to our life by `launcher`.

Invariant: when `stop` has returned, every process that was ever started has been waited for.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from m3_operator.errors import OperatorError
from m3_operator.local import launcher
from m3_operator.local.processes import Kind, Process, staging

if TYPE_CHECKING:
    import httpx

STOP_ORDER = (Kind.CHECKPOINT, Kind.ROUTER, Kind.WORKER)
POLL_SECONDS = 0.1
PROBE_TIMEOUT_SECONDS = 2.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0
KILL_GRACE_SECONDS = 5.0
TAIL_LINES = 20
TAIL_BYTES = 16_384


class State(StrEnum):
    """What a process is doing."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    DONE = "done"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a person sees of one process. `since` is a reading of the monotonic clock, in seconds."""

    name: str
    kind: Kind
    state: State = State.WAITING
    since: float
    started_at: float | None = None
    restarts: int = 0
    detail: str = ""


class StartError(OperatorError):
    """A process that ended before it was ready: its name, how it ended, and the last lines that it wrote."""

    def __init__(self, name: str, ended: str, log: Path, tail: list[str]) -> None:
        super().__init__(f"{name} did not start: it {ended}; its log is {log}")
        self.tail = tail


@dataclass
class _Child:
    """One process of the plan. Changed by its supervisor alone; `ready` is set once, and stays set over restarts."""

    process: Process
    status: Status
    log: Path
    running: asyncio.subprocess.Process | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)


def pause_seconds(deaths_in_a_row: int) -> float:
    """How long to wait before a process is started again: 0.5 s, doubling, at most 30 s."""
    doublings = min(deaths_in_a_row - 1, 16)  # bounded: a process may die for weeks
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0**doublings)


def how_it_ended(code: int) -> str:
    """A process's return code in words; a negative one is the signal that killed it."""
    if code >= 0:
        return f"exited with status {code}"
    names = {int(number): number.name for number in signal.Signals}
    return f"was killed by {names.get(-code, f'signal {-code}')}"


class Supervisor:
    """Runs the processes of a plan; an async context manager that stops them all at its end."""

    def __init__(self, processes: Iterable[Process], *, logs: Path, notify: Callable[[Status], None]) -> None:
        """`notify` is called with the new status of a process at every change, from the event loop's thread."""
        now = time.monotonic()
        self._children = {
            process.name: _Child(
                process, Status(name=process.name, kind=process.kind, since=now), logs / f"{process.name}.log"
            )
            for process in processes
        }
        self._notify = notify
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: asyncio.Future[NoReturn]
        self._client: httpx.AsyncClient

    async def __aenter__(self) -> "Supervisor":
        import httpx

        # Loopback only: a proxy from the environment has no business here.
        self._client = httpx.AsyncClient(trust_env=False, timeout=PROBE_TIMEOUT_SECONDS)
        self._failure = asyncio.get_running_loop().create_future()
        self._tasks = [asyncio.create_task(self._keep(child)) for child in self._children.values()]
        for task in self._tasks:
            task.add_done_callback(self._report)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        await self._client.aclose()
        if self._failure.done() and not self._failure.cancelled():
            self._failure.exception()  # whoever waited has had it

    @property
    def statuses(self) -> list[Status]:
        """The state of every process, in the order of the plan."""
        return [child.status for child in self._children.values()]

    async def all_ready(self) -> None:
        """Wait until every process has been ready. Raises StartError when one ends before."""
        readiness = asyncio.create_task(self._every_child_ready())
        try:
            both: set[asyncio.Future[Any]] = {readiness, self._failure}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done():
                await self._failure
        finally:
            readiness.cancel()

    async def failure(self) -> NoReturn:
        """Wait for what must not happen while processes are kept; raises it."""
        await asyncio.shield(self._failure)

    async def stop(self) -> None:
        """Stop everything, kind by kind, each with the time that its plan allows; then by force. Idempotent."""
        self._stopping = True
        for kind in STOP_ORDER:
            await asyncio.gather(*(self._end(child) for child in self._children.values() if child.process.kind is kind))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # One that was being started while its kind was stopped.
        await asyncio.gather(*(self._end(child) for child in self._children.values()))

    def kill(self) -> None:
        """Stop waiting for anyone: every process gets SIGKILL now. `stop` still has to be awaited."""
        self._stopping = True
        for child in self._children.values():
            _signal_group(child.running, signal.SIGKILL)

    async def _every_child_ready(self) -> None:
        for child in self._children.values():
            await child.ready.wait()

    async def _keep(self, child: _Child) -> None:
        process = child.process
        for dependency in process.depends_on:
            await self._children[dependency].ready.wait()
        if process.creates is not None:
            await self._create(child, process.creates)
            return
        deaths = 0
        while not self._stopping:
            begun = time.monotonic()
            ended = await self._run_once(child)
            if self._stopping:
                return
            self._refuse_a_failed_start(child, ended)
            deaths = 1 if time.monotonic() - begun > STEADY_SECONDS else deaths + 1
            pause = pause_seconds(deaths)
            self._set(child, State.RESTARTING, f"it {ended}; starting again in {pause:g} s")
            await asyncio.sleep(pause)
            child.status = replace(child.status, restarts=child.status.restarts + 1)

    async def _create(self, child: _Child, directory: Path) -> None:
        """Run a process that writes a directory and ends; a directory that is there already is complete."""
        if not _prepared(directory):
            ended = await self._run_once(child)
            if self._stopping:
                return
            if child.running is None or child.running.returncode != 0:
                self._refuse_a_failed_start(child, ended)
            staging(directory).rename(directory)
        self._set(child, State.DONE)
        child.ready.set()

    async def _run_once(self, child: _Child) -> str:
        """Start the process and wait for its end, telling when it is ready on the way. Returns how it ended."""
        process = child.process
        with child.log.open("ab") as log:
            child.running = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", launcher.__file__, str(os.getpid())),
                *process.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **process.env},
                start_new_session=True,
            )
        child.status = replace(child.status, started_at=time.monotonic())
        self._set(child, State.STARTING)
        probing = asyncio.create_task(self._tell_when_ready(child))
        try:
            code = await child.running.wait()
        finally:
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)
        return how_it_ended(code)

    async def _tell_when_ready(self, child: _Child) -> None:
        import httpx

        url, deadline = child.process.ready_url, time.monotonic() + child.process.start_seconds
        while url is not None:
            if time.monotonic() > deadline:
                self._set(child, State.STARTING, f"not ready after {child.process.start_seconds:g} s, given up")
                _signal_group(child.running, signal.SIGKILL)
                return
            with contextlib.suppress(httpx.HTTPError):
                if (await self._client.get(url)).status_code == 200:
                    if not self._stopping:
                        self._set(child, State.READY)
                        child.ready.set()
                    return
            await asyncio.sleep(POLL_SECONDS)

    async def _end(self, child: _Child) -> None:
        """SIGTERM, the process's own time to finish, SIGKILL."""
        running = child.running
        if running is None or running.returncode is not None:
            return
        self._set(child, State.STOPPING)
        _signal_group(running, signal.SIGTERM)
        try:
            await asyncio.wait_for(running.wait(), child.process.stop_seconds + KILL_GRACE_SECONDS)
        except TimeoutError:
            _signal_group(running, signal.SIGKILL)
            await running.wait()
        self._set(child, State.STOPPED)

    def _refuse_a_failed_start(self, child: _Child, ended: str) -> None:
        if child.ready.is_set():
            return
        self._set(child, State.FAILED, f"it {ended}")
        raise StartError(child.process.name, ended, child.log, tail_of(child.log))

    def _set(self, child: _Child, state: State, detail: str = "") -> None:
        child.status = replace(child.status, state=state, since=time.monotonic(), detail=detail)
        self._notify(child.status)

    def _report(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self._failure.done():
            self._failure.set_exception(error)


def tail_of(log: Path) -> list[str]:
    """The last lines of a log."""
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()[-TAIL_LINES:]


def _prepared(directory: Path) -> bool:
    """Whether a job's directory is there; if not, the place where the job writes it is made empty."""
    if directory.exists():
        return True
    shutil.rmtree(staging(directory), ignore_errors=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    return False


def _signal_group(running: asyncio.subprocess.Process | None, number: int) -> None:
    if running is not None and running.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, number)
