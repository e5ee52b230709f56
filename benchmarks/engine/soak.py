"""A soak of the engine: random load for minutes, and every stream compared with what it is when nothing disturbs it.

    python benchmarks/engine/soak.py --minutes 10 --seed 1

A random tiny M3 on the CPU, in the real engine with its thread, its page pool kept so small that sequences are
preempted and pages evicted to the host tier all the time. Requests share prefixes, differ in length, priority and
sampling (greedy, or with a seed), and some are given up at a random moment. Now and then the cache is told to forget
everything. The load comes in rounds: each has new prompts, whose tokens are first generated whole, alone and cold.

Checked: each token of each stream; the pools' integrity every few steps; at the end that every page is free, that no
request is left, and that a follower of the KV events knows just the pages that can be found. Exit code 0 if all held.
"""

import argparse
import asyncio
import random
import resource
import sys
import time
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from m3_worker.config import TinySettings
from m3_worker.engine import Engine
from m3_worker.host_tier import HostTier
from m3_worker.model.cache import PagedCache
from m3_worker.model.checkpoint import load_model
from m3_worker.model.config import ModelConfig
from m3_worker.model.m3 import M3Model
from m3_worker.runner import Runner
from m3_worker.scheduling.batch import Batch
from m3_worker.scheduling.host_pages import HostPages
from m3_worker.scheduling.kv_events import Medium
from m3_worker.scheduling.pages import Pages
from m3_worker.scheduling.request import Request, SampledToken, SamplingParameters, Sequence
from m3_worker.scheduling.scheduler import Scheduler, SchedulerLimits
from m3_worker.tiny import write_checkpoint

BLOCK = 16
PAGES = 56
HOST_SLOTS = 80
IN_FLIGHT = 24
CONCURRENT = 10
STEP_TOKENS = 160
STEP_SECONDS = 0.02
STEPS_BETWEEN_CHECKS = 20
REQUESTS_PER_ROUND = 16
ROUND_SECONDS = 30.0


@dataclass(frozen=True)
class Case:
    """A prompt, how it is sampled, and the tokens that follow."""

    prompt: list[int]
    sampling: SamplingParameters
    expected: list[int]


@dataclass
class Tally:
    """What the soak saw."""

    finished: int = 0
    given_up: int = 0
    tokens: int = 0
    faults: list[str] = field(default_factory=list)


class CheckedRunner:
    """A runner that looks at the scheduler's and the pools' integrity between steps."""

    def __init__(self, runner: Runner, scheduler: Scheduler) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._steps = 0

    def run(self, batch: Batch) -> SequenceOf[SampledToken]:
        """Check every few steps; compute each."""
        self._steps += 1
        if self._steps % STEPS_BETWEEN_CHECKS == 0:
            self._scheduler.check()
        return self._runner.run(batch)


