"""One rank of a group with its share of the model, put together: the same on rank 0 and on those that follow.

Owns that order: the weights of this rank's share are read, then the model computes with the group. What is around it
(cache, engine, loop) is `loading`'s on rank 0 and `rank_main`'s on others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from m3_kernels.mxfp8 import Weight
from m3_worker.model.checkpoint import Progress, load_model, read_experts
from m3_worker.model.config import ModelConfig
from m3_worker.model.expert_plan import ExpertPlan
from m3_worker.model.m3 import Experts, M3Model
from m3_worker.model.share import RankShare
from m3_worker.ranks.expert_exchange import GroupRanks, SplitLimits
from m3_worker.ranks.expert_swap import ExpertSwap
from m3_worker.ranks.group import Group
from m3_worker.ranks.leading import LeadingModel
from m3_worker.ranks.words import Voice


@dataclass(frozen=True)
class RankModel:
    """A rank's share of a model, in its group."""

    model: M3Model
    """Computes with the group; on rank 0 it has the others compute as well."""
    ranks: GroupRanks
    voice: Voice
    swap: ExpertSwap


def load_rank(
    group: Group,
    directory: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    plan: ExpertPlan,
    *,
    progress: Progress,
    limits: SplitLimits | None = None,
) -> RankModel:
    """Read this rank's share of the checkpoint, experts as in `plan`. Raises CheckpointError."""
    share = RankShare(config, plan, group.rank)
    loaded = load_model(directory, config, dtype, group.device, progress, share=share)
    ranks = GroupRanks(group, plan, share.head_replicas, limits or SplitLimits())
    voice = Voice(group, config.hidden_size, dtype)
    model = LeadingModel(loaded, ranks, voice) if group.rank == 0 else M3Model(loaded.config, loaded.weights, ranks)
    mlps = {number: layer.mlp for number, layer in enumerate(loaded.weights.layers) if isinstance(layer.mlp, Experts)}
    numbers = list(mlps)

    def read(layer: int, experts: Sequence[int], gate_up: Weight, down: Weight) -> None:
        read_experts(directory, numbers[layer], experts, gate_up, down)

    return RankModel(model, ranks, voice, ExpertSwap(ranks, list(mlps.values()), read))
