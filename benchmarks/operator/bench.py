"""What the operator costs and how quickly it answers, with 1,000 M3Deployments and 5,000 pods on a real API server.

    make bench-operator [ARGS=--quick]    # or: PYTHONPATH=tests/support python benchmarks/operator/bench.py

API server, etcd, scheduler and controller manager are real, nodes are simulated by KWOK; the operator runs as its users
run it, under the chart's Role. Everything shares this machine's CPUs, this program too. Writes RESULTS.md beside this
file unless it is quick. How experts are placed is a question of its own: EXPERTS.md.

    crowd.py the world   changes.py latencies   bare_loop.py the yardstick   operator_figures.py reading the operator
"""

import argparse
import datetime
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from functools import partial
from pathlib import Path

from changes import change_latencies, percentile  # beside this file, where Python looks first
from crowd import GPUS_A_NODE, PER_ROUTER, PODS_EACH, Api, Crowd
from operator_figures import await_settled, cpu_seconds, figures_of, memory_mib

from m3_operator import crd
from m3_testcluster.cluster import Cluster
from m3_testcluster.control_plane import control_plane
from operator_process import Account, Operator, install_account, running_operator

HERE = Path(__file__).resolve().parent
NAMESPACE, BARE = "bench", "bare"
# What is wanted, and what an API server on two cores can keep up with beside all else.
RATES = (100, 30)


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    deployments: int
    changes: int
    quiet_seconds: int
    exits: int

    def changes_at(self, rate: int) -> int:
        """How many changes at this rate: for the same time as at the first."""
        return self.changes * rate // RATES[0]


FULL, QUICK = Size(1000, 2000, 300, 40), Size(20, 100, 5, 5)


@dataclass
class Table:
    """Rows of goal and figure, told as they come."""

    rows: list[str] = field(default_factory=list)

    def add(self, what: str, goal: str, measured: str, is_met: bool | None = None) -> None:
        """One row; `is_met` None: there is no goal."""
        verdict = {True: "met", False: "missed", None: ""}[is_met]
        self.rows.append(f"| {what} | {goal} | {measured} | {verdict} |")
        say(f"{what}: {measured} {verdict}")


