"""A layer of experts over several ranks: who computes which rows, and how rows and results travel.

Owns the two ways of a step through a group (`GroupRanks` is what the model sees as `token_rows.Ranks`):

* A small batch is replicated. Every rank carries all rows through the residual stream and routes them; each runs those
  that chose its slots, and one all-reduce adds up what they made. Two all-reduces a layer, whatever the batch.
* A large batch is split. Each rank carries its share of the rows: gathered before attention (which needs all of them
  for its heads), reduce-scattered after it. Each row is routed by the rank that carries it alone, goes to its experts
  by an uneven all-to-all, and comes back by another. Norms, dense MLPs and shared experts cost each rank its share.

Attention is split by KV heads as far as they go; ranks beyond them repeat it in equal shares. Which blocks are attended
to is chosen by all ranks together where contexts are long (`block_choice`). Greedy tokens are those
of one process: sums are taken in another order, and nothing else differs. In a replicated step all ranks must route
alike, which they do because what they route is the same bits (see `Group.agree`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from m3_kernels import ops
from m3_kernels.layout import ExpertRows, RaggedBatch
from m3_worker.model.expert_plan import ExpertPlan
from m3_worker.model.token_rows import ExpertLoad, RunExperts, StepRows
from m3_worker.ranks.block_choice import choose_blocks_together
from m3_worker.ranks.group import Group


@dataclass(frozen=True)
class SplitLimits:
    """From which sizes on ranks split work that small steps are quicker without."""

    batch_tokens: int = 64
    """Of a rank: below, a step is bound by the number of its exchanges; above, by what they carry."""
    context_tokens: int = 65_536
    """Of the longest sequence: from here on, reading its index keys takes longer than telling each other of them."""


@dataclass(frozen=True)
class _Places:
    """Where the copies of each expert of one layer are."""

    slots: Tensor
    """[E, most copies of one expert] i64, cyclic beyond an expert's own."""
    copies: Tensor
    """[E] i64"""

    @classmethod
    def of(cls, plan: ExpertPlan, layer: int, device: torch.device) -> "_Places":
        copies = plan.copies(layer)
        most = max(map(len, copies))
        rows = [[of_expert[turn % len(of_expert)] for turn in range(most)] for of_expert in copies]
        counts = [len(of_expert) for of_expert in copies]
        return cls(torch.tensor(rows, device=device), torch.tensor(counts, device=device))

    def choose(self, chosen: Tensor, first_token: int) -> Tensor:
        """[t, A] experts of the tokens from `first_token` on -> [t, A] slots: copies in turns, by the token's index."""
        tokens = torch.arange(first_token, first_token + len(chosen), device=chosen.device)[:, None]
        return self.slots[chosen, tokens % self.copies[chosen]]


class GroupRanks:
    """A group as the model sees it; `plan` says where the experts are."""

    def __init__(self, group: Group, plan: ExpertPlan, head_replicas: int, limits: SplitLimits) -> None:
        """head_replicas: how many ranks compute the same heads."""
        self.group = group
        self.plan = plan
        self.head_replicas = head_replicas
        self.load = ExpertLoad(len(plan.layers), plan.experts, group.device)
        self._small_tokens = limits.batch_tokens * group.ranks
        self._long_tokens = limits.context_tokens
        self._places = [_Places.of(plan, layer, group.device) for layer in range(len(plan.layers))]

    def step(self, tokens: int) -> StepRows:
        """Replicated or split, by size: the same on all ranks."""
        return _Replicated(self) if tokens <= self._small_tokens else _Split(self, tokens)

    def set_layer(self, plan: ExpertPlan, layer: int) -> None:
        """From now on the experts of a layer are where `plan` says; the caller has put their weights there."""
        self.plan = plan
        self._places[layer] = _Places.of(plan, layer, self.group.device)

    def slots(self, layer: int, chosen: Tensor, first_token: int) -> Tensor:
        """[t, A] experts -> [t, A] slots."""
        return self._places[layer].choose(chosen, first_token)

    def count(self, layer: int, chosen: Tensor) -> None:
        """Count what the tokens chose. Of one token it is called on one rank, so that ranks' loads add up."""
        self.load.add(layer, ops.sort_by_expert(chosen, self.plan.experts).ends)

    def total_load(self) -> list[list[int]]:
        """[layers with experts][experts]: tokens that chose each, on all ranks. For all ranks to call together."""
        return self.load.by_layer(self.group.all_reduce)

    def choose_blocks(self, index_q: Tensor, index_k: Tensor, batch: RaggedBatch, k: int) -> Tensor:
        """By each rank for its own heads, or by all for all where a context is long."""
        is_long = max(batch.context_lengths) >= self._long_tokens and k > 1
        if not is_long:
            return ops.choose_blocks(index_q, index_k, batch, k)
        return choose_blocks_together(self.group, self.head_replicas, index_q, index_k, batch, k=k)

    def share(self, partial: Tensor) -> Tensor:
        """This rank's part of a sum to which `head_replicas` ranks bring the same."""
        return partial if self.head_replicas == 1 else partial / self.head_replicas


