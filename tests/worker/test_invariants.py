"""Greedy tokens of random tiny models depend on the prompt alone: not on chunks, company, cache, host or preemption."""

import math
from dataclasses import dataclass
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3_fakes.tiny_run import BLOCK, TinyRun, generate, tiny_model
from m3_worker.scheduling.scheduler import SchedulerLimits

SEEDS = (5, 6)
SHARED = [(place * 37 + 11) % 251 for place in range(48)]
PROMPTS = tuple(
    SHARED[:shared] + [(own * 31 + shared + place * 7) % 251 for place in range(own)]
    for shared, own in ((0, 1), (0, 17), (8, 1), (16, 9), (24, 3), (40, 8), (40, 31), (48, 20))
)
"""All but the first two begin alike. Most are beyond two blocks, where attention is sparse."""


@cache
def alone(seed: int, number: int) -> list[int]:
    return generate(tiny_model(seed), PROMPTS[number])


def run(seed: int = 5, *, concurrent: int = 8, step_tokens: int = 512, pages: int = 256, slots: int = 0) -> TinyRun:
    return TinyRun(tiny_model(seed), SchedulerLimits(concurrent, step_tokens), pages, slots)


@pytest.mark.parametrize("number", [3, 5, 6, 7])
def test_a_prefix_hit_continues_as_cold(number: int) -> None:
    warm = run()
    warm.add("before", PROMPTS[7])
    warm.finish()
    warm.add("hit", PROMPTS[number])
    assert warm.finish()["hit"] == alone(5, number)
    assert warm.cached_tokens["hit"] >= 16


def test_the_same_prompt_again_computes_one_page_and_continues_the_same() -> None:
    warm = run()
    for name in ("first", "second", "third"):
        warm.add(name, PROMPTS[6])
        assert warm.finish()[name] == alone(5, 6)
    assert warm.cached_tokens == {"first": 0, "second": 64, "third": 64}


def test_the_next_turn_finds_the_answer_of_the_one_before() -> None:
    warm = run()
    warm.add("first", PROMPTS[7])
    turn = [*PROMPTS[7], *warm.finish()["first"], 9, 8, 7]
    warm.add("second", turn)
    assert warm.finish()["second"] == generate(tiny_model(5), turn)
    assert warm.cached_tokens["second"] == (68 + 11) // BLOCK * BLOCK


def test_a_hit_on_the_host_continues_as_cold() -> None:
    small = run(pages=12, slots=32)
    small.add("before", PROMPTS[7])
    small.finish()
    small.add("other", [200] * 80)  # takes every page
    small.finish()
    small.add("hit", PROMPTS[7])
    assert small.finish()["hit"] == alone(5, 7)
    assert small.cached_tokens["hit"] == 64
    assert small.scheduler.pages.counters.host_hit_tokens == 64


def test_a_preempted_sequence_resumes_from_its_pages_undisturbed() -> None:
    one = run(concurrent=1)
    one.add("standard", PROMPTS[6], priority=10)
    for _ in range(5):
        one.step()
    one.add("priority", PROMPTS[1])
    assert one.finish() == {"standard": alone(5, 6), "priority": alone(5, 1)}
    assert one.scheduler.preemptions == 1
    assert one.scheduler.pages.counters.resumed_tokens == 72


def test_equal_prompts_at_once_are_computed_once() -> None:
    together = run()
    for number in range(4):
        together.add(f"r{number}", PROMPTS[6])
    assert set(map(tuple, together.finish().values())) == {tuple(alone(5, 6))}
    assert list(together.cached_tokens.values()) == [0, 64, 64, 64]


@dataclass(frozen=True)
class Arrival:
    steps_later: int
    prompt: int
    priority: int
    given_up_after: int | None


@dataclass(frozen=True)
class World:
    """What must not matter."""

    seed: int
    concurrent: int
    step_tokens: int
    step_seconds: float
    pages: int
    slots: int
    slowness: list[float]


arrivals = st.lists(
    st.builds(
        Arrival,
        steps_later=st.integers(0, 6),
        prompt=st.integers(0, len(PROMPTS) - 1),
        priority=st.sampled_from([0, 0, 10]),
        given_up_after=st.none() | st.none() | st.integers(0, 12),
    ),
    min_size=1,
    max_size=7,
)
worlds = st.builds(
    World,
    seed=st.sampled_from(SEEDS),
    concurrent=st.integers(1, 5),
    step_tokens=st.integers(3, 80),
    step_seconds=st.sampled_from([math.inf, 0.02]),
    pages=st.integers(12, 40),
    slots=st.sampled_from([0, 3, 40]),
    slowness=st.lists(st.floats(0.1, 10), min_size=1, max_size=5),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(arrivals=arrivals, world=worlds)
def test_whatever_happens_around_a_request_its_tokens_are_its_own(arrivals: list[Arrival], world: World) -> None:
    limits = SchedulerLimits(world.concurrent, world.step_tokens, world.step_seconds)
    shaken = TinyRun(tiny_model(world.seed), limits, world.pages, world.slots)
    leaving: dict[str, float] = {}

    def step() -> None:
        for name in [name for name, when in leaving.items() if when <= shaken.now]:
            shaken.scheduler.remove(name)
            del leaving[name]
        shaken.step(0.005 * world.slowness[int(shaken.now) % len(world.slowness)])

    for number, arrival in enumerate(arrivals):
        for _ in range(arrival.steps_later):
            step()
        shaken.add(f"r{number}", PROMPTS[arrival.prompt], arrival.priority)
        if arrival.given_up_after is not None:
            leaving[f"r{number}"] = shaken.now + arrival.given_up_after
    while shaken.scheduler.has_work:
        step()
    assert shaken.scheduler.pages.free_pages == world.pages
    for number, arrival in enumerate(arrivals):
        got, expected = shaken.tokens[f"r{number}"], alone(world.seed, arrival.prompt)
        assert got == (expected if arrival.given_up_after is None else expected[: len(got)])
