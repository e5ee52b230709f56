"""Processes that are started, restarted and stopped: real ones, of a few lines of Python each."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from m3_operator.local import launcher
from m3_operator.local.ports import Ports
from m3_operator.local.processes import Kind, Process, staging
from m3_operator.local.supervisor import StartError, State, Status, Supervisor, how_it_ended, pause_seconds

SERVER = """
import http.server, pathlib, signal, sys
port, marker = int(sys.argv[1]), pathlib.Path(sys.argv[2])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
def finish(*_):
    with marker.open("a") as file: file.write(sys.argv[3] + chr(10))
    sys.exit(0)
signal.signal(signal.SIGTERM, finish if sys.argv[4] == "polite" else signal.SIG_IGN)
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def server(name: str, kind: Kind, port: int, marker: Path, *, polite: bool = True, after: str | None = None) -> Process:
    return Process(
        name=name,
        kind=kind,
        argv=(sys.executable, "-c", SERVER, str(port), str(marker), name, "polite" if polite else "stubborn"),
        env={},
        ready_url=f"http://127.0.0.1:{port}/health",
        depends_on=(after,) if after else (),
        stop_seconds=5,
    )


def job(name: str, creates: Path, code: str) -> Process:
    argv = (sys.executable, "-c", code, str(staging(creates)))
    return Process(name=name, kind=Kind.CHECKPOINT, argv=argv, env={}, creates=creates)


class Seen:
    """Every status, and a way to wait for one."""

    def __init__(self) -> None:
        self.statuses: list[Status] = []
        self._changed = asyncio.Event()

    def __call__(self, status: Status) -> None:
        self.statuses.append(status)
        self._changed.set()

    async def until(self, holds: Callable[[Status], bool]) -> Status:
        async with asyncio.timeout(30):
            while True:
                for status in self.statuses:
                    if holds(status):
                        return status
                self._changed.clear()
                await self._changed.wait()

    def order(self) -> list[tuple[str, State]]:
        return [(status.name, status.state) for status in self.statuses]


@pytest.fixture
async def seen() -> Seen:
    return Seen()


def command_lines() -> str:
    return subprocess.run(["ps", "-ww", "-eo", "args="], capture_output=True, text=True, check=True).stdout


def pid_of(supervisor: Supervisor, name: str) -> int:
    running = supervisor._children[name].running
    assert running is not None
    return running.pid


async def test_a_worker_waits_for_its_checkpoint_and_routers_stop_before_workers(tmp_path: Path, seen: Seen) -> None:
    marker, model = tmp_path / "stopped", tmp_path / "model"
    with Ports() as ports:
        worker_port, router_port = ports.free(2)
        processes = [
            job("checkpoint", model, "import sys, os; os.mkdir(sys.argv[1])"),
            server("worker", Kind.WORKER, worker_port, marker, after="checkpoint"),
            server("router", Kind.ROUTER, router_port, marker),
        ]
        async with Supervisor(processes, logs=tmp_path, notify=seen) as supervisor:
            await supervisor.all_ready()
            assert model.is_dir()
            assert not staging(model).exists()

    order = seen.order()
    assert order.index(("checkpoint", State.DONE)) < order.index(("worker", State.STARTING))
    assert marker.read_text().split() == ["router", "worker"]
    assert order[-1] == ("worker", State.STOPPED)


async def test_a_checkpoint_that_is_there_is_not_written_again(tmp_path: Path, seen: Seen) -> None:
    model = tmp_path / "model"
    model.mkdir()

    async with Supervisor([job("c", model, "raise SystemExit(1)")], logs=tmp_path, notify=seen) as supervisor:
        await supervisor.all_ready()

    assert seen.order() == [("c", State.DONE)]


async def test_a_process_that_dies_is_started_again_after_a_pause_and_says_so(tmp_path: Path, seen: Seen) -> None:
    with Ports() as ports:
        (port,) = ports.free(1)
        process = server("worker", Kind.WORKER, port, tmp_path / "stopped")
        async with Supervisor([process], logs=tmp_path, notify=seen) as supervisor:
            await supervisor.all_ready()
            first = pid_of(supervisor, "worker")
            os.kill(first, signal.SIGKILL)
            died = await seen.until(lambda status: status.state is State.RESTARTING)
            again = await seen.until(lambda status: status.state is State.READY and status.restarts == 1)

            assert died.detail == "it was killed by SIGKILL; starting again in 0.5 s"
            assert again.since - died.since >= 0.5
            assert pid_of(supervisor, "worker") != first


