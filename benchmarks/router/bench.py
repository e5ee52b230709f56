"""What the router costs: the same load straight at mock engines, through nginx, through peers, and through m3-router.

    PYTHONPATH=tests/support python benchmarks/router/bench.py [--quick] [--targets NAME,..] [--rows NAME,..]
    ... bench.py --simulate [options of simulate.py]    what placement by prefix is worth, instead

The target alone runs on one CPU; two mock engines, Redis and the load driver share the other. All targets stay up and
take turns within each repetition, so that a busy neighbour hurts them alike. CPU time and memory are read from /proc
for the target's whole process tree. Everything listens on loopback, on ports that the system chooses, and is stopped at
the end. Needs cc, nginx and redis-server; peers are installed from `peers.txt`, or left out where that cannot be done.

    rig.py processes   targets.py who is compared   rows.py loads and goals   failover.py two replicas   report.py table
"""

import argparse
import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import failover
import peers
import report
import simulate
from launching import launcher
from rig import (
    HERE,
    LOAD_CPU,
    TARGET_CPU,
    Command,
    UnavailableError,
    compile_program,
    compile_router,
    cpu_seconds,
    drive,
    free_port,
    memory_bytes,
    running,
    say,
    wait_until_up,
)
from rows import DIRECT, ROWS, Results, Row
from targets import KEY, TARGETS, Place, Target

from m3_behaviour.engine import Script
from m3_behaviour.probes import leave_seconds
from m3_redis import running_redis

TOKEN_MICROSECONDS = 10_000
ABORTS = 7
WARM_UP_SECONDS, WARM_UP = 0.5, ("-c", "8", "-b", "1024")


@dataclass(frozen=True)
class Kit:
    """What every part of a run needs: programs, and where things are."""

    directory: Path
    engine: str
    driver: str
    compiled: str
    peers: Path | UnavailableError
    redis_url: str


@dataclass
class Outcome:
    """Everything that a run found. `absent`: why a target was left out, by its name."""

    results: Results = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    leaves: dict[str, list[float | None]] = field(default_factory=dict)
    replicas: failover.Failover | None = None


@dataclass
class Up:
    """A target that runs."""

    target: str
    port: int
    pid: int | None = None


@contextlib.contextmanager
def engines(kit: Kit, *, is_paced: bool) -> Iterator[tuple[int, int]]:
    """Two mock engines; their ports."""
    pace = ["-t", "2000", "-i", str(TOKEN_MICROSECONDS)] if is_paced else []
    with contextlib.ExitStack() as stack:
        ports = (free_port(), free_port())
        for port in ports:
            log = kit.directory / f"engine-{port}.log"
            command = Command([kit.engine, "-p", str(port), *pace])
            wait_until_up(command, port, stack.enter_context(running(command, LOAD_CPU, log)), log)
        yield ports


@contextlib.contextmanager
def one_up(kit: Kit, target: Target, behind: tuple[int, ...]) -> Iterator[Up]:
    """One target in front of the engines. Raises UnavailableError."""
    directory = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=kit.directory))
    port = free_port()
    place = Place(port, behind, directory, kit.compiled, kit.peers, kit.redis_url)
    command, log = target.command(place), directory / "log"
    with running(command, TARGET_CPU, log) as process:
        wait_until_up(command, port, process, log)
        yield Up(target.name, port, process.pid)


def measure(kit: Kit, row: Row, up: Up, seconds: float, outcome: Outcome) -> None:
    """One run of the driver against one target. A run with errors is none: it is said, and not in the table."""
    before = cpu_seconds(up.pid) if up.pid else 0.0
    run = drive(kit.driver, up.port, seconds, KEY, row.arguments)
    run["cpu_seconds"] = (cpu_seconds(up.pid) if up.pid else 0.0) - before
    figures = ", ".join(figure.text(figure.of(run)) for figure in row.figures)
    say(f"  {row.name:9} {up.target:10} {figures}{'; ' + run['first_error'] if run['errors'] else ''}")
    outcome.results.setdefault((row.name, up.target), []).append(run)