def say(text: str) -> None:
    """One line of progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="twenty M3Deployments: whether it runs; writes nothing")
    parser.add_argument("--deployments", type=int)
    parser.add_argument("--quiet-seconds", type=int, help="how long the unchanged world is watched")
    given = parser.parse_args()
    chosen = QUICK if given.quick else FULL
    size = Size(
        given.deployments or chosen.deployments,
        chosen.changes,
        given.quiet_seconds or chosen.quiet_seconds,
        chosen.exits,
    )
    table = Table()
    with control_plane(say) as cluster, tempfile.TemporaryDirectory() as directory:
        crowd = prepare(cluster, size)
        measure(cluster, crowd, size, table, Path(directory))
    text = report(table, size)
    print(text)
    if not given.quick:
        (HERE / "RESULTS.md").write_text(text)
    return 0


def prepare(cluster: Cluster, size: Size) -> Crowd:
    """Definitions, nodes and namespaces."""
    cluster.apply("---\n".join(crd.render_all().values()))
    cluster.kubectl(
        "wait",
        "--for=condition=Established",
        "--timeout=30s",
        *(f"crd/{plural}.serving.m3.dev" for plural in crd.PLURALS.values()),
    )
    for namespace in (NAMESPACE, BARE):
        cluster.create_namespace(namespace)
    cluster.fake_gpu_nodes(size.deployments * PODS_EACH // GPUS_A_NODE + 2, gpus=GPUS_A_NODE)
    return Crowd(Api(cluster), NAMESPACE, size.deployments)


def measure(cluster: Cluster, crowd: Crowd, size: Size, table: Table, directory: Path) -> None:
    """Every row, in an order in which none disturbs the next."""
    account = install_account(cluster, NAMESPACE)
    with running_operator(account, directory, "--log-level=warning", "--no-leader-election", first_line="") as operator:
        started = time.monotonic()
        crowd.grow(timeout_seconds=120 + size.deployments)
        await_settled(operator)
        made = time.monotonic() - started
        table.add(
            f"{size.deployments:,} M3Deployments made, {size.deployments * PODS_EACH:,} pods Ready", "", f"{made:.0f} s"
        )
        operator.stop()
    with running_operator(account, directory, "--log-level=info") as operator:
        start(operator, crowd, table)
        quiet(account, operator, size, table)
        ours = {rate: spec_changes(operator, crowd, size, rate, table) for rate in RATES}
        bare(cluster, crowd, size, table, directory, ours=ours)
        exits(crowd, size, table)
        await_settled(operator)
        table.add(
            "memory at the end", "< 200 MB", f"{memory_mib(operator):.0f} MiB", memory_mib(operator) * 1.048576 < 200
        )
        failover(account, operator, table, directory)


def start(operator: Operator, crowd: Crowd, table: Table) -> None:
    """From filled caches to a cycle of every object."""
    serving_at = time.monotonic()
    everything = crowd.deployments + crowd.routers
    await_settled(operator, at_least_cycles=everything, quiet_seconds=0)
    seconds = time.monotonic() - serving_at
    table.add("caches filled to all reconciled", "< 10 s", f"{seconds:.1f} s", seconds < 10)
    await_settled(operator)
    found = figures_of(operator)
    table.add("CPU of the operator until then, look and watches included", "", f"{cpu_seconds(operator):.1f} s")
    table.add("cycle, mean", "", f"{1000 * found.cycle_seconds / max(found.cycles, 1):.1f} ms")
    resident = memory_mib(operator)
    table.add("memory after the start", "< 200 MB", f"{resident:.0f} MiB", resident * 1.048576 < 200)


def quiet(account: Account, operator: Operator, size: Size, table: Table) -> None:
    """Writes into a world where nothing happens."""
    await_settled(operator)
    since, cpu = datetime.datetime.now(UTC), cpu_seconds(operator)
    time.sleep(size.quiet_seconds)
    share = (cpu_seconds(operator) - cpu) / size.quiet_seconds
    writes = len(account.writes(since))
    table.add(f"writes in {size.quiet_seconds} s of an unchanged world", "0", str(writes), writes == 0)
    table.add("CPU meanwhile", "", f"{100 * share:.1f} % of one")


def spec_changes(operator: Operator, crowd: Crowd, size: Size, rate: int, table: Table) -> float:
    """Change to status at this many changes a second; the 99th percentile in seconds."""
    before, cpu, count = figures_of(operator), cpu_seconds(operator), size.changes_at(rate)
    found = change_latencies(crowd.api, crowd.path, count, rate, partial(crowd.change, rate=rate))
    await_settled(operator)
    after = figures_of(operator)
    p99 = percentile(found, 0.99)
    what = f"spec changed to status written, {rate} changes a second"
    table.add(f"{what}, p50", "", f"{1000 * percentile(found, 0.5):.0f} ms")
    goal, is_met = ("< 250 ms", p99 < 0.25) if rate == RATES[0] else ("", None)
    table.add(f"{what}, p99", goal, f"{1000 * p99:.0f} ms", is_met)
    each, cycles = (cpu_seconds(operator) - cpu) / count, (after.cycles - before.cycles) / count
    table.add("CPU of the operator for a change", "", f"{1000 * each:.1f} ms, {cycles:.1f} cycles")
    return p99


def bare(
    cluster: Cluster, crowd: Crowd, size: Size, table: Table, directory: Path, *, ours: Mapping[int, float]
) -> None:
    """The same changes answered by a loop that only answers; `ours`: p99 by rate."""
    other = Crowd(crowd.api, BARE, crowd.deployments)
    other.create()
    log = directory / "bare.log"
    command = [sys.executable, HERE / "bare_loop.py", cluster.kubeconfig, BARE]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            while not log.read_text():
                time.sleep(0.1)
            time.sleep(10)  # it answers what is there already
            for rate, our_p99 in ours.items():
                count = size.changes_at(rate)
                found = change_latencies(other.api, other.path, count, rate, partial(other.change, rate=rate))
                p99, what = (
                    percentile(found, 0.99),
                    f"the same with a bare loop of the official client, {rate} a second",
                )
                table.add(f"{what}, p50", "", f"{1000 * percentile(found, 0.5):.0f} ms")
                table.add(f"{what}, p99", "", f"{1000 * p99:.0f} ms")
                table.add(f"ours to the bare loop, p99, {rate} a second", "", f"{our_p99 / p99:.1f} x")
        finally:
            process.kill()


def exits(crowd: Crowd, size: Size, table: Table) -> None:
    """A pod's process ends: until its replacement is made."""
    version = crowd.api.call("GET", f"{crowd.pods_path}?limit=1")["metadata"]["resourceVersion"]
    ended: dict[str, tuple[str, float]] = {}
    for index in range(0, 2 * size.exits, 2):
        name = f"{crowd.name(index % crowd.deployments)}-g0-r0"
        uid = crowd.api.call("GET", f"{crowd.pods_path}/{name}")["metadata"]["uid"]
        ended[name] = (uid, time.monotonic())
        crowd.api.patch(f"{crowd.pods_path}/{name}/status", {"status": {"phase": "Failed"}})
    seconds: dict[str, float] = {}
    for event in crowd.api.watch(crowd.pods_path, version, 60):
        metadata = event["object"]["metadata"]
        uid, at = ended.get(metadata["name"], ("", 0.0))
        if event["type"] == "ADDED" and uid not in ("", metadata["uid"]):
            seconds.setdefault(metadata["name"], time.monotonic() - at)
        if len(seconds) == len(ended):
            break
    worst = max(seconds.values(), default=60.0)
    is_met = len(seconds) == len(ended) and worst < 5
    table.add(f"pod's end to its replacement made, worst of {len(ended)}", "< 5 s", f"{worst:.1f} s", is_met)


