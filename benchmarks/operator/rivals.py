"""Other ways to place experts, for the table.

`contiguous` is what engines do without a load: experts in order, one slot each. `published_greedy` is the method that
DeepSeek describes for its expert-parallel load balancer (https://github.com/deepseek-ai/EPLB, global policy) and that
vLLM and SGLang use by default, written from that description: a copy for the expert that carries most per copy, again
and again; then copies, the heaviest first, each to the GPU that carries least and has a slot left. Neither looks at
where experts are now, at nodes, or at copies of one expert on one GPU.
"""

from collections.abc import Sequence

from m3_operator.expert_plan.plan import GroupShape, Slots


def contiguous(shape: GroupShape) -> Slots:
    """Experts in order; only for shapes without redundant slots."""
    return tuple(range(shape.experts))


def published_greedy(shape: GroupShape, loads: Sequence[float]) -> Slots:
    """One layer."""
    copies = [1] * shape.experts
    for _ in range(shape.redundant):
        copies[max(range(shape.experts), key=lambda expert: loads[expert] / copies[expert])] += 1
    pieces = [
        (loads[expert] / copies[expert], expert) for expert in range(shape.experts) for _ in range(copies[expert])
    ]
    held: list[list[int]] = [[] for _ in range(shape.ranks)]
    carried = [0.0] * shape.ranks
    for weight, expert in sorted(pieces, key=lambda piece: -piece[0]):
        open_ranks = [rank for rank in range(shape.ranks) if len(held[rank]) < shape.slots_per_rank]
        rank = min(open_ranks, key=carried.__getitem__)
        held[rank].append(expert)
        carried[rank] += weight
    return tuple(expert for of_rank in held for expert in of_rank)