class _Replicated:
    """Every rank carries all rows."""

    def __init__(self, ranks: GroupRanks) -> None:
        self._ranks = ranks

    def own(self, x: Tensor) -> Tensor:
        return x

    def all(self, x: Tensor) -> Tensor:
        return x

    def sum(self, partial: Tensor) -> Tensor:
        return self._ranks.group.all_reduce(self._ranks.share(partial))

    def choose_blocks(self, index_q: Tensor, index_k: Tensor, batch: RaggedBatch, k: int) -> Tensor:
        return self._ranks.choose_blocks(index_q, index_k, batch, k)

    def run_experts(self, layer: int, x: Tensor, chosen: Tensor, shares: Tensor, run: RunExperts) -> Tensor:
        ranks, choices = self._ranks, chosen.shape[1]
        if ranks.group.rank == 0:
            ranks.count(layer, chosen)
        owned = ranks.plan.owned(ranks.group.rank)
        slots = ranks.slots(layer, chosen, 0).flatten() - owned.start
        pairs = ((slots >= 0) & (slots < len(owned))).nonzero().squeeze(1)  # (token, choice) that come here
        rows = ops.sort_by_expert(slots[pairs, None], len(owned))
        pairs = pairs[rows.order]
        out = run(x.index_select(0, pairs // choices), rows).float() * shares.flatten()[pairs, None]
        by_pair = out.new_zeros((chosen.numel(), x.shape[1])).index_copy_(0, pairs, out)
        return ranks.group.all_reduce(by_pair.view(len(x), choices, -1).sum(1)).to(x.dtype)


class _Split:
    """Each rank carries the same number of consecutive rows, but for the last ones."""

    def __init__(self, ranks: GroupRanks, tokens: int) -> None:
        group = ranks.group
        self._ranks = ranks
        self._tokens = tokens
        self._share = -(-tokens // group.ranks)
        self._first = min(group.rank * self._share, tokens)
        self._end = min(self._first + self._share, tokens)

    def own(self, x: Tensor) -> Tensor:
        return x[self._first : self._end]

    def all(self, x: Tensor) -> Tensor:
        return self._ranks.group.all_gather(_padded(x, self._share))[: self._tokens]

    def sum(self, partial: Tensor) -> Tensor:
        group = self._ranks.group
        whole = _padded(self._ranks.share(partial), group.ranks * self._share)
        return group.reduce_scatter(whole)[: self._end - self._first]

    def choose_blocks(self, index_q: Tensor, index_k: Tensor, batch: RaggedBatch, k: int) -> Tensor:
        return self._ranks.choose_blocks(index_q, index_k, batch, k)

    def run_experts(self, layer: int, x: Tensor, chosen: Tensor, shares: Tensor, run: RunExperts) -> Tensor:
        ranks, group, choices = self._ranks, self._ranks.group, chosen.shape[1]
        ranks.count(layer, chosen)
        here = ranks.plan.slots_per_rank
        leaving = ops.sort_by_expert(ranks.slots(layer, chosen, self._first), ranks.plan.slots)
        counts = leaving.ends.diff(prepend=leaving.ends.new_zeros(1))  # [slots], so by rank
        arriving = group.all_to_all(counts, [here] * group.ranks, [here] * group.ranks)  # [ranks * here]
        sent, received = (by_slot.view(group.ranks, here).sum(1).tolist() for by_slot in (counts, arriving))
        came = group.all_to_all(x.index_select(0, leaving.tokens(choices)), sent, received)
        slots = torch.arange(here, device=x.device).repeat(group.ranks).repeat_interleave(arriving)
        rows = ops.sort_by_expert(slots[:, None], here)
        out = run(came.index_select(0, rows.order), rows)
        back = group.all_to_all(_unsorted(out, rows), received, sent)
        return ops.combine_experts(back, leaving, shares) if len(x) else x  # a short step leaves the last ranks none


def _unsorted(x: Tensor, rows: ExpertRows) -> Tensor:
    return torch.empty_like(x).index_copy_(0, rows.order, x)


def _padded(x: Tensor, rows: int) -> Tensor:
    """With zeros at its end, so that it has so many rows."""
    return x if len(x) == rows else torch.cat((x, x.new_zeros((rows - len(x), *x.shape[1:]))))
