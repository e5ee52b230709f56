"""Which rows of a step go to which program, as tensors on the device.

Owns the split of a step into *decoding rows* (of sequences with one token in the step) and *query tiles* (runs of
adjacent tokens of the sequences with more), made once a step for all layers in `RaggedBatch.memo`. It computes nothing
else: kernels read positions and pages from the batch itself.

A step that only decodes reads nothing of the host: its rows are counted off on the device, and everything else that a
kernel needs of it (positions, page table) is a tensor whose shape alone decides the grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from m3_kernels.layout import RaggedBatch


@dataclass(frozen=True)
class DecodeRows:
    """The n sequences with one token in the step."""

    rows: Tensor
    """[n] i32, of the step."""
    sequences: Tensor
    """[n] i32, rows of the page table."""

    def __len__(self) -> int:
        return self.rows.shape[0]


@dataclass(frozen=True)
class QueryTiles:
    """The sequences with several tokens in the step, cut into n tiles of adjacent ones."""

    table: Tensor
    """[n, 4] i32: sequence, first row of the step, end row, context of the sequence in tokens."""
    queries: int
    """Tokens of a full tile."""
    longest_context: int
    """In tokens, of the sequences that have tiles."""

    def __len__(self) -> int:
        return self.table.shape[0]

    def part(self, first: int, end: int) -> "QueryTiles":
        """Tiles first .. end - 1."""
        return QueryTiles(self.table[first:end], self.queries, self.longest_context)


def decode_rows(batch: RaggedBatch) -> DecodeRows | None:
    """The decoding rows of a step; None if it has none."""
    if "decode_rows" not in batch.memo:
        batch.memo["decode_rows"] = _decode_rows(batch)
    found: DecodeRows | None = batch.memo["decode_rows"]
    return found


def query_tiles(batch: RaggedBatch, queries: int) -> QueryTiles | None:
    """The other rows in tiles of at most so many tokens; None if there are none."""
    key = ("query_tiles", queries)
    if key not in batch.memo:
        batch.memo[key] = _query_tiles(batch, queries)
    found: QueryTiles | None = batch.memo[key]
    return found


def _decode_rows(batch: RaggedBatch) -> DecodeRows | None:
    device = batch.positions.device
    if batch.tokens == batch.sequences:
        every = torch.arange(batch.sequences, dtype=torch.int32, device=device)
        return DecodeRows(every, every)
    sequences = [s for s in range(batch.sequences) if batch.query_starts[s + 1] - batch.query_starts[s] == 1]
    if not sequences:
        return None
    pair = _on_device([[batch.query_starts[s] for s in sequences], sequences], device)
    return DecodeRows(pair[0], pair[1])


def _query_tiles(batch: RaggedBatch, queries: int) -> QueryTiles | None:
    if batch.tokens == batch.sequences:
        return None
    table: list[list[int]] = []
    longest = 0
    for sequence, context in enumerate(batch.context_lengths):
        start, stop = batch.query_starts[sequence], batch.query_starts[sequence + 1]
        if stop - start > 1:
            longest = max(longest, context)
            table += ([sequence, row, min(row + queries, stop), context] for row in range(start, stop, queries))
    return QueryTiles(_on_device(table, batch.positions.device), queries, longest) if table else None


def _on_device(values: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """An i32 tensor of host values. From pinned memory, so that the copy waits for nothing."""
    on_gpu = device.type == "cuda"
    host = torch.tensor(values, dtype=torch.int32, pin_memory=on_gpu)
    return host.to(device, non_blocking=on_gpu)
