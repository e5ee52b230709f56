"""What of a model one rank of a group holds.

Owns that division: attention is split by KV heads as far as they go, experts as a plan has them; norms, routers, dense
MLPs, shared experts and the embedding are on every rank, the vision tower and the output head on rank 0 alone, which
embeds images and samples.
"""

from dataclasses import dataclass, replace
from math import gcd

from m3_worker.model.config import ModelConfig
from m3_worker.model.expert_plan import ExpertPlan


@dataclass(frozen=True)
class RankShare:
    """The share of one rank."""

    whole: ModelConfig
    plan: ExpertPlan
    """By which it is loaded."""
    rank: int

    @property
    def head_ranks(self) -> int:
        """Into how many parts attention is split."""
        return gcd(self.plan.ranks, self.whole.kv_heads)

    @property
    def head_replicas(self) -> int:
        """How many ranks compute the same heads."""
        return self.plan.ranks // self.head_ranks

    @property
    def head_part(self) -> int:
        """Which of these parts this rank has."""
        return self.rank % self.head_ranks

    @property
    def has_ends(self) -> bool:
        """Whether it has what is before the first layer and behind the last: vision tower and output head."""
        return self.rank == 0

    @property
    def config(self) -> ModelConfig:
        """The model as this rank computes it: with its own heads only."""
        return replace(
            self.whole,
            heads=self.whole.heads // self.head_ranks,
            kv_heads=self.whole.kv_heads // self.head_ranks,
            vision=self.whole.vision if self.has_ends else None,
        )

    def held(self, layer: int) -> tuple[int, ...]:
        """The experts in its slots of the `layer`-th layer with experts."""
        return self.plan.held(layer, self.rank)