def tiny_model(seed: int) -> M3Model:
    """Three layers, four KV blocks of 16 tokens a query: sparse beyond 64 tokens."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        directory = Path(name)
        shape = {"layers": 3, "hidden": 32, "heads": 4, "experts": 4, "block": BLOCK, "topk": 4}
        write_checkpoint(TinySettings(directory=directory, seed=seed, vision=False, **shape))
        return load_model(directory, ModelConfig.load(directory), torch.float32, "cpu", lambda read, needed: None)


def undisturbed(model: M3Model, prompt: list[int], sampling: SamplingParameters) -> list[int]:
    """The tokens of one request, in one chunk, alone and with nothing cached."""
    pages = Pages(64, BLOCK)
    runner = Runner(model, PagedCache.allocate(model.config, 64, torch.float32, "cpu"), BLOCK)
    scheduler = Scheduler(SchedulerLimits(1, 4096), pages)
    sequence = Sequence(Request("alone", prompt, sampling))
    scheduler.add(sequence)
    while scheduler.has_work:
        batch = scheduler.schedule(0.0)
        scheduler.commit(batch, runner.run(batch))
    return sequence.token_ids[sequence.prompt_tokens :].tolist()


def round_of_cases(model: M3Model, draw: random.Random) -> list[Case]:
    """Prompts of a few families that begin alike."""
    families = [[draw.randrange(256) for _ in range(draw.randrange(16, 240))] for _ in range(4)]
    cases = []
    for _ in range(REQUESTS_PER_ROUND):
        family = draw.choice(families)
        own = [draw.randrange(256) for _ in range(draw.choice((1, 3, 20, 90)))]
        prompt = family[: draw.randrange(len(family) + 1)] + own
        seed = draw.choice((None, None, draw.randrange(1000)))
        warm = {"temperature": 0.9, "top_p": 0.95, "top_k": 40, "seed": seed}
        sampling = SamplingParameters(
            max_tokens=draw.randrange(1, 60), **({"temperature": 0.0} if seed is None else warm)
        )
        cases.append(Case(prompt, sampling, undisturbed(model, prompt, sampling)))
    return cases


async def one_client(engine: Engine, cases: list[Case], draw: random.Random, until: float, tally: Tally) -> None:
    """Requests one after another, until the round is over."""
    while time.monotonic() < until and not tally.faults:
        case = draw.choice(cases)
        priority = draw.choice((0, 0, 10))
        keeps = draw.choice((None, None, None, draw.randrange(len(case.expected) + 1)))
        name = f"{draw.getrandbits(64):x}"
        stream = engine.submit(Request(name, case.prompt, case.sampling, priority, time.monotonic()))
        tokens: list[int] = []
        while len(tokens) < len(case.expected):
            if keeps is not None and len(tokens) >= keeps:
                await asyncio.sleep(draw.random() * 0.02)
                engine.abort(name)
                tally.given_up += 1
                break
            tokens += [output.token.token_id for output in await stream.take()]
        else:
            tally.finished += 1
        tally.tokens += len(tokens)
        if tokens != case.expected[: len(tokens)]:
            tally.faults.append(_difference(case, tokens))
        if draw.random() < 0.002:
            engine.forget_cached()


def _difference(case: Case, tokens: list[int]) -> str:
    place = next(place for place, (a, b) in enumerate(zip(tokens, case.expected, strict=False)) if a != b)
    return (
        f"prompt of {len(case.prompt)} tokens {case.prompt}, {case.sampling}: token {place} is {tokens[place]}, "
        f"undisturbed it is {case.expected[place]}"
    )


async def soak(minutes: float, seed: int) -> int:
    """The whole soak; returns the exit code."""
    draw = random.Random(seed)
    model = tiny_model(seed)
    cache = PagedCache.allocate(model.config, PAGES, torch.float32, "cpu")
    for pool in (cache.k, cache.v, cache.index_k):
        pool.fill_(float("nan"))  # what was never written must not be read
    pages = Pages(PAGES, BLOCK, HostPages(HOST_SLOTS))
    scheduler = Scheduler(SchedulerLimits(CONCURRENT, STEP_TOKENS, STEP_SECONDS), pages)
    runner = CheckedRunner(Runner(model, cache, BLOCK), scheduler)
    engine = Engine(scheduler, runner, max_waiting=IN_FLIGHT, mover=HostTier(cache, HOST_SLOTS))
    engine.start(asyncio.get_running_loop())
    tally = Tally()
    seconds = 60 * minutes
    while seconds > 0 and not tally.faults:
        cases = round_of_cases(model, draw)
        until = time.monotonic() + min(ROUND_SECONDS, seconds)
        seconds -= ROUND_SECONDS
        async with asyncio.TaskGroup() as clients:
            for _ in range(IN_FLIGHT):
                clients.create_task(one_client(engine, cases, random.Random(draw.random()), until, tally))
        await engine.wait_until_idle()
    engine.stop()
    engine.join()
    scheduler.check()
    tally.faults += _leaks(engine, pages)
    _report(engine, pages, tally)
    return 1 if tally.faults else 0


def _leaks(engine: Engine, pages: Pages) -> list[str]:
    faults = []
    if engine.running_count or engine.waiting_count:
        faults.append(f"{engine.running_count} sequences run and {engine.waiting_count} wait though none is left")
    if pages.free_pages != pages.total_pages:
        faults.append(f"{pages.total_pages - pages.free_pages} pages are held though no request is left")
    stored = engine.events.snapshot().stored
    told = {medium: sum(event.medium is medium for event in stored) for medium in Medium}
    if (told[Medium.DEVICE], told[Medium.HOST]) != (pages.found_pages, pages.host_pages):
        faults.append(f"followers know {told}, found can be {pages.found_pages} and {pages.host_pages}")
    return faults


def _report(engine: Engine, pages: Pages, tally: Tally) -> None:
    counters, found = engine.counters, pages.counters
    hits = found.device_hit_tokens + found.host_hit_tokens
    rows = {
        "requests finished": tally.finished,
        "requests given up": tally.given_up,
        "tokens compared": tally.tokens,
        "steps": counters.steps,
        "preemptions": counters.preemptions,
        "tokens found again after preemption": found.resumed_tokens,
        "prompt tokens found": f"{hits / max(found.looked_up_tokens, 1):.0%} of {found.looked_up_tokens}",
        "  of these on the host": found.host_hit_tokens,
        "pages evicted": found.evicted_pages,
        "event batches": engine.events.last_number,
        "peak memory": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB",
        "faults": len(tally.faults),
    }
    for name, value in rows.items():
        print(f"{name:38} {value}")
    for fault in tally.faults:
        print(f"FAULT: {fault}")


def main() -> None:
    """Parse, soak, exit."""
    parser = argparse.ArgumentParser(description="Load the engine at random and compare every token.")
    parser.add_argument("--minutes", type=float, default=10.0, help="of load")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    sys.exit(asyncio.run(soak(arguments.minutes, arguments.seed)))


if __name__ == "__main__":
    main()
