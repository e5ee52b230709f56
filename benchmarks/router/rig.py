"""Processes of a benchmark: compiled, pinned to a CPU, waited for, watched through /proc, and stopped.

Owns nothing of what is compared (`targets`) nor what is measured (`rows`). Everything listens on loopback, on ports
that the system chooses.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TARGET_CPU, LOAD_CPU = "0", "1"
UP_SECONDS = 60
STOP_SECONDS = 20
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class UnavailableError(Exception):
    """Something that a benchmark wants is not to be had here; the message says why."""


@dataclass(frozen=True)
class Command:
    """How a process is started. `ready_path`, at a port of its own if need be, answers below 500 once it serves."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_path: str = "/health"
    ready_port: int | None = None
    settle_seconds: float = 0.0  # after that, until it knows its workers
    drain_signal: signal.Signals = signal.SIGTERM


def say(line: str) -> None:
    """One line of progress."""
    print(f"bench-router: {line}", flush=True)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def find(program: str, package: str) -> str:
    """The path of a program. Raises UnavailableError with the line that installs it."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise UnavailableError(f"{program} is not installed; on Debian and Ubuntu: apt-get install {package}")
    return path


def compile_program(name: str, directory: Path) -> str:
    """Compile one of the C programs beside this file; returns its path."""
    target = directory / name
    command = [find("cc", "gcc libc6-dev"), "-O2", "-o", str(target), str(HERE / f"{name}.c")]
    subprocess.run(command, check=True)
    return str(target)


def compile_router() -> str:
    """The directory in which the router is with its hot path compiled, as its image ships it."""
    built = subprocess.run([ROOT / "scripts" / "compile-router", "--profiled"], stdout=subprocess.PIPE, check=True)
    return built.stdout.decode().strip()


@contextlib.contextmanager
def running(command: Command, cpu: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process (and its children) on one CPU, ended with the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", cpu, *command.arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **command.environment},
            start_new_session=True,
        )
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads its group, and whatever it has left behind in it."""
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def wait_until_up(command: Command, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until what was started to listen at `port` serves. Raises UnavailableError with the end of its log."""
    url = f"http://127.0.0.1:{command.ready_port or port}{command.ready_path}"
    give_up = time.monotonic() + UP_SECONDS
    while time.monotonic() < give_up and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):
                break
        except urllib.error.HTTPError as error:
            if error.code < 500:
                break
        except OSError:
            pass
        time.sleep(0.05)
    else:
        words = log.read_text(errors="replace").strip().splitlines()[-5:]
        raise UnavailableError(f"nothing answers on port {port}; its last words: {' / '.join(words) or 'none'}")
    time.sleep(command.settle_seconds)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children."""
    total = 0.0
    for one in _tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
    return total


def memory_bytes(pid: int) -> int:
    """Memory of a process and its children, shared pages divided among those that share them (PSS)."""
    total = 0
    for one in _tree(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def _tree(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += _tree(int(child))
    return found


def drive(driver: str, port: int, seconds: float, key: str, arguments: Sequence[str]) -> dict[str, Any]:
    """One run of the load driver; what it printed."""
    command = ["taskset", "-c", LOAD_CPU, driver, "-p", str(port), "-d", str(seconds), "-k", key, *arguments]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise UnavailableError(f"the load driver found nobody on port {port}: {done.stderr.decode().strip()}")
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def cpu_model() -> str:
    """The processor's name, as Linux has it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return sys.platform
