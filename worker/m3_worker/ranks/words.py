"""What rank 0 tells the others between exchanges: the words of a group, and their form in int64.

Owns that form. A word is a kind, some numbers, and for media some rows of the model's width; lengths travel ahead of
them. Who speaks is `leading`, who listens `following`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain

import torch
from torch import Tensor

from m3_worker.model.cache import MediaRows, StepTensors
from m3_worker.ranks.group import Group
from m3_worker.scheduling.host_pages import Copy, CopyIn, CopyOut


class Kind(IntEnum):
    """What the others are to do."""

    END = 0
    """Nothing any more."""
    STEP = 1
    """Compute a step."""
    COPIES = 2
    """Copy pages between device and host."""
    LAYER = 3
    """Take the experts of a layer as a plan has them."""
    LOAD = 4
    """Add up the tokens of experts over all ranks."""


@dataclass(frozen=True)
class Word:
    """One word, on the host."""

    kind: Kind
    numbers: Tensor
    """[n] i64"""
    rows: Tensor
    """[m, C] of the model's type; none but for a step with media."""


class Voice:
    """One end of the words of a group, whose rows are `width` wide and of type `dtype`."""

    def __init__(self, group: Group, width: int, dtype: torch.dtype) -> None:
        self._group = group
        self._no_rows = torch.empty((0, width), dtype=dtype)

    def say(self, kind: Kind, numbers: Tensor | Sequence[int] = (), rows: Tensor | None = None) -> None:
        """Rank 0: tell all others."""
        numbers = torch.as_tensor(numbers, dtype=torch.int64).cpu()
        rows = self._no_rows if rows is None else rows.cpu()
        self._group.say((torch.tensor([kind, len(numbers), len(rows)]), numbers, rows))

    def hear(self) -> Word:
        """Another rank: wait for the next word."""
        header = torch.zeros(3, dtype=torch.int64)
        self._group.hear((header,))
        kind, numbers, rows = header.tolist()
        parts = torch.empty(numbers, dtype=torch.int64), self._no_rows.new_empty((rows, self._no_rows.shape[1]))
        self._group.hear(parts)
        return Word(Kind(kind), *parts)


def pack_step(step: StepTensors) -> tuple[Tensor, Tensor | None]:
    """The numbers and rows of a step, without the rows whose logits are wanted: these are rank 0's."""
    media_rows = [one.rows for one in step.media]
    sizes = (len(step.token_ids), *step.page_table.shape, sum(map(len, media_rows)))
    host = torch.tensor([*sizes, *step.query_starts, *step.context_lengths])
    tensors = (step.token_ids, step.positions, step.slot_mapping, step.page_table.flatten(), *media_rows)
    numbers = torch.cat((host, torch.cat(tensors).cpu()))
    return numbers, torch.cat([one.embeddings for one in step.media]) if step.media else None


def unpack_step(word: Word, device: torch.device) -> StepTensors:
    """The step that `pack_step` packed."""
    tokens, sequences, pages, media = word.numbers[:4].tolist()
    sizes = [sequences + 1, sequences, tokens, tokens, tokens, sequences * pages, media]
    starts, lengths, *rest = torch.split(word.numbers[4:], sizes)
    token_ids, positions, slots, page_table, media_rows = (part.to(device) for part in rest)
    return StepTensors(
        token_ids=token_ids,
        positions=positions,
        query_starts=starts.tolist(),
        context_lengths=lengths.tolist(),
        page_table=page_table.view(sequences, pages),
        slot_mapping=slots,
        logit_rows=token_ids[:0],
        media=(MediaRows(media_rows, word.rows.to(device)),) if media else (),
    )


def pack_copies(copies: Sequence[Copy]) -> list[int]:
    """Three numbers a copy."""
    return list(chain.from_iterable((isinstance(copy, CopyIn), copy.page, copy.slot) for copy in copies))


def unpack_copies(word: Word) -> list[Copy]:
    """The copies that `pack_copies` packed."""
    triples = word.numbers.view(-1, 3).tolist()
    return [CopyIn(slot, page) if is_in else CopyOut(page, slot) for is_in, page, slot in triples]
