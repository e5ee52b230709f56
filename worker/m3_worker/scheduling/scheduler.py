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
from dataclasses import dataclass
from heapq import merge
from operator import attrgetter

from m3_worker.scheduling.batch import Batch, Chunk, Decoding
from m3_worker.scheduling.pages import Pages
from m3_worker.scheduling.request import FinishReason, SampledToken, Sequence, TokenOutput
from m3_worker.scheduling.step_plan import StepPlan
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


class Scheduler:
    """The waiting and the running sequences of one engine. Every sequence is in exactly one of the two (`check`)."""

    def __init__(self, limits: SchedulerLimits, pages: Pages) -> None:
        self.limits = limits
        self.pages = pages
        self.preemptions = 0
        self.step_time = StepTime()
        self._sequences: dict[str, Sequence] = {}  # all of them
        self._running: dict[str, Sequence] = {}
        self._waiting: list[Sequence] = []  # by standing
        self._sides: tuple[Decoding, list[Sequence]] | None = None  # what `_split` keeps; None when outdated
        self._arrivals = 0

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    @property
    def tokens_in_flight(self) -> int:
        """Tokens, prompts' and generated, of all sequences that are not finished. May be asked from another thread."""
        return sum(sequence.total_tokens for sequence in list(self._sequences.values()))

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. ValueError if its id is known, or if it would not fit the cache alone."""
        if sequence.id in self._sequences:
            raise ValueError(f"request {sequence.id} is there already")
        needed = self.pages.pages_for(sequence.final_tokens)
        if needed > self.pages.total_pages:
            raise ValueError(f"request {sequence.id} needs {needed} pages, the cache has {self.pages.total_pages}")
        request = sequence.request
        sequence.standing = (request.arrival_seconds + request.priority * self.limits.aging_seconds, self._arrivals)
        self._arrivals += 1
        self._sequences[sequence.id] = sequence
        insort(self._waiting, sequence, key=_standing)

    def remove(self, sequence_id: str) -> Sequence | None:
        """Forget a sequence and free its pages, wherever it is. Returns it; None if it is not there."""
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            return None
        if self._running.pop(sequence_id, None) is None:
            del self._waiting[bisect_left(self._waiting, sequence.standing, key=_standing)]
        self._sides = None
        self.pages.release(sequence_id)
        return sequence

    def clear(self) -> None:
        """Forget every sequence."""
        for sequence_id in tuple(self._sequences):
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
        return Batch(tuple(chunks), self.pages.take_copies(), step.decoding, step.lengths)

    def commit(self, batch: Batch, sampled: Iterable[SampledToken]) -> list[TokenOutput]:
        """Note that the step was computed and which token each of `batch.sampling` gained; the finished ones leave."""
        outputs = [
            TokenOutput(
                one.id,
                token,
                one.append(token.token_id) if token.embedding is None else FinishReason.STOP,
                one.cached_tokens,
            )
            for one, token in zip(batch.sampling, sampled, strict=True)
        ]
        for chunk in batch.prefill:
            if not chunk.samples:
                chunk.sequence.advance(chunk.tokens)
            self.pages.commit(chunk.sequence)
        rows, page_tokens = zip(batch.decoding.sequences, batch.decoding_lengths, strict=True), self.pages.page_tokens
        for sequence in [one for one, length in rows if length % page_tokens == 0]:
            self.pages.commit(sequence)
        for output in outputs:
            if output.finish_reason is not None:
                self.remove(output.request_id)
        if any(chunk.sequence.is_decoding for chunk in batch.prefill):
            self._sides = None
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
        if sorted(ids) != sorted(self._sequences):
            raise RuntimeError(f"{len(self._sequences)} sequences are known, {len(ids)} are waiting or running")
        if self._sides is not None and ([*self._sides[0].sequences], self._sides[1]) != self._divided():
            raise RuntimeError(f"{len(self._sides[0])} sequences are kept as those that decode: they are others by now")
        self.pages.check(self._running)

    def _begin(self) -> StepPlan:
        is_timed = self.step_time.is_fitted and self.limits.step_seconds < math.inf
        seconds = self.limits.step_seconds - self.step_time.step_seconds if is_timed else math.inf
        return StepPlan(self.limits.step_tokens, seconds, self.step_time, self.pages.page_tokens)

    def _split(self) -> tuple[Decoding, list[Sequence]]:
        """The running sequences that decode, and the others: the same objects until somebody joins or leaves."""
        if self._sides is None:
            decoding, others = self._divided()
            self._sides = Decoding(decoding, [self.pages.table(sequence.id) for sequence in decoding]), others
        return self._sides

    def _divided(self) -> tuple[list[Sequence], list[Sequence]]:
        """The running sequences that decode and the others, by standing."""
        running = sorted(self._running.values(), key=_standing)
        return [one for one in running if one.is_decoding], [one for one in running if not one.is_decoding]

    def _give_to_decoding(self, step: StepPlan, now: float) -> None:
        """A token to each, by standing; then a page to those whose token is the first of one."""
        step.decode(self._split()[0])
        rows, page_tokens = zip(step.decoding.sequences, step.lengths, strict=True), self.pages.page_tokens
        for sequence in [one for one, length in rows if (length - 1) % page_tokens == 0]:
            self._grow(sequence, step, now)

    def _give_to_prefill(self, step: StepPlan, now: float) -> None:
        """Running sequences with more than one token to go, and waiting ones as they are admitted, by standing."""
        too_long: Sequence | None = None
        barred = False
        for sequence in self._candidates(step):
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
                computing = self.pages.computing(sequence, found)
                if computing is not None and step.computes(computing):
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

    def _candidates(self, step: StepPlan) -> Iterable[Sequence]:
        """Running sequences that do not decode, and waiting ones if any can start, by standing."""
        running = self._split()[1]
        if self._waiting and self._running:
            step.last_standing = max(map(_standing, self._running.values()))
        if not self._waiting or self._none_can_start(self._waiting[0], step):
            return running
        step.growth_pages = sum(map(self._can_grow, self._running.values()))
        return merge(running, tuple(self._waiting), key=_standing)

    def _none_can_start(self, sequence: Sequence, step: StepPlan) -> bool:
        """Whether the walk is for nothing from here on: no slot is free, and nobody later holds one."""
        return len(self._running) >= self.limits.max_concurrent and sequence.standing > step.last_standing

    def _admit(self, sequence: Sequence, found: list[bytes], step: StepPlan) -> bool:
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
        del self._waiting[bisect_left(self._waiting, sequence.standing, key=_standing)]
        self._running[sequence.id] = sequence
        self._sides = None
        step.growth_pages += self._can_grow(sequence)
        return True

    def _victims_for(self, sequence: Sequence, found: list[bytes], step: StepPlan) -> list[Sequence] | None:
        """Whom to preempt so that a waiting sequence can start: often nobody; None if it cannot start at all."""
        slots = self.limits.max_concurrent - len(self._running)
        free = self.pages.free_pages - step.growth_pages
        shortfall = self.pages.shortfall(sequence, found)
        victims: list[Sequence] = []
        if slots > 0 and shortfall.pages <= free:
            return victims
        standing = sequence.standing
        if standing > step.last_standing:
            return None
        lower = [s for s in self._running.values() if s.request.priority > sequence.request.priority]
        lower = [s for s in lower if s.standing > standing]
        for victim in sorted(lower, key=_sunk_work):
            victims.append(victim)
            slots += 1
            free += self._can_grow(victim)
            shortfall.preempt(self.pages.table(victim.id))
            if slots > 0 and shortfall.pages <= free:
                return victims
        return None

    def _grow(self, sequence: Sequence, step: StepPlan, now: float) -> None:
        """Reserve the page of a decoding sequence's next token, by preemption if need be: of itself, if it must be."""
        while sequence.id in self._running and not self.pages.reserve(sequence.id, sequence.total_tokens):
            self._preempt(max(self._running.values(), key=lambda one: self._expendability(one, now)), step)

    def _preempt(self, victim: Sequence, step: StepPlan) -> None:
        step.withdraw(victim)
        self.pages.release(victim.id)
        del self._running[victim.id]
        self._sides = None
        victim.forget()
        insort(self._waiting, victim, key=_standing)
        self.preemptions += 1

    def _expendability(self, sequence: Sequence, now: float) -> tuple[bool, float, int]:
        """Who loses its pages first, as a sort key: the greatest does."""
        if self._is_overdue(sequence, now):
            return False, sequence.standing[0], 0
        return True, sequence.request.priority, -sequence.computed_tokens

    def _is_overdue(self, sequence: Sequence, now: float) -> bool:
        return now > sequence.standing[0] + self.limits.patience_seconds

    def _can_grow(self, sequence: Sequence) -> bool:
        return self.pages.missing_pages(sequence.id, sequence.final_tokens) > 0


_standing = attrgetter("standing")


def _sunk_work(sequence: Sequence) -> tuple[int, int]:
    """Lowest priority first, then the least computed."""
    return -sequence.request.priority, sequence.computed_tokens
