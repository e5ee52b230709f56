"""The scheduler: its rules one by one, then what must hold whatever arrives, leaves or is preempted."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_fakes.runner import FakeRunner, continuation
from m3_worker.pages import Pages
from m3_worker.request import Batch, Request, SamplingParameters, Sequence
from m3_worker.scheduler import Scheduler, SchedulerLimits

PAGE_TOKENS = 4


@dataclass
class Simulation:
    """A scheduler, a fake runner and a clock that advances by a second a step."""

    scheduler: Scheduler
    runner: FakeRunner = field(default_factory=lambda: FakeRunner(PAGE_TOKENS))
    now: float = 0.0
    tokens: dict[str, list[int]] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)

    def add(self, name: str, prompt_tokens: int = 3, max_tokens: int = 4, priority: int = 0) -> list[int]:
        prompt = [(7 * len(self.tokens) + place) % 256 for place in range(prompt_tokens)]
        sampling = SamplingParameters(max_tokens=max_tokens)
        self.scheduler.add(Sequence(Request(name, prompt, sampling, priority, self.now)))
        self.tokens[name] = []
        return prompt

    def step(self) -> Batch:
        batch = self.scheduler.schedule(self.now)
        for output in self.scheduler.commit(batch, self.runner.run(batch)):
            self.tokens[output.request_id].append(output.token.token_id)
            if output.finish_reason is not None:
                self.finished.append(output.request_id)
        self.scheduler.check()
        self.now += 1
        return batch

    def first_step_of(self, name: str) -> int:
        return next(step for step, batch in enumerate(self.runner.batches) if name in {chunk[0] for chunk in batch})

    def run(self, steps: int = 1000) -> None:
        for _ in range(steps):
            if not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError(f"not done after {steps} steps: {self.scheduler.waiting_count} waiting")


def simulation(
    *, max_concurrent: int = 8, step_tokens: int = 16, pages: int = 64, patience_seconds: float = 30.0
) -> Simulation:
    limits = SchedulerLimits(max_concurrent, step_tokens, patience_seconds=patience_seconds)
    return Simulation(Scheduler(limits, Pages(pages, PAGE_TOKENS)))


def shape(batch: Batch) -> dict[str, int]:
    return {chunk.sequence.id: chunk.tokens for chunk in batch.chunks}


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks() -> None:
    run = simulation(step_tokens=10)
    run.add("a", prompt_tokens=23, max_tokens=2)
    assert [shape(run.step()) for _ in range(4)] == [{"a": 10}, {"a": 10}, {"a": 3}, {"a": 1}]


def test_decoding_goes_before_prefill_in_the_same_step() -> None:
    run = simulation(step_tokens=10)
    run.add("a", prompt_tokens=3)
    run.step()
    run.add("b", prompt_tokens=30)
    assert list(shape(run.step()).items()) == [("a", 1), ("b", 9)]


def test_short_prompts_pass_beside_a_long_one_and_it_takes_what_they_leave() -> None:
    run = simulation(step_tokens=16)
    run.add("long", prompt_tokens=100)
    run.add("short", prompt_tokens=3)
    run.add("middle", prompt_tokens=6, max_tokens=9)
    run.add("not so short", prompt_tokens=7)
    assert shape(run.step()) == {"long": 8 + 5, "short": 3}
    assert shape(run.step()) == {"short": 1, "long": 8 + 1, "middle": 6}


def test_a_second_long_prompt_waits_for_the_first() -> None:
    run = simulation(step_tokens=16)
    run.add("first", prompt_tokens=40)
    run.add("second", prompt_tokens=40)
    assert [shape(run.step()) for _ in range(3)] == [{"first": 16}, {"first": 16}, {"first": 8, "second": 8}]


def test_a_request_that_does_not_fit_does_not_stop_those_behind_it() -> None:
    run = simulation(pages=10)
    run.add("a", prompt_tokens=16, max_tokens=8)
    run.step()
    run.add("big", prompt_tokens=30)
    run.add("small", prompt_tokens=2, max_tokens=2)
    assert shape(run.step()) == {"a": 1, "small": 2}


def test_an_overdue_request_is_no_longer_passed() -> None:
    run = simulation(pages=10, patience_seconds=3)
    run.add("a", prompt_tokens=16, max_tokens=20)
    run.step()
    run.add("big", prompt_tokens=30)
    for _ in range(5):
        run.step()
    run.add("small", prompt_tokens=2)
    assert shape(run.step()) == {"a": 1}
    run.run()
    assert run.first_step_of("big") <= run.first_step_of("small")


def test_a_better_priority_goes_first() -> None:
    run = simulation(max_concurrent=1)
    run.add("running")
    run.step()
    run.add("standard", priority=10)
    run.add("priority", priority=0)
    run.run()
    assert run.finished == ["running", "priority", "standard"]


def test_a_low_priority_ages_past_a_stream_of_better_ones() -> None:
    run = simulation(max_concurrent=1)
    run.add("standard", priority=10, max_tokens=2)
    for number in range(60):
        run.add(f"priority-{number}", priority=0, max_tokens=2)
        run.step()
        if "standard" in run.finished:
            break
    # 10 levels of 3 seconds: until then the priority lane is served, two steps a request.
    assert 28 <= run.now <= 64


def test_a_better_priority_takes_the_slot_of_a_worse_one_which_resumes_undisturbed() -> None:
    run = simulation(max_concurrent=1)
    prompt = run.add("standard", prompt_tokens=9, max_tokens=6, priority=10)
    run.step()
    run.step()
    run.add("priority", max_tokens=2)
    run.run()
    assert run.finished == ["priority", "standard"]
    assert run.tokens["standard"] == continuation(prompt, 6)
    assert run.scheduler.preemptions == 1


def test_equal_priorities_do_not_preempt_each_other_to_start() -> None:
    run = simulation(max_concurrent=1)
    run.add("first", max_tokens=6)
    run.step()
    run.add("second")
    run.run()
    assert run.finished == ["first", "second"]
    assert run.scheduler.preemptions == 0


def test_out_of_pages_the_least_computed_of_the_worst_priority_is_preempted() -> None:
    run = simulation(pages=8)
    run.add("most", prompt_tokens=8, max_tokens=24)
    run.add("less", prompt_tokens=4, max_tokens=24)
    while run.scheduler.preemptions == 0:
        batch = run.step()
    assert list(shape(batch)) == ["most"]
    run.run()


def test_a_removed_sequence_frees_its_pages_at_once() -> None:
    run = simulation()
    run.add("a", prompt_tokens=40)
    run.add("waiting", prompt_tokens=40)
    run.step()
    assert run.scheduler.remove("a")
    assert run.scheduler.remove("waiting")
    assert not run.scheduler.remove("a")
    assert run.scheduler.pages.free_pages == 64
    run.scheduler.check()


def test_what_could_never_fit_is_refused() -> None:
    run = simulation(pages=4)
    with pytest.raises(ValueError, match="needs 6 pages, the cache has 4"):
        run.add("a", prompt_tokens=20, max_tokens=4)


def test_the_same_id_twice_is_refused() -> None:
    run = simulation()
    run.add("a")
    with pytest.raises(ValueError, match="request a is there already"):
        run.add("a")


arrivals = st.lists(
    st.tuples(
        st.integers(0, 6),  # steps after the one before
        st.integers(1, 40),  # prompt tokens
        st.integers(1, 12),  # max tokens
        st.sampled_from([0, 0, 1, 10]),  # priority
        st.none() | st.integers(0, 20),  # aborted so many steps later
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=150, deadline=None)
@given(
    arrivals=arrivals,
    max_concurrent=st.integers(1, 5),
    step_tokens=st.integers(1, 24),
    pages=st.integers(13, 30),
    patience_seconds=st.sampled_from([0.0, 5.0, 30.0]),
)
def test_whatever_arrives_every_request_ends_with_its_own_tokens_within_the_limits(
    arrivals: list[tuple[int, int, int, int, int | None]],
    max_concurrent: int,
    step_tokens: int,
    pages: int,
    patience_seconds: float,
) -> None:
    run = simulation(
        max_concurrent=max_concurrent, step_tokens=step_tokens, pages=pages, patience_seconds=patience_seconds
    )
    prompts: dict[str, list[int]] = {}
    aborts: dict[str, float] = {}

    def step() -> None:
        for name in [name for name, when in aborts.items() if when <= run.now]:
            run.scheduler.remove(name)
            del aborts[name]
        batch = run.step()
        assert batch.tokens <= step_tokens
        assert run.scheduler.running_count <= max_concurrent
        assert len({chunk.sequence.id for chunk in batch.chunks}) == len(batch.chunks)
        assert batch.tokens > 0 or not run.scheduler.has_work

    for number, (gap, prompt_tokens, max_tokens, priority, abort) in enumerate(arrivals):
        for _ in range(gap):
            step()
        name = f"r{number}"
        prompts[name] = run.add(name, prompt_tokens, max_tokens, priority)
        if abort is not None:
            aborts[name] = run.now + abort
    for _ in range(3000):
        if not run.scheduler.has_work:
            break
        step()

    assert not run.scheduler.has_work, "somebody starved"
    assert run.scheduler.pages.free_pages == pages
    for number, (_, _, max_tokens, _, abort) in enumerate(arrivals):
        name = f"r{number}"
        expected = continuation(prompts[name], max_tokens)
        assert run.tokens[name] == expected or (
            abort is not None and expected[: len(run.tokens[name])] == run.tokens[name]
        )
