"""What the model is given to compute: a `Batch` (ids and counts) as `StepTensors` (tensors on the device).

Owns that translation, and the memory that it is done in, which is kept from step to step: while the same sequences
decode, only what grew of their page tables is written, and a device gets the tables only when something was. Who runs
is the scheduler's, which page is whose `pages`', what is computed the model's.
"""

from array import array
from collections.abc import Sequence as SequenceOf
from operator import is_

import numpy as np
import torch
from numpy.typing import NDArray

from m3_worker.model.cache import StepTensors
from m3_worker.scheduling.batch import Batch, Chunk


class StepInput:
    """The input of one step after another. What `of` returns is to be used before it is called again."""

    def __init__(self, page_tokens: int, device: torch.device) -> None:
        self._page_tokens = page_tokens
        self._device = device
        self._pages = _PageRows(page_tokens, device)
        self._tokens = _TokenRows(0, device)

    def of(self, batch: Batch) -> StepTensors:
        """The tensors of a step, in the order of the batch."""
        decoding, prefill, rows = batch.decoding, batch.prefill, len(batch.decoding)
        self._pages.update([*decoding.page_ids, *(chunk.page_ids for chunk in prefill)])
        if batch.tokens != self._tokens.tokens:
            self._tokens = _TokenRows(batch.tokens, self._device)
        token_ids, positions, slots = self._tokens.host
        token_ids[:rows] = [of_one[-1] for of_one in decoding.token_ids]
        positions[:rows] = batch.decoding_lengths
        positions[:rows] -= 1
        np.add(positions[:rows], self._pages.origins[:rows], out=slots[:rows])
        query_starts = list(range(rows + 1))
        for row, chunk in enumerate(prefill, rows):
            begin, end = query_starts[-1], query_starts[-1] + chunk.tokens
            token_ids[begin:end] = chunk.sequence.token_ids[chunk.start : chunk.end]
            positions[begin:end] = places = np.arange(chunk.start, chunk.end)
            slots[begin:end] = self._pages.slots(row, places)
            query_starts.append(end)
        on_device = self._tokens.on_device()
        return StepTensors(
            token_ids=on_device[0],
            positions=on_device[1],
            query_starts=query_starts,
            context_lengths=[*batch.decoding_lengths, *(chunk.end for chunk in prefill)],
            page_table=self._pages.tensor,
            slot_mapping=on_device[2],
            logit_rows=self._logit_rows(query_starts, prefill) if prefill else self._tokens.rows,
        )

    def _logit_rows(self, query_starts: list[int], prefill: SequenceOf[Chunk]) -> torch.Tensor:
        """The tokens of those that decode, and the last ones of chunks that sample."""
        ends = query_starts[-len(prefill) :]
        wanted = list(range(len(query_starts) - 1 - len(prefill)))
        for chunk, end in zip(prefill, ends, strict=True):
            if chunk.samples and chunk.sequence.request.pooling is None:
                wanted.append(end - 1)
        return torch.tensor(wanted, dtype=torch.int64, device=self._device)


class _TokenRows:
    """Room for the ids, positions and slots of a step's tokens, on the host and on the device."""

    def __init__(self, tokens: int, device: torch.device) -> None:
        self.tokens = tokens
        self.host: NDArray[np.int64] = np.empty((3, tokens), dtype=np.int64)
        self.rows = torch.arange(tokens, device=device)
        """0 .. tokens - 1, on the device."""
        self._source = torch.from_numpy(self.host)
        self._target = self._source if device.type == "cpu" else torch.empty_like(self._source, device=device)
        self._parts = self._target.unbind()

    def on_device(self) -> tuple[torch.Tensor, ...]:
        """[tokens] each, as the host has them now."""
        if self._target is not self._source:
            self._target.copy_(self._source)
        return self._parts


class _PageRows:
    """The page tables of a step's sequences: an array [rows, most pages of a row], zeros behind a row's last page."""

    def __init__(self, page_tokens: int, device: torch.device) -> None:
        self.tensor = torch.empty((0, 0), dtype=torch.int64, device=device)
        """The array on the device."""
        self.origins: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        """[rows]: what is to be added to the position of a token on a row's last page to get its slot."""
        self._table: NDArray[np.int64] = np.empty((0, 0), dtype=np.int64)
        self._page_ids: SequenceOf[array[int]] = ()
        self._pages: list[int] = []  # of each row, as written
        self._page_tokens = page_tokens

    def update(self, page_ids: "SequenceOf[array[int]]") -> None:
        """Let the rows be these tables. One that was given before must not have changed but by growing at its end."""
        is_same = len(page_ids) == len(self._page_ids) and all(map(is_, page_ids, self._page_ids))
        if not is_same:
            self._page_ids, self._pages = page_ids, [0] * len(page_ids)
            self._table = np.zeros((len(page_ids), 0), dtype=np.int64)
            self.origins = np.empty(len(page_ids), dtype=np.int64)
        pages = list(map(len, page_ids))
        if pages == self._pages:
            return
        self._widen(max(pages))
        grown = [row for row, (old, new) in enumerate(zip(self._pages, pages, strict=True)) if new != old]
        for row in grown:
            old, new = self._pages[row], pages[row]
            self._table[row, old:new] = page_ids[row][old:]
            self.origins[row] = (page_ids[row][-1] - new + 1) * self._page_tokens
        self._pages = pages
        self.tensor = torch.from_numpy(self._table).to(self.tensor.device)

    def slots(self, row: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where keys and values of a row's tokens at these positions are written."""
        pages, places = np.divmod(positions, self._page_tokens)
        found: NDArray[np.int64] = self._table[row, pages] * self._page_tokens + places
        return found

    def _widen(self, width: int) -> None:
        rows, old = self._table.shape
        if width > old:
            wider = np.zeros((rows, width), dtype=np.int64)
            wider[:, :old] = self._table
            self._table = wider