def failover(account: Account, leader: Operator, table: Table, directory: Path) -> None:
    """kill -9 of the leader until another has looked at everything."""
    with running_operator(account, directory, "--log-level=info", first_line="standing by") as standby:
        killed_at = time.monotonic()
        leader.process.send_signal(signal.SIGKILL)
        standby.await_line("serving ", timeout_seconds=120)
        seconds = time.monotonic() - killed_at
        table.add(
            "kill -9 of the leader to its successor serving, first look included",
            "< 20 s",
            f"{seconds:.1f} s",
            seconds < 20,
        )


def report(table: Table, size: Size) -> str:
    """The page."""
    head = [
        "# The operator's speed",
        "",
        f"`make bench-operator`: {size.deployments:,} M3Deployments (half of them {PODS_EACH} groups of one",
        f"pod, half one group of {PODS_EACH}), an M3Router for every {PER_ROUTER} of them,",
        f"{size.deployments * PODS_EACH:,} pods on nodes that KWOK simulates, in front of a real API server,",
        "scheduler and controller manager. How experts are placed, and how long that takes, is in",
        "[EXPERTS.md](EXPERTS.md).",
        "",
        f"{datetime.datetime.now(UTC).date()}, {os.cpu_count()} CPUs shared by all of it and by others, Python",
        f"{platform.python_version()}, load average {os.getloadavg()[0]:.1f} at the end.",
        "",
        "| what | goal | measured | |",
        "| --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *table.rows, *NOTES, ""])


NOTES = [
    "",
    "- A change costs the API server some 35 ms of CPU (two writes of an object with a large schema, which it decodes,",
    "  defaults, validates, converts and merges; `/debug/pprof/profile`): two cores cannot take 100 a second, whoever",
    "  answers them, and changes queue up there. The bare loop in the same run is the measure.",
    "- A change is one of `spec.accelerator.memoryGiB`: the arithmetic of memory is done anew and the status written,",
    "  no pod is touched. The clock runs from sending the change until a watch shows the status of its generation.",
    "- The bare loop has no cache and no plan and looks at no pod: for each change it applies a ConfigMap and the",
    "  status.",
    "- Writes are counted in the API server's audit log; renewals of the Lease are left out.",
]


if __name__ == "__main__":
    sys.exit(main())
