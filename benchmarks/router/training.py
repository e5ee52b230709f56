"""Runs a router that was built to note which of its code runs, under the loads of the benchmark.

`scripts/compile-router --profiled` builds it again by these notes, for what runs often to stand together, and to be
what a branch expects. Owns the loads and how long each lasts; the notes are written by the process when it ends.
"""

import argparse
import contextlib
import tempfile
from pathlib import Path

from rig import LOAD_CPU, TARGET_CPU, Command, compile_program, drive, free_port, running, say, wait_until_up
from targets import KEY, Place, m3_router

# Of the load driver. Short requests most of all, then streams; long prompts spend their time in loops of others.
LOADS = (
    (4.0, ("-c", "32", "-b", "1024")),
    (2.0, ("-c", "1", "-b", "1024")),
    (4.0, ("-c", "64", "-b", "1024", "-S", "-m", "100")),
    (1.0, ("-c", "4", "-b", "262144")),
)


def main() -> None:
    """Train one build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("compiled", help="the directory of the build")
    compiled = parser.parse_args().compiled
    with tempfile.TemporaryDirectory(prefix="m3-train-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        engine, driver = (compile_program(program, directory) for program in ("mock_engine", "load_driver"))
        place = Place(free_port(), (free_port(), free_port()), directory, compiled)
        for port in place.engines:
            command, log = Command([engine, "-p", str(port)]), directory / f"engine-{port}"
            wait_until_up(command, port, stack.enter_context(running(command, LOAD_CPU, log)), log)
        command, log = m3_router(place), directory / "log"
        wait_until_up(command, place.port, stack.enter_context(running(command, TARGET_CPU, log)), log)
        for seconds, arguments in LOADS:
            row = drive(driver, place.port, seconds, KEY, arguments)
            say(f"  trained by {row['requests']} requests: {' '.join(arguments)}")


if __name__ == "__main__":
    main()
