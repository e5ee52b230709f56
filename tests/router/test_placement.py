"""The choice among workers: one cost in tokens, and the rules around it."""

import random
from collections import Counter

import pytest

from m3_router.config.services import AffinitySettings
from m3_router.placement.affinity import Affinity
from m3_router.placement.placement import BOUND_FLOOR_TOKENS, COMPUTE_WEIGHT, Choice, Placement, Want
from m3_router.workers.breaker import FAILURES_TO_OPEN
from m3_router.workers.workers import Charge, Worker, WorkerAddress, Workers

SETTINGS = AffinitySettings(load_factor=1.25, warmup_seconds=60, warmup_share=0.1)
NOW = 1000.0
TOKENS = 256  # of a block


class Pool:
    """Workers of one pool with their index, as one replica sees them."""

    def __init__(self, names: str = "abcd", found_in: str | None = None) -> None:
        self.affinity = Affinity(SETTINGS)
        self.workers = Workers()
        self.workers.replace([WorkerAddress(f"uid-{name}", name, "10.0.0.1", 80) for name in found_in or names])
        self.placement = Placement(SETTINGS, long_prefills_per_worker=1)
        for worker in self.workers:
            self.workers.report(worker, is_ready=True, reason="")
            self.workers.set_epoch(worker, "1", self.affinity.slot_of(worker.uid, "1"), 0.0)
        self.by_name = {worker.name: worker for worker in self.workers}

    def hold(self, name: str, chain: list[int]) -> None:
        self.affinity.record(chain, self.by_name[name].slot)

    def load(self, name: str, tokens: int) -> Charge:
        charge = Charge(tokens, 0)
        self.workers.charge(self.by_name[name], charge)
        return charge

    def break_off(self, name: str, now: float = 0.0) -> None:
        for _ in range(FAILURES_TO_OPEN):
            self.workers.failed(self.by_name[name], now, "reset by peer")

    def renew(self, name: str, now: float) -> None:
        worker = self.by_name[name]
        self.workers.set_epoch(worker, "2", self.affinity.slot_of(worker.uid, "2"), now)

    def choose(self, chain: list[int], now: float = NOW, **want: object) -> Choice | None:
        asked = {
            "input_tokens": TOKENS * len(chain),
            "block_tokens": float(TOKENS),
            "matches": self.affinity.match(chain),
            "tie": chain[0],
        }
        return self.placement.choose(self.workers.ready, Want(**{**asked, **want}), now)  # type: ignore[arg-type]

    def chosen(self, chain: list[int], **want: object) -> tuple[str, str]:
        choice = self.choose(chain, **want)  # type: ignore[arg-type]
        assert choice is not None
        return choice.worker.name, choice.reason


def chain_of(seed: int, blocks: int = 100) -> list[int]:
    return [random.Random(f"{seed}/{i}").getrandbits(64) for i in range(blocks)]


def test_the_deepest_prefix_wins_while_loads_are_alike() -> None:
    pool, chain = Pool(), chain_of(1)
    pool.hold("b", chain[:40])
    pool.hold("c", chain[:90])
    choice = pool.choose(chain)
    assert choice is not None
    assert (choice.worker.name, choice.reason) == ("c", "prefix")
    assert (choice.cached_tokens, choice.cost_tokens) == (90 * TOKENS, COMPUTE_WEIGHT * 10 * TOKENS)
    assert choice.runner_up is pool.by_name["b"]
    assert choice.runner_up_cost == COMPUTE_WEIGHT * 60 * TOKENS


def test_a_busy_owner_loses_to_the_next_best_owner_before_an_idle_worker() -> None:
    pool, chain = Pool(), chain_of(1)
    pool.hold("b", chain[:90])
    pool.hold("c", chain[:60])
    pool.load("b", COMPUTE_WEIGHT * 31 * TOKENS)
    assert pool.chosen(chain) == ("c", "prefix")
    pool.load("c", COMPUTE_WEIGHT * 61 * TOKENS)
    assert pool.chosen(chain) == ("b", "prefix")
    pool.load("b", COMPUTE_WEIGHT * 60 * TOKENS)
    assert pool.chosen(chain)[1] == "load"


@pytest.mark.parametrize(("queued", "expected"), [(89, "b"), (91, "a")])
def test_a_prefix_is_worth_exactly_the_work_it_saves(queued: int, expected: str) -> None:
    pool, chain = Pool("ab"), chain_of(1)
    pool.hold("b", chain[:90])
    pool.load("b", COMPUTE_WEIGHT * queued * TOKENS)
    assert pool.chosen(chain)[0] == expected


