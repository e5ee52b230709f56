"""Rank 0: it decides what a step is and samples, and tells the other ranks to compute it with it.

Owns what rank 0 says (`words`) around what it does itself: a step, copies of pages, a plan, the end. To the engine
it is a model and a mover like those of one process. All is for the engine's thread, but for `LedGroup`.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from m3_worker.model.cache import PagedCache, StepTensors
from m3_worker.model.config import ModelConfig
from m3_worker.model.expert_plan import ExpertPlan
from m3_worker.model.m3 import M3Model
from m3_worker.model.token_rows import Ranks
from m3_worker.ranks.errors import SwapError
from m3_worker.ranks.expert_exchange import GroupRanks
from m3_worker.ranks.expert_swap import ExpertSwap
from m3_worker.ranks.running_group import RunningGroup
from m3_worker.ranks.words import Kind, Voice, pack_copies, pack_step
from m3_worker.scheduling.host_pages import Copy, PageMover


class LeadingModel(M3Model):
    """The model on rank 0: what it computes, all ranks do."""

    def __init__(self, model: M3Model, ranks: GroupRanks, voice: Voice) -> None:
        super().__init__(model.config, model.weights, ranks)
        self._voice = voice

    def states(self, step: StepTensors, cache: PagedCache) -> Tensor:
        """See `M3Model.states`."""
        self._voice.say(Kind.STEP, *pack_step(step))
        return super().states(step, cache)


class LeadingMover:
    """Copies of pages on rank 0, and so on all ranks: each has its own heads of a page."""

    def __init__(self, mover: PageMover, voice: Voice) -> None:
        self._mover = mover
        self._voice = voice

    def copy(self, copies: Sequence[Copy]) -> None:
        """See `HostTier.copy`."""
        self._voice.say(Kind.COPIES, pack_copies(copies))
        self._mover.copy(copies)


class Leader:
    """What rank 0 does with its group beside steps."""

    def __init__(self, ranks: GroupRanks, voice: Voice, swap: ExpertSwap) -> None:
        self._ranks = ranks
        self._voice = voice
        self._swap = swap

    @property
    def plan(self) -> ExpertPlan:
        """Where the experts are. May be read on any thread."""
        return self._ranks.plan

    def take_layer(self, plan: ExpertPlan, layer: int) -> None:
        """Have all ranks take one layer of `plan`. Raises SwapError if one cannot."""
        slots = plan.layers[layer]
        self._voice.say(Kind.LAYER, (layer, *slots))
        if not self._swap.take(layer, slots):
            raise SwapError(f"layers[{layer}]: a rank could not read its experts from the checkpoint; its log says why")

    def finish(self, plan: ExpertPlan) -> None:
        """Every rank has all layers of `plan`: from now on its epoch is the group's."""
        self._ranks.plan = plan

    def load(self) -> list[list[int]]:
        """[layers with experts][experts]: tokens that chose each, on all ranks, since the start."""
        self._voice.say(Kind.LOAD)
        return self._ranks.total_load()


class LedGroup:
    """The group of rank 0, to whoever serves."""

    def __init__(self, running: RunningGroup, voice: Voice) -> None:
        self._running = running
        self._voice = voice

    def when_lost(self, responsible: Callable[[str], None]) -> None:
        """See `RunningGroup.when_lost`."""
        self._running.when_lost(responsible)

    def end(self, *, in_order: bool) -> None:
        """End the other ranks: by word if no thread is in a step any more, else by force."""
        self._running.expect_end()
        if in_order:
            self._voice.say(Kind.END)
        self._running.end(others_know=in_order)


class LoneExperts:
    """The experts of a process that is alone: all are here, and nothing can be moved."""

    def __init__(self, ranks: Ranks, config: ModelConfig) -> None:
        self.plan = ExpertPlan.default(sum(config.moe_layers), config.experts, 1)
        self._ranks = ranks

    def take_layer(self, plan: ExpertPlan, layer: int) -> None:
        """Raises SwapError: there is nowhere to move an expert."""
        raise SwapError(f"layers[{layer}] of epoch {plan.epoch} cannot be taken: this worker computes on one rank")

    def finish(self, plan: ExpertPlan) -> None:
        """Take over its epoch: it has every expert where it is."""
        self.plan = plan

    def load(self) -> list[list[int]]:
        """[layers with experts][experts]: tokens that chose each, since the start."""
        return self._ranks.load.by_layer()
