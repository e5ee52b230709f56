"""Choosing blocks for all heads by all ranks: each scores one stretch of every sequence, for the heads of all.

Owns that exchange. Every rank has all index keys, which are one head wide and shared by all groups, so splitting heads
over ranks does not split the reading of them, and ranks beyond the KV heads would read and score them all once more.
Split by blocks, R ranks read one R-th each. What travels is small: index queries once to all, and k - 1 candidates per
stretch, head and query to those who attend with that head. What is chosen is the same as by one rank.
"""

import torch
from torch import Tensor

from m3_kernels import ops
from m3_kernels.layout import BlockCandidates, BlockPart, RaggedBatch
from m3_worker.ranks.group import Group


def choose_blocks_together(
    group: Group, head_replicas: int, index_q: Tensor, index_k: Tensor, batch: RaggedBatch, *, k: int
) -> Tensor:
    """`ops.choose_blocks` of this rank's heads; for all ranks to call with the same batch, and k of 2 at least.

    index_q: [T, G, I] of this rank's G groups. index_k: [P, B, I], the same on all ranks. Returns [G, T, k] i32.
    head_replicas: how many ranks have the same heads; rank r has the r-th part of them, modulo the number of parts.
    """
    tokens, groups, width = index_q.shape
    head_parts = group.ranks // head_replicas
    by_rank = group.all_gather(index_q).view(group.ranks, tokens, groups, width)
    every_q = by_rank[:head_parts].transpose(0, 1).reshape(tokens, head_parts * groups, width)
    found = ops.best_blocks(every_q, index_k, batch, k - 1, BlockPart(group.rank, group.ranks))
    receivers = torch.arange(group.ranks, device=index_q.device) % head_parts
    one_each = [1] * group.ranks

    def exchange(by_head: Tensor) -> Tensor:
        """[head_parts * G, T, k - 1] of this rank's stretch -> [ranks, G, T, k - 1] of this rank's heads."""
        return group.all_to_all(by_head.view(head_parts, groups, tokens, k - 1)[receivers], one_each, one_each)

    candidates = BlockCandidates(exchange(found.scores), exchange(found.ids))
    return ops.join_blocks(candidates, batch.positions, index_k.shape[1])