def test_an_overloaded_worker_is_passed_over_unless_its_cache_is_worth_more_than_its_queue() -> None:
    pool, chain = Pool(), chain_of(1)
    for name in "acd":
        pool.load(name, 80_000)
    pool.load("b", 101_000)  # the mean is 85,250, and 1.25 times that is 106,562
    pool.hold("b", chain[:90])
    assert pool.chosen(chain) == ("b", "prefix")  # it saves 23,040 tokens
    pool.load("b", 9_000)  # 110,000 of at most 109,375
    choice = pool.choose(chain)
    assert choice is not None
    assert choice.worker.name != "b"
    assert choice.cost_tokens == COMPUTE_WEIGHT * 100 * TOKENS + 80_000
    choice = pool.choose(chain, input_tokens=31_000, block_tokens=310.0)  # saves 27,900, worth 111,600
    assert choice is not None
    assert choice.worker.name == "b"


def test_below_its_floor_no_queue_is_an_overload() -> None:
    pool, chain = Pool(), chain_of(1, 400)
    pool.hold("a", chain[:399])
    pool.load("a", BOUND_FLOOR_TOKENS)
    assert pool.chosen(chain) == ("a", "prefix")


def test_remote_load_is_load() -> None:
    pool, chain = Pool("ab"), chain_of(1)
    pool.hold("a", chain[:50])
    pool.workers.set_remote_tokens(pool.by_name["a"], COMPUTE_WEIGHT * 51 * TOKENS)
    assert pool.chosen(chain)[0] == "b"


def test_without_any_difference_prompts_that_begin_alike_meet_and_others_spread() -> None:
    pool = Pool()
    names = [pool.chosen(chain_of(i))[0] for i in range(400)]
    assert [pool.chosen(chain_of(i))[0] for i in range(400)] == names
    assert all(70 <= count <= 130 for count in Counter(names).values())
    fewer = Pool("abc")
    moved = [name for i, name in enumerate(names) if fewer.chosen(chain_of(i))[0] != name]
    assert set(moved) == {"d"}  # nobody else's prompts move when one worker leaves


def test_two_replicas_with_the_same_index_give_the_same_placement() -> None:
    """Each has found the workers in its own order, so that slots differ; what it was told is the same."""
    source = random.Random(5)
    one, other = Pool("abcdefgh"), Pool("abcdefgh", found_in="hgfedcba")
    for _ in range(2000):
        depth = source.randint(1, 20)
        chain = chain_of(source.randint(0, 30), 20)[:depth] + chain_of(source.randint(100, 130), 20)
        mine, theirs = one.choose(chain), other.choose(chain)
        assert mine is not None
        assert theirs is not None
        assert (mine.worker.name, mine.cost_tokens, mine.reason) == (
            theirs.worker.name, theirs.cost_tokens, theirs.reason,
        )  # fmt: skip
        assert (mine.runner_up and mine.runner_up.name) == (theirs.runner_up and theirs.runner_up.name)
        one.hold(mine.worker.name, chain)
        other.affinity.apply(mine.worker.uid, "1", chain)
        loaded, tokens = source.choice("abcdefgh"), source.randint(0, 3000)
        one.load(loaded, tokens)
        other.load(loaded, tokens)


def test_a_worker_that_failed_a_request_does_not_get_it_again() -> None:
    pool, chain = Pool("ab"), chain_of(1)
    pool.hold("a", chain)
    first, second = pool.by_name["a"], pool.by_name["b"]
    assert pool.chosen(chain, tried=(first,)) == ("b", "only")
    assert pool.choose(chain, tried=(first, second)) is None
    assert pool.placement.choose([], Want(1), NOW) is None


def test_long_prefills_go_where_there_is_room_for_one() -> None:
    pool, chain = Pool("ab"), chain_of(1)
    pool.hold("a", chain)
    charge = Charge(10, 0, is_long=True)
    pool.workers.charge(pool.by_name["a"], charge)
    assert pool.chosen(chain, is_long=True)[0] == "b"
    assert pool.chosen(chain, is_long=False)[0] == "a"
    other = Charge(10, 0, is_long=True)
    pool.workers.charge(pool.by_name["b"], other)
    assert pool.chosen(chain, is_long=True)[0] == "a"  # nobody has room: the lane's own bound holds the pool
    pool.workers.first_byte(pool.by_name["b"], other)
    assert pool.chosen(chain, is_long=True)[0] == "b"


def test_a_new_worker_gets_its_share_of_what_nobody_has_and_no_more() -> None:
    pool = Pool()
    pool.renew("d", NOW - 1)
    got = Counter(pool.chosen(chain_of(i, 2)) for i in range(2000))
    assert 150 <= got["d", "warmup"] <= 250
    assert got["d", "load"] == 0
    assert sum(count for (_, reason), count in got.items() if reason == "load") == 2000 - got["d", "warmup"]
    later = Counter(pool.chosen(chain_of(i, 2), now=NOW + 60)[0] for i in range(2000))
    assert 400 <= later["d"] <= 600


