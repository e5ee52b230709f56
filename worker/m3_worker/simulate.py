"""A model that computes nothing: the worker's own engine, scheduler and API over a latency model.

For tests of what stands in front of workers, and for machines without a GPU. Owns how long a step takes and what the
model is put together from; its words are simulated_words'. Pages, prefix cache, queues and metrics are the real ones.
Imports no torch, and is ready in the time that the imports take.

Words are tokens of the vocabulary and every other byte is one, so a simulated prompt has about as many tokens as bytes.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from importlib import resources

from m3_worker.byte_vocabulary import byte_level_tokenizer
from m3_worker.cache_size import CacheSizeError
from m3_worker.chat.template import ChatTemplate
from m3_worker.config import WorkerSettings
from m3_worker.engine import Engine
from m3_worker.grammar import Grammars
from m3_worker.model.generation_defaults import GenerationDefaults
from m3_worker.scheduling.batch import Batch
from m3_worker.scheduling.pages import Pages
from m3_worker.scheduling.request import SampledToken
from m3_worker.scheduling.scheduler import Scheduler, SchedulerLimits
from m3_worker.serving import ServedModel
from m3_worker.simulated_words import ADDED_TOKENS, END_OF_TURN, VOCAB_SIZE, say
from m3_worker.tokenizer import Tokenizer

PAGE_TOKENS = 128
CONTEXT_TOKENS = 1_048_576
"""M3's own, and the longest that can be asked for."""
CACHE_TOKENS = 4 * CONTEXT_TOKENS
STEP_SECONDS = 0.1
"""What a step should take, as on a GPU."""


@dataclass(frozen=True, slots=True)
class Latency:
    """How long a step takes: each prefilled token its share, and decoding sequences one step together."""

    prefill_tokens_per_second: float
    token_seconds: float
    load_factor: float

    def step_seconds(self, prefill_tokens: int, decoding: int) -> float:
        """prefill / speed + token_seconds x (1 + load_factor x (decoding - 1)), each only if there is such work."""
        seconds = prefill_tokens / self.prefill_tokens_per_second
        if decoding:
            seconds += self.token_seconds * (1 + self.load_factor * (decoding - 1))
        return seconds


class SimulatedRunner:
    """Takes the time of each batch and says words: the same ones for the same tokens before them and the same seed."""

    def __init__(self, latency: Latency, answer_tokens: int, sleep: Callable[[float], None] = time.sleep) -> None:
        self._latency = latency
        self._answer_tokens = answer_tokens
        self._sleep = sleep

    def run(self, batch: Batch) -> SequenceOf[SampledToken]:
        """One token for each of `batch.sampling`, after the step's time."""
        decoding = sum(chunk.sequence.is_decoding for chunk in batch.chunks)
        self._sleep(self._latency.step_seconds(batch.tokens - decoding, decoding))
        return [say(sequence, self._answer_tokens) for sequence in batch.sampling]


def load_simulated_model(settings: WorkerSettings, progress: Callable[[int, int], None]) -> ServedModel:
    """A model to serve, not started yet, after the time that loading is to take. Raises CacheSizeError."""
    context, pages = _size(settings)
    _pretend_to_load(settings.simulate_load_seconds, progress)
    latency = Latency(
        settings.simulate_prefill_tokens_per_second, settings.simulate_token_seconds, settings.simulate_load_factor
    )
    runner = SimulatedRunner(latency, settings.simulate_answer_tokens)
    step_seconds = STEP_SECONDS if settings.step_milliseconds is None else settings.step_milliseconds / 1000
    limits = SchedulerLimits(settings.max_concurrent, settings.step_tokens, step_seconds)
    scheduler = Scheduler(limits, Pages(pages, PAGE_TOKENS))
    template = resources.files("m3_worker").joinpath("chat_template.jinja").read_text(encoding="utf-8")
    tokenizer = Tokenizer(byte_level_tokenizer(ADDED_TOKENS))
    return ServedModel(
        name=settings.model_name,
        engine=Engine(scheduler, runner, max_waiting=settings.max_waiting),
        tokenizer=tokenizer,
        grammars=Grammars(tokenizer, VOCAB_SIZE, {END_OF_TURN}),
        template=ChatTemplate(template, {"bos_token": "]~!b[", "eos_token": "[e~["}),
        defaults=GenerationDefaults(),
        vocab_size=VOCAB_SIZE,
        max_context_tokens=context,
        eos_token_ids=frozenset({END_OF_TURN}),
        created_seconds=int(time.time()),
    )


def _size(settings: WorkerSettings) -> tuple[int, int]:
    """Tokens of context, and pages of the cache. Raises CacheSizeError with the numbers."""
    asked, cache_tokens = settings.max_context_tokens, settings.cache_tokens or CACHE_TOKENS
    pages = cache_tokens // PAGE_TOKENS
    context = asked or min(CONTEXT_TOKENS, pages * PAGE_TOKENS)
    if context > CONTEXT_TOKENS:
        raise CacheSizeError(f"--max-context-tokens {context}: a simulated model has {CONTEXT_TOKENS}")
    needed = -(-max(context, 1) // PAGE_TOKENS)
    if needed > pages:
        raise CacheSizeError(
            f"one sequence of {max(context, 1)} tokens needs {needed} pages of {PAGE_TOKENS} tokens, the cache has "
            f"{pages}: raise --cache-tokens or lower --max-context-tokens"
        )
    return context, pages


def _pretend_to_load(seconds: float, progress: Callable[[int, int], None]) -> None:
    """Report a hundred shares of a weight's bytes over the time."""
    shares = 100
    for share in range(shares + 1):
        progress(share, shares)
        if seconds and share < shares:
            time.sleep(seconds / shares)
