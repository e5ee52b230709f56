"""Loopback ports that are held from the moment they are chosen until the whole of `m3 up` ends.

Owns the sockets of its reservations. A port that is merely looked up and closed again can be taken before the process
it is meant for listens on it, and again while that process restarts. On Linux a bound socket that does not listen,
with SO_REUSEADDR, keeps the port out of everyone's automatic choice and yet lets a server that names it (and sets
SO_REUSEADDR, as all do) bind it. Elsewhere the system has no such rule, so the socket is closed and the port is only
likely to be free.
"""

import contextlib
import errno
import socket
import sys
from types import TracebackType

from m3_operator.errors import OperatorError

HOST = "127.0.0.1"
HIGHEST_PORT = 65535


class PortTakenError(OperatorError):
    """The port that was asked for belongs to somebody else."""


class Ports:
    """Reserved ports of one `m3 up`; a context manager that frees them all at its end."""

    def __init__(self) -> None:
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "Ports":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def free(self, count: int) -> list[int]:
        """Reserve `count` ports of the system's choice."""
        return [self._reserve(0) for _ in range(count)]

    def exactly(self, port: int) -> int:
        """Reserve `port` itself. Raises PortTakenError where somebody listens on it or it may not be used."""
        try:
            return self._reserve(port)
        except PermissionError:
            raise PortTakenError(f"port {port} needs privileges that this user does not have") from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise PortTakenError(f"port {port} is taken by another process") from None

    def next_after(self, port: int) -> int:
        """Reserve the first free port above `port`. Raises PortTakenError when there is none."""
        for candidate in range(port + 1, HIGHEST_PORT + 1):
            with contextlib.suppress(PortTakenError):
                return self.exactly(candidate)
        raise PortTakenError(f"no free port above {port}")

    def _reserve(self, port: int) -> int:
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind((HOST, port))
            chosen = int(held.getsockname()[1])
        except OSError:
            held.close()
            raise
        if sys.platform == "linux":
            self._held.enter_context(held)
        else:
            held.close()
        return chosen