async def test_a_process_that_never_gets_ready_ends_the_start_with_its_last_lines(tmp_path: Path, seen: Seen) -> None:
    dying = "for i in range(30): print('line', i)\nraise SystemExit('no weights here')"
    process = Process(
        name="worker", kind=Kind.WORKER, argv=(sys.executable, "-c", dying), env={}, ready_url="http://127.0.0.1:1/"
    )

    async with Supervisor([process], logs=tmp_path, notify=seen) as supervisor:
        with pytest.raises(StartError) as failed:
            await supervisor.all_ready()

    assert str(failed.value) == f"worker did not start: it exited with status 1; its log is {tmp_path / 'worker.log'}"
    assert len(failed.value.tail) == 20
    assert failed.value.tail[-1] == "no weights here"
    assert seen.statuses[-1].state is State.FAILED


async def test_a_failed_job_leaves_no_checkpoint_and_ends_the_start(tmp_path: Path, seen: Seen) -> None:
    model = tmp_path / "model"
    half = "import sys, os; os.mkdir(sys.argv[1]); sys.exit('disk full')"

    async with Supervisor([job("c", model, half)], logs=tmp_path, notify=seen) as supervisor:
        with pytest.raises(StartError, match="c did not start"):
            await supervisor.all_ready()

    assert not model.exists()


async def test_a_process_that_takes_too_long_to_get_ready_is_given_up(tmp_path: Path, seen: Seen) -> None:
    process = Process(
        name="worker",
        kind=Kind.WORKER,
        argv=(sys.executable, "-c", "import signal; signal.pause()"),
        env={},
        ready_url="http://127.0.0.1:1/",
        start_seconds=0.2,
    )

    async with Supervisor([process], logs=tmp_path, notify=seen) as supervisor:
        with pytest.raises(StartError, match="worker did not start: it was killed by SIGKILL"):
            await supervisor.all_ready()

    assert "not ready after 0.2 s, given up" in [status.detail for status in seen.statuses]


async def test_kill_ends_what_ignores_a_polite_request(tmp_path: Path, seen: Seen) -> None:
    with Ports() as ports:
        (port,) = ports.free(1)
        process = server("worker", Kind.WORKER, port, tmp_path / "stopped", polite=False)
        async with Supervisor([process], logs=tmp_path, notify=seen) as supervisor:
            await supervisor.all_ready()
            pid = pid_of(supervisor, "worker")
            stopping = asyncio.create_task(supervisor.stop())
            await seen.until(lambda status: status.state is State.STOPPING)
            supervisor.kill()
            async with asyncio.timeout(5):
                await stopping

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_stopping_during_the_start_leaves_nothing_behind(tmp_path: Path, seen: Seen) -> None:
    sleeping = Process(
        name="worker",
        kind=Kind.WORKER,
        argv=(sys.executable, "-c", "import signal; signal.pause()"),
        env={},
        ready_url="http://127.0.0.1:1/",
    )
    async with Supervisor([sleeping], logs=tmp_path, notify=seen) as supervisor:
        await seen.until(lambda status: status.state is State.STARTING)
        pid = pid_of(supervisor, "worker")

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("turns", range(8))
async def test_stopping_in_any_turn_of_the_event_loop_leaves_nothing_behind(
    turns: int, tmp_path: Path, seen: Seen
) -> None:
    code = f"import signal; signal.pause()  # {tmp_path}"
    process = Process(name="worker", kind=Kind.WORKER, argv=(sys.executable, "-c", code), env={}, ready_url="http://x/")

    async with Supervisor([process], logs=tmp_path, notify=seen):
        for _ in range(turns):
            await asyncio.sleep(0)

    assert f"# {tmp_path}" not in command_lines()


def test_pauses_double_up_to_half_a_minute() -> None:
    assert [pause_seconds(deaths) for deaths in (1, 2, 3, 7, 10_000)] == [0.5, 1, 2, 30, 30]


def test_how_a_process_ended_is_said_in_words() -> None:
    assert how_it_ended(3) == "exited with status 3"
    assert how_it_ended(-9) == "was killed by SIGKILL"
    assert how_it_ended(-40) == "was killed by signal 40"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to the life of its parent")
def test_a_launched_process_dies_with_its_parent() -> None:
    parent = f"""
import os, subprocess, sys
child = [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"]
subprocess.Popen([sys.executable, "-I", "-S", {launcher.__file__!r}, str(os.getpid()), *child], start_new_session=True)
import signal; signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.kill()
        # The child holds the other end of this pipe: it ends only when the child does.
        assert process.stdout.read() == b""


def test_the_launcher_refuses_to_outlive_a_parent_that_is_gone_already() -> None:
    result = subprocess.run(
        [sys.executable, "-I", "-S", launcher.__file__, "1", "true"], capture_output=True, text=True, check=False
    )

    assert result.returncode == 1
    assert result.stderr == "the process that started this one is gone\n"


def test_a_command_that_is_not_there_is_named() -> None:
    result = subprocess.run(
        [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), "/no/such"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.stderr == "cannot run /no/such: No such file or directory\n"
