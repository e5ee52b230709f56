"""Real ranks for tests: processes that are started once and then form one group after another, on loopback."""

import multiprocessing
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from m3_fakes.tiny_run import TinyRun
from m3_worker.config import RankSettings
from m3_worker.host_tier import HostTier
from m3_worker.model.cache import PagedCache
from m3_worker.model.config import ModelConfig
from m3_worker.model.expert_plan import ExpertPlan
from m3_worker.ranks.expert_exchange import SplitLimits
from m3_worker.ranks.following import Follower
from m3_worker.ranks.group import Group
from m3_worker.ranks.leading import Leader, LeadingMover
from m3_worker.ranks.loading import RankModel, load_rank
from m3_worker.ranks.words import Kind
from m3_worker.scheduling.scheduler import SchedulerLimits

SECONDS = 120.0
"""For a group to form, and for any of its exchanges: a busy machine may take that long to import torch four times."""


@dataclass(frozen=True)
class Case:
    """One run of one group."""

    directory: Path
    """Of the checkpoint."""
    plan: ExpertPlan
    split: SplitLimits
    limits: SchedulerLimits
    prompts: dict[str, list[int]]
    tokens: int = 12
    pages: int = 256
    slots: int = 0
    swaps: tuple[tuple[int, ExpertPlan], ...] = ()
    """Plans, and after how many steps they are taken."""


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    tokens: dict[str, list[int]]
    load: list[list[int]]
    epoch: int


class RankGroup:
    """Up to so many ranks."""

    def __init__(self, ends: list[Connection]) -> None:
        self._ends = ends

    def run(self, case: Case) -> Outcome:
        """Form a group of as many ranks as the plan has, run the case, take the group apart."""
        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            port = listener.getsockname()[1]
        taking_part = self._ends[: case.plan.ranks]
        for end in taking_part:
            end.send((case, port))
        outcomes = [end.recv() if end.poll(SECONDS) else TimeoutError("a rank did not answer") for end in taking_part]
        if failures := [outcome for outcome in outcomes if isinstance(outcome, Exception)]:
            raise ExceptionGroup("ranks failed", failures)
        return outcomes[0]


@contextmanager
def rank_group(ranks: int) -> Iterator[RankGroup]:
    """Processes that wait for cases."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["m3_worker.ranks.loading", "m3_worker.runner"])  # torch: 3 seconds, once
    ends, processes = [], []
    for rank in range(ranks):
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(rank, there), daemon=True)
        process.start()
        ends.append(here)
        processes.append(process)
    try:
        yield RankGroup(ends)
    finally:
        for end, process in zip(ends, processes, strict=True):
            end.close()
            process.join(10)
            process.kill()


def _serve(rank: int, end: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            case, port = end.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            end.send(_run(rank, port, case))
        except Exception as error:  # noqa: BLE001 # it is raised in the test
            end.send(error)


def _run(rank: int, port: int, case: Case) -> Outcome | None:
    settings = RankSettings(gpus_per_node=case.plan.ranks, local_rank=rank, master_port=port)
    group = Group.join(settings, torch.device("cpu"), join_seconds=SECONDS, exchange_seconds=SECONDS)
    try:
        config = ModelConfig.load(case.directory)
        parts = load_rank(
            group,
            case.directory,
            config,
            torch.float32,
            case.plan,
            progress=lambda read, needed: None,
            limits=case.split,
        )
        return _lead(parts, case) if rank == 0 else _follow(parts, case)
    finally:
        group.leave()


def _follow(parts: RankModel, case: Case) -> None:
    cache = PagedCache.allocate(parts.model.config, case.pages, torch.float32, "cpu")
    Follower(parts.model, cache, HostTier(cache, case.slots), parts.ranks, parts.swap).follow(parts.voice)


def _lead(parts: RankModel, case: Case) -> Outcome:
    leader = Leader(parts.ranks, parts.voice, parts.swap)
    run = TinyRun(parts.model, case.limits, case.pages, case.slots)
    run.tier = LeadingMover(run.tier, parts.voice)
    for name, prompt in case.prompts.items():
        run.add(name, prompt, tokens=case.tokens)
    swaps = dict(case.swaps)
    steps = 0
    while run.scheduler.has_work:
        run.step()
        steps += 1
        if plan := swaps.pop(steps, None):
            for layer in leader.plan.changed_layers(plan):
                leader.take_layer(plan, layer)
            leader.finish(plan)
    outcome = Outcome(run.finish(), leader.load(), leader.plan.epoch)
    parts.voice.say(Kind.END)
    return outcome
