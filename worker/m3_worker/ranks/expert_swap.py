"""Experts change places between steps: one layer after another, each on all ranks or on none.

Owns that exchange of weights. A layer's new experts are read first, beside the old ones: from a slot of this rank that
has them, else from the checkpoint. Only when every rank has read its own do they take their slots. So at every step all
ranks have the same plan and its weights; memory for one layer's moved experts is needed, and a step waits for them.
"""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from m3_kernels.mxfp8 import Mxfp8, Weight, parts
from m3_worker.model.config import CheckpointError
from m3_worker.model.m3 import Experts
from m3_worker.ranks.expert_exchange import GroupRanks

log = logging.getLogger(__name__)

ReadExperts = Callable[[int, Sequence[int], Weight, Weight], None]
"""(layer among those with experts, experts, gate_up [n, 2F, C], down [n, C, F]) -> reads the experts into both."""


class ExpertSwap:
    """The slots of one rank."""

    def __init__(self, ranks: GroupRanks, layers: Sequence[Experts], read: ReadExperts) -> None:
        """layers: those with experts. read: raises CheckpointError."""
        self._ranks = ranks
        self._layers = layers
        self._read = read

    @torch.inference_mode()
    def take(self, layer: int, slots: tuple[int, ...]) -> bool:
        """Change a layer's plan and weights, together with all other ranks.

        False if a rank could not read what it needs: everything is as it was then.
        """
        ranks, weights = self._ranks, self._layers[layer]
        plan = ranks.plan.with_layer(layer, slots)
        before, after = (one.held(layer, ranks.group.rank) for one in (ranks.plan, plan))
        moved = [slot for slot, expert in enumerate(after) if before[slot] != expert]
        staged = self._stage(layer, before, [after[slot] for slot in moved])
        able = torch.tensor([staged is not None], dtype=torch.int64, device=ranks.group.device)
        if staged is None or int(ranks.group.all_reduce(able)) < ranks.group.ranks:
            return False
        for slot, gate_up, down in zip(moved, *staged, strict=True):
            _copy(weights.gate_up[slot], gate_up)
            _copy(weights.down[slot], down)
        ranks.set_layer(plan, layer)
        return True

    def _stage(self, layer: int, before: tuple[int, ...], wanted: list[int]) -> tuple[Weight, Weight] | None:
        """The wanted experts' weights, in memory of their own; None, with a line in the log, if they cannot be read."""
        weights = self._layers[layer]
        gate_up, down = _room(weights.gate_up, len(wanted)), _room(weights.down, len(wanted))
        try:
            for row, expert in enumerate(wanted):
                if expert in before:
                    slot = before.index(expert)
                    _copy(gate_up[row], weights.gate_up[slot])
                    _copy(down[row], weights.down[slot])
                else:
                    self._read(layer, [expert], gate_up[row : row + 1], down[row : row + 1])
        except CheckpointError as error:
            log.error("the experts of a new plan cannot be read: %s", error)
            return None
        return gate_up, down


def _copy(place: Weight, weight: Weight) -> None:
    for to, part in zip(parts(place), parts(weight), strict=True):
        to.copy_(part)


def _room(weight: Weight, rows: int) -> Weight:
    """For so many rows of the same form."""
    if isinstance(weight, Tensor):
        return weight.new_empty((rows, *weight.shape[1:]))
    return Mxfp8.empty((rows, *weight.shape[1:]), weight.values.device)
