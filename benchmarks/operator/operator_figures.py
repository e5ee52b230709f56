"""What a running operator says of itself, and what the system says of its process."""

import os
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from operator_process import Operator


@dataclass(frozen=True)
class Figures:
    """Of its metrics, what the benchmark reads."""

    cycles: float
    cycle_seconds: float
    depth: float
    requests: float


def figures_of(operator: Operator) -> Figures:
    """Its metrics now."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(operator.metrics, timeout=60) as answer:
        text = answer.read().decode()
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return Figures(
        cycles=sums.get("m3_operator_reconcile_total", 0.0),
        cycle_seconds=sums.get("m3_operator_reconcile_duration_seconds_sum", 0.0),
        depth=sums["m3_operator_workqueue_depth"],
        requests=sums.get("m3_operator_api_requests_total", 0.0),
    )


def await_settled(
    operator: Operator, at_least_cycles: int = 0, quiet_seconds: float = 3.0, timeout_seconds: float = 600
) -> None:
    """Returns when nothing waits, this many cycles were made, and none for so long."""
    deadline = time.monotonic() + timeout_seconds
    last, since = -1.0, time.monotonic()
    while True:
        found = figures_of(operator)
        if found.cycles != last:
            last, since = found.cycles, time.monotonic()
        if found.depth == 0 and found.cycles >= at_least_cycles and time.monotonic() - since >= quiet_seconds:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"not settled after {timeout_seconds:.0f} s: {found}")
        time.sleep(0.5)  # each look at the metrics of a thousand objects costs the operator some milliseconds


def cpu_seconds(operator: Operator) -> float:
    """User and system time of its process."""
    fields = Path(f"/proc/{operator.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(operator: Operator) -> float:
    """Its resident memory."""
    lines = Path(f"/proc/{operator.process.pid}/status").read_text().splitlines()
    (kib,) = (int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return kib / 1024
