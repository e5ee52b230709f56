"""Sequences that decode side by side, in columns: what is done for a column is a tenth of what it costs row by row.

Owns which rows there are, what they have in common, and the one way in which they grow: all of them by a token. So what
differs between rows is worked out once, when they come together, and the length of the first row tells all the others'.
Who decodes is the scheduler's decision. Imports no torch.
"""

from array import array
from collections import deque
from collections.abc import Sequence as SequenceOf
from operator import sub

import numpy as np
from numpy.typing import NDArray

from m3_worker.scheduling.request import FinishReason, Sequence


class Decoding:
    """Sequences of which each computes its newest token in a step, and gains one: the rows of that step.

    The set of rows never changes: one object serves as long as nobody joins or leaves. Nothing but `append` may add to
    the tokens of its sequences meanwhile. The arrays in its columns belong to the sequences and to `pages`.
    """

    __slots__ = (
        "_by_place",
        "_first_tokens_at_an_end",
        "_is_constrained",
        "_no_reasons",
        "_page_tokens",
        "_stop_token_ids",
        "cached_tokens",
        "ids",
        "longer",
        "newest",
        "page_ids",
        "sequences",
        "token_ids",
    )

    def __init__(
        self,
        sequences: SequenceOf[Sequence] = (),
        page_ids: "SequenceOf[array[int]]" = (),
        page_tokens: int = 1,
    ) -> None:
        """`page_ids`: the pages of each, as in `Chunk`; of `page_tokens` tokens each."""
        self.sequences = tuple(sequences)
        self.token_ids = tuple([one.token_ids for one in sequences])
        self.page_ids = tuple(page_ids)
        self.ids = tuple([one.id for one in sequences])
        self.cached_tokens = tuple([one.cached_tokens for one in sequences])
        self.newest = [token_ids[-1] for token_ids in self.token_ids]
        """The last token of each row."""
        lengths = np.array(list(map(len, self.token_ids)), dtype=np.int64)
        self.longer: NDArray[np.int64] = lengths - lengths[:1]
        """[rows]: tokens that each row has more than the first one, below 0 if fewer. As long as this object serves."""
        longer = self.longer.tolist()
        self._page_tokens = page_tokens
        self._by_place: dict[int, list[Sequence]] = {}  # by `longer`, modulo a page's tokens
        for one, more in zip(self.sequences, longer, strict=True):
            self._by_place.setdefault(more % page_tokens, []).append(one)
        ends = map(sub, [one.final_tokens for one in sequences], longer)
        self._first_tokens_at_an_end = min(ends, default=0)  # of the first row, when one comes to its last token
        self._stop_token_ids = frozenset().union(*{one.sampling.stop_token_ids for one in sequences})
        self._is_constrained = any([one.matcher is not None for one in sequences])  # noqa: C419 # faster for few rows
        self._no_reasons = (None,) * len(lengths)

    def __len__(self) -> int:
        return len(self.sequences)

    def lengths(self) -> list[int]:
        """Tokens of each sequence, the newest one too."""
        if not self.sequences:
            return []
        lengths: list[int] = (self.longer + len(self.token_ids[0])).tolist()
        return lengths

    def with_tokens_beyond_pages(self, tokens: int) -> list[Sequence]:
        """Rows that have so many tokens beyond their last full page, modulo a page's tokens."""
        if not self.sequences:
            return []
        return self._by_place.get((tokens - len(self.token_ids[0])) % self._page_tokens, [])

    def append(self, token_ids: list[int]) -> SequenceOf[FinishReason | None]:
        """Give each row the token that it sampled; returns why each is finished by it, None where it is not.

        Raises ValueError unless there is a token for each row.
        """
        if len(token_ids) != len(self.sequences):
            raise ValueError(f"{len(token_ids)} tokens for {len(self.sequences)} rows")
        if not self.sequences:
            return ()
        self.newest, length = token_ids, len(self.token_ids[0])
        may_end = length + 1 >= self._first_tokens_at_an_end or not self._stop_token_ids.isdisjoint(token_ids)
        if may_end or self._is_constrained:
            return [one.append(token_id) for one, token_id in zip(self.sequences, token_ids, strict=True)]
        for one, computed_tokens in zip(self.sequences, self.lengths(), strict=True):
            one.computed_tokens = computed_tokens
        deque(map(array.append, self.token_ids, token_ids), maxlen=0)
        return self._no_reasons

    def without(self, sequence: Sequence) -> "Decoding":
        """All other rows."""
        if sequence not in self.sequences:
            return self
        row = self.sequences.index(sequence)
        others = self.sequences[:row] + self.sequences[row + 1 :]
        return Decoding(others, self.page_ids[:row] + self.page_ids[row + 1 :], self._page_tokens)


NOBODY = Decoding()
