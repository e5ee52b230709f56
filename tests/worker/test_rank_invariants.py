"""Greedy tokens of random tiny models do not depend on how many ranks compute them, nor on where experts are.

Ranks are real processes that exchange by gloo. Sequences go beyond block x top-k, where attention is sparse.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3_fakes.rank_group import Case, RankGroup, rank_group
from m3_fakes.tiny_run import BLOCK, generate
from m3_worker.config import TinySettings
from m3_worker.model.checkpoint import load_model
from m3_worker.model.config import ModelConfig
from m3_worker.model.expert_plan import ExpertPlan
from m3_worker.model.m3 import M3Model
from m3_worker.ranks.expert_exchange import SplitLimits
from m3_worker.scheduling.scheduler import SchedulerLimits
from m3_worker.tiny import write_checkpoint

EXPERTS, MOE_LAYERS = 5, 2
PROMPTS = {f"p{length}": [(length * 31 + place * 7) % 251 for place in range(length)] for length in (1, 9, 24, 40)}
REPLICATED, SPLIT = SplitLimits(10**6, 10**6), SplitLimits(0, 10**6)
SPLIT_SCORING, ALL_SPLIT = SplitLimits(10**6, 0), SplitLimits(0, 0)


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankGroup]:
    with rank_group(4) as group:
        yield group


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    shape = {"layers": 3, "hidden": 32, "heads": 4, "experts": EXPERTS, "block": BLOCK, "topk": 2}
    write_checkpoint(TinySettings(directory=directory, seed=8, **shape))
    return directory


@cache
def whole(directory: Path) -> M3Model:
    torch.set_num_threads(1)
    return load_model(directory, ModelConfig.load(directory), torch.float32, "cpu", lambda read, needed: None)


@cache
def alone(directory: Path, name: str) -> list[int]:
    return generate(whole(directory), PROMPTS[name])


def expected(directory: Path, names: list[str]) -> dict[str, list[int]]:
    return {name: alone(directory, name) for name in names}


@pytest.mark.parametrize(
    ("count", "split"),
    [(1, REPLICATED), (2, REPLICATED), (2, ALL_SPLIT), (4, SPLIT), (4, SPLIT_SCORING), (4, ALL_SPLIT)],
)
def test_tokens_and_loads_are_those_of_one_process(
    ranks: RankGroup, checkpoint: Path, count: int, split: SplitLimits
) -> None:
    plan = ExpertPlan.default(MOE_LAYERS, EXPERTS, count)
    outcome = ranks.run(Case(checkpoint, plan, split, SchedulerLimits(4, 64), PROMPTS))

    assert outcome.tokens == expected(checkpoint, list(PROMPTS))
    computed = sum(len(prompt) + 11 for prompt in PROMPTS.values())
    assert [sum(layer) for layer in outcome.load] == [computed * 2] * MOE_LAYERS


@st.composite
def plans(draw: st.DrawFn, ranks: int, epoch: int) -> ExpertPlan:
    slots = 8 + 4 * (ranks == 4)
    extra = st.lists(st.integers(0, EXPERTS - 1), min_size=slots - EXPERTS, max_size=slots - EXPERTS)
    layers = tuple(tuple(draw(st.permutations([*range(EXPERTS), *draw(extra)]))) for _ in range(MOE_LAYERS))
    return ExpertPlan(epoch, ranks, EXPERTS, layers)


@given(st.data())
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_plans_with_copies_chunks_and_swaps_in_mid_generation_change_no_token(
    ranks: RankGroup, checkpoint: Path, data: st.DataObject
) -> None:
    count = data.draw(st.sampled_from([2, 4]))
    names = data.draw(st.lists(st.sampled_from(sorted(PROMPTS)), min_size=1, max_size=3, unique=True))
    steps = sorted(data.draw(st.sets(st.integers(1, 9), max_size=2)))
    swaps = tuple((step, data.draw(plans(count, epoch))) for epoch, step in enumerate(steps, 1))
    case = Case(
        checkpoint,
        data.draw(plans(count, 0)),
        data.draw(st.builds(SplitLimits, st.sampled_from([0, 4, 10**6]), st.sampled_from([0, 20, 10**6]))),
        SchedulerLimits(data.draw(st.integers(1, 3)), data.draw(st.integers(3, 48))),
        {name: PROMPTS[name] for name in names},
        pages=data.draw(st.sampled_from([8, 256])),
        slots=data.draw(st.sampled_from([0, 8])),
        swaps=swaps,
    )

    outcome = ranks.run(case)

    assert outcome.tokens == expected(checkpoint, names)
    assert outcome.epoch == len(swaps)
