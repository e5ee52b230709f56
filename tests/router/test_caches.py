"""What a real worker tells of its cache is what the router places by: cleared, restarted, and hit as predicted."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from m3_fakes.worker import CONTEXT_TOKENS, FakeWorker, running_worker
from m3_mock.running import Running, StartRouter, eventually
from m3_router.workers.workers import Worker

PROMPT_BYTES = 200  # a token each; three blocks of the shortest that there are
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def workers() -> Iterator[list[FakeWorker]]:
    with running_worker() as one, running_worker() as other:
        yield [one, other]


async def start(start_router: StartRouter, workers: list[FakeWorker]) -> Running:
    pool = {"models": ["fake"], "maxContextTokens": CONTEXT_TOKENS}
    router = await start_router([worker.url for worker in workers], pool=pool, affinity={"blockBytes": 64})
    await eventually(lambda: all("." in worker.epoch for worker in pool_of(router)), "every worker's events are read")
    return router


def pool_of(router: Running) -> list[Worker]:
    (pool,) = router.router._pools
    return list(pool.workers)


def prompt_of(seed: int) -> str:
    return "".join(random.Random(seed).choices(LETTERS, k=PROMPT_BYTES))


async def ask(router: Running, prompt: str) -> dict[str, Any]:
    """Its bill."""
    answer = await router.http.post("/v1/completions", json={"model": "fake", "prompt": prompt, "max_tokens": 2})
    assert answer.status_code == 200, answer.text
    request_id = answer.headers["x-request-id"]
    return next(bill for bill in await router.ledger() if bill["request_id"] == request_id)


async def learn(router: Running) -> None:
    """Let the router see how many tokens the bytes of this model's prompts make."""
    for seed in range(1000, 1040):
        await ask(router, prompt_of(seed))


async def counted(router: Running, name: str) -> float:
    """The sum of a counter over the workers."""
    text = (await router.admin.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith(f"m3_router_worker_{name}_total{{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def test_repeated_prompts_are_cached_as_predicted(workers: list[FakeWorker], start_router: StartRouter) -> None:
    router = await start(start_router, workers)
    await learn(router)
    before = [await counted(router, name) for name in ("predicted_cached_tokens", "cached_tokens")]
    assert before == [0, 0], "nothing was asked twice"
    first = {
        seed: (await ask(router, prompt_of(seed)))["worker"] for seed in range(4)
    }  # one worker could hold them all
    for seed, worker in first.items():
        bill = await ask(router, prompt_of(seed))
        assert (bill["worker"], bill["reason"]) == (worker, "prefix")
        assert bill["cached_tokens"] == 196, "whole pages of 4, and one token that has to be computed"
    predicted, actual = await counted(router, "predicted_cached_tokens"), await counted(router, "cached_tokens")
    assert actual == 4 * 196
    assert predicted == pytest.approx(actual, rel=0.1)


async def test_a_cache_that_is_cleared_is_placed_by_no_more(
    workers: list[FakeWorker], start_router: StartRouter
) -> None:
    router = await start(start_router, workers)
    await learn(router)
    first = await ask(router, prompt_of(1))
    assert (await ask(router, prompt_of(1)))["predicted_cached_tokens"] > 150
    owner = next(worker for worker in pool_of(router) if worker.name == first["worker"])
    epoch = owner.epoch
    cleared = await asyncio.to_thread(httpx.delete, f"http://{owner.name}/internal/prefix-cache", trust_env=False)
    assert cleared.status_code == 204
    await eventually(lambda: owner.epoch != epoch, "the worker has told of it")
    bill = await ask(router, prompt_of(1))
    assert (bill["predicted_cached_tokens"], bill["cached_tokens"], bill["reason"]) == (0, 0, "load")


async def test_a_worker_that_was_restarted_holds_nothing(start_router: StartRouter) -> None:
    with ExitStack() as process:
        worker = process.enter_context(running_worker())
        router = await start(start_router, [worker])
        await learn(router)
        await ask(router, prompt_of(1))
        assert (await ask(router, prompt_of(1)))["predicted_cached_tokens"] > 150
        (known,) = pool_of(router)
        epoch = known.epoch
        await asyncio.to_thread(process.close)
        await eventually(lambda: known.state == "unready", "the router sees it go")
        restarted = await asyncio.to_thread(process.enter_context, running_worker(port=worker.port))
        assert restarted.port == worker.port
        await eventually(lambda: known.state == "ready" and known.epoch != epoch, "the router sees another life of it")
        bill = await ask(router, prompt_of(1))
        assert (bill["predicted_cached_tokens"], bill["cached_tokens"]) == (0, 0)
        assert (await ask(router, prompt_of(1)))["cached_tokens"] == 196
        await asyncio.to_thread(process.close)


async def test_pages_that_are_given_to_others_are_placed_by_no_more(
    workers: list[FakeWorker], start_router: StartRouter
) -> None:
    """256 pages of 4 tokens: six prompts of 200 push out the first of them."""
    router = await start(start_router, workers[:1])
    await learn(router)
    await ask(router, prompt_of(1))
    assert (await ask(router, prompt_of(1)))["predicted_cached_tokens"] > 150
    for seed in range(2, 10):
        await ask(router, prompt_of(seed))
    bill = await ask(router, prompt_of(1))
    assert (bill["predicted_cached_tokens"], bill["cached_tokens"]) == (0, 0)
