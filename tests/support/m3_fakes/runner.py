"""A runner whose next token is a checksum of the whole context, as it is found in the pages.

It writes a chunk's tokens to (page, offset) and reads the context back through the page table, as attention does. So a
page given twice, freed too early, written at a wrong place or not computed again after a preemption changes the tokens.
"""

import threading
import zlib
from array import array
from collections.abc import Callable, Iterable

from m3_worker.scheduling.batch import Batch, Chunk
from m3_worker.scheduling.host_pages import Copy, CopyOut
from m3_worker.scheduling.request import SampledToken


def next_token(context: Iterable[int], vocabulary: int = 256) -> int:
    """The token that follows a context: no two contexts that differ anywhere agree for long."""
    return zlib.crc32(array("q", context).tobytes()) % vocabulary


def continuation(prompt: list[int], tokens: int, vocabulary: int = 256) -> list[int]:
    """What greedy decoding of `prompt` gives, worked out without any cache."""
    context = list(prompt)
    for _ in range(tokens):
        context.append(next_token(context, vocabulary))
    return context[len(prompt) :]


class FakeRunner:
    """Runs batches over a dictionary that stands for the cache, and copies pages to another that stands for the host.

    gate: acquired once before each step, so that a test decides when a step ends.
    before_step: called with each batch on the engine's thread; it may raise.
    reply: if set, every sequence generates these tokens, and the last of them again and again.
    reply_by_seed: the same, for sequences of one seed.
    logprob_by_seed: of every token of sequences of one seed; -0.5 is that of others.
    """

    def __init__(
        self,
        page_tokens: int,
        gate: threading.Semaphore | None = None,
        before_step: Callable[[Batch], None] | None = None,
    ) -> None:
        self.page_tokens = page_tokens
        self.gate = gate
        self.before_step = before_step
        self.reply: list[int] = []
        self.reply_by_seed: dict[int | None, list[int]] = {}
        self.logprob_by_seed: dict[int | None, float] = {}
        self.batches: list[list[tuple[str, int, int]]] = []
        self._memory: dict[tuple[int, int], int] = {}
        self._host: dict[tuple[int, int], int] = {}

    def copy(self, copies: Iterable[Copy]) -> None:
        """Copy whole pages to the host and back, as `host_tier` does."""
        for copy in copies:
            for offset in range(self.page_tokens):
                if isinstance(copy, CopyOut):
                    self._host[copy.slot, offset] = self._memory[copy.page, offset]
                else:
                    self._memory[copy.page, offset] = self._host[copy.slot, offset]

    def run(self, batch: Batch) -> list[SampledToken]:
        """Compute the batch's chunks; one token for each of `batch.sampling`."""
        if self.before_step is not None:
            self.before_step(batch)
        if self.gate is not None:
            self.gate.acquire()
        self.batches.append([(chunk.sequence.id, chunk.start, chunk.tokens) for chunk in batch.chunks])
        for chunk in batch.chunks:
            for position in range(chunk.start, chunk.end):
                self._memory[self._slot(chunk, position)] = chunk.sequence.token_ids[position]
        return [self._sample(chunk) for chunk in batch.chunks if chunk.samples]

    def _sample(self, chunk: Chunk) -> SampledToken:
        if chunk.sequence.request.pooling is not None:
            return SampledToken(chunk.sequence.token_ids[-1], embedding=(1.0, 0.0))
        seed = chunk.sequence.request.sampling.seed
        reply = self.reply_by_seed.get(seed, self.reply)
        if reply:
            token_id = reply[min(chunk.sequence.generated_tokens, len(reply) - 1)]
        else:
            token_id = next_token(self._memory[self._slot(chunk, position)] for position in range(chunk.end))
        wanted = chunk.sequence.request.sampling.logprobs
        if wanted is None:
            return SampledToken(token_id)
        logprob = self.logprob_by_seed.get(seed, -0.5)
        return SampledToken(token_id, logprob, tuple((other, -1.0 - other) for other in range(wanted)))

    def _slot(self, chunk: Chunk, position: int) -> tuple[int, int]:
        return chunk.page_ids[position // self.page_tokens], position % self.page_tokens
