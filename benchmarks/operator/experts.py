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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from statistics import mean
from typing import TypeVar

from heatmap import Panel, heatmaps  # beside this file, where Python looks first for what a script imports
from rivals import contiguous, published_greedy

from expert_loads import EXPERTS, KINDS, drifting_loads, layer_loads
from m3_operator.expert_plan.balancing import BalancePolicy
from m3_operator.expert_plan.moves import rebalance
from m3_operator.expert_plan.packing import initial_plan
from m3_operator.expert_plan.plan import ExpertPlan, GroupShape, rank_loads

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parents[1] / "docs/images/expert-load.svg"

GPUS = (8, 16, 32, 64)
GPUS_PER_NODE = 8
RATIO, RATIO_GPUS, SECONDS = 1.02, (8, 16, 32), 1.0
"""The goals: this max / mean, on so many GPUs; so long for all layers."""
MOVED, ENOUGH = BalancePolicy().max_moved_share, BalancePolicy().enough_ratio
ROUNDS, DRIFT_LAYERS, DRIFT_SEED = 8, 10, 1
PICTURE_GPUS, PICTURE_LAYERS = 32, 24

Layers = Sequence[Sequence[float]]
T = TypeVar("T")


@dataclass(frozen=True)
class Placement:
    """How even a plan is, how long finding it took, and what a lost node would take."""

    mean: float
    """Of the layers' max / mean; `worst` is the highest."""
    worst: float
    seconds: float
    on_one_node: float
    """Of the experts with copies, the share whose copies are all on one node."""

    @property
    def text(self) -> str:
        return f"{self.mean:.3f} ({self.worst:.3f})"


@dataclass(frozen=True)
class StaticRow:
    """One load on one number of GPUs."""

    kind: str
    gpus: int
    contiguous: Placement
    greedy: Sequence[Placement]
    """With one and with two spare slots a GPU; so is `ours`."""
    ours: Sequence[Placement]
    round_seconds: float
    """Finding one round of moves, from a plan that knew nothing of the load."""

    @property
    def text(self) -> str:
        cells = [self.kind, str(self.gpus)]
        cells += [placed.text for placed in (self.contiguous, *self.greedy, *self.ours)]
        lost = [f"{placed.on_one_node:.0%}" for placed in (self.greedy[0], self.ours[0])]
        cells.append(" / ".join(lost) if self.gpus > GPUS_PER_NODE else "-")
        seconds = (self.greedy[0].seconds, self.ours[0].seconds, self.ours[1].seconds, self.round_seconds)
        cells.append(" / ".join(f"{one:.2f}" for one in seconds))
        return f"| {' | '.join(cells)} |"


