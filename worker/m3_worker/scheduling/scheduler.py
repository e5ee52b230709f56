"""Who computes what in the next step: one rule, and no phases.

Every sequence has tokens that are known and tokens that are computed; a step hands out a budget of tokens to close that
gap, to decoding sequences first, then to those with more than one token to go, by standing. Owns the queue of waiting
sequences and the set of running ones. Pure: no clock, no torch, no threads; time comes in as `now`.

Standing.   deadline = arrival + priority x aging_seconds. A lower priority is a later deadline and no more, so aging
            needs no clock: a request overtakes whatever comes long enough after it.
Admission.  A sequence starts when there is a slot, and pages for all its known tokens beside one more for each running
            sequence that can still grow; what it finds in the cache needs no computing. One that does not fit never
            stops the walk; only when it is overdue (deadline + patience_seconds) does nothing behind it start before it
            does, else small requests could starve it. One whose next page somebody computes in this very step waits for
            that instead of computing it once more.
Prefill.    The budget is a number of tokens and, once step times are known (step_time), of seconds: a chunk deep in a
            long prompt is smaller. One that is too long for what is left of it yields half of that to those behind it
            which can finish within it. So a 1M prompt does not hold up short ones, and two long ones do not slow each
            other. However little time decoding leaves, the first prefill gets a page's tokens.
Preemption. Running out of pages takes back all pages of the lowest priority, among those of the least computed, to be
            computed again later; overdue ones go last, latest deadline first, so that the oldest always finishes. A
            waiting sequence may take from lower priorities with later deadlines only.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import merge

from m3_worker.scheduling.pages import Pages
from m3_worker.scheduling.request import Batch, Chunk, FinishReason, SampledToken, Sequence, TokenOutput
from m3_worker.scheduling.step_time import StepTime


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds of a step, and how long a low priority may be put off."""

    max_concurrent: int
    """Sequences that run, and so hold pages, at a time."""
    step_tokens: int
    """Tokens computed in one step."""
    step_seconds: float = math.inf
    """What a step should take; it takes longer only by decoding, and by a page's tokens of prefill."""
    aging_seconds: float = 3.0
    """Seconds of waiting that outweigh one level of priority."""
    patience_seconds: float = 30.0
    """Seconds after its deadline when a sequence is overdue."""


@dataclass(slots=True)
class _Step:
    """The plan of one step while it is made."""

    budget: int
    """Tokens that are left to give."""
    seconds: float
    """Time that is left; below 0 where decoding alone takes more."""
    time: StepTime
    least_tokens: int
    """Of the first prefill."""
    has_prefill: bool = False
    growth_pages: int = 0
    """Pages that an admission leaves free: one for each running sequence that can still grow."""
    last_standing: tuple[float, int] = (math.inf, 0)
    """The last standing among the running; who stands behind it can preempt nobody."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Tokens given to each sequence, in the order of the batch."""

    @property
    def is_full(self) -> bool:
        return self.budget == 0 or (self.has_prefill and self.seconds <= 0)

    def room(self, start: int) -> int:
        """Tokens that a sequence can get from its token `start` on."""
        if self.seconds == math.inf:
            return self.budget
        tokens = self.time.tokens_within(self.seconds, start)
        return min(self.budget, tokens if self.has_prefill else max(tokens, self.least_tokens))

    def decode(self, sequence: Sequence) -> None:
        self._give(sequence.id, sequence.computed_tokens, 1)

    def prefill(self, sequence: Sequence, tokens: int) -> None:
        """Give the sequence `tokens` beside those that it got before."""
        self.has_prefill = True
        self._give(sequence.id, self.start(sequence), tokens)

    def start(self, sequence: Sequence) -> int:
        """Its first token that is neither computed nor given."""
        return sequence.computed_tokens + self.tokens.get(sequence.id, 0)

    def withdraw(self, sequence: Sequence) -> None:
        tokens = self.tokens.pop(sequence.id, 0)
        self.budget += tokens
        self.seconds += self.time.chunk_seconds(sequence.computed_tokens, tokens)

    def _give(self, sequence_id: str, start: int, tokens: int) -> None:
        self.tokens[sequence_id] = self.tokens.get(sequence_id, 0) + tokens
        self.budget -= tokens
        self.seconds -= self.time.chunk_seconds(start, tokens)


