"""The worker's process: it listens at once, loads beside that, serves, drains, and ends with a telling exit code.

Owns start and end: the socket, signals, the phases of WorkerState, exit codes (0 drained, 1 cannot serve or the engine
failed, 2 bad flag).
The routes are app's, the loop that computes is engine's.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console

from m3_worker.app import build_app
from m3_worker.cache_size import CacheSizeError
from m3_worker.config import RankSettings, WorkerSettings
from m3_worker.gpu_metrics import open_gpu_metrics
from m3_worker.http_server import EmbeddedServer, listen, loop_factory
from m3_worker.model.config import CheckpointError
from m3_worker.progress import load_report
from m3_worker.ranks.errors import GroupError
from m3_worker.serving import ServedModel, WorkerState
from m3_worker.watchdog import watch

if TYPE_CHECKING:
    from m3_worker.kv_events_zmq import KvEventPublisher

log = logging.getLogger(__name__)

Load = Callable[[Callable[[int, int], None]], ServedModel]
"""Loads the model, on a thread; is given where to report (bytes read, bytes needed)."""

_TELL_SECONDS = 1.0
"""How long a worker whose engine failed still answers, so that its clients and health checks learn why."""


def main() -> None:
    """`m3-worker`: serve until SIGTERM or SIGINT."""
    settings = WorkerSettings.parse_arguments(sys.argv[1:])
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Threads that spin for work take it from each other where cores are shared: 330 instead of 36 ms for a decode step
    # of a tiny model beside one busy process. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        ranks = _ranks(settings)
        if ranks.rank > 0:
            from m3_worker.rank_main import follow

            sys.exit(follow(settings, ranks, sys.argv[1:]))
        listener = listen(settings.host, settings.port)
    except (ValueError, OSError) as error:
        sys.exit(f"m3-worker: {error}")

    def load(progress: Callable[[int, int], None]) -> ServedModel:
        if settings.simulate:
            from m3_worker.simulate import load_simulated_model

            return load_simulated_model(settings, progress)
        from m3_worker.loading import load_served_model

        with load_report(Console(stderr=True), f"loading {settings.model_name}") as report:

            def tell(read_bytes: int, needed_bytes: int) -> None:
                progress(read_bytes, needed_bytes)
                report.update(read_bytes, needed_bytes)

            return load_served_model(settings, tell, ranks, sys.argv[1:])

    async def serve() -> int:
        try:
            publisher = _publisher(settings)
        except OSError as error:
            sys.exit(f"m3-worker: {error}")
        server = WorkerServer(settings, load, publisher)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, server.request_stop)
        return await server.run(listener)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        code = runner.run(serve())
    sys.exit(code)


def _ranks(settings: WorkerSettings) -> RankSettings:
    """Who this process is among the ranks of a group. Raises ValueError."""
    ranks = RankSettings.from_environment(os.environ)
    if settings.simulate and ranks.world_size > 1:
        raise ValueError(f"--simulate computes on one rank, not on {ranks.world_size} (M3_NODES x M3_GPUS_PER_NODE)")
    return ranks


def _publisher(settings: WorkerSettings) -> "KvEventPublisher | None":
    """The sockets for KV events, if the settings ask for them. Raises OSError that names the flag."""
    if settings.kv_events_zmq is None:
        return None
    from m3_worker.kv_events_zmq import KvEventPublisher

    return KvEventPublisher(settings.kv_events_zmq, settings.kv_events_zmq_replay)


class WorkerServer:
    """One worker from its first to its last moment."""

    def __init__(self, settings: WorkerSettings, load: Load, publisher: "KvEventPublisher | None" = None) -> None:
        self.state = WorkerState(settings.max_body_bytes)
        self._settings = settings
        self._load = load
        self._stop_requested = asyncio.Event()
        self._hurry_requested = asyncio.Event()
        self._publisher = publisher
        self._beside: list[asyncio.Task[None]] = []  # what runs as long as the model is served

    def request_stop(self) -> None:
        """Drain and end; asked a second time, end without draining any longer."""
        if self._stop_requested.is_set():
            self._hurry_requested.set()
        self._stop_requested.set()

    async def run(self, listener: socket.socket) -> int:
        """Serve on `listener` until asked to stop; returns the exit code of the process."""
        server = EmbeddedServer(build_app(self.state))
        serving = asyncio.create_task(server.serve([listener]))
        host, port = listener.getsockname()[:2]
        name = self._settings.model or self._settings.model_name
        log.info("listening on http://%s:%d, loading %s", f"[{host}]" if ":" in host else host, port, name)
        code = await self._load_and_wait(asyncio.get_running_loop())
        if self.state.model is not None:
            await self._drain(self.state.model)
        server.request_exit()
        await serving
        await self._end_beside()
        if self.state.model is not None:
            await asyncio.to_thread(_end, self.state.model, code == 0)
        return code

    async def _load_and_wait(self, loop: asyncio.AbstractEventLoop) -> int:
        loading = self._start_loading(loop)
        stopped = asyncio.ensure_future(self._stop_requested.wait())
        await asyncio.wait((loading, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            return 0
        try:
            model = loading.result()
        except (CheckpointError, CacheSizeError, GroupError) as error:
            sys.stderr.write(f"m3-worker: {error}\n")
            stopped.cancel()
            return 1
        model.engine.start(loop)
        if model.group is not None:
            model.group.when_lost(lambda reason: _call_on(loop, model.engine.fail, reason))
        self._beside.append(asyncio.create_task(watch(model.engine, self._settings.step_deadline_seconds)))
        if self._publisher is not None:
            self._beside.append(asyncio.create_task(self._publisher.run(model.engine.events)))
        if self._settings.device == "cuda":
            self.state.gpus = await asyncio.to_thread(open_gpu_metrics)
        self.state.model = model
        gc.collect()
        gc.freeze()  # what is loaded by now lives as long as the process: collections need not walk it
        log.info("ready: serving %s", model.name)
        failed = asyncio.ensure_future(model.engine.wait_until_failed())
        await _first_of(stopped, failed)
        if failed.cancelled():
            return 0
        log.critical(
            "the engine failed (%s): ending, so that whoever started this worker starts another", failed.result()
        )
        await asyncio.sleep(_TELL_SECONDS)
        return 1

    async def _end_beside(self) -> None:
        for task in self._beside:
            task.cancel()
        for result in await asyncio.gather(*self._beside, return_exceptions=True):
            if isinstance(result, Exception):
                log.error("what ran beside the engine had failed", exc_info=result)
        if self._publisher is not None:
            self._publisher.close()

    def _start_loading(self, loop: asyncio.AbstractEventLoop) -> "asyncio.Future[ServedModel]":
        """Load on a daemon thread, so that a signal ends the process while it loads."""
        loaded: asyncio.Future[ServedModel] = loop.create_future()

        def settle(model: ServedModel | None, error: BaseException | None) -> None:
            if error is not None:
                loaded.set_exception(error)
            elif model is not None:
                loaded.set_result(model)

        def work() -> None:
            model, failure = None, None
            try:
                model = self._load(self._report_progress)
            except BaseException as error:  # noqa: BLE001 # it is raised again on the event loop
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
                loop.call_soon_threadsafe(settle, model, failure)

        threading.Thread(target=work, name="m3-load", daemon=True).start()
        return loaded

    def _report_progress(self, read_bytes: int, needed_bytes: int) -> None:
        self.state.progress.read_bytes = read_bytes
        self.state.progress.needed_bytes = needed_bytes

    async def _drain(self, model: ServedModel) -> None:
        """Refuse new requests and let those in flight finish, for as long as the settings allow."""
        self.state.is_draining = True
        log.info("draining: %d requests in flight", model.engine.in_flight_count)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_seconds):
                idle = asyncio.ensure_future(model.engine.wait_until_idle())
                await _first_of(idle, asyncio.ensure_future(self._hurry_requested.wait()))
        if model.engine.in_flight_count:
            log.warning("%d requests did not finish in time", model.engine.in_flight_count)
        model.engine.stop()
        if model.media is not None:
            model.media.close()


def _end(model: ServedModel, in_order: bool) -> None:
    """End the engine's thread, and with it the ranks that compute with it."""
    has_ended = model.engine.join()
    if model.group is not None:
        model.group.end(in_order=in_order and has_ended)


def _call_on(loop: asyncio.AbstractEventLoop, call: Callable[[str], None], reason: str) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
        loop.call_soon_threadsafe(call, reason)


async def _first_of(*waits: "asyncio.Future[Any]") -> None:
    """Wait until one is done, and cancel the others."""
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
