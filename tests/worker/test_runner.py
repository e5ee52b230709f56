"""The engine's invariants on a real tiny model: how requests are cut, mixed and interrupted changes no token.

Every run goes beyond block x top-k = 16 tokens, where attention is sparse.
"""

from pathlib import Path
from typing import Literal

import pytest
import torch

from m3_worker.config import TinySettings
from m3_worker.model.cache import PagedCache
from m3_worker.model.checkpoint import load_model
from m3_worker.model.config import ModelConfig
from m3_worker.model.m3 import M3Model
from m3_worker.runner import Runner
from m3_worker.scheduling.pages import Pages
from m3_worker.scheduling.request import Request, SamplingParameters, Sequence
from m3_worker.scheduling.scheduler import Scheduler, SchedulerLimits
from m3_worker.tiny import write_checkpoint

LENGTHS = (1, 9, 16, 17, 40, 75)
PROMPTS = {f"p{length}": [(length * 31 + place * 7) % 256 for place in range(length)] for length in LENGTHS}
TOKENS = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> M3Model:
    torch.set_num_threads(1)
    directory: Path = tmp_path_factory.mktemp("tiny")
    settings = TinySettings(directory=directory, seed=5, layers=3, hidden=32, heads=4, experts=4, block=8, topk=2)
    write_checkpoint(settings)
    return load_model(directory, ModelConfig.load(directory), torch.float32, "cpu", lambda read, needed: None)


class Run:
    """Requests driven through scheduler and runner without a thread."""

    def __init__(self, model: M3Model, *, step_tokens: int = 512, pages: int = 256, max_concurrent: int = 16) -> None:
        block = model.config.page_tokens
        cache = PagedCache.allocate(model.config, pages, torch.float32, "cpu")
        for pool in (cache.k, cache.v, cache.index_k):
            pool.fill_(float("nan"))  # what was never written must not be read
        self.runner = Runner(model, cache, block)
        self.scheduler = Scheduler(SchedulerLimits(max_concurrent, step_tokens), Pages(pages, block))
        self.tokens: dict[str, list[int]] = {}
        self.now = 0.0

    def add(self, name: str, priority: int = 0, **sampling: float) -> None:
        parameters = SamplingParameters(max_tokens=TOKENS, **{"temperature": 0.0, **sampling})  # type: ignore[arg-type] # by name
        self.scheduler.add(Sequence(Request(name, PROMPTS[name], parameters, priority, self.now)))
        self.tokens[name] = []

    def step(self) -> None:
        batch = self.scheduler.schedule(self.now)
        for output in self.scheduler.commit(batch, self.runner.run(batch)):
            self.tokens[output.request_id].append(output.token.token_id)
        self.now += 1

    def finish(self) -> dict[str, list[int]]:
        while self.scheduler.has_work:
            self.step()
        self.scheduler.check()
        return self.tokens


def generate(model: M3Model, names: list[str], *, step_tokens: int = 512, pages: int = 256) -> dict[str, list[int]]:
    run = Run(model, step_tokens=step_tokens, pages=pages)
    for name in names:
        run.add(name)
    return run.finish()


@pytest.fixture(scope="module")
def alone(model: M3Model) -> dict[str, list[int]]:
    """Each prompt whole and by itself."""
    return {name: generate(model, [name])[name] for name in PROMPTS}


@pytest.mark.parametrize("step_tokens", [1, 7, 8, 37])
def test_a_prompt_in_chunks_is_a_whole_prompt(model: M3Model, alone: dict[str, list[int]], step_tokens: int) -> None:
    assert generate(model, ["p75"], step_tokens=step_tokens)["p75"] == alone["p75"]


@pytest.mark.parametrize("names", [list(PROMPTS), list(reversed(PROMPTS)), ["p40", "p1", "p75", "p17", "p9", "p16"]])
def test_neither_company_nor_order_matters(model: M3Model, alone: dict[str, list[int]], names: list[str]) -> None:
    assert generate(model, names) == alone
    assert generate(model, names, step_tokens=23) == alone


