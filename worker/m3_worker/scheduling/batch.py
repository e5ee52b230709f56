"""What one step computes: the newest token of each sequence that decodes, and chunks of the others.

Owns these values and the order of their rows. Decides nothing (the scheduler does), imports no torch.
"""

from array import array
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import msgspec

from m3_worker.scheduling.host_pages import Copy
from m3_worker.scheduling.request import Sequence
from m3_worker.scheduling.step_time import chunk_pairs


class Chunk(msgspec.Struct, frozen=True):
    """The part of a sequence that one step computes: `tokens` of its tokens, from `start`."""

    sequence: Sequence
    start: int
    tokens: int
    page_ids: "array[int]"
    """Pages of the whole sequence in order; owned by `pages`, to be read within the step only. Other sequences may read
    the same pages; only those that the chunk reaches are written, and they are the sequence's own."""
    samples: bool
    """Whether the step brings a new token: the chunk ends with the last token known."""

    @property
    def end(self) -> int:
        """Tokens of the sequence that the cache holds after the step."""
        return self.start + self.tokens


class Decoding:
    """Sequences that decode side by side, in columns: row by row, who it is and what of it grows from step to step.

    What a step does row by row in Python is most of what it costs beside the model; what can be done for a column is a
    tenth of that. The set of rows never changes, so one object serves as long as nobody joins or leaves; the arrays in
    its columns belong to the sequences and to `pages`, and grow.
    """

    __slots__ = ("page_ids", "sequences", "token_ids")

    def __init__(self, sequences: SequenceOf[Sequence] = (), page_ids: "SequenceOf[array[int]]" = ()) -> None:
        """`page_ids`: the pages of each, as in `Chunk`."""
        self.sequences = tuple(sequences)
        self.token_ids = tuple([sequence.token_ids for sequence in sequences])
        self.page_ids = tuple(page_ids)

    def __len__(self) -> int:
        return len(self.sequences)

    def lengths(self) -> list[int]:
        """Tokens of each sequence, the newest one too."""
        return list(map(len, self.token_ids))

    def first(self, rows: int) -> "Decoding":
        """At most so many of its rows."""
        return self if len(self) <= rows else Decoding(self.sequences[:rows], self.page_ids[:rows])

    def without(self, sequence: Sequence) -> "Decoding":
        """All other rows."""
        if sequence not in self.sequences:
            return self
        row = self.sequences.index(sequence)
        return Decoding(
            self.sequences[:row] + self.sequences[row + 1 :], self.page_ids[:row] + self.page_ids[row + 1 :]
        )


NOBODY = Decoding()


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step computes. Rows of its tensors are those of `decoding`, then the tokens of `prefill` in order."""

    prefill: tuple[Chunk, ...] = ()
    copies: tuple[Copy, ...] = ()
    """To be done in this order before anything is computed."""
    decoding: Decoding = NOBODY
    """Each computes its newest token, which lies on its last page, and samples."""
    decoding_lengths: SequenceOf[int] = ()
    """Tokens of each of `decoding` that the cache holds after the step."""

    @property
    def tokens(self) -> int:
        return len(self.decoding) + sum(chunk.tokens for chunk in self.prefill)

    @property
    def pairs(self) -> float:
        """Pairs of a new token and one that it looks back at; see `step_time`."""
        pairs = sum(self.decoding_lengths) - len(self.decoding) / 2
        return pairs + sum(chunk_pairs(chunk.start, chunk.tokens) for chunk in self.prefill)

    @property
    def sampling(self) -> tuple[Sequence, ...]:
        """Sequences that gain a token, or their embedding if they are pooled, in order."""
        return self.decoding.sequences + tuple([chunk.sequence for chunk in self.prefill if chunk.samples])

    @property
    def chunks(self) -> list[Chunk]:
        """All of it as chunks, for whoever has no use for columns."""
        rows = zip(self.decoding.sequences, self.decoding_lengths, self.decoding.page_ids, strict=True)
        return [*(Chunk(one, length - 1, 1, page_ids, samples=True) for one, length, page_ids in rows), *self.prefill]
