"""The server of an admin port. Owns how uvicorn is run beside what else the process does."""

import contextlib
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp


class AdminServer(uvicorn.Server):
    """Serves one application on sockets that are given to `serve`, until `should_exit` is set."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The signals of the process are not this server's."""
        yield
