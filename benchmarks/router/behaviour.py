"""What routers do when clients leave and workers die, stall or talk nonsense: the probes of `m3_behaviour`.

    PYTHONPATH=tests/support python benchmarks/router/behaviour.py [--targets NAME,..] [--probes NAME,..]

Writes BEHAVIOUR.md. The test suite asks the same of our router, and wants the best grade in every row.
"""

import argparse
import asyncio
import datetime
import os
from pathlib import Path

import peers
from launching import launcher
from rig import HERE, UnavailableError, compile_router, say
from targets import TARGETS

from m3_behaviour import BEST, PROBES, Finding

Findings = dict[tuple[str, str], Finding]
"""(probe, target) -> what was seen."""


def table(findings: Findings, absent: dict[str, str]) -> str:
    """One row a probe, one column a target; the grade in brackets."""
    shown = [target for target in TARGETS if any(key[1] == target.name for key in findings)]
    lines = [
        "# What routers do when something goes wrong",
        "",
        "Question: what does a client see, and what does an engine, when a client leaves, an engine dies, falls",
        "silent or talks nonsense, a client does not read, or the router is asked to end? Behind each router stand two",
        f"engines that do just that. In brackets the grade, from 0 to {BEST}; what it takes is said below. m3-router",
        "runs with keys, plans, journal and affinity, its hot path compiled; the others with their defaults; all with",
        "two seconds of patience where a probe is about a silent engine.",
        "",
        f"| probe | {' | '.join(target.title for target in shown)} |",
        f"| --- |{' --- |' * len(shown)}",
    ]
    for probe in PROBES:
        cells = [findings.get((probe.name, target.name)) for target in shown]
        if any(cells):
            texts = [f"{cell.text} ({cell.grade})" if cell else "-" for cell in cells]
            lines.append(f"| {probe.title} | {' | '.join(texts)} |")
    lines += ["", "Grades:", "", *(f"- {probe.title}: {probe.grades}." for probe in PROBES), ""]
    lines += [
        f"Date: {datetime.datetime.now(tz=datetime.UTC).date()}. Command: `benchmarks/router/behaviour.py`. "
        f"Versions: {', '.join(peers.versions())}.",
        f"Machine: {os.cpu_count()} CPUs, the router on one of them; milliseconds hold for it alone.",
        *(f"{name} was left out: {why}." for name, why in absent.items()),
        "A dash was not measured.",
    ]
    return "\n".join(lines) + "\n"


def ask_all(targets: list[str], probes: list[str]) -> tuple[Findings, dict[str, str]]:
    """Every probe of every target; why a target was left out."""
    findings: Findings = {}
    absent: dict[str, str] = {}
    compiled, installed = compile_router(), peers.install()
    for target in (one for one in TARGETS if one.name in targets):
        launch = launcher(target, compiled, installed)
        for probe in (one for one in PROBES if one.name in probes):
            try:
                finding = asyncio.run(probe.find(launch))
            except UnavailableError as error:
                absent[target.title] = str(error)
                say(f"{target.name} is left out: {error}")
                break
            except (OSError, EOFError, TimeoutError) as error:  # it broke off where the probe expected it to go on
                finding = Finding(f"no answer to the probe ({type(error).__name__})", 0)
            findings[probe.name, target.name] = finding
            say(f"{target.name:10} {probe.name:18} {finding.grade}  {finding.text}")
    return findings, absent


def main() -> None:
    """Ask, and write the table."""
    names, probes = [target.name for target in TARGETS], [probe.name for probe in PROBES]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=lambda text: text.split(","), default=names, help=", ".join(names))
    parser.add_argument("--probes", type=lambda text: text.split(","), default=probes, help=", ".join(probes))
    parser.add_argument("--output", type=Path, default=HERE / "BEHAVIOUR.md")
    options = parser.parse_args()
    options.output.write_text(table(*ask_all(options.targets, options.probes)))


if __name__ == "__main__":
    main()
