"""The run of `m3 up`, from a file to an endpoint and back to nothing.

Puts the parts together and owns only their order: read (`documents`), decide (`processes`), write (`state`), run
(`supervisor`), show (`console`), check (`check`), and stop, whatever happens in between. The first SIGINT, SIGTERM or
SIGHUP stops in order, a second one at once.
"""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from m3_operator.errors import OperatorError
from m3_operator.local import check, processes
from m3_operator.local.console import Display
from m3_operator.local.documents import Documents, parse_documents, read_documents
from m3_operator.local.machine import survey
from m3_operator.local.ports import Ports
from m3_operator.local.state import StateDirectory
from m3_operator.local.supervisor import StartError, Supervisor

EXAMPLE = "tiny.yaml"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WORKERS_POLL_SECONDS = 0.1
WORKERS_SEEN_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class UpOptions:
    """What the command line says. `file` None is the packaged example."""

    file: Path | None
    port: int
    check: bool
    state: Path


def up(options: UpOptions, display: Display) -> None:
    """Run until a signal comes, or, with `check`, until everything was checked. Raises OperatorError."""
    if options.check:
        check.require_sdk()
    served = processes.serve(_documents(options.file))
    with StateDirectory(options.state) as state, Ports() as ports:
        plan = processes.plan(served, survey(served, options.port, state, ports))
        state.write(plan.files)
        for notice in plan.notices:
            display.say(notice)
        asyncio.run(_run(plan, options, state, display))


async def _run(plan: processes.LocalPlan, options: UpOptions, state: StateDirectory, display: Display) -> None:
    supervisor = Supervisor(plan.processes, logs=state.logs, notify=display.status)
    is_done = False
    with _stop_signal(supervisor, display) as stopped:
        try:
            async with supervisor:
                with display.starting(lambda: supervisor.statuses):
                    is_up = await _before(stopped, _started(supervisor, plan))
                if is_up:
                    for endpoint in plan.endpoints:
                        display.endpoint(endpoint)
                    display.say(f"logs: {state.logs}; Ctrl-C stops everything")
                    work = _checked(plan, display) if options.check else supervisor.failure()
                    is_done = await _before(stopped, work)
        except StartError as error:
            for line in error.tail:
                display.say(f"  | {line}")
            raise
    display.say("everything has stopped")
    if options.check and not is_done:
        raise check.CheckError("stopped before everything was checked")


async def _started(supervisor: Supervisor, plan: processes.LocalPlan) -> None:
    """Every process is ready, and every router has seen all of its workers."""
    await supervisor.all_ready()
    await asyncio.gather(*(_workers_seen(endpoint) for endpoint in plan.endpoints))


async def _workers_seen(endpoint: processes.Endpoint) -> None:
    import httpx

    missing = "it does not answer"
    async with httpx.AsyncClient(trust_env=False) as client:
        try:
            async with asyncio.timeout(WORKERS_SEEN_SECONDS):
                while missing:
                    with contextlib.suppress(httpx.HTTPError):
                        workers = (await client.get(f"{endpoint.admin_url}/workers")).raise_for_status().json()
                        unready = (worker for worker in workers if worker["state"] != "ready")
                        missing = ", ".join(f"{worker['name']} ({worker['reason']})" for worker in unready)
                    await asyncio.sleep(WORKERS_POLL_SECONDS if missing else 0)
        except TimeoutError:
            raise OperatorError(
                f"the router at {endpoint.url} does not see its workers after {WORKERS_SEEN_SECONDS:g} s: {missing}"
            ) from None


async def _checked(plan: processes.LocalPlan, display: Display) -> None:
    for endpoint in plan.endpoints:
        await check.check_endpoint(endpoint, display.show)
    display.show("check passed")


async def _before(stopped: asyncio.Event, work: Awaitable[None]) -> bool:
    """Whether `work` was done before it was time to stop; otherwise it is cancelled."""
    doing, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stopped.wait())
    try:
        await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            await doing
            return True
        return False
    finally:
        for task in (doing, stopping):
            task.cancel()
        await asyncio.gather(doing, stopping, return_exceptions=True)


@contextlib.contextmanager
def _stop_signal(supervisor: Supervisor, display: Display) -> Iterator[asyncio.Event]:
    """An event that the first stop signal sets; the second kills everything that is left."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()

    def received() -> None:
        if stopped.is_set():
            display.say("stopping at once")
            supervisor.kill()
        else:
            display.say("stopping; requests in flight may finish, Ctrl-C again stops at once")
            stopped.set()

    # What our parent has us ignore (SIGHUP under nohup) stays ignored.
    numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    for number in numbers:
        loop.add_signal_handler(number, received)
    try:
        yield stopped
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _documents(file: Path | None) -> Documents:
    if file is not None:
        return read_documents(file)
    example = resources.files("m3_operator.examples") / EXAMPLE
    return parse_documents(example.read_text(encoding="utf-8"), source=EXAMPLE)
