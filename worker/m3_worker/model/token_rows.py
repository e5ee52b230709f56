"""How the tokens of a step are spread over ranks while a layer computes: the verbs that the model is written in.

Owns the protocol (`StepRows`), what it means for a process that is alone (`OneRank`), and the count of tokens per
expert. How a group of ranks does it is `ranks.expert_exchange`. Knows no weights: what an expert computes is given as a
function of rows.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from m3_kernels import ops
from m3_kernels.layout import ExpertRows, RaggedBatch

RunExperts = Callable[[Tensor, ExpertRows], Tensor]
"""[N, C] rows by the expert that they go to, and where each one's end -> [N, C], what the experts make of them."""


class StepRows(Protocol):
    """The T rows (one a token) of one step. A rank carries all or some of them through the residual stream."""

    def own(self, x: Tensor) -> Tensor:
        """[T, C] -> those that this rank carries."""

    def all(self, x: Tensor) -> Tensor:
        """Those that this rank carries -> [T, C]."""

    def sum(self, partial: Tensor) -> Tensor:
        """[T, C], this rank's heads' part of all rows -> the sum over ranks of the rows that this rank carries."""

    def choose_blocks(self, index_q: Tensor, index_k: Tensor, batch: RaggedBatch, k: int) -> Tensor:
        """`ops.choose_blocks` for this rank's heads and all rows, whoever scores the blocks."""

    def run_experts(self, layer: int, x: Tensor, chosen: Tensor, shares: Tensor, run: RunExperts) -> Tensor:
        """Run the rows that this rank carries through the experts they chose, wherever these are.

        layer: number among those with experts. x: [t, C]. chosen: [t, A] i64. shares: [t, A] fp32. Returns [t, C].
        run: computes the experts that this rank holds.
        """


class Ranks(Protocol):
    """Who takes part in a step."""

    load: "ExpertLoad"
    """Of the tokens that this rank has routed."""

    def step(self, tokens: int) -> StepRows:
        """The rows of a step of so many tokens."""


class ExpertLoad:
    """How many tokens chose each expert, by layer with experts, since the start."""

    def __init__(self, layers: int, experts: int, device: torch.device | str) -> None:
        self._ends = torch.zeros((layers, experts), dtype=torch.int64, device=device)  # sums of `ExpertRows.ends`

    def add(self, layer: int, ends: Tensor) -> None:
        """Count one step's: ends [experts], of the pairs (token, choice) sorted by expert."""
        self._ends[layer] += ends

    def by_layer(self, total: Callable[[Tensor], Tensor] = lambda own: own) -> list[list[int]]:
        """[layers][experts]. total: makes the sum over ranks of each one's own numbers."""
        ends = total(self._ends.clone())
        counts: list[list[int]] = ends.diff(dim=1, prepend=ends.new_zeros((len(ends), 1))).tolist()
        return counts


class OneRank:
    """One process that has all heads and all experts."""

    def __init__(self, layers: int, experts: int, device: torch.device | str) -> None:
        """layers: those with experts."""
        self.load = ExpertLoad(layers, experts, device)
        self._experts = experts

    def step(self, tokens: int) -> "OneRank":
        """Itself: it keeps nothing of a step."""
        return self

    def own(self, x: Tensor) -> Tensor:
        """As it is."""
        return x

    def all(self, x: Tensor) -> Tensor:
        """As it is."""
        return x

    def sum(self, partial: Tensor) -> Tensor:
        """As it is."""
        return partial

    def choose_blocks(self, index_q: Tensor, index_k: Tensor, batch: RaggedBatch, k: int) -> Tensor:
        """By itself."""
        return ops.choose_blocks(index_q, index_k, batch, k)

    def run_experts(self, layer: int, x: Tensor, chosen: Tensor, shares: Tensor, run: RunExperts) -> Tensor:
        """Sort the rows by expert, run these, and add up what they made of each token."""
        rows = ops.sort_by_expert(chosen, self._experts)
        self.load.add(layer, rows.ends)
        out = run(x.index_select(0, rows.tokens(chosen.shape[1])), rows)
        return ops.combine_experts(out, rows, shares)
