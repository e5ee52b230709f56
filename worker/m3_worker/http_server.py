"""The HTTP server as a worker runs it: its socket, its event loop, and uvicorn without what the worker does itself."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

_FLUSH_SECONDS = 5
_BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError that names the address."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where there is one."""
    if sys.platform == "win32":
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


class EmbeddedServer(uvicorn.Server):
    """uvicorn as the worker runs it: httptools, no access log, no lifespan, and no signal handlers of its own."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=_FLUSH_SECONDS,
                backlog=_BACKLOG,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: the worker drains before the server ends."""
        yield

    def request_exit(self) -> None:
        """Close the listener, let responses under way be written, and return from `serve`."""
        self.should_exit = True
