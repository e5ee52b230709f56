"""The input of a step: what its tensors are, and that what is kept from step to step changes nothing of them."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_worker.model.cache import StepTensors
from m3_worker.scheduling.batch import Batch, Chunk, Decoding
from m3_worker.scheduling.pages import Pages
from m3_worker.scheduling.request import Request, SampledToken, SamplingParameters, Sequence
from m3_worker.scheduling.scheduler import Scheduler, SchedulerLimits
from m3_worker.step_input import StepInput

CPU = torch.device("cpu")
PAGE_TOKENS = 4


def test_the_tensors_of_a_step_are_these() -> None:
    decoding = Sequence(Request("a", [5, 6, 7, 8], SamplingParameters(max_tokens=4)))
    decoding.append(9)
    prefilling = Sequence(Request("b", list(range(10, 20)), SamplingParameters(max_tokens=4)))
    prefilling.advance(3)
    pages = Pages(8, page_tokens=4)
    pages.reserve("b", 10)  # pages 0 1 2
    pages.reserve("a", 5)  # pages 3 4
    batch = Batch(
        (Chunk(prefilling, 3, 4, pages.table("b"), samples=False),),
        decoding=Decoding([decoding], [pages.table("a")]),
        decoding_lengths=[5],
    )
    step = StepInput(4, CPU).of(batch)
    assert step.token_ids.tolist() == [9, 13, 14, 15, 16]
    assert step.positions.tolist() == [4, 3, 4, 5, 6]
    assert list(step.query_starts) == [0, 1, 5]
    assert list(step.context_lengths) == [5, 7]
    assert step.page_table.tolist() == [[3, 4, 0], [0, 1, 2]]
    assert step.slot_mapping.tolist() == [4 * 4 + 0, 3, 4, 5, 6]
    assert step.logit_rows.tolist() == [0]
    pages.reserve("a", 9)  # the table can grow: nothing of the step holds on to it
    assert np.array(pages.table("a")).tolist() == [3, 4, 5]


def expect(step: StepTensors, batch: Batch) -> None:
    """Compare with what the batch's chunks say, token by token."""
    width = max(len(chunk.page_ids) for chunk in batch.chunks)
    tokens = [(chunk, position) for chunk in batch.chunks for position in range(chunk.start, chunk.end)]
    assert step.token_ids.tolist() == [chunk.sequence.token_ids[position] for chunk, position in tokens]
    assert step.positions.tolist() == [position for _, position in tokens]
    assert step.slot_mapping.tolist() == [
        chunk.page_ids[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS for chunk, position in tokens
    ]
    assert step.page_table.tolist() == [
        [*chunk.page_ids, *[0] * (width - len(chunk.page_ids))] for chunk in batch.chunks
    ]
    ends = [sum(chunk.tokens for chunk in batch.chunks[:count]) for count in range(len(batch.chunks) + 1)]
    assert list(step.query_starts) == ends
    assert list(step.context_lengths) == [chunk.end for chunk in batch.chunks]
    assert step.logit_rows.tolist() == [
        end - 1 for chunk, end in zip(batch.chunks, ends[1:], strict=True) if chunk.samples
    ]


arrivals = st.lists(
    st.tuples(
        st.integers(0, 5),  # steps after the one before
        st.integers(1, 20),  # prompt tokens
        st.integers(1, 12),  # max tokens
        st.sampled_from([0, 10]),  # priority
        st.none() | st.integers(0, 12),  # aborted so many steps later
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=60, deadline=None)
@given(arrivals=arrivals, step_tokens=st.integers(1, 24), pages=st.integers(8, 24))
def test_whoever_joins_grows_leaves_or_is_preempted_the_tensors_are_those_of_the_batch(
    arrivals: list[tuple[int, int, int, int, int | None]], step_tokens: int, pages: int
) -> None:
    scheduler = Scheduler(SchedulerLimits(5, step_tokens), Pages(pages, PAGE_TOKENS))
    kept, aborts, now = StepInput(PAGE_TOKENS, CPU), {}, 0

    def step() -> None:
        nonlocal now
        for name in [name for name, when in aborts.items() if when <= now]:
            scheduler.remove(name)
            del aborts[name]
        batch = scheduler.schedule(now)
        if batch.tokens:
            expect(kept.of(batch), batch)
            scheduler.commit(batch, [SampledToken(now % 7)] * len(batch.sampling))
        now += 1

    for number, (gap, prompt_tokens, max_tokens, priority, abort) in enumerate(arrivals):
        for _ in range(gap):
            step()
        prompt = [(number * 31 + place) % 256 for place in range(prompt_tokens)]
        scheduler.add(Sequence(Request(f"r{number}", prompt, SamplingParameters(max_tokens), priority, now)))
        if abort is not None:
            aborts[f"r{number}"] = now + abort
    while scheduler.has_work:
        step()
