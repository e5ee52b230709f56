"""Which worker takes a request. Pure: the same workers and the same index give the same answer on every replica.

One cost, in tokens of prefill:

    cost(w) = COMPUTE_WEIGHT x uncached(w) + load(w)
    uncached(w) = input - cached(w)     what w would have to compute; cached(w) = matched blocks x tokens a block
    load(w) = queued prefill + expected output / DECODE_DIVISOR + what other replicas have put there

Intent: no switch between "affinity" and "balance". A prefix is worth what it saves, so a busy owner loses to the
next-best owner first, and to an idle worker when its queue is longer than that worth. Rules around the cost:

- Bounded load: a worker with more than `load_factor` times the mean load is passed over, unless its queue is shorter
  than what its cache is worth. Below BOUND_FLOOR_TOKENS a worker is never overloaded.
- Long prefills: at most so many on one worker, while another has room.
- Warm-up: for `warmup_seconds` a new worker gets `warmup_share` of the requests without a cached prefix, and more only
  when the others are overloaded: what is cold is slow, and what is idle would draw everything.
- Session: a pinned worker takes its session while it is not overloaded.
- Breaker: a worker whose breaker is due gets one short request that was not tried elsewhere, to find out.
- Ties go to the highest xxh3(uid, chain digest): rendezvous hashing, so that equal prompts meet at one worker even
  before any index knows them.
"""

from collections.abc import Sequence
from typing import Final

from mypy_extensions import mypyc_attr
from xxhash import xxh3_64_intdigest

from m3_router.config.services import AffinitySettings
from m3_router.placement.affinity import NO_MATCHES, Matches
from m3_router.workers.workers import Worker

# A token that is computed delays this request and all that come after it, and takes the place of another in the cache;
# one that is queued is only waited for. With 1, prefixes are copied to every worker under load, and the hit rate falls
# until the pool is overloaded; of 1, 2, 4 and 8 this was best in the simulation (benchmarks/router/AFFINITY.md).
COMPUTE_WEIGHT: Final = 4
BOUND_FLOOR_TOKENS: Final = 16_384  # a second or two of prefill
HASH_RANGE: Final = 2.0**64


@mypyc_attr(free_list_len=1)
class Want:
    """What a request asks of the workers.

    input_tokens: likely number. block_tokens: tokens that one block of its chain stands for. matches: of its chain.
    is_long: counts towards the cap of long prefills. tried: workers that have failed it. pinned_slot: of its session,
    or -1. tie: a digest of its prompt (the chain's first block, so that prompts which begin alike go together).
    """

    __slots__ = ("block_tokens", "input_tokens", "is_long", "matches", "pinned_slot", "tie", "tried")

    def __init__(
        self,
        input_tokens: int,
        *,
        block_tokens: float = 0.0,
        matches: Matches = NO_MATCHES,
        is_long: bool = False,
        tried: tuple[Worker, ...] = (),
        pinned_slot: int = -1,
        tie: int = 0,
    ) -> None:
        self.input_tokens = input_tokens
        self.block_tokens = block_tokens
        self.matches = matches
        self.is_long = is_long
        self.tried = tried
        self.pinned_slot = pinned_slot
        self.tie = tie

    def cached_tokens(self, worker: Worker) -> int:
        """How much of the input this worker holds."""
        blocks = self.matches.of(worker.slot)
        return min(int(blocks * self.block_tokens), self.input_tokens) if blocks else 0


@mypyc_attr(free_list_len=1)
class Choice:
    """The worker chosen, why, and who would have been next.

    reason: `prefix` (it holds some of the prompt), `load`, `warmup`, `session`, `probe` (of its breaker), or `only`.
    """

    __slots__ = ("cached_tokens", "cost_tokens", "reason", "runner_up", "runner_up_cost", "worker")

    def __init__(
        self,
        worker: Worker,
        cached_tokens: int,
        cost_tokens: int,
        *,
        runner_up: Worker | None,
        runner_up_cost: int,
        reason: str,
    ) -> None:
        self.worker = worker
        self.cached_tokens = cached_tokens
        self.cost_tokens = cost_tokens
        self.runner_up = runner_up
        self.runner_up_cost = runner_up_cost
        self.reason = reason


@mypyc_attr(free_list_len=1)
class _Candidate:
    """One worker, weighed for one request."""

    __slots__ = ("cached_tokens", "cost_tokens", "is_overloaded", "load_tokens", "worker")

    def __init__(self, worker: Worker, load_tokens: int, cached_tokens: int, cost_tokens: int) -> None:
        self.worker = worker
        self.load_tokens = load_tokens
        self.cached_tokens = cached_tokens
        self.cost_tokens = cost_tokens
        self.is_overloaded = False