def run_rows(
    kit: Kit, rows: Sequence[Row], chosen: Sequence[Target], options: argparse.Namespace, outcome: Outcome
) -> None:
    """All rows of one pace against all targets, which stay up meanwhile."""
    with contextlib.ExitStack() as stack:
        behind = stack.enter_context(engines(kit, is_paced=rows[0].is_paced))
        all_up = [Up(DIRECT, behind[0])]
        for target in chosen:
            try:
                all_up.append(stack.enter_context(one_up(kit, target, behind)))
            except UnavailableError as error:
                outcome.absent[target.name] = str(error)
                say(f"{target.name} is left out: {error}")
        for up in all_up:
            drive(kit.driver, up.port, WARM_UP_SECONDS, KEY, WARM_UP)
        for repetition in range(options.repetitions):
            say(f"repetition {repetition + 1} of {options.repetitions}")
            for row in rows:
                for up in all_up[repetition % len(all_up) :] + all_up[: repetition % len(all_up)]:
                    measure(kit, row, up, options.seconds, outcome)
        for up in all_up[1:]:
            assert up.pid is not None  # noqa: S101 - only `direct` has none
            outcome.memory[up.target] = max(outcome.memory.get(up.target, 0), memory_bytes(up.pid))


def run(options: argparse.Namespace) -> Outcome:
    """The whole comparison."""
    outcome = Outcome()
    chosen = [target for target in TARGETS if target.name in options.targets]
    rows = [row for row in ROWS if row.name in options.rows]
    with tempfile.TemporaryDirectory(prefix="m3-bench-") as name, running_redis() as redis:
        os.sched_setaffinity(redis.pid, {int(LOAD_CPU)})
        directory = Path(name)
        programs = [compile_program(program, directory) for program in ("mock_engine", "load_driver")]
        wants_peers = any(target.name.startswith(("vllm", "smg")) for target in chosen)
        found = peers.install() if wants_peers else UnavailableError("no peer was asked for")
        kit = Kit(directory, *programs, compile_router(), found, redis.url)
        for is_paced in (False, True):
            of_pace = [row for row in rows if row.is_paced is is_paced]
            if of_pace:
                run_rows(kit, of_pace, chosen, options, outcome)
        if "leaves" in options.rows:
            for target in (one for one in chosen if one.name not in outcome.absent):
                launch = launcher(target, kit.compiled, kit.peers)
                seen = asyncio.run(leave_seconds(launch, Script(prefill_seconds=20), 0, ABORTS))
                outcome.leaves[target.name] = seen
                say(f"  leaves    {target.name:10} {report.leave_text(seen)}")
        if "failover" in options.rows:
            outcome.replicas = failover.run(directory, kit.engine, kit.driver, kit.compiled, options.failover_seconds)
            say(f"  failover  {outcome.replicas.text}")
    return outcome


def main() -> None:
    """Measure, and write the table."""
    names = [target.name for target in TARGETS]
    rows = [*(row.name for row in ROWS), "leaves", "failover"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short repetition: whether it runs, not how fast")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--failover-seconds", type=float, default=12.0)
    parser.add_argument("--targets", type=lambda text: text.split(","), default=names, help=", ".join(names))
    parser.add_argument("--rows", type=lambda text: text.split(","), default=rows, help=", ".join(rows))
    parser.add_argument("--output", type=Path, help="the table; default: RESULTS.md, or the screen with --quick")
    parser.add_argument("--simulate", action="store_true", help="placement by prefix, simulated: AFFINITY.md")
    options, others = parser.parse_known_args()
    if options.simulate:
        simulate.main(others)
        return
    if others:
        parser.error(f"unknown: {' '.join(others)}")
    if options.quick:
        options.seconds, options.repetitions, options.failover_seconds = 0.6, 1, 6.0
    load = os.getloadavg()[0]
    table = report.table(run(options), options, load)
    if options.output is None and options.quick:
        print(table)
    else:
        (options.output or HERE / "RESULTS.md").write_text(table)


if __name__ == "__main__":
    main()
