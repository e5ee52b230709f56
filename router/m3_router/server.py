"""The `m3-router` command: one router in this process, or a supervisor of several, until SIGTERM.

Owns the command line, the signals and the exit status.
"""

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from pathlib import Path

import uvloop

from m3_router.config import ConfigError, RouterConfig, load
from m3_router.router import Router
from m3_router.sockets import listen_at_path
from m3_router.telemetry import log

COLLECT_SECONDS = 10.0

_log = logging.getLogger(__name__)


async def _run(config: RouterConfig, arguments: argparse.Namespace) -> None:
    gc.set_threshold(50_000, 20, 50)  # rarely, since exchanges leave no reference cycles behind
    router = Router(config, sys.stdout.buffer, path=arguments.config, process=arguments.process or 0)
    is_ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, is_ending.set)
    if arguments.process is not None:
        loop.add_reader(sys.stdin.fileno(), _supervisor_gone, is_ending)
    admin_socket = None if arguments.admin_socket is None else listen_at_path(arguments.admin_socket)
    await router.start(listen_at=arguments.listen, admin_socket=admin_socket)
    # What start-up has made lives for ever: let go of its scraps, and keep the rest out of every collection.
    gc.collect()
    gc.freeze()
    collecting = loop.create_task(_collect_young())
    await is_ending.wait()
    collecting.cancel()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)  # a second signal ends the process at once
    _log.info("draining for at most %g s", config.limits.drain_seconds)
    await router.drain()
    await router.stop()


async def _collect_young() -> None:
    """What fails leaves cycles (tracebacks, connections): at the threshold's pace they would add up to megabytes."""
    while True:
        await asyncio.sleep(COLLECT_SECONDS)
        gc.collect(1)


def _supervise(config: RouterConfig, arguments: argparse.Namespace) -> None:
    """Several processes. What only their supervisor needs is not loaded into each of them."""
    from m3_router.processes import ChildEndedError, supervise

    try:
        uvloop.run(supervise(config, arguments.config, log_level=arguments.log_level))
    except ChildEndedError as error:
        sys.stderr.write(f"m3-router: {error}\n")
        sys.exit(error.status if error.status > 0 else 1)


def _supervisor_gone(is_ending: asyncio.Event) -> None:
    """Its end of stdin was closed: whatever has become of the supervisor, nobody would end this process."""
    if not os.read(sys.stdin.fileno(), 1):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        is_ending.set()


def main(argv: list[str] | None = None) -> None:
    """The `m3-router` command. Exits 2 if the configuration cannot be used, 1 if an address cannot."""
    parser = argparse.ArgumentParser(prog="m3-router", description="Route requests to MiniMax-M3 workers.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML configuration")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    # How the supervisor of several processes begins each.
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--listen", help=argparse.SUPPRESS)
    parser.add_argument("--admin-socket", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    log.configure(arguments.log_level)
    try:
        config = load(arguments.config)
        if config.processes > 1 and arguments.process is None:
            _supervise(config, arguments)
        else:
            uvloop.run(_run(config, arguments))
    except ConfigError as error:
        sys.stderr.write(f"m3-router: {error}\n")
        sys.exit(2)
    except OSError as error:
        sys.stderr.write(f"m3-router: {error.strerror or error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
