"""What is benchmarked: the head shape of a model, and the selections that its queries make.

Owns no tensor of a device and no kernel. Selections are made up, as which blocks real prompts choose is not known here;
what is known to matter, how far adjacent queries agree, is their one parameter.
"""

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor


@dataclass(frozen=True)
class Heads:
    """The shape of one attention layer. Names as in the package's table of symbols."""

    groups: int
    heads: int
    """Of a group."""
    head_dim: int
    index_dim: int
    block_tokens: int
    topk: int


M3 = Heads(groups=4, heads=16, head_dim=128, index_dim=128, block_tokens=128, topk=16)
TOY = Heads(groups=2, heads=4, head_dim=16, index_dim=16, block_tokens=16, topk=3)
"""Small enough for the interpreter."""


@dataclass(frozen=True)
class Chunk:
    """The newest `queries` tokens of one sequence that is then `context` tokens long."""

    queries: int
    context: int

    @property
    def positions(self) -> range:
        return range(self.context - self.queries, self.context)


RANDOM, CORRELATED = 0.0, 0.9
"""How likely a query keeps a block of the one before it. CORRELATED is a guess at real prompts, no measurement."""


def selection(heads: Heads, chunk: Chunk, kept: float, seed: int = 0) -> Tensor:
    """[G, queries, topk] i32, ascending, then -1.

    A query keeps each block of the one before it with probability `kept`; the others are drawn evenly from the blocks
    before its own, and its own is always chosen.
    """
    random = Random(seed)
    table = torch.full((heads.groups, chunk.queries, heads.topk), -1, dtype=torch.int32)
    for group in range(heads.groups):
        rows: list[list[int]] = []
        chosen: set[int] = set()
        for position in chunk.positions:
            own = position // heads.block_tokens
            wanted = min(heads.topk - 1, own)
            held = [block for block in sorted(chosen) if block < own and random.random() < kept]
            chosen = set(random.sample(held, min(wanted, len(held))))
            while len(chosen) < wanted:
                chosen.add(random.randrange(own))
            rows.append([*sorted(chosen), own, *[-1] * (heads.topk - 1 - wanted)])
        table[group] = torch.tensor(rows)
    return table