def test_a_preempted_sequence_resumes_undisturbed(model: M3Model, alone: dict[str, list[int]]) -> None:
    run = Run(model, max_concurrent=1)
    run.add("p40", priority=10)
    for _ in range(9):
        run.step()
    run.add("p17")
    assert run.finish() == {"p40": alone["p40"], "p17": alone["p17"]}
    assert run.scheduler.preemptions == 1


def test_too_few_pages_for_all_change_no_token(model: M3Model, alone: dict[str, list[int]]) -> None:
    run = Run(model, pages=16, step_tokens=23)
    for name in PROMPTS:
        run.add(name)
    assert run.finish() == alone
    assert run.scheduler.preemptions > 0


def test_a_seed_gives_the_same_tokens_in_any_company(model: M3Model) -> None:
    by_itself = Run(model)
    by_itself.add("p40", temperature=1.0, top_p=0.95, top_k=40, seed=3)
    expected = by_itself.finish()["p40"]
    mixed = Run(model, step_tokens=29)
    mixed.add("p75", temperature=1.3)
    mixed.add("p9")
    mixed.add("p40", temperature=1.0, top_p=0.95, top_k=40, seed=3)
    assert mixed.finish()["p40"] == expected
    assert expected != generate(model, ["p40"])["p40"]


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.bfloat16), (torch.float8_e4m3fn, torch.bfloat16)])
def test_chunks_change_nothing_in_a_narrow_cache_either(
    model: M3Model, alone: dict[str, list[int]], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    tokens = []
    for step_tokens in (512, 23):
        run = Run(model, step_tokens=step_tokens)
        cache = PagedCache.allocate(model.config, 256, dtypes[0], "cpu", dtypes[1])
        run.runner = Runner(model, cache, model.config.page_tokens)
        for name in PROMPTS:
            run.add(name)
        tokens.append(run.finish())
    assert tokens[0] == tokens[1]
    assert tokens[0] != alone  # the cache is narrow indeed


class Pooled(Run):
    """Requests that want a vector; others may run beside them."""

    def __init__(self, model: M3Model, pooling: Literal["mean", "last"], names: list[str], **sizes: int) -> None:
        super().__init__(model, **sizes)
        self.vectors: dict[str, tuple[float, ...]] = {}
        self.add("p17")
        for name in names:
            parameters = SamplingParameters(max_tokens=1)
            self.scheduler.add(Sequence(Request(f"{pooling} {name}", PROMPTS[name], parameters, pooling=pooling)))

    def step(self) -> None:
        batch = self.scheduler.schedule(self.now)
        for output in self.scheduler.commit(batch, self.runner.run(batch)):
            if output.embedding is not None:
                self.vectors[output.request_id.split()[1]] = output.embedding
        self.now += 1


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_pooling_does_not_depend_on_chunks_or_company(model: M3Model, pooling: Literal["mean", "last"]) -> None:
    names = ["p40", "p1", "p75", "p9"]
    runs = [Pooled(model, pooling, names), Pooled(model, pooling, names, step_tokens=11)]
    runs += [Pooled(model, pooling, [name]) for name in names]
    for run in runs:
        run.finish()
    whole, cut, *alone = (run.vectors for run in runs)
    assert whole.keys() == cut.keys() == set(names)
    for name, vector in whole.items():
        assert sum(value * value for value in vector) == pytest.approx(1.0, abs=1e-5)
        assert cut[name] == pytest.approx(vector, abs=1e-5)
        assert alone[names.index(name)][name] == pytest.approx(vector, abs=1e-5)


def test_the_mean_of_one_token_is_its_last_and_of_more_is_not(model: M3Model) -> None:
    mean, last = (Pooled(model, pooling, ["p1", "p40"]) for pooling in ("mean", "last"))
    mean.finish()
    last.finish()
    assert mean.vectors["p1"] == pytest.approx(last.vectors["p1"], abs=1e-6)
    assert mean.vectors["p40"] != pytest.approx(last.vectors["p40"], abs=1e-2)


def test_a_warm_up_computes_and_leaves_no_sequence_behind(model: M3Model) -> None:
    Run(model).runner.warm_up(20)
