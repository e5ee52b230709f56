"""Requests driven through scheduler, host tier and runner of a real tiny model, step by step and without a thread."""

import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from m3_worker.config import TinySettings
from m3_worker.host_tier import HostTier
from m3_worker.model.cache import PagedCache
from m3_worker.model.checkpoint import load_model
from m3_worker.model.config import ModelConfig
from m3_worker.model.m3 import M3Model
from m3_worker.runner import Runner
from m3_worker.scheduling.host_pages import HostPages
from m3_worker.scheduling.pages import Pages
from m3_worker.scheduling.request import Request, SamplingParameters, Sequence
from m3_worker.scheduling.scheduler import Scheduler, SchedulerLimits
from m3_worker.tiny import write_checkpoint

BLOCK = 8
"""Attention is sparse beyond twice as many tokens."""


@cache
def tiny_model(seed: int) -> M3Model:
    """A random model of three layers in float32, pages of BLOCK tokens, two blocks a query."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        directory = Path(name)
        shape = {"layers": 3, "hidden": 32, "heads": 4, "experts": 4, "block": BLOCK, "topk": 2}
        write_checkpoint(TinySettings(directory=directory, seed=seed, vision=False, **shape))
        return load_model(directory, ModelConfig.load(directory), torch.float32, "cpu", lambda read, needed: None)


@dataclass
class TinyRun:
    """One engine's core over one model; a step takes a second of its clock."""

    model: M3Model
    limits: SchedulerLimits
    pages: int = 256
    slots: int = 0
    tokens: dict[str, list[int]] = field(default_factory=dict)
    cached_tokens: dict[str, int] = field(default_factory=dict)
    now: float = 0.0

    def __post_init__(self) -> None:
        paged = PagedCache.allocate(self.model.config, self.pages, torch.float32, "cpu")
        for pool in (paged.k, paged.v, paged.index_k):
            pool.fill_(math.nan)  # what was never written must not be read
        self.tier = HostTier(paged, self.slots)
        self.runner = Runner(self.model, paged, BLOCK)
        self.scheduler = Scheduler(self.limits, Pages(self.pages, BLOCK, HostPages(self.slots)))

    def add(self, name: str, prompt: list[int], priority: int = 0, tokens: int = 12) -> None:
        """Queue a greedy request."""
        sampling = SamplingParameters(max_tokens=tokens, temperature=0.0)
        self.scheduler.add(Sequence(Request(name, prompt, sampling, priority, self.now)))
        self.tokens[name] = []

    def step(self, seconds: float = 0.01) -> None:
        """Compute one step, which is said to have taken `seconds`; everything must be where it should be."""
        batch = self.scheduler.schedule(self.now)
        if batch.chunks:
            self.tier.copy(batch.copies)
            for output in self.scheduler.commit(batch, self.runner.run(batch)):
                self.tokens[output.request_id].append(output.token.token_id)
                self.cached_tokens.setdefault(output.request_id, output.cached_tokens)
            self.scheduler.observe(batch, seconds)
        self.scheduler.check()
        self.now += 1

    def finish(self) -> dict[str, list[int]]:
        """Step until nothing is left; every page must be free then."""
        while self.scheduler.has_work:
            self.step()
        assert self.scheduler.pages.free_pages == self.pages
        return self.tokens


def generate(model: M3Model, prompt: list[int], tokens: int = 12) -> list[int]:
    """What the model continues the prompt with: whole, alone, and with nothing cached."""
    run = TinyRun(model, SchedulerLimits(1, 4096))
    run.add("alone", prompt, tokens=tokens)
    return run.finish()["alone"]
