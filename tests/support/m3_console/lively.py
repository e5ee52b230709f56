"""A real router under a load that looks like a working day: engines that take their time, tenants that differ.

For pictures and for a look by hand, not for measurements.
"""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from m3_mock import MockEngine
from m3_mock.running import LogStream
from m3_router.config import RouterConfig
from m3_router.server import Router

PREFILL_TOKENS_PER_SECOND = 90_000
TOKEN_SECONDS = 0.02
THRESHOLD_TOKENS = 60_000  # real ones are 512,000; bodies of that size would only warm the machine


@dataclass
class LivelyEngine(MockEngine):
    """A mock engine that prefills and decodes at a pace, with part of each prompt in its cache."""

    randomness: random.Random = field(default_factory=lambda: random.Random(7))
    prompt_tokens: int = 0

    async def _answer(self, request: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        self.prompt_tokens = len(request.body)
        return await super()._answer(request, reader, writer)

    async def _pass(self, at: int, reader: asyncio.StreamReader) -> bool:
        if at:
            await asyncio.sleep(TOKEN_SECONDS)
            return True
        tokens = self.prompt_tokens
        cached = int(tokens * self.randomness.choice((0, 0.35, 0.72, 0.8, 0.88, 0.93)))
        await asyncio.sleep(0.03 + (tokens - cached) / PREFILL_TOKENS_PER_SECOND)
        self.cached_tokens = min(cached, max(tokens - 120, 0))
        self.output_tokens = self.randomness.randint(20, 90)
        return True


@dataclass(frozen=True)
class Customer:
    """A tenant, and how it asks: clients at once, bytes of a prompt, service tier, pause between requests."""

    name: str
    clients: int
    prompt_bytes: tuple[int, int]
    tier: str
    pause_seconds: float


CUSTOMERS = (
    Customer("aurora-labs", 7, (6_000, 40_000), "priority", 0.4),
    Customer("northwind", 16, (4_000, 34_000), "standard", 0.5),
    Customer("helio-research", 4, (64_000, 120_000), "standard", 2.5),
    Customer("papertrail", 6, (1_000, 9_000), "standard", 0.8),
    Customer("quartz", 1, (62_000, 90_000), "priority", 6.0),
)


def lively_config(engines: list[LivelyEngine]) -> RouterConfig:
    """Keys for every customer; a bound of tokens that the load reaches now and then."""
    keys = [
        {
            "tenant": customer.name,
            "sha256": hashlib.sha256(customer.name.encode()).hexdigest(),
            "serviceTiers": ["standard", "priority"],
        }
        for customer in CUSTOMERS
    ]
    return RouterConfig.model_validate(
        {
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "auth": {"keys": keys},
            "contextTier": {"thresholdTokens": THRESHOLD_TOKENS},
            "lanes": {"standardFirstByteTargetSeconds": 2, "priorityFirstByteTargetSeconds": 0.6},
            "pools": [
                {
                    "name": "m3",
                    "models": ["MiniMax-M3"],
                    "maxContextTokens": 131_072,
                    "tokensInFlight": 360_000,
                    "workers": [engine.url for engine in engines],
                }
            ],
        }
    )


@asynccontextmanager
async def lively_router(workers: int = 4, config: RouterConfig | None = None) -> AsyncIterator[Router]:
    """A router under load until the block is left."""
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(LivelyEngine(model="MiniMax-M3", randomness=random.Random(n)).running())
            for n in range(workers)
        ]
        router = Router(config or lively_config(engines), LogStream())
        await router.start()
        stack.push_async_callback(router.stop)
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{router.address}", timeout=60, trust_env=False)
        )
        tasks = [
            asyncio.create_task(_ask(client, customer, random.Random(f"{customer.name}{number}")))
            for customer in CUSTOMERS
            for number in range(customer.clients)
        ]
        try:
            yield router
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(client: httpx.AsyncClient, customer: Customer, randomness: random.Random) -> None:
    headers = {"authorization": f"Bearer {customer.name}"}
    while True:
        content = "m" * randomness.randint(*customer.prompt_bytes)
        body = {
            "model": "MiniMax-M3",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 128,
            "stream": True,
            "service_tier": customer.tier,
        }
        try:
            async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
                async for _ in answer.aiter_raw():
                    if randomness.random() < 0.0004:
                        break  # some people press stop
        except httpx.HTTPError:
            pass  # the picture shows it
        await asyncio.sleep(randomness.expovariate(1 / customer.pause_seconds))
