"""What placement by cached prefix is worth: eight simulated workers behind several rules, under the same conversations.

    python benchmarks/router/simulate.py [--seeds 3] [--minutes 15] [--output benchmarks/router/AFFINITY.md]

A discrete-event simulation, seeded, without a clock or a network. The rule called m3-router is the router's own code
(`affinity`, `placement`, `workers`) fed with digests; the others are written here from their published descriptions
(`policies.py`). Workload and workers are described where they are made, with the sources of their shape.
"""

import argparse
import datetime
import heapq
import math
import platform
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import plot  # noqa: E402
from policies import POLICIES, BLOCK_TOKENS, Policy, Request  # noqa: E402

WORKERS = 8
PREFILL_TOKENS_PER_SECOND = 10_000.0
SECONDS_PER_OUTPUT_TOKEN = 0.02
DECODE_SLOWDOWN = 0.01  # each running answer takes this part from prefill, and adds this part to a decode step
CACHE_TOKENS = 1_000_000  # of one worker
LOADS = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0)  # new conversations a second

TENANTS = 60
WARM_UP_SHARE = 0.25  # of the time, which is not measured: caches and indexes fill


@dataclass(frozen=True)
class Turn:
    """What a user adds, what the model answers, and how long the user takes before that."""

    user_tokens: int
    output_tokens: int
    think_seconds: float


@dataclass(frozen=True)
class Conversation:
    """One conversation: it begins with its tenant's system prompt, and every turn repeats all that was said."""

    number: int
    begins_at: float
    tenant: int
    system_tokens: int
    turns: tuple[Turn, ...]

    def chain(self, tokens: int) -> list[int]:
        """Digests of the first `tokens` tokens, whole blocks; those of the system prompt are its tenant's."""
        shared = min(self.system_tokens, tokens) // BLOCK_TOKENS
        own = tokens // BLOCK_TOKENS - shared
        return [
            *(hash((self.tenant, 0, i)) & _DIGEST for i in range(shared)),
            *(hash((self.tenant, self.number + 1, i)) & _DIGEST for i in range(own)),
        ]


_DIGEST = 2**64 - 1


def workload(seed: int, load: float, seconds: float) -> list[Conversation]:
    """Conversations that begin within `seconds`, `load` of them a second on average.

    73 % have several turns, as in ShareGPT (arXiv 2403.19708, section 2). A third works on a document or a repository
    of 4K to 32K tokens; with it the mean input is near that of Mooncake's public trace, 7,590 tokens, and so is the
    answer's, 182 (arXiv 2407.00079, section 4.2). Tenants share a system prompt of 0.5K to 12K tokens, and are as
    unequal as words are (Zipf); llm-d's benchmark of this kind has 150 with 6K each. Lengths are log-normal.
    """
    source = random.Random(f"{seed} {load}")
    tenants = [min(12_000, max(500, int(source.lognormvariate(math.log(2500), 0.8)))) for _ in range(TENANTS)]
    shares = [1 / (i + 1) for i in range(TENANTS)]
    conversations, now = [], 0.0
    while True:
        now += source.expovariate(load)
        if now >= seconds:
            return conversations
        tenant = source.choices(range(TENANTS), shares)[0]
        turns = 1 if source.random() < 0.27 else 2 + min(int(source.expovariate(1 / 3.0)), 18)
        document = int(4000 * 8 ** source.random()) if source.random() < 1 / 3 else 0
        conversations.append(
            Conversation(
                len(conversations),
                now,
                tenant,
                tenants[tenant],
                tuple(
                    Turn(
                        user_tokens=(document if i == 0 else 0) + 10 + int(source.lognormvariate(math.log(90), 1.1)),
                        output_tokens=5 + min(int(source.lognormvariate(math.log(130), 0.8)), 4000),
                        think_seconds=min(source.lognormvariate(math.log(25), 1.0), 600),
                    )
                    for i in range(turns)
                ),
            )
        )


