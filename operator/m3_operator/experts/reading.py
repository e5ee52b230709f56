"""What one group says of its experts: the plan it has, and how many tokens chose each expert. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m3_operator.expert_plan.plan import ExpertPlan, ExpertPlanError, GroupShape


@dataclass(frozen=True)
class ExpertReading:
    """One group at one time."""

    plan: ExpertPlan
    tokens: tuple[tuple[int, ...], ...]
    """[layers with experts][experts]: tokens that chose each, since the worker's start."""


def read_experts(body: object, nodes: int) -> ExpertReading:
    """The answer of a worker's `GET /internal/experts`; its ranks are on so many nodes.

    Raises ExpertPlanError if it is no such answer.
    """
    if not isinstance(body, Mapping):
        raise ExpertPlanError("the answer is no JSON object")
    experts, ranks, slots = (_count(body, name) for name in ("experts", "ranks", "slots"))
    if ranks % nodes:
        raise ExpertPlanError(f"{ranks} ranks on {nodes} nodes: every node must have as many")
    shape = GroupShape(experts, nodes, ranks // nodes, slots - experts)
    layers, tokens = _table(body, "layers", slots), _table(body, "tokens", experts)
    if len(layers) != len(tokens):
        raise ExpertPlanError(f"{len(layers)} layers and tokens of {len(tokens)}: must be as many")
    return ExpertReading(ExpertPlan(shape, layers, _count(body, "epoch")), tokens)


def _count(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ExpertPlanError(f"{name} is {value!r}: must be a count")
    return value


def _table(body: Mapping[str, Any], name: str, width: int) -> tuple[tuple[int, ...], ...]:
    rows = body.get(name)
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise ExpertPlanError(f"{name} is no list")
    for place, row in enumerate(rows):
        is_row = isinstance(row, list) and len(row) == width
        if not is_row or not all(isinstance(value, int) and value >= 0 for value in row):
            raise ExpertPlanError(f"{name}[{place}] must be {width} counts")
    return tuple(map(tuple, rows))
