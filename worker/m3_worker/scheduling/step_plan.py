"""The plan of one step while it is made: who is given how many tokens, and what is left to give.

Owns the arithmetic of a step's budget, in tokens and in seconds. Who is given what is the scheduler's decision, how
long tokens take is `step_time`'s to know. Pure: no clock.
"""

import math
from dataclasses import dataclass, field

from m3_worker.scheduling.batch import NOBODY, Decoding
from m3_worker.scheduling.request import Sequence
from m3_worker.scheduling.step_time import StepTime


@dataclass(slots=True)
class StepPlan:
    """The plan of one step while it is made."""

    budget: int
    """Tokens that are left to give."""
    seconds: float
    """Time that is left; below 0 where decoding alone takes more."""
    time: StepTime
    least_tokens: int
    """Of the first prefill."""
    decoding: Decoding = NOBODY
    """Sequences that are given the one token which they lack."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of each of these."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Tokens given to each of the others, in the order of the batch."""
    growth_pages: int = 0
    """Pages that an admission leaves free: one for each running sequence that can still grow."""
    last_standing: tuple[float, int] = (math.inf, 0)
    """The last standing among the running; who stands behind it can preempt nobody."""

    @property
    def is_full(self) -> bool:
        """Whether nothing is left to give."""
        return self.budget == 0 or (bool(self.tokens) and self.seconds <= 0)

    def room(self, start: int) -> int:
        """Tokens that a sequence can get from its token `start` on."""
        if self.seconds == math.inf:
            return self.budget
        tokens = self.time.tokens_within(self.seconds, start)
        return min(self.budget, tokens if self.tokens else max(tokens, self.least_tokens))

    def decode(self, decoding: Decoding) -> None:
        """Give a token to as many as the budget allows; nothing must have been given before."""
        self.decoding = decoding.first(self.budget)
        self.lengths = self.decoding.lengths()
        tokens, pairs = len(self.lengths), sum(self.lengths) - len(self.lengths) / 2
        self.budget -= tokens
        self.seconds -= self.time.predict(tokens, pairs) - self.time.step_seconds

    def prefill(self, sequence: Sequence, tokens: int) -> None:
        """Give the sequence `tokens` beside those that it got before."""
        start = self.start(sequence)
        self.tokens[sequence.id] = self.tokens.get(sequence.id, 0) + tokens
        self.budget -= tokens
        self.seconds -= self.time.chunk_seconds(start, tokens)

    def start(self, sequence: Sequence) -> int:
        """Its first token that is neither computed nor given."""
        return sequence.computed_tokens + self.tokens.get(sequence.id, 0)

    def computes(self, sequence_id: str) -> bool:
        """Whether the sequence is given tokens."""
        return sequence_id in self.tokens or any(one.id == sequence_id for one in self.decoding.sequences)

    def withdraw(self, sequence: Sequence) -> None:
        """Take back what the sequence was given, if anything."""
        others = self.decoding.without(sequence)
        tokens = self.tokens.pop(sequence.id, 0) + len(self.decoding) - len(others)
        self.decoding, self.lengths = others, others.lengths()
        self.budget += tokens
        self.seconds += self.time.chunk_seconds(sequence.computed_tokens, tokens)
