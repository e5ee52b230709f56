"""How the tensors of one step lie in memory: the ragged batch, the pages of one layer, the packed projections.

Owns the shapes that the operations agree on, and no arithmetic. The symbols are in the package docstring.
The worker builds these once a step (`RaggedBatch`) or once a model (`AttentionNorms`) and passes them down.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class RaggedBatch:
    """The sequences of one step. Sequence s owns the tokens query_starts[s] .. query_starts[s + 1] - 1 of the step.

    They are the sequence's newest ones: the last of them is its token context_lengths[s] - 1.
    """

    positions: Tensor
    """[T] i64, each token's place in its own sequence, from 0."""
    slots: Tensor
    """[T] i64: page * B + offset, where each token's key, value and index key are written."""
    query_starts: Sequence[int]
    """[S + 1], on the host."""
    context_lengths: Sequence[int]
    """[S], on the host: tokens of each sequence, those of this step included."""
    page_table: Tensor
    """[S, at least the longest sequence's blocks] i64; columns beyond a sequence's last block are not read."""
    memo: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What an implementation works out of the above once a step, for all layers."""

    @property
    def tokens(self) -> int:
        return self.query_starts[-1]

    @property
    def sequences(self) -> int:
        return len(self.context_lengths)

    @cached_property
    def sequence_of_token(self) -> Tensor:
        """[T] i64: which row of `page_table` a token belongs to."""
        starts = torch.tensor(self.query_starts, device=self.positions.device)
        return torch.repeat_interleave(starts.diff(), output_size=self.tokens)


@dataclass(frozen=True)
class LayerPages:
    """The cache of one layer. Pages are shared by all sequences; a page's unused slots hold anything."""

    k: Tensor
    """[P, B, G, D], after norm and rope."""
    v: Tensor
    """[P, B, G, D]"""
    index_k: Tensor | None = None
    """[P, B, I], after norm and rope; None in a layer of dense attention."""

    @property
    def block_tokens(self) -> int:
        return self.k.shape[1]


@dataclass(frozen=True)
class BlockPart:
    """One of several stretches, as equal as can be, into which the blocks of every sequence are cut."""

    number: int
    parts: int

    def of(self, blocks: int) -> tuple[int, int]:
        """First and end of the stretch of a sequence with so many blocks."""
        return blocks * self.number // self.parts, blocks * (self.number + 1) // self.parts


@dataclass(frozen=True)
class BlockCandidates:
    """Blocks that may be chosen, by group and query, in no order that counts; where there are fewer, -1 follows."""

    scores: Tensor
    """[G, T, k] fp32; -inf where there is none."""
    ids: Tensor
    """[G, T, k] i32; -1 where there is none."""


@dataclass(frozen=True)
class AttentionNorms:
    """Weights of the per-head norms of one layer, each shared by all heads. The stored weight w scales by 1 + w."""

    q: Tensor
    """[D]"""
    k: Tensor
    """[D]"""
    index_q: Tensor | None
    """[I]; None in a layer of dense attention."""
    index_k: Tensor | None
    """[I]; None in a layer of dense attention."""
    eps: float
    memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What an implementation works out of the above once a model."""


@dataclass(frozen=True)
class RotaryAngles:
    """Cosine and sine of each token's rotation angles, computed once a step for all layers."""

    cos: Tensor
    """[T, R / 2] fp32"""
    sin: Tensor
    """[T, R / 2] fp32"""


@dataclass(frozen=True)
class ExpertRows:
    """The (token, choice) pairs of a step, sorted by expert: row i of what the experts compute is pair `order[i]`."""

    order: Tensor
    """[T * A] i64: pairs by expert; pair p is choice p % A of token p // A."""
    ends: Tensor
    """[E] i32: rows of experts 0 .. e together; expert e has those from ends[e - 1] on."""

    def tokens(self, choices: int) -> Tensor:
        """[T * A] i64: the token of each row."""
        return self.order // choices
