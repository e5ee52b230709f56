"""Begins the processes of a router, keeps them running, and ends them.

Owns the addresses (claimed before any process is begun, so that a refusal is one line and port 0 is one port) and the
order of the end: the first signal drains all, the second ends them. The listening socket held here never listens, so
the kernel gives connections to the processes alone, and to a dead one none.
"""

import asyncio
import logging
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Final

from m3_router.admin import Access, AdminServer
from m3_router.config import RouterConfig
from m3_router.processes.child import Child
from m3_router.processes.front import front_app
from m3_router.sockets import listen, name_of

END_MARGIN_SECONDS: Final = 15.0  # beyond the drain time, until a process that has not ended is killed

_log = logging.getLogger(__name__)


async def supervise(config: RouterConfig, path: Path, *, log_level: str) -> None:
    """Run `config.processes` routers with the configuration at `path`, until SIGTERM or SIGINT.

    Raises OSError if an address cannot be used, ChildEndedError if a process cannot serve.
    """
    listen(config.listen).close()  # refuses, as no shared socket would, when another router of this user is there
    with (
        listen(config.listen, is_shared=True) as claim,
        listen(config.admin) as admin_socket,
        tempfile.TemporaryDirectory(prefix="m3-router-") as directory,
    ):
        supervisor = _Supervisor(config, path, log_level, name_of(claim), Path(directory))
        await supervisor.run(admin_socket)


class _Supervisor:
    def __init__(self, config: RouterConfig, path: Path, log_level: str, address: str, directory: Path) -> None:
        self._config = config
        self._address = address
        self._is_ending = asyncio.Event()
        self._children = []
        for index in range(config.processes):
            admin_path = directory / f"{index}.sock"
            command = [sys.executable, "-m", "m3_router.server", "--config", str(path), "--log-level", log_level]
            command += ["--process", str(index), "--listen", address, "--admin-socket", str(admin_path)]
            self._children.append(Child(index, command, admin_path))

    async def run(self, admin_socket: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        app = front_app(
            self._children,
            access=Access(self._config.admin_key_sha256),
            shares_redis=self._config.redis is not None,
            is_draining=self._is_ending.is_set,
        )
        server = AdminServer(app)
        keeping = [loop.create_task(child.keep(self._is_ending)) for child in self._children]
        serving: asyncio.Task[None] | None = None
        try:
            await self._until_all_serve(keeping)
            if not self._is_ending.is_set():
                serving = loop.create_task(server.serve([admin_socket]))
                admin_socket.listen()  # before it is said
                where = self._address, name_of(admin_socket)
                _log.info("listening on %s, admin on %s, %d processes", *where, len(self._children))
            await asyncio.gather(*keeping)
        finally:
            await self._end(keeping)
            if serving is not None:
                server.should_exit = True
                await serving
            for child in self._children:
                await child.client.aclose()

    async def _until_all_serve(self, keeping: list[asyncio.Task[None]]) -> None:
        loop = asyncio.get_running_loop()
        serving = loop.create_task(self._all_serve())
        try:
            await asyncio.wait((serving, *keeping), return_when=asyncio.FIRST_COMPLETED)
            for task in keeping:
                if task.done():
                    task.result()  # raises, unless they are being ended
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    async def _all_serve(self) -> None:
        for child in self._children:
            await child.serves()

    def _signalled(self) -> None:
        if self._is_ending.is_set():
            for child in self._children:
                child.end(signal.SIGKILL)
            return
        _log.info("draining %d processes for at most %g s", len(self._children), self._config.limits.drain_seconds)
        self._is_ending.set()
        for child in self._children:
            child.end(signal.SIGTERM)
        asyncio.get_running_loop().call_later(
            self._config.limits.drain_seconds + END_MARGIN_SECONDS, self._kill_those_that_hang
        )

    def _kill_those_that_hang(self) -> None:
        for child in self._children:
            if child.is_running:
                _log.error("process %d did not end in time and is killed", child.index)
                child.end(signal.SIGKILL)

    async def _end(self, keeping: list[asyncio.Task[None]]) -> None:
        """End what still runs, as after a failed start."""
        self._is_ending.set()
        for child in self._children:
            child.end(signal.SIGTERM)
        await asyncio.gather(*keeping, return_exceptions=True)
