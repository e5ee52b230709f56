"""The table of one run, as Markdown: goals first, then every figure."""

import argparse
import datetime
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from statistics import median
from typing import TYPE_CHECKING

import peers
from rig import LOAD_CPU, TARGET_CPU, UnavailableError, cpu_model, find
from rows import DIRECT, OURS, ROWS, Results, Row
from targets import TARGETS

if TYPE_CHECKING:
    from bench import Outcome

MEMORY_MIB = 60
LEAVE_MILLISECONDS = 50
TITLES = {DIRECT: "direct", **{target.name: target.title for target in TARGETS}}


def table(outcome: "Outcome", options: argparse.Namespace, load: float) -> str:
    """All of it."""
    shown = [name for name in TITLES if any(key[1] == name for key in outcome.results) or name in outcome.leaves]
    lines = [
        "# What a request costs in m3-router",
        "",
        "Question: what does a request cost in the router with everything on (keys, plans with quotas, prices, lanes,",
        "affinity, journal on disk, Redis, metrics, a line of log each), against nginx, which only relays it, and",
        "against two routers of the field? Same client, same mock engines, one core each, in one run.",
        "",
        "| goal | wanted | measured | |",
        "| --- | --- | --- | --- |",
        *_goals(outcome),
        "",
        f"| load | {' | '.join(TITLES[name] for name in shown)} |",
        f"| --- |{' --- |' * len(shown)}",
        *(_line(outcome.results, row, shown) for row in ROWS if any(key[0] == row.name for key in outcome.results)),
        *_memory_line(outcome, shown),
        *_leave_line(outcome, shown),
        "",
        *_notes(outcome, options, load),
    ]
    return "\n".join(lines) + "\n"


def leave_text(seen: list[float | None]) -> str:
    """How soon an engine saw that its client had left."""
    seconds = [one for one in seen if one is not None]
    if len(seconds) < len(seen):
        return "not within 8 s"
    return f"{median(seconds) * 1e3:.0f} ms, worst of {len(seen)} {max(seconds) * 1e3:.0f} ms"


def _goals(outcome: "Outcome") -> list[str]:
    lines = []
    for row in ROWS:
        for goal in row.goals:
            value = goal.value(outcome.results, row.name)
            wanted = f"at {'most' if goal.is_at_most else 'least'} {goal.bound:g}"
            measured, met = "not measured", ""
            if value is not None:
                measured, met = f"{value:.4g}", _met(goal.is_met(value))
            lines.append(f"| {row.title}: {goal.title} | {wanted} | {measured} | {met} |")
    memory = outcome.memory.get(OURS)
    if memory is not None:
        mib = memory / 2**20
        wanted = f"at most {MEMORY_MIB} MiB and the index"
        lines.append(f"| memory after it all | {wanted} | {mib:.0f} MiB with the index | {_met(mib <= MEMORY_MIB)} |")
    seen = outcome.leaves.get(OURS)
    if seen:
        is_met = all(one is not None and one * 1e3 <= LEAVE_MILLISECONDS for one in seen)
        wanted = f"at most {LEAVE_MILLISECONDS} ms"
        lines.append(f"| client leaves: the engine sees it after | {wanted} | {leave_text(seen)} | {_met(is_met)} |")
    if outcome.replicas is not None:
        lines.append(
            "| two replicas, Redis killed and back empty | no request lost "
            f"| {outcome.replicas.text} | {_met(outcome.replicas.is_met)} |"
        )
    return lines


def _met(is_met: bool) -> str:
    return "met" if is_met else "**missed**"


def _line(results: Results, row: Row, shown: list[str]) -> str:
    cells = []
    for name in shown:
        runs = results.get((row.name, name), [])
        # What costs nothing is not the target's: the direct load has no process between.
        figures = [figure for figure in row.figures if not (name == DIRECT and "CPU" in figure.text(0))]
        texts = [figure.text(median(figure.of(run) for run in runs)) for figure in figures] if runs else ["-"]
        failed = sum(run["errors"] for run in runs)
        cells.append(", ".join(texts) + (f" ({failed} errors)" if failed else ""))
    return f"| {row.title} | {' | '.join(cells)} |"


def _memory_line(outcome: "Outcome", shown: list[str]) -> list[str]:
    if not outcome.memory:
        return []
    cells = [f"{outcome.memory[name] / 2**20:.0f} MiB" if name in outcome.memory else "-" for name in shown]
    return [f"| memory after it all (PSS) | {' | '.join(cells)} |"]


def _leave_line(outcome: "Outcome", shown: list[str]) -> list[str]:
    if not outcome.leaves:
        return []
    cells = [leave_text(outcome.leaves[name]) if name in outcome.leaves else "-" for name in shown]
    return [f"| client leaves in a prefill: the engine sees it after | {' | '.join(cells)} |"]


def _notes(outcome: "Outcome", options: argparse.Namespace, load: float) -> list[str]:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("uvloop", "httptools", "msgspec", "redis"))
    machine = f"{os.cpu_count()} CPUs ({cpu_model()}), Linux {platform.release()}"
    return [
        f"- Date: {datetime.datetime.now(tz=datetime.UTC).date()}. Command: `{_command()}`; "
        f"{options.repetitions} repetitions of {options.seconds:g} s.",
        f"- Machine: {machine}; load average {load:.1f} before the run.",
        f"- Versions: {_nginx_version()}, {', '.join(peers.versions())};",
        f"  Python {platform.python_version()}, {libraries}.",
        f"- The target on CPU {TARGET_CPU}; two mock engines, Redis and the load driver on CPU {LOAD_CPU}. Of each",
        "  figure the median of all repetitions; ratios (the goals) are taken within a repetition, then their median.",
        "  No two prompts begin alike. CPU is user and system time of the target's processes, Redis not among them.",
        "- m3-router is the form that its image has: the same source, its hot path compiled by mypyc (setup.py).",
        *(f"- {TITLES[name]} was left out: {why}" for name, why in outcome.absent.items()),
        *(f"- What bounds it, {row.title}: {row.bound_by}" for row in ROWS if row.bound_by),
        "- What it does not show: real engines, TLS, many tenants, other machines. Ratios carry over better than",
        "  times.",
    ]


def _command() -> str:
    return f"make bench-router ARGS='{' '.join(sys.argv[1:])}'" if sys.argv[1:] else "make bench-router"


def _nginx_version() -> str:
    try:
        said = subprocess.run([find("nginx", "nginx-light"), "-v"], capture_output=True, text=True, check=True).stderr
    except UnavailableError:
        return "no nginx"
    return said.strip().removeprefix("nginx version: ")