def shape_of(gpus: int, spare: int) -> GroupShape:
    """Nodes of eight GPUs, each GPU with so many spare slots."""
    return GroupShape.with_spare_slots(EXPERTS, gpus // GPUS_PER_NODE, GPUS_PER_NODE, spare)


def timed(repetitions: int, work: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and the least CPU time of it: other processes only ever add to it."""
    seconds = []
    for _ in range(repetitions):
        begun = time.process_time()
        result = work()
        seconds.append(time.process_time() - begun)
    return result, min(seconds)


def judged(loads: Layers, repetitions: int, work: Callable[[], ExpertPlan]) -> Placement:
    """Place all layers and judge the plan."""
    plan, seconds = timed(repetitions, work)
    balance = plan.balance(loads)
    return Placement(balance.mean, balance.worst, seconds, on_one_node(plan))


def greedy_plan(shape: GroupShape, loads: Layers) -> ExpertPlan:
    return ExpertPlan(shape, tuple(published_greedy(shape, of_layer) for of_layer in loads))


def on_one_node(plan: ExpertPlan) -> float:
    """See `Placement.on_one_node`; 0 where there are no copies."""
    nodes: list[int] = []
    for slots in plan.layers:
        for expert in range(plan.shape.experts):
            ranks = [plan.shape.rank_of(slot) for slot, one in enumerate(slots) if one == expert]
            if len(ranks) > 1:
                nodes.append(len({plan.shape.node_of[rank] for rank in ranks}))
    return sum(count == 1 for count in nodes) / len(nodes) if nodes else 0.0


def static_row(kind: str, gpus: int, layers: int, repetitions: int) -> StaticRow:
    """Every way to place one load from nothing."""
    loads = [layer_loads(kind, Random(seed)) for seed in range(layers)]
    bare, *spared = (shape_of(gpus, spare) for spare in range(3))
    unknowing = initial_plan(spared[0], layers)
    return StaticRow(
        kind,
        gpus,
        judged(loads, 1, lambda: ExpertPlan(bare, (contiguous(bare),) * layers)),
        [judged(loads, repetitions, partial(greedy_plan, shape, loads)) for shape in spared],
        [judged(loads, repetitions, partial(initial_plan, shape, layers, loads)) for shape in spared],
        timed(repetitions, lambda: rebalance(unknowing, loads, MOVED, ENOUGH))[1],
    )


def goal_lines(rows: Sequence[StaticRow], drifts: Sequence["Drift"], layers: int) -> list[str]:
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


@dataclass(frozen=True)
class Drift:
    """One way to follow a drifting load."""

    gpus: int
    title: str
    met: Sequence[float]
    """For each round the mean ratio that the new load meets, `left` what the round leaves."""
    left: Sequence[float]
    moved: Sequence[float]
    """Of all slots."""

    @property
    def text(self) -> str:
        rounds = " | ".join(f"{ratio:.3f}" for ratio in self.left)
        return (
            f"| {self.gpus} | {self.title} | {rounds} | {mean(self.met):.3f} | {mean(self.left):.3f} | "
            f"{mean(self.moved):.1%} |"
        )


def drifts_on(gpus: int) -> list[Drift]:
    """Everyone follows the same load from the same plan."""
    shape, load = shape_of(gpus, 1), drifting_loads(DRIFT_LAYERS, Random(DRIFT_SEED))
    first = next(load)
    loads = [next(load) for _ in range(ROUNDS)]
    start = initial_plan(shape, DRIFT_LAYERS, first)
    return [
        follow("never", start, loads, lambda plan, _: plan),
        follow("published greedy, anew", start, loads, lambda plan, load: _kept(plan, greedy_plan(shape, load))),
        follow("**ours**", start, loads, lambda plan, load: rebalance(plan, load, MOVED, 1.0).plan),
        follow(f"**ours**, to {ENOUGH:g}", start, loads, lambda plan, load: rebalance(plan, load, MOVED, ENOUGH).plan),
    ]


def follow(
    title: str, start: ExpertPlan, loads: Sequence[Layers], adapt: Callable[[ExpertPlan, Layers], ExpertPlan]
) -> Drift:
    """Let the plan follow the loads."""
    plan, met, left, moved = start, list[float](), list[float](), list[float]()
    for load in loads:
        later = adapt(plan, load)
        met.append(plan.balance(load).mean)
        left.append(later.balance(load).mean)
        moved.append(len(plan.moves_to(later)) / plan.slots)
        plan = later
    return Drift(start.shape.ranks, title, met, left, moved)


def _kept(present: ExpertPlan, later: ExpertPlan) -> ExpertPlan:
    """`later` with the slots of each rank ordered so that what the rank has already stays where it is."""
    shape, layers = present.shape, []
    for slots, wanted in zip(present.layers, later.layers, strict=True):
        ordered: list[int] = []
        for have, want in zip(shape.by_rank(slots), map(list, shape.by_rank(wanted)), strict=True):
            kept = [want.pop(want.index(expert)) if expert in want else None for expert in have]
            ordered += [want.pop() if expert is None else expert for expert in kept]
        layers.append(tuple(ordered))
    return ExpertPlan(shape, tuple(layers))


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
  {enough:g}" is how the operator does it by default: a layer that even is left alone.
- The operator waits until the worst layer is above 1.15 for two windows; here there is a round after each step.

## What this does not show

The loads of a real M3 under real traffic; what a moved slot costs a group that serves; how far the last window's load
foretells the next one's. Load profiles are synthetic and seeded: all figures but the times are the same everywhere.

- Date: {date}. Command: `{command}`. Machine: {cpus} CPUs ({cpu}), load average {load:.1f} before the run;
  Python {python}.
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
        command="make bench-experts",
        cpus=os.cpu_count(),
        cpu=_cpu_model(),
        load=load,
        python=platform.python_version(),
    )
    arguments.output.write_text(page, encoding="utf-8")
    arguments.picture.write_text(picture(), encoding="utf-8")


if __name__ == "__main__":
    main()