def test_a_new_worker_takes_more_than_its_share_when_the_others_are_overloaded() -> None:
    pool = Pool()
    pool.renew("d", NOW - 1)
    for name in "abc":
        pool.load(name, 100_000)
    assert {pool.chosen(chain_of(i, 2))[0] for i in range(50)} == {"d"}


def test_hits_are_not_part_of_the_warm_up_share() -> None:
    pool = Pool()
    pool.renew("d", NOW - 1)
    for i in range(300):
        pool.hold("a", chain_of(i, 2))
        assert pool.chosen(chain_of(i, 2)) == ("a", "prefix")


def test_when_all_are_new_none_is() -> None:
    pool = Pool()
    for name in "abcd":
        pool.renew(name, NOW)
    got = Counter(pool.chosen(chain_of(i, 2)) for i in range(400))
    assert {reason for _, reason in got} == {"load"}
    assert len(got) == 4


def test_a_session_goes_to_its_worker_while_that_is_not_overloaded() -> None:
    pool, chain = Pool(), chain_of(1)
    pool.hold("a", chain)
    slot = pool.by_name["c"].slot
    assert pool.chosen(chain, pinned_slot=slot) == ("c", "session")
    choice = pool.choose(chain, pinned_slot=slot)
    assert choice is not None
    assert choice.runner_up is pool.by_name["a"]
    pool.load("c", 100_000)
    assert pool.chosen(chain, pinned_slot=slot) == ("a", "prefix")
    assert pool.chosen(chain, pinned_slot=-1) == ("a", "prefix")


def test_an_open_breaker_keeps_requests_away_until_one_may_find_out() -> None:
    pool, chain = Pool("ab"), chain_of(1)
    pool.hold("a", chain)
    pool.break_off("a", now=NOW)
    assert pool.chosen(chain, now=NOW + 0.5) == ("b", "only")
    assert pool.chosen(chain_of(2), now=NOW + 1) == ("a", "probe")
    charge = Charge(1, 0)
    pool.workers.charge(pool.by_name["a"], charge)
    assert pool.chosen(chain, now=NOW + 1) == ("b", "only")
    pool.workers.succeeded(pool.by_name["a"])
    assert pool.chosen(chain, now=NOW + 1) == ("a", "prefix")


def test_a_request_that_failed_elsewhere_or_is_long_is_not_risked_on_a_broken_worker() -> None:
    pool, chain = Pool("abc"), chain_of(1)
    pool.hold("b", chain)
    pool.break_off("a")
    assert pool.chosen(chain, tried=(pool.by_name["c"],)) == ("b", "prefix")
    assert pool.chosen(chain, is_long=True) == ("b", "prefix")
    assert pool.chosen(chain) == ("a", "probe")


def test_no_worker_is_chosen_when_every_breaker_is_open() -> None:
    pool = Pool("ab")
    for name in "ab":
        pool.break_off(name, now=NOW)
    assert pool.choose(chain_of(1), now=NOW) is None


@pytest.mark.parametrize("seed", range(30))
def test_the_choice_is_the_cheapest_of_those_that_are_not_overloaded(seed: int) -> None:
    """Against the rule written out: bound first, then cost; on random states."""
    source = random.Random(seed)
    pool = Pool("abcdefgh")
    for name in pool.by_name:
        pool.load(name, source.randint(0, 120_000))
    chain = chain_of(seed)
    depths = {name: source.choice([0, source.randint(1, 100)]) for name in pool.by_name}
    for name, depth in depths.items():
        pool.hold(name, chain[:depth])
    choice = pool.choose(chain)
    assert choice is not None

    def cost(worker: Worker) -> int:
        return COMPUTE_WEIGHT * (len(chain) - depths[worker.name]) * TOKENS + worker.tokens

    bound = max(1.25 * sum(worker.tokens for worker in pool.workers) / 8, BOUND_FLOOR_TOKENS)
    worth = {name: COMPUTE_WEIGHT * depth * TOKENS for name, depth in depths.items()}
    within = [w for w in pool.workers if w.tokens <= max(int(bound), worth[w.name])] or list(pool.workers)
    assert choice.cost_tokens == cost(choice.worker) == min(cost(worker) for worker in within)
    assert choice.runner_up is not None
    rest = [worker for worker in within if worker is not choice.worker] or [
        worker for worker in pool.workers if worker is not choice.worker
    ]
    assert choice.runner_up_cost == min(cost(worker) for worker in rest)
