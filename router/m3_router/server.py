"""The `m3-router` command: one router in this process, until SIGTERM."""

import argparse
import asyncio
import gc
import logging
import signal
import sys
from pathlib import Path

import uvloop

from m3_router import log
from m3_router.config import ConfigError, RouterConfig, load
from m3_router.router import Router

_log = logging.getLogger(__name__)


async def _run(config: RouterConfig, path: Path) -> None:
    # What start-up has made lives for ever: keep it out of every collection, and collect rarely, since exchanges leave
    # no reference cycles behind.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    router = Router(config, sys.stdout.buffer, path=path)
    is_ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, is_ending.set)
    await router.start()
    await is_ending.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)  # a second signal ends the process at once
    _log.info("draining for at most %g s", config.limits.drain_seconds)
    await router.drain()
    await router.stop()


def main(argv: list[str] | None = None) -> None:
    """The `m3-router` command. Exits 2 if the configuration cannot be used, 1 if an address cannot."""
    parser = argparse.ArgumentParser(prog="m3-router", description="Route requests to MiniMax-M3 workers.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML configuration")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    arguments = parser.parse_args(argv)
    log.configure(arguments.log_level)
    try:
        uvloop.run(_run(load(arguments.config), arguments.config))
    except ConfigError as error:
        sys.stderr.write(f"m3-router: {error}\n")
        sys.exit(2)
    except OSError as error:
        sys.stderr.write(f"m3-router: {error.strerror or error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
