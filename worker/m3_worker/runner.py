"""One batch through the model: its tensors are filled, it is computed, its next tokens are sampled.

Owns the order of that, and the cache. Who runs is the scheduler's, what the tensors are is `step_input`'s, what is
computed is the model's, how a token is chosen sampling's, a vector pooling's.
"""

from array import array
from dataclasses import replace

import torch

from m3_worker.media.embeddings import MediaEmbeddings
from m3_worker.model.cache import PagedCache
from m3_worker.model.m3 import M3Model
from m3_worker.pooling import pool
from m3_worker.sampling import sample
from m3_worker.scheduling.batch import Batch, Chunk
from m3_worker.scheduling.request import Request, SampledToken, SamplingParameters, Sequence
from m3_worker.step_input import StepInput


class Runner:
    """A model with its cache."""

    def __init__(self, model: M3Model, cache: PagedCache, page_tokens: int) -> None:
        self._model = model
        self._cache = cache
        self._page_tokens = page_tokens
        self._device = cache.k.device
        self._input = StepInput(page_tokens, self._device)
        self._media = None if model.vision is None else MediaEmbeddings(model.vision)

    def run(self, batch: Batch) -> list[SampledToken]:
        """Compute the chunks of a batch; one token for each of `batch.sampling`, in its order: sampled, or embedded.

        Effect: the cache holds the chunks' tokens afterwards. Raises what torch raises.
        """
        step = self._input.of(batch)
        if self._media is not None and batch.prefill:
            step = replace(step, media=self._media.rows(batch.chunks))
        states = self._model.states(step, self._cache)
        # A step that only decodes wants the logits of all its tokens.
        logits = self._model.logits(states.index_select(0, step.logit_rows) if batch.prefill else states)
        embedded = self._embed(batch, states)
        if not embedded:
            return sample(logits, batch.sampling)
        sampled = iter(sample(logits, [one for one in batch.sampling if one.id not in embedded]))
        return [embedded[one.id] if one.id in embedded else next(sampled) for one in batch.sampling]

    def _embed(self, batch: Batch, states: torch.Tensor) -> dict[str, SampledToken]:
        """Pool the states of the requests that want it; returns those that are complete, by request."""
        complete = {}
        row = len(batch.decoding)
        for chunk in batch.prefill:
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
