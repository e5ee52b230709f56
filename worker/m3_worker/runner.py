"""One batch through the model: its tensors are filled, it is computed, its next tokens are sampled.

Owns the translation of a `Batch` (ids and counts) into `StepTensors` (tensors on the device), and the cache they refer
to. Who runs is the scheduler's, what is computed is the model's, how a token is chosen sampling's, a vector pooling's.
Tensors are filled by numpy on the host, in one pass over the chunks, and copied to the device once.
"""

from array import array
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from m3_worker.media.embeddings import MediaEmbeddings
from m3_worker.model.cache import PagedCache, StepTensors
from m3_worker.model.m3 import M3Model
from m3_worker.pooling import pool
from m3_worker.sampling import sample
from m3_worker.scheduling.request import Batch, Chunk, Request, SampledToken, SamplingParameters, Sequence


class Runner:
    """A model with its cache."""

    def __init__(self, model: M3Model, cache: PagedCache, page_tokens: int) -> None:
        self._model = model
        self._cache = cache
        self._page_tokens = page_tokens
        self._device = cache.k.device
        self._media = None if model.vision is None else MediaEmbeddings(model.vision)

    def run(self, batch: Batch) -> list[SampledToken]:
        """Compute the chunks of a batch; one token for each of `batch.sampling`, in its order: sampled, or embedded.

        Effect: the cache holds the chunks' tokens afterwards. Raises what torch raises.
        """
        step = prepare(batch, self._page_tokens, self._device)
        if self._media is not None:
            step = replace(step, media=self._media.rows(batch.chunks))
        states = self._model.states(step, self._cache)
        logits = self._model.logits(states.index_select(0, step.logit_rows))
        drawing = [sequence for sequence in batch.sampling if sequence.request.pooling is None]
        sampled = iter(sample(logits, drawing))
        embedded = self._embed(batch, states)
        return [next(sampled) if one.request.pooling is None else embedded[one.id] for one in batch.sampling]

    def _embed(self, batch: Batch, states: torch.Tensor) -> dict[str, SampledToken]:
        """Pool the states of the requests that want it; returns those that are complete, by request."""
        complete = {}
        row = 0
        for chunk in batch.chunks:
            if chunk.sequence.request.pooling is not None:
                vector = pool(chunk, states[row : row + chunk.tokens])
                if vector is not None:
                    complete[chunk.sequence.id] = SampledToken(chunk.sequence.token_ids[-1], embedding=vector)
            row += chunk.tokens
        return complete

    def warm_up(self, tokens: int) -> None:
        """Compute a prompt of `tokens` tokens in the first pages, so that what is slow or too big shows at start.

        Effect: overwrites these pages. Raises what torch raises, out of memory for instance.
        """
        sequence = Sequence(Request("warm-up", [0] * tokens, SamplingParameters(max_tokens=1, temperature=0.0)))
        page_ids = array("q", range(-(-tokens // self._page_tokens)))
        self.run(Batch((Chunk(sequence, 0, tokens, page_ids, samples=True),)))


def prepare(batch: Batch, page_tokens: int, device: torch.device) -> StepTensors:
    """The tensors of one step; rows stand in the order of the batch's chunks."""
    chunks = batch.chunks
    counts = [chunk.tokens for chunk in chunks]
    query_starts = [0, *accumulate(counts)]
    page_table = np.zeros((len(chunks), max(len(chunk.page_ids) for chunk in chunks)), dtype=np.int64)
    token_ids = np.empty(query_starts[-1], dtype=np.int64)
    for row, (chunk, begin, count) in enumerate(zip(chunks, query_starts, counts, strict=False)):
        page_table[row, : len(chunk.page_ids)] = chunk.page_ids
        if count == 1:
            token_ids[begin] = chunk.sequence.token_ids[chunk.start]
        else:
            token_ids[begin : begin + count] = chunk.sequence.token_ids[chunk.start : chunk.end]
    rows = np.repeat(np.arange(len(chunks)), counts)
    offsets = [chunk.start - begin for chunk, begin in zip(chunks, query_starts, strict=False)]
    positions = np.arange(query_starts[-1]) + np.array(offsets)[rows]
    slots = page_table[rows, positions // page_tokens] * page_tokens + positions % page_tokens

    def on_device(values: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(values).to(device)

    last_rows = [
        end - 1
        for chunk, end in zip(chunks, query_starts[1:], strict=True)
        if chunk.samples and chunk.sequence.request.pooling is None
    ]
    return StepTensors(
        token_ids=on_device(token_ids),
        positions=on_device(positions),
        query_starts=query_starts,
        context_lengths=[chunk.end for chunk in chunks],
        page_table=on_device(page_table),
        slot_mapping=on_device(slots),
        logit_rows=on_device(np.array(last_rows, dtype=np.int64)),
    )