@dataclass
class SimulatedWorker:
    """Computes prompts one after the other and answers beside them; keeps blocks until others need their place (LRU).

    A prompt's hit is looked up when its turn comes, as engines do. Of a chain the end is evicted first.
    """

    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)
    queue: list["Dispatched"] = field(default_factory=list)
    is_computing: bool = False
    answering: int = 0

    def cached_blocks(self, chain: list[int]) -> int:
        """Leading blocks that are held."""
        for i, digest in enumerate(chain):
            if digest not in self.cache:
                return i
        return len(chain)

    def keep(self, chain: list[int]) -> list[int]:
        """Hold a chain. Returns what was evicted for it."""
        cache = self.cache
        for digest in reversed(chain):
            cache[digest] = None
            cache.move_to_end(digest)
        return [cache.popitem(last=False)[0] for _ in range(len(cache) - CACHE_TOKENS // BLOCK_TOKENS)]


@dataclass
class Dispatched:
    """A request at a worker."""

    request: Request
    conversation: Conversation
    turn: int
    worker: int
    arrived_at: float


@dataclass
class Outcome:
    """What one run showed, of the requests after the warm-up."""

    first_byte_seconds: list[float] = field(default_factory=list)
    input_tokens: int = 0
    cached_tokens: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the input tokens that were cached."""
        return self.cached_tokens / self.input_tokens

    def percentile(self, share: float) -> float:
        """Of the seconds to the first byte."""
        ordered = sorted(self.first_byte_seconds)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


class Simulation:
    """One policy under one workload: events in the order of their time."""

    def __init__(self, policy: Policy, conversations: list[Conversation], seconds: float) -> None:
        self._policy = policy
        self._workers = [SimulatedWorker() for _ in range(WORKERS)]
        self._events: list[tuple[float, int, str, object]] = []
        self._order = 0  # of events at the same time
        self._measure_from = WARM_UP_SHARE * seconds
        self._until = seconds
        self.outcome = Outcome()
        for conversation in conversations:
            self._at(conversation.begins_at, "ask", (conversation, 0, conversation.system_tokens))

    def run(self) -> Outcome:
        """Until the time is over; what waits then is counted with the time it has waited."""
        while self._events:
            now, _, kind, what = heapq.heappop(self._events)
            if now >= self._until:
                break
            getattr(self, f"_{kind}")(now, what)
        for worker in self._workers:
            for waiting in worker.queue:
                self._count(waiting, self._until, None)
        return self.outcome

    def _at(self, time: float, kind: str, what: object) -> None:
        self._order += 1
        heapq.heappush(self._events, (time, self._order, kind, what))

    def _ask(self, now: float, what: tuple[Conversation, int, int]) -> None:
        conversation, turn, context_tokens = what
        input_tokens = context_tokens + conversation.turns[turn].user_tokens
        request = Request(input_tokens, conversation.chain(input_tokens))
        worker = self._policy.place(request, now)
        self._workers[worker].queue.append(Dispatched(request, conversation, turn, worker, now))
        self._compute_next(now, worker)

    def _compute_next(self, now: float, number: int) -> None:
        worker = self._workers[number]
        if worker.is_computing or not worker.queue:
            return
        worker.is_computing = True
        dispatched = worker.queue.pop(0)
        cached = worker.cached_blocks(dispatched.request.chain) * BLOCK_TOKENS
        rate = PREFILL_TOKENS_PER_SECOND * max(0.2, 1 - DECODE_SLOWDOWN * worker.answering)
        seconds = 0.02 + (dispatched.request.input_tokens - cached) / rate
        self._at(now + seconds, "computed", (dispatched, cached))

    def _computed(self, now: float, what: tuple[Dispatched, int]) -> None:
        dispatched, cached = what
        worker = self._workers[dispatched.worker]
        worker.is_computing = False
        worker.answering += 1
        self._policy.evicted(dispatched.worker, worker.keep(dispatched.request.chain))
        self._policy.first_byte(dispatched.request, cached)
        self._count(dispatched, now, cached)
        turn = dispatched.conversation.turns[dispatched.turn]
        step = SECONDS_PER_OUTPUT_TOKEN * (1 + DECODE_SLOWDOWN * worker.answering)
        self._at(now + turn.output_tokens * step, "answered", dispatched)
        self._compute_next(now, dispatched.worker)

    def _answered(self, now: float, dispatched: Dispatched) -> None:
        worker, conversation = self._workers[dispatched.worker], dispatched.conversation
        worker.answering -= 1
        self._policy.ended(dispatched.request)
        said = dispatched.request.input_tokens + conversation.turns[dispatched.turn].output_tokens
        self._policy.evicted(dispatched.worker, worker.keep(conversation.chain(said)))
        if dispatched.turn + 1 < len(conversation.turns):
            think = conversation.turns[dispatched.turn + 1].think_seconds
            self._at(now + think, "ask", (conversation, dispatched.turn + 1, said))

    def _count(self, dispatched: Dispatched, now: float, cached: int | None) -> None:
        if dispatched.arrived_at < self._measure_from:
            return
        self.outcome.first_byte_seconds.append(now - dispatched.arrived_at)
        if cached is not None:
            self.outcome.input_tokens += dispatched.request.input_tokens
            self.outcome.cached_tokens += cached