class Placement:
    """The rules of one pool. Holds settings and no state."""

    __slots__ = ("_load_factor", "_max_long_prefills", "_warmup_seconds", "_warmup_share")

    def __init__(self, settings: AffinitySettings, long_prefills_per_worker: int) -> None:
        self._load_factor = settings.load_factor
        self._warmup_seconds = settings.warmup_seconds
        self._warmup_share = settings.warmup_share
        self._max_long_prefills = long_prefills_per_worker

    def choose(self, ready: Sequence[Worker], want: Want, now: float) -> Choice | None:
        """The worker for a request, of those that are ready; None if none may take it."""
        candidates: list[_Candidate] = []
        pinned: _Candidate | None = None
        total_tokens = 0
        for worker in ready:
            breaker = worker.breaker
            if (breaker.state != "closed" and not breaker.may_try(now)) or worker in want.tried:
                continue
            load_tokens = worker.load_tokens()
            cached_tokens = want.cached_tokens(worker)
            cost_tokens = COMPUTE_WEIGHT * (want.input_tokens - cached_tokens) + load_tokens
            candidate = _Candidate(worker, load_tokens, cached_tokens, cost_tokens)
            if breaker.state == "open" and not want.tried and not want.is_long:
                return _choice(candidate, None, "probe")
            total_tokens += load_tokens
            candidates.append(candidate)
            if worker.slot == want.pinned_slot and worker.slot >= 0:
                pinned = candidate
        if not candidates:
            return None
        if len(candidates) == 1:
            return _choice(candidates[0], None, "only")

        bound_tokens = max(int(self._load_factor * total_tokens / len(candidates)), BOUND_FLOOR_TOKENS)
        for candidate in candidates:
            allowed_tokens = max(bound_tokens, COMPUTE_WEIGHT * candidate.cached_tokens)
            candidate.is_overloaded = candidate.load_tokens > allowed_tokens or (
                want.is_long and candidate.worker.long_prefills >= self._max_long_prefills
            )
        if pinned is not None and not pinned.is_overloaded:
            return _choice(pinned, _best(candidates, want, pinned), "session")
        if not want.matches.blocks:
            new = self._new(candidates, now)
            if new and len(new) < len(candidates):
                return self._choose_cold(candidates, new, want)
        best = _best(candidates, want, None)
        return _choice(best, _best(candidates, want, best), "prefix" if best.cached_tokens else "load")

    def _new(self, candidates: list[_Candidate], now: float) -> list[_Candidate]:
        """Those that have just begun and hold next to nothing."""
        since = now - self._warmup_seconds
        return [candidate for candidate in candidates if candidate.worker.since > since]

    def _choose_cold(self, candidates: list[_Candidate], new: list[_Candidate], want: Want) -> Choice:
        """Nobody holds any of the prompt, and some workers warm up: their share is theirs, the rest is the others'."""
        # The share is taken from the upper bits of the tie, and the worker from a hash of all of it.
        if want.tie / HASH_RANGE < self._warmup_share * len(new):
            best = _best(new, want, None)
            if not best.is_overloaded:
                return _choice(best, _best(candidates, want, best), "warmup")
        warm = [candidate for candidate in candidates if candidate not in new and not candidate.is_overloaded]
        best = _best(warm or candidates, want, None)
        return _choice(best, _best(candidates, want, best), "load")


def _best(candidates: list[_Candidate], want: Want, without: _Candidate | None) -> _Candidate:
    """The cheapest that is not overloaded, else the cheapest of all; ties by rendezvous. One at least must be left."""
    best = candidates[0] if candidates[0] is not without else candidates[1]
    best_rank = -1  # computed when there is a tie, which is when all are idle
    for candidate in candidates:
        if candidate is without or candidate is best:
            continue
        if candidate.is_overloaded != best.is_overloaded:
            is_better = best.is_overloaded
        elif candidate.cost_tokens != best.cost_tokens:
            is_better = candidate.cost_tokens < best.cost_tokens
        else:
            if best_rank < 0:
                best_rank = xxh3_64_intdigest(best.worker.rendezvous_key, want.tie)
            rank = xxh3_64_intdigest(candidate.worker.rendezvous_key, want.tie)
            if rank > best_rank:
                best, best_rank = candidate, rank
            continue
        if is_better:
            best, best_rank = candidate, -1
    return best


def _choice(chosen: _Candidate, runner_up: _Candidate | None, reason: str) -> Choice:
    return Choice(
        chosen.worker,
        chosen.cached_tokens,
        chosen.cost_tokens,
        runner_up=None if runner_up is None else runner_up.worker,
        runner_up_cost=0 if runner_up is None else runner_up.cost_tokens,
        reason=reason,
    )
