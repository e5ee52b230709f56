"""Where experts are when a group begins: in order, or as a file says that was learned from the load of others.

Owns the reading of that file and the agreement of all ranks on what it said: each node has its own copy of it, and one
may be older.
"""

import json
import logging
from pathlib import Path

from m3_worker.config import RankSettings, WorkerSettings
from m3_worker.model.config import CheckpointError, ModelConfig
from m3_worker.model.expert_plan import ExpertPlan, PlanError
from m3_worker.ranks.group import Group

log = logging.getLogger(__name__)

_LARGEST_BYTES = 16 * 2**20
"""Of a file: a plan of 100 layers with 1,000 slots has a tenth of it."""


def plan_in_order(settings: WorkerSettings, ranks: RankSettings, config: ModelConfig) -> ExpertPlan:
    """Experts in order, then copies of some. Raises CheckpointError if the settings allow no plan."""
    if ranks.world_size == 1 and settings.redundant_experts:
        raise CheckpointError(
            f"--redundant-experts {settings.redundant_experts}: one rank has no use for copies of experts"
        )
    try:
        layers = sum(config.moe_layers)
        return ExpertPlan.default(layers, config.experts, ranks.world_size, settings.redundant_experts)
    except PlanError as error:
        raise CheckpointError(f"--redundant-experts {settings.redundant_experts}: {error}") from None


def learned_plan(in_order: ExpertPlan, file: Path | None) -> ExpertPlan:
    """The plan in `file`, if there is one of this group's shape; else `in_order`, and the log says why.

    A group of another shape than the one that learned it must still start: a plan is worth some per cent of speed.
    """
    if file is None or not file.exists():
        return in_order
    try:
        if file.stat().st_size > _LARGEST_BYTES:
            raise PlanError(f"it has more than {_LARGEST_BYTES} bytes")
        plan = in_order.successor(json.loads(file.read_bytes()))
    except (OSError, ValueError) as error:  # PlanError and what json raises are ValueErrors
        log.warning("--expert-plan %s is not used, experts are in order: %s", file, error)
        return in_order
    log.info("experts are placed as %s says, epoch %d", file, plan.epoch)
    return plan


def agreed_plan(own: ExpertPlan, group: Group, seconds: float) -> ExpertPlan:
    """Rank 0's plan, on every rank. Raises GroupError if rank 0 does not tell it in time."""
    told = group.tell_all("expert plan", own.as_json() if group.rank == 0 else None, seconds)
    return own.successor(told[0])