class Scheduler:
    """The waiting and the running sequences of one engine. Every sequence is in exactly one of the two (`check`)."""

    def __init__(self, limits: SchedulerLimits, pages: Pages) -> None:
        self.limits = limits
        self.pages = pages
        self.preemptions = 0
        self.step_time = StepTime()
        self._running: dict[str, Sequence] = {}
        self._waiting: list[Sequence] = []  # by standing
        self._standings: dict[str, tuple[float, int]] = {}  # deadline, order of arrival
        self._arrivals = 0

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. ValueError if its id is known, or if it would not fit the cache alone."""
        if sequence.id in self._standings:
            raise ValueError(f"request {sequence.id} is there already")
        needed = self.pages.pages_for(sequence.final_tokens)
        if needed > self.pages.total_pages:
            raise ValueError(f"request {sequence.id} needs {needed} pages, the cache has {self.pages.total_pages}")
        request = sequence.request
        deadline = request.arrival_seconds + request.priority * self.limits.aging_seconds
        self._standings[sequence.id] = (deadline, self._arrivals)
        self._arrivals += 1
        insort(self._waiting, sequence, key=self._standing)

    def remove(self, sequence_id: str) -> bool:
        """Forget a sequence and free its pages, wherever it is. False if it is not there."""
        standing = self._standings.get(sequence_id)
        if standing is None:
            return False
        if self._running.pop(sequence_id, None) is None:
            del self._waiting[bisect_left(self._waiting, standing, key=self._standing)]
        self.pages.release(sequence_id)
        del self._standings[sequence_id]
        return True

    def clear(self) -> None:
        """Forget every sequence."""
        for sequence_id in tuple(self._standings):
            self.remove(sequence_id)

    def schedule(self, now: float) -> Batch:
        """The next step, with pages reserved for it; empty if there is nothing to do. Must be followed by `commit`."""
        step = self._begin()
        self._give_to_decoding(step, now)
        self._give_to_prefill(step, now)
        chunks = []
        for sequence_id, tokens in step.tokens.items():
            sequence = self._running[sequence_id]
            if sequence.first_scheduled_seconds is None:
                sequence.first_scheduled_seconds = now
            samples = tokens == sequence.remaining_tokens
            chunks.append(Chunk(sequence, sequence.computed_tokens, tokens, self.pages.table(sequence_id), samples))
        return Batch(tuple(chunks), self.pages.take_copies())

    def commit(self, batch: Batch, sampled: Iterable[SampledToken]) -> list[TokenOutput]:
        """Note that the step was computed and which token each of `batch.sampling` gained; the finished ones leave."""
        for chunk in batch.chunks:
            chunk.sequence.advance(chunk.tokens)
            self.pages.commit(chunk.sequence)
        outputs = []
        for sequence, token in zip(batch.sampling, sampled, strict=True):
            is_pooled = sequence.request.pooling is not None
            is_first = sequence.generated_tokens == 0
            reason = FinishReason.STOP if is_pooled else sequence.append(token.token_id)
            if reason is not None:
                self.remove(sequence.id)
            outputs.append(TokenOutput(sequence.id, token, reason, sequence.cached_tokens if is_first else 0))
        return outputs

    def observe(self, batch: Batch, seconds: float) -> float | None:
        """Learn how long a batch took; returns how long it was predicted to take, if it was."""
        tokens, pairs = batch.tokens, batch.pairs
        predicted = self.step_time.predict(tokens, pairs) if self.step_time.is_fitted else None
        self.step_time.observe(tokens, pairs, seconds)
        return predicted

    def check(self) -> None:
        """Raise RuntimeError if sequences or pages are not where they should be."""
        ids = [*self._running, *(sequence.id for sequence in self._waiting)]
        if sorted(ids) != sorted(self._standings):
            raise RuntimeError(f"{len(self._standings)} sequences are known, {len(ids)} are waiting or running")
        self.pages.check(self._running)

    def _begin(self) -> _Step:
        is_timed = self.step_time.is_fitted and self.limits.step_seconds < math.inf
        seconds = self.limits.step_seconds - self.step_time.step_seconds if is_timed else math.inf
        return _Step(self.limits.step_tokens, seconds, self.step_time, self.pages.page_tokens)

    def _give_to_decoding(self, step: _Step, now: float) -> None:
        for sequence in sorted(filter(_is_decoding, self._running.values()), key=self._standing):
            if step.budget == 0:
                return
            if sequence.id in self._running and self._grow(sequence, step, now):
                step.decode(sequence)

    def _give_to_prefill(self, step: _Step, now: float) -> None:
        """Running sequences with more than one token to go, and waiting ones as they are admitted, by standing."""
        if self._waiting and self._running:
            step.growth_pages = sum(map(self._can_grow, self._running.values()))
            step.last_standing = max(map(self._standing, self._running.values()))
        running = [s for s in self._running.values() if s.id not in step.tokens and not _is_decoding(s)]
        running.sort(key=self._standing)
        too_long: Sequence | None = None
        barred = False
        for sequence in merge(running, tuple(self._waiting), key=self._standing):
            if step.is_full or self._none_can_start(sequence, step):
                break
            is_waiting = sequence.id not in self._running
            found = self.pages.found(sequence) if is_waiting else []
            start = sequence.computed_tokens + len(found) * self.pages.page_tokens
            room = step.room(start)
            fits = sequence.total_tokens - start <= room
            if room == 0 or (too_long is not None and not fits):
                continue
            if is_waiting:
                if self.pages.computing(sequence, found) in step.tokens:
                    continue
                if barred or not self._admit(sequence, found, step):
                    barred = barred or self._is_overdue(sequence, now)
                    continue
            if fits:
                step.prefill(sequence, sequence.remaining_tokens)
            else:
                too_long = sequence
                step.prefill(sequence, max(room - room // 2, min(room, step.least_tokens)))
        if too_long is not None and not step.is_full:
            start = step.start(too_long)
            tokens = min(step.room(start), too_long.total_tokens - start)
            if tokens:
                step.prefill(too_long, tokens)

    def _none_can_start(self, sequence: Sequence, step: _Step) -> bool:
        """Whether the walk is for nothing from here on: no slot is free, and nobody later holds one."""
        return len(self._running) >= self.limits.max_concurrent and self._standing(sequence) > step.last_standing

    def _admit(self, sequence: Sequence, found: list[bytes], step: _Step) -> bool:
        """Start a waiting sequence; `found` is what the cache has of it."""
        victims = self._victims_for(sequence, found, step)
        if victims is None:
            return False
        for victim in victims:
            step.growth_pages -= self._can_grow(victim)
            self._preempt(victim, step)
        cached_tokens = self.pages.admit(sequence, found)
        assert cached_tokens is not None, self.pages  # noqa: S101 # the shortfall was worked out to be none
        sequence.admit(cached_tokens)
        del self._waiting[bisect_left(self._waiting, self._standing(sequence), key=self._standing)]
        self._running[sequence.id] = sequence
        step.growth_pages += self._can_grow(sequence)
        return True

    def _victims_for(self, sequence: Sequence, found: list[bytes], step: _Step) -> list[Sequence] | None:
        """Whom to preempt so that a waiting sequence can start: often nobody; None if it cannot start at all."""
        slots = self.limits.max_concurrent - len(self._running)
        free = self.pages.free_pages - step.growth_pages
        shortfall = self.pages.shortfall(sequence, found)
        victims: list[Sequence] = []
        if slots > 0 and shortfall.pages <= free:
            return victims
        standing = self._standing(sequence)
        if standing > step.last_standing:
            return None
        lower = [s for s in self._running.values() if s.request.priority > sequence.request.priority]
        lower = [s for s in lower if self._standing(s) > standing]
        for victim in sorted(lower, key=_sunk_work):
            victims.append(victim)
            slots += 1
            free += self._can_grow(victim)
            shortfall.preempt(self.pages.table(victim.id))
            if slots > 0 and shortfall.pages <= free:
                return victims
        return None

    def _grow(self, sequence: Sequence, step: _Step, now: float) -> bool:
        """Reserve the page of a decoding sequence's next token, by preemption if need be; False if its own."""
        while not self.pages.reserve(sequence.id, sequence.total_tokens):
            victim = max(self._running.values(), key=lambda candidate: self._expendability(candidate, now))
            self._preempt(victim, step)
            if victim is sequence:
                return False
        return True

    def _preempt(self, victim: Sequence, step: _Step) -> None:
        step.withdraw(victim)
        self.pages.release(victim.id)
        del self._running[victim.id]
        victim.forget()
        insort(self._waiting, victim, key=self._standing)
        self.preemptions += 1

    def _expendability(self, sequence: Sequence, now: float) -> tuple[bool, float, int]:
        """Who loses its pages first, as a sort key: the greatest does."""
        deadline, _ = self._standing(sequence)
        if self._is_overdue(sequence, now):
            return False, deadline, 0
        return True, sequence.request.priority, -sequence.computed_tokens

    def _is_overdue(self, sequence: Sequence, now: float) -> bool:
        return now > self._standing(sequence)[0] + self.limits.patience_seconds

    def _can_grow(self, sequence: Sequence) -> bool:
        return self.pages.missing_pages(sequence.id, sequence.final_tokens) > 0

    def _standing(self, sequence: Sequence) -> tuple[float, int]:
        return self._standings[sequence.id]


def _is_decoding(sequence: Sequence) -> bool:
    return sequence.is_decoding


def _sunk_work(sequence: Sequence) -> tuple[int, int]:
    """Lowest priority first, then the least computed."""
    return -sequence.request.priority, sequence.computed_tokens
