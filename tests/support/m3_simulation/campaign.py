"""Many seeds on several processes, or one with its history: what the command line asks for, and the closing line."""

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from m3_simulation.ending import AT_THE_END
from m3_simulation.rules import EVERY_STEP
from m3_simulation.simulation import Outcome, simulate

_LINES_OF_A_BREAK = 40


def main() -> int:
    """Run what the command line asks for; 1 if a rule was broken."""
    parser = argparse.ArgumentParser(prog="m3_simulation", description="The operator against a model cluster.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seeds", type=_seeds, help="a range: 1-200, or one number")
    what.add_argument("--seed", type=int, help="one seed, in this process")
    parser.add_argument("--history", action="store_true", help="with --seed: print everything that happened")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default %(default)s)")
    options = parser.parse_args()
    if options.seed is not None:
        outcome = simulate(options.seed)
        if options.history:
            print(outcome.history.tail(len(outcome.history.entries)))
        summary = _Summary(outcome)
        print(summary.told, end="\n\n" if summary.told else "")
        return _close([summary], 0.0)
    began = time.perf_counter()
    summaries = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(_summary, seed) for seed in options.seeds]
        for done in as_completed(waiting):
            summaries.append(done.result())
            if summaries[-1].told:
                print(summaries[-1].told, end="\n\n", flush=True)
            if len(summaries) % 10 == 0:
                steps, breaks = sum(one.steps for one in summaries), sum(bool(one.told) for one in summaries)
                print(f"{len(summaries)} of {len(waiting)} seeds, {steps} steps, {breaks} breaks", file=sys.stderr)
    return _close(sorted(summaries, key=lambda one: one.seed), time.perf_counter() - began)


class _Summary:
    """What of an outcome travels from a process to its parent."""

    def __init__(self, outcome: Outcome) -> None:
        self.seed, self.steps, self.requests = outcome.seed, outcome.steps, outcome.requests
        self.faults, self.checks = outcome.faults, outcome.checks
        self.told, self.rule = "", ""
        if outcome.broken is not None:
            self.rule = outcome.broken.rule
            self.told = (
                f"seed {outcome.seed} breaks a rule: {outcome.broken}\n{outcome.history.tail(_LINES_OF_A_BREAK)}\n"
                f"replay it: PYTHONPATH=tests/support .venv/bin/python -m m3_simulation --seed {outcome.seed} --history"
            )


def _summary(seed: int) -> _Summary:
    return _Summary(simulate(seed))


def _close(summaries: list[_Summary], seconds: float) -> int:
    broken = [one for one in summaries if one.told]
    faults, checks = Counter[str](), Counter[str]()
    for one in summaries:
        faults.update(one.faults)
        checks.update(one.checks)
    told = ", ".join(f"{name} {count}" for name, count in sorted(faults.items()))
    breaks = "; ".join(f"seed {one.seed}: {one.rule}" for one in broken) or "none"
    print(
        f"seeds {len(summaries)}, steps {sum(one.steps for one in summaries)}, requests "
        f"{sum(one.requests for one in summaries)}, faults {faults.total()} ({told}), invariants "
        f"{len([*EVERY_STEP, *AT_THE_END])} checked {checks.total()} times, breaks: {breaks}"
        + (f" ({seconds:.0f} s)" if seconds else "")
    )
    return 1 if broken else 0


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)
