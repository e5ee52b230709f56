"""How even experts are placed, what following a drifting load moves, and how long the planner takes.

    make bench-experts    # or: PYTHONPATH=tests/support python benchmarks/operator/experts.py [--layers 60]

Synthetic loads (`expert_loads`), seeded: every figure but the times is the same on every machine. The planner is the
operator's own (`m3_operator.expert_plan`); others are written from their descriptions (`rivals`). Writes EXPERTS.md
beside this file and the picture of the documentation.
"""

import argparse
import datetime
import os
import platform
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from random import Random
from statistics import mean

from drift import DRIFT_LAYERS, ROUNDS, Drift, drifts_on  # beside this file, where Python looks first
from heatmap import Panel, heatmaps
from placing import ENOUGH, GPUS_PER_NODE, MOVED, StaticRow, shape_of, static_row
from rivals import contiguous

from expert_loads import EXPERTS, KINDS, layer_loads
from m3_operator.expert_plan.moves import rebalance
from m3_operator.expert_plan.packing import initial_plan
from m3_operator.expert_plan.plan import ExpertPlan, rank_loads

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parents[1] / "docs/images/expert-load.svg"

GPUS = (8, 16, 32, 64)
RATIO, RATIO_GPUS, SECONDS = 1.02, (8, 16, 32), 1.0
"""The goals: this max / mean, on so many GPUs; so long for all layers."""
PICTURE_GPUS, PICTURE_LAYERS = 32, 24


def goal_lines(rows: Sequence[StaticRow], drifts: Sequence[Drift], layers: int) -> list[str]:
    """What was wanted, and what was measured."""
    worst = max(row.ours[0].worst for row in rows if row.gpus in RATIO_GPUS)
    slowest = max(max(row.round_seconds, *(placed.seconds for placed in row.ours)) for row in rows)
    moved = max(max(drift.moved) for drift in drifts)
    return [
        f"| max / mean of the worst layer, one spare slot a GPU, 8 to 32 GPUs | at most {RATIO} | {worst:.3f} | "
        f"{_met(worst <= RATIO)} |",
        f"| slots moved in a round | at most {MOVED:.0%} | {moved:.1%} | {_met(moved <= MOVED)} |",
        f"| {layers} layers placed, or a round for them found, 8 to 64 GPUs | under {SECONDS:g} s | {slowest:.2f} s | "
        f"{_met(slowest < SECONDS)} |",
    ]


def picture() -> str:
    """The load of each GPU in each layer: experts in order, after one round of moves, placed by load."""
    loads = [layer_loads("lognormal 0.7", Random(seed)) for seed in range(PICTURE_LAYERS)]
    bare, spare = shape_of(PICTURE_GPUS, 0), shape_of(PICTURE_GPUS, 1)
    unknowing = initial_plan(spare, PICTURE_LAYERS)
    plans = {
        "Experts in order": ExpertPlan(bare, (contiguous(bare),) * PICTURE_LAYERS),
        f"One round: {MOVED:.0%} of the slots moved": rebalance(unknowing, loads, MOVED, ENOUGH).plan,
        "Placed by load": initial_plan(spare, PICTURE_LAYERS, loads),
    }
    panels = []
    for title, plan in plans.items():
        balance = plan.balance(loads)
        rows = [rank_loads(plan.shape, slots, of_layer) for slots, of_layer in zip(plan.layers, loads, strict=True)]
        note = f"max / mean {balance.mean:.3f}, in the worst layer {balance.worst:.3f}"
        panels.append(Panel(title, note, [[load / mean(row) for load in row] for row in rows]))
    return heatmaps(
        "Load of each GPU, over the mean of its layer",
        f"{PICTURE_LAYERS} layers of {EXPERTS} experts on {PICTURE_GPUS} GPUs, a synthetic load. With experts in "
        "order some GPUs of every layer have far more to do than others. With one spare slot a GPU and one round of "
        "moves few stand out; when all experts are placed by load none does.",
        "GPU",
        "layer",
        panels,
    )


def _met(is_met: bool) -> str:
    return "met" if is_met else "**missed**"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


