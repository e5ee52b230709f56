"""Long-running processes of the test cluster: started with a log file, watched while they start, killed at the end.

Owns the lifetime of one process. All data is thrown away, so the only way to stop is SIGKILL of the process group; the
kernel sends the same signal when whoever started it dies (PR_SET_PDEATHSIG).
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
"""Put before a command: the kernel kills it when the thread that started it is gone."""


class StartError(Exception):
    """A process ended or did not become ready in time; the message shows the end of its log."""


class Daemon:
    """One background process in a process group of its own, its output in `log`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        *,
        netns: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Starts `command`, inside the named network namespace if one is given.

        `nsenter` rather than `ip netns exec`: the latter mounts a new /sys, which hides the cgroups.
        """
        prefix = ["nsenter", f"--net=/run/netns/{netns}"] if netns else []
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*DIE_WITH_PARENT, *prefix, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                cwd=log.parent,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id, which is also its process group."""
        return self._process.pid

    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def tail(self, lines: int = 25) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def check_running(self) -> None:
        """Raises StartError with the end of the log where the process has ended."""
        if not self.is_running():
            raise StartError(
                f"{self.name} ended with status {self._process.returncode}; {self.log} ends:\n{self.tail()}"
            )

    def kill(self) -> None:
        """Kills the whole process group and waits for the process itself. Harmless when it is gone."""
        if self.is_running():
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def await_ready(
    what: str,
    probe: Callable[[], bool],
    daemons: Iterable[Daemon],
    *,
    timeout_seconds: float,
    interval_seconds: float = 0.1,
) -> None:
    """Returns when `probe` is true; raises StartError when one of `daemons` ends first, or after the timeout."""
    daemons = list(daemons)
    deadline = time.monotonic() + timeout_seconds
    while not probe():
        for daemon in daemons:
            daemon.check_running()
        if time.monotonic() > deadline:
            logs = "\n".join(f"--- {daemon.name} ({daemon.log}) ends:\n{daemon.tail()}" for daemon in daemons)
            raise StartError(f"{what}: not ready after {timeout_seconds:g} s\n{logs}")
        time.sleep(interval_seconds)


class ReservedPort:
    """A free TCP port of an address, kept from everybody else but programs that share it by SO_REUSEPORT.

    The socket is bound and never listens, so all connections go to the program that listens on the port.
    """

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.bind((address, 0))
        self.number: int = self._socket.getsockname()[1]

    def release(self) -> None:
        """Gives the port back."""
        self._socket.close()
