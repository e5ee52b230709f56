"""The scheduler: its rules one by one, then what must hold whatever arrives, leaves or is preempted."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_fakes.runner import FakeRunner, continuation
from m3_worker.scheduling.batch import Batch
from m3_worker.scheduling.host_pages import HostPages
from m3_worker.scheduling.pages import Pages
from m3_worker.scheduling.request import FinishReason, Request, SampledToken, SamplingParameters, Sequence
from m3_worker.scheduling.scheduler import Scheduler, SchedulerLimits

PAGE_TOKENS = 4


@dataclass
class Simulation:
    """A scheduler, a fake runner and a clock that advances by a second a step."""

    scheduler: Scheduler
    runner: FakeRunner = field(default_factory=lambda: FakeRunner(PAGE_TOKENS))
    now: float = 0.0
    tokens: dict[str, list[int]] = field(default_factory=dict)
    cached_tokens: dict[str, int] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)

    def add(
        self, name: str, prompt_tokens: int = 3, max_tokens: int = 4, priority: int = 0, shared_tokens: int = 0
    ) -> list[int]:
        """Queue a request; all those with shared tokens begin alike."""
        own = [(7 * len(self.tokens) + place) % 256 for place in range(prompt_tokens)]
        prompt = [*range(100, 100 + min(shared_tokens, prompt_tokens)), *own[shared_tokens:]]
        sampling = SamplingParameters(max_tokens=max_tokens)
        self.scheduler.add(Sequence(Request(name, prompt, sampling, priority, self.now)))
        self.tokens[name] = []
        return prompt

    def step(self) -> Batch:
        batch = self.scheduler.schedule(self.now)
        self.runner.copy(batch.copies)
        for output in self.scheduler.commit(batch, self.runner.run(batch)):
            self.tokens[output.request_id].append(output.token.token_id)
            self.cached_tokens.setdefault(output.request_id, output.cached_tokens)
            if output.finish_reason is not None:
                self.finished.append(output.request_id)
        self.scheduler.check()
        self.scheduler.observe(batch, 0.01 * batch.tokens + 0.003 * (self.now % 3))
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
    *, max_concurrent: int = 8, step_tokens: int = 16, patience_seconds: float = 30.0, pages: int = 64, slots: int = 0
) -> Simulation:
    """`slots` are those of the host."""
    limits = SchedulerLimits(max_concurrent, step_tokens, patience_seconds=patience_seconds)
    return Simulation(Scheduler(limits, Pages(pages, PAGE_TOKENS, HostPages(slots))))


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


def timed_steps(prompts: list[int], *, step_seconds: float, decoding: int = 0) -> list[tuple[Batch, float]]:
    """Steps and their seconds on a machine of known cost, until the prompts are computed; tokens are made up."""
    limits = SchedulerLimits(max_concurrent=64, step_tokens=2048, step_seconds=step_seconds)
    scheduler = Scheduler(limits, Pages(sum(prompts) // 128 + 200, 128))
    for number in range(decoding):
        scheduler.add(Sequence(Request(f"d{number}", [number] * 8, SamplingParameters(max_tokens=100))))
    steps: list[tuple[Batch, float]] = []

    def step() -> Batch:
        batch = scheduler.schedule(0.0)
        scheduler.commit(batch, [SampledToken(0)] * len(batch.sampling))
        seconds = 4e-3 + 50e-6 * batch.tokens + 2e-9 * batch.pairs
        scheduler.observe(batch, seconds)
        steps.append((batch, seconds))
        return batch

    for _ in range(10 if decoding else 0):
        step()
    for number, tokens in enumerate(prompts):
        scheduler.add(Sequence(Request(f"p{number}", [number] * tokens, SamplingParameters(max_tokens=1))))
    while any(chunk.sequence.id.startswith("p") for chunk in step().chunks):
        pass
    scheduler.check()
    return steps


def test_a_long_prompt_is_cut_by_predicted_time_smaller_where_it_is_deeper() -> None:
    steps = timed_steps([200_000], step_seconds=0.1)
    assert [batch.tokens for batch, _ in steps[:8]] == [2048] * 8  # nothing is known yet
    timed = steps[9:-2]
    assert [seconds for _, seconds in timed] == [pytest.approx(0.1, rel=0.02)] * len(timed)
    assert timed[0][0].tokens > 1000
    assert timed[-1][0].tokens < 230


def test_decoding_goes_on_beside_a_long_prompt_in_steps_of_the_same_time() -> None:
    steps = timed_steps([60_000], step_seconds=0.05, decoding=16)
    beside = [(batch, seconds) for batch, seconds in steps[20:60]]
    assert all(len(batch.sampling) == 16 for batch, _ in beside)
    assert all(seconds < 0.056 for _, seconds in beside)


def test_prefill_goes_on_where_decoding_alone_takes_too_long() -> None:
    steps = timed_steps([1000], step_seconds=0.003, decoding=16)
    assert [batch.tokens - 16 for batch, _ in steps[10:18]] == [128] * 7 + [1000 - 7 * 128]


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


def test_a_prompt_that_begins_like_one_before_computes_only_the_rest() -> None:
    run = simulation(step_tokens=64)
    run.add("first", prompt_tokens=20, shared_tokens=20, max_tokens=1)
    run.step()
    prompt = run.add("second", prompt_tokens=24, shared_tokens=18, max_tokens=3)
    assert shape(run.step()) == {"second": 24 - 16}
    run.run()
    assert run.tokens["second"] == continuation(prompt, 3)
    assert run.cached_tokens == {"first": 0, "second": 16}


def test_a_prompt_found_for_the_most_part_is_no_long_one() -> None:
    run = simulation(step_tokens=16)
    run.add("first", prompt_tokens=40, shared_tokens=40, max_tokens=1)
    run.run()
    run.add("long", prompt_tokens=100)
    run.add("found", prompt_tokens=40, shared_tokens=40)
    assert shape(run.step()) == {"long": 8 + 4, "found": 4}


def test_what_one_computes_in_this_step_no_other_computes_beside_it() -> None:
    run = simulation(step_tokens=64)
    prompts = [run.add(f"r{number}", prompt_tokens=22, shared_tokens=20) for number in range(4)]
    assert shape(run.step()) == {"r0": 22}
    assert shape(run.step()) == {"r0": 1, "r1": 2, "r2": 2, "r3": 2}
    run.run()
    assert [run.tokens[f"r{number}"] for number in range(4)] == [continuation(prompt, 4) for prompt in prompts]
    assert run.cached_tokens == {"r0": 0, "r1": 20, "r2": 20, "r3": 20}


def test_a_preempted_sequence_computes_again_only_what_others_took() -> None:
    run = simulation(max_concurrent=1, step_tokens=64)
    prompt = run.add("standard", prompt_tokens=18, max_tokens=6, priority=10)
    run.step()
    run.add("priority", prompt_tokens=3, max_tokens=1)
    run.step()
    assert shape(run.step()) == {"standard": 19 - 16}
    run.run()
    assert run.tokens["standard"] == continuation(prompt, 6)
    assert run.cached_tokens["standard"] == 0
    assert run.scheduler.pages.counters.resumed_tokens == 16


def test_shared_pages_count_once_when_it_is_thought_through_whom_to_preempt() -> None:
    run = simulation(pages=8, step_tokens=64)
    run.add("a", prompt_tokens=17, shared_tokens=16, max_tokens=3, priority=10)
    run.step()
    run.add("b", prompt_tokens=17, shared_tokens=16, max_tokens=3, priority=10)
    run.step()  # 4 pages shared, and one each
    urgent = run.add("urgent", prompt_tokens=24, max_tokens=2)
    assert shape(run.step()) == {"urgent": 24}
    assert run.scheduler.preemptions == 2
    run.run()
    assert run.tokens["urgent"] == continuation(urgent, 2)


def test_a_pooled_request_ends_with_its_prompt() -> None:
    run = simulation(step_tokens=8)
    run.scheduler.add(Sequence(Request("p", list(range(12)), SamplingParameters(max_tokens=9), pooling="last")))
    first = run.scheduler.schedule(0.0)
    assert run.scheduler.commit(first, run.runner.run(first)) == []
    last = run.scheduler.schedule(0.0)
    (output,) = run.scheduler.commit(last, run.runner.run(last))
    assert (output.embedding, output.finish_reason) == ((1.0, 0.0), FinishReason.STOP)
    assert not run.scheduler.has_work
    run.scheduler.check()


def test_who_decodes_is_one_object_until_somebody_joins_or_leaves() -> None:
    run = simulation(step_tokens=8)
    run.add("a", max_tokens=20)
    run.add("b", max_tokens=20)
    run.step()
    batches = [run.step() for _ in range(4)]
    assert [batch.decoding for batch in batches] == [batches[0].decoding] * 4
    assert [batch.decoding_lengths for batch in batches] == [[4, 4], [5, 5], [6, 6], [7, 7]]
    run.add("long", prompt_tokens=20, max_tokens=20)
    beside_a_prompt = [run.step() for _ in range(3)]
    assert beside_a_prompt[1].decoding is beside_a_prompt[2].decoding
    joined = [run.step() for _ in range(3)][-1].decoding
    assert [one.id for one in joined.sequences] == ["a", "b", "long"]
    run.scheduler.remove("a")
    assert [one.id for one in run.step().decoding.sequences] == ["b", "long"]


def test_a_batch_tells_its_rows_as_chunks_before_and_after_it_is_committed() -> None:
    run = simulation(step_tokens=8)
    run.add("a", prompt_tokens=3, max_tokens=4)
    run.step()
    run.add("b", prompt_tokens=5)
    batch = run.scheduler.schedule(run.now)
    rows = [("a", 3, 1, True), ("b", 0, 5, True)]
    assert [(one.sequence.id, one.start, one.tokens, one.samples) for one in batch.chunks] == rows
    assert (batch.tokens, batch.pairs) == (1 + 5, 3.5 + 12.5)
    run.scheduler.commit(batch, [SampledToken(0)] * 2)
    assert [(one.sequence.id, one.start, one.tokens, one.samples) for one in batch.chunks] == rows
    assert (batch.tokens, batch.pairs) == (1 + 5, 3.5 + 12.5)


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
        st.sampled_from([0, 0, 8, 40]),  # tokens that begin like those of others
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=150, deadline=None)
@given(
    arrivals=arrivals,
    limits=st.builds(
        SchedulerLimits,
        max_concurrent=st.integers(1, 5),
        step_tokens=st.integers(1, 24),
        patience_seconds=st.sampled_from([0.0, 5.0, 30.0]),
        step_seconds=st.sampled_from([math.inf, 0.05]),
    ),
    pages=st.integers(13, 30),
    slots=st.sampled_from([0, 0, 2, 30]),
)
def test_whatever_arrives_every_request_ends_with_its_own_tokens_within_the_limits(
    arrivals: list[tuple[int, int, int, int, int | None, int]], limits: SchedulerLimits, pages: int, slots: int
) -> None:
    run = Simulation(Scheduler(limits, Pages(pages, PAGE_TOKENS, HostPages(slots))))
    prompts: dict[str, list[int]] = {}
    aborts: dict[str, float] = {}

    def step() -> None:
        for name in [name for name, when in aborts.items() if when <= run.now]:
            run.scheduler.remove(name)
            del aborts[name]
        batch = run.step()
        assert batch.tokens <= limits.step_tokens
        assert run.scheduler.running_count <= limits.max_concurrent
        assert len({chunk.sequence.id for chunk in batch.chunks}) == len(batch.chunks)
        assert batch.tokens > 0 or not run.scheduler.has_work

    for number, (gap, prompt_tokens, max_tokens, priority, abort, shared_tokens) in enumerate(arrivals):
        for _ in range(gap):
            step()
        name = f"r{number}"
        prompts[name] = run.add(name, prompt_tokens, max_tokens, priority, shared_tokens)
        if abort is not None:
            aborts[name] = run.now + abort
    for _ in range(3000):
        if not run.scheduler.has_work:
            break
        step()

    assert not run.scheduler.has_work, "somebody starved"
    assert run.scheduler.pages.free_pages == pages
    for number, (_, _, max_tokens, _, abort, _) in enumerate(arrivals):
        name = f"r{number}"
        expected = continuation(prompts[name], max_tokens)
        assert run.tokens[name] == expected or (
            abort is not None and expected[: len(run.tokens[name])] == run.tokens[name]
        )