PAGE = """# Where experts go

Question: how even is the load of GPUs when experts are placed by load, how many slots must move to keep it so while
the load drifts, and how long does planning take? {experts} experts, synthetic loads, nodes of {per_node} GPUs.

| goal | wanted | measured | |
| --- | --- | --- | --- |
{goals}

## From nothing

Load of the most loaded GPU over the mean: the mean of {layers} layers (and the worst). A layer waits for that GPU.

| load | GPUs | contiguous | greedy, 1 spare | greedy, 2 spare | ours, 1 spare | ours, 2 spare | on one node | CPU s |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

![Load of each GPU: experts in order, after one round of moves, placed by load](../../docs/images/expert-load.svg)

The picture: lognormal 0.7 on 32 GPUs. The round in the middle starts from a plan with one spare slot a GPU that was
made without the load, as a new group's is.

- Spare: slots of a GPU beyond its share of the experts, so R = GPUs or 2 x GPUs redundant slots in a layer.
- Greedy: the published method (`rivals.py`): copies to the highest load per copy, then the heaviest copy first to the
  least loaded GPU. It knows nothing of nodes; ours never puts two copies of an expert on one GPU, and puts copies on
  different nodes where there is room.
- On one node: of the experts with several copies (1 spare), the share of which a lost node takes all: greedy / ours.
- CPU s, {layers} layers, the best of {repetitions}: greedy (1 spare) / ours (1 spare) / ours (2 spare) / one round of
  moves, from a plan made without the load. All in plain Python.

## While the load drifts

Lognormal loads whose logarithm follows an AR(1) process (0.95 a round), {drift_layers} layers, one spare slot a GPU.
All start from our plan for the load before the first round. Columns 1 to {rounds}: max / mean (mean of layers) after
each round. Met: what the drifted load finds before the round; left: what the round leaves; both means over rounds.

| GPUs | | {numbers} | met | left | moved |
| --- | --- |{lines} --- | --- | --- |
{drifts}

- Moved: slots that take an expert that their GPU did not have. Ours may move {moved:.0%} of all slots in a round; "to
  {enough:g}" is the policy's default: a layer as even as that is left alone.
- By default the planner waits until the worst layer is above 1.15 for two windows; here a round follows each step.
- From 16 GPUs on the drift undoes more than a tenth of the slots can mend in a round: greedy anew is more even there,
  for nine times the moves.

## What this does not show

The loads of a real M3 under real traffic; what a moved slot costs a group that serves; how far the last window's load
foretells the next one's. Load profiles are synthetic and seeded: all figures but the times are the same everywhere.

- Date: {date}. Command: `{command}`.
- Machine: {cpus} CPUs ({cpu}), load average {load:.1f} before the run; Python {python}.
"""


def main() -> None:
    """Measure, and write page and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=60)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "EXPERTS.md")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    rows = []
    for kind, gpus in product(KINDS, GPUS):
        rows.append(static_row(kind, gpus, arguments.layers, arguments.repetitions))
        print(rows[-1].text, flush=True)
    drifts = [drift for gpus in GPUS for drift in drifts_on(gpus)]
    print("\n".join(drift.text for drift in drifts), flush=True)
    page = PAGE.format(
        experts=EXPERTS,
        per_node=GPUS_PER_NODE,
        layers=arguments.layers,
        repetitions=arguments.repetitions,
        goals="\n".join(goal_lines(rows, [drift for drift in drifts if "ours" in drift.title], arguments.layers)),
        rows="\n".join(row.text for row in rows),
        drift_layers=DRIFT_LAYERS,
        rounds=ROUNDS,
        numbers=" | ".join(map(str, range(1, ROUNDS + 1))),
        lines=" --- |" * ROUNDS,
        drifts="\n".join(drift.text for drift in drifts),
        moved=MOVED,
        enough=ENOUGH,
        date=datetime.datetime.now(datetime.UTC).date(),
        command="PYTHONPATH=tests/support python benchmarks/operator/experts.py",
        cpus=os.cpu_count(),
        cpu=_cpu_model(),
        load=load,
        python=platform.python_version(),
    )
    arguments.output.write_text(page, encoding="utf-8")
    arguments.picture.write_text(picture(), encoding="utf-8")


if __name__ == "__main__":
    main()
