"""What placement by cached prefix is worth: eight simulated workers behind several rules, under the same conversations.

    python benchmarks/router/simulate.py [--seeds 3] [--minutes 10] [--output benchmarks/router/AFFINITY.md]

A discrete-event simulation, seeded, without a clock or a network. The rule called m3-router is the router's own code
(`affinity`, `placement`, `workers`) fed with digests; the others are written here from their published descriptions
(`policies.py`), and so is the workload, with the sources of its shape (`workload.py`).
"""

import argparse
import datetime
import heapq
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from plot import line_chart  # beside this file, where Python looks first for what a script imports
from policies import POLICIES, Policy, Request
from workload import BLOCK_TOKENS, TENANTS, Conversation, conversations_of

HERE = Path(__file__).resolve().parent

WORKERS = 8
PREFILL_TOKENS_PER_SECOND = 10_000.0
SECONDS_PER_OUTPUT_TOKEN = 0.02
DECODE_SLOWDOWN = 0.01  # each running answer takes this part from prefill, and adds this part to a decode step
CACHE_TOKENS = 1_000_000  # of one worker
LOADS = (2.0, 4.0, 5.0, 6.0, 7.0)  # new conversations a second

FIRST_SEED = 10  # others were used to choose placement's constants
WARM_UP_SHARE = 0.25  # of the time, which is not measured: caches and indexes fill


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
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = 0  # of events at the same time
        self._measure_from = WARM_UP_SHARE * seconds
        self._until = seconds
        self.outcome = Outcome()
        for conversation in conversations:
            self._ask_at(conversation.begins_at, conversation, 0, conversation.system_tokens)

    def run(self) -> Outcome:
        """Until the time is over; what waits then is counted with the time it has waited."""
        while self._events:
            now, _, happen = heapq.heappop(self._events)
            if now >= self._until:
                break
            happen(now)
        for worker in self._workers:
            for waiting in worker.queue:
                self._count(waiting, self._until, None)
        return self.outcome

    def _at(self, time: float, happen: Callable[[float], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (time, self._order, happen))

    def _ask_at(self, time: float, conversation: Conversation, turn: int, context_tokens: int) -> None:
        self._at(time, lambda now: self._ask(now, conversation, turn, context_tokens))

    def _ask(self, now: float, conversation: Conversation, turn: int, context_tokens: int) -> None:
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
        self._at(now + seconds, lambda then: self._computed(then, dispatched, cached))

    def _computed(self, now: float, dispatched: Dispatched, cached: int) -> None:
        worker = self._workers[dispatched.worker]
        worker.is_computing = False
        worker.answering += 1
        self._policy.evicted(dispatched.worker, worker.keep(dispatched.request.chain))
        self._policy.first_byte(dispatched.request, cached)
        self._count(dispatched, now, cached)
        turn = dispatched.conversation.turns[dispatched.turn]
        step = SECONDS_PER_OUTPUT_TOKEN * (1 + DECODE_SLOWDOWN * worker.answering)
        self._at(now + turn.output_tokens * step, lambda then: self._answered(then, dispatched))
        self._compute_next(now, dispatched.worker)

    def _answered(self, now: float, dispatched: Dispatched) -> None:
        worker, conversation = self._workers[dispatched.worker], dispatched.conversation
        worker.answering -= 1
        self._policy.ended(dispatched.request)
        said = dispatched.request.input_tokens + conversation.turns[dispatched.turn].output_tokens
        self._policy.evicted(dispatched.worker, worker.keep(conversation.chain(said)))
        if dispatched.turn + 1 < len(conversation.turns):
            think = conversation.turns[dispatched.turn + 1].think_seconds
            self._ask_at(now + think, conversation, dispatched.turn + 1, said)

    def _count(self, dispatched: Dispatched, now: float, cached: int | None) -> None:
        if dispatched.arrived_at < self._measure_from:
            return
        self.outcome.first_byte_seconds.append(now - dispatched.arrived_at)
        if cached is not None:
            self.outcome.input_tokens += dispatched.request.input_tokens
            self.outcome.cached_tokens += cached


Results = dict[str, list[tuple[float, float, float]]]
"""policy -> for each load: hit rate, median and 90th percentile of the seconds to the first byte."""


def measure(seeds: int, seconds: float) -> tuple[Results, list[float]]:
    """Every policy under every load, the median over the seeds; and the requests a second that each load means."""
    results: Results = {name: [] for name in POLICIES}
    rates = []
    for load in LOADS:
        workloads = [conversations_of(FIRST_SEED + i, load, seconds) for i in range(seeds)]
        for name, make in POLICIES.items():
            outcomes = [Simulation(make(WORKERS), conversations, seconds).run() for conversations in workloads]
            results[name].append(
                (
                    median(outcome.hit_rate for outcome in outcomes),
                    median(outcome.percentile(0.5) for outcome in outcomes),
                    median(outcome.percentile(0.9) for outcome in outcomes),
                )
            )
            print(f"{load:g} {name}: hit rate {results[name][-1][0]:.3f}, p90 {results[name][-1][2]:.2f} s", flush=True)
        asked = median(len(outcome.first_byte_seconds) for outcome in outcomes)
        rates.append(asked / ((1 - WARM_UP_SHARE) * seconds))
    return results, rates


def report(results: Results, rates: list[float], seeds: int, seconds: float) -> str:
    """The page."""
    head = "| conversations/s (requests/s) | " + " | ".join(
        f"{load:g} ({rate:.0f})" for load, rate in zip(LOADS, rates, strict=True)
    )
    lines = [f"{head} |", "| --- |" + " --- |" * len(LOADS)]
    for name, rows in results.items():
        label = f"**{name}**" if name.startswith("m3-router") else name
        cells = [f"{hit:.0%}, {p50:.2f} s, {p90:.2f} s" for hit, p50, p90 in rows]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return PAGE.format(
        table="\n".join(lines),
        seeds=seeds,
        minutes=f"{seconds / 60:g}",
        date=datetime.datetime.now(datetime.UTC).date(),
        prefill=f"{PREFILL_TOKENS_PER_SECOND:,.0f}",
        cache=f"{CACHE_TOKENS:,}",
        tenants=TENANTS,
        workers=WORKERS,
    )


PAGE = """# What placement by cached prefix is worth

Question: of the input tokens, how many are found in a cache, and how long does the first byte take, when {workers}
workers stand behind different rules of placement? Simulated. Each cell: hit rate; median and 90th percentile of the
time to the first byte.

{table}

![90th percentile of the time to the first byte, by load](affinity.svg)

- Date: {date}. Command: `python benchmarks/router/simulate.py`. {seeds} seeds of {minutes} minutes, the median of them;
  the first quarter of each is not measured. A seed gives the same numbers on every machine.
- m3-router is the router's own code with its default settings: `affinity`, `placement` and `workers`. Without cache
  events it knows what it has sent; with them also what the workers have evicted.
- The others are written from what their makers publish (`policies.py`), and see prompts exactly. SMG 1.13 leaves a
  matched worker above mean + min(64, 2 sigma) and above 1.5 x mean requests in flight, for the least loaded; the SGLang
  family balances while max - min > 64 and max > 1.5 x min; both take a match above 0.3 of the prompt, and else the
  smallest tree. Their trees have no bound here.
- Workload (`workload.py`): conversations begin at random (Poisson). 73 % have several turns, as in ShareGPT
  ([CachedAttention](https://arxiv.org/abs/2403.19708)); a third begin with a document of 4K to 32K tokens; {tenants}
  tenants, by Zipf, each with a system prompt of 0.5K to 12K tokens. Mean input near 9,000 tokens, mean answer near 183;
  the public trace of [Mooncake](https://arxiv.org/abs/2407.00079) (section 4.2) has 7,590 and 182.
- Workers: {prefill} tokens of prefill a second, one prompt after the other, slowed down by 1 % for each running answer;
  a cache of {cache} tokens in blocks of 256, least recently used first, ends of chains before their beginnings.
- The constants of `placement.py` were chosen on other seeds of this workload; how far that carries is not shown. With
  COMPUTE_WEIGHT 1, the plain sum of work and queue, the rule was ahead up to 4 conversations a second and behind both
  cache-aware rules at 6: prefixes were copied to whoever was idle, caches filled with copies, and the hit rate fell
  when it was needed most.
- What it does not show: real engines, whose prefill is chunked and batched with decode; prompts above 64K tokens;
  workers that come, go and fail; several routers with different views.
"""


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and write page and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--output", type=Path, default=HERE / "AFFINITY.md")
    arguments = parser.parse_args(words)
    seconds = 60 * arguments.minutes
    results, rates = measure(arguments.seeds, seconds)
    arguments.output.write_text(report(results, rates, arguments.seeds, seconds), encoding="utf-8")
    chart = line_chart(
        "Time to the first byte, 90th percentile",
        "new conversations a second",
        "seconds",
        LOADS,
        {name: [p90 for _, _, p90 in rows] for name, rows in results.items()},
    )
    arguments.output.with_name("affinity.svg").write_text(chart, encoding="utf-8")


if __name__ == "__main__":
    main()
