"""`m3 up --check`: real requests with the SDK that users have, and a judgement on all that comes with the
answers.

Owns what has to be true of an answer: tiers, the worker, the cost in the header and in the ledger. The expected cost
is worked out here, from the price table and the usage alone, so that it does not repeat the router's own arithmetic.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from m3_operator.errors import OperatorError
from m3_router.config import PriceSettings

if TYPE_CHECKING:
    import openai
    from openai.types import CompletionUsage

    from m3_operator.local.processes import Endpoint

QUESTION = "Hello"
MAX_TOKENS = 16
REQUEST_SECONDS = 120.0
LEDGER_SECONDS = 10.0
LEDGER_POLL_SECONDS = 0.1
USD_PER_NANOUSD = Decimal("1e-9")
NANOUSD_PER_TOKEN = 1000  # of a rate of one USD per million tokens


class CheckError(OperatorError):
    """Something about an answer was not as it has to be."""


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What the ledger has to say about one request that was sent."""

    request_id: str
    model: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_nanousd: int


def require_sdk() -> None:
    """Raise CheckError where the OpenAI SDK is missing, before anything is started."""
    if find_spec("openai") is None:
        raise CheckError("--check needs the OpenAI SDK: pip install 'm3serve[demo]'")


async def check_endpoint(endpoint: "Endpoint", show: Callable[[str], None]) -> None:
    """Ask every model of an endpoint, once whole and once streamed, and read the ledger. Raises CheckError."""
    import openai

    http = openai.DefaultAsyncHttpxClient(trust_env=False)  # loopback: no proxy
    async with openai.AsyncOpenAI(
        base_url=f"{endpoint.url}/v1",
        api_key=endpoint.key or "none",
        max_retries=0,
        timeout=REQUEST_SECONDS,
        http_client=http,
    ) as client:
        try:
            settled = []
            for model in endpoint.models:
                settled.append(await _ask(client, endpoint, model, show))
                settled.append(await _ask_streamed(client, endpoint, model, show))
        except openai.OpenAIError as error:
            raise CheckError(f"check failed: {endpoint.url}: {' '.join(str(error).split())}") from error
    await _check_ledger(endpoint, settled)
    show(f"  ledger: {len(settled)} requests, all settled at these costs")


def cost_nanousd(prices: PriceSettings, usage: "CompletionUsage") -> int:
    """What a request of the standard tiers costs, in nano-dollars: usage x price table."""
    details = usage.prompt_tokens_details
    cached = (details.cached_tokens if details else None) or 0
    rates = prices.standard
    usd_per_million = (
        (usage.prompt_tokens - cached) * rates.input
        + cached * rates.cache_read
        + usage.completion_tokens * rates.output
    )
    return int(usd_per_million * NANOUSD_PER_TOKEN)


async def _ask(client: "openai.AsyncOpenAI", endpoint: "Endpoint", model: str, show: Callable[[str], None]) -> Settled:
    request_id = f"check-{model}"
    raw = await client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=MAX_TOKENS,
        temperature=0,
        extra_headers={"x-request-id": request_id},
    )
    completion = raw.parse()
    usage = completion.usage
    if usage is None:
        raise CheckError(f"check failed: {model}: the answer has no usage")
    cost = cost_nanousd(endpoint.config.prices, usage)
    check_headers(raw.headers, request_id)
    billed = raw.headers.get("x-m3-cost-usd", "")
    if not billed or Decimal(billed) != cost * USD_PER_NANOUSD or cost <= 0:
        raise CheckError(
            f"check failed: {model}: x-m3-cost-usd is {billed or 'missing'}, "
            f"but usage x price is {cost * USD_PER_NANOUSD:f}"
        )
    show(f"{model}: {completion.choices[0].message.content!r}")
    show(f"  {_headers_line(raw.headers)}, cost ${billed}")
    return _settled(request_id, model, usage, cost)


async def _ask_streamed(
    client: "openai.AsyncOpenAI", endpoint: "Endpoint", model: str, show: Callable[[str], None]
) -> Settled:
    request_id = f"check-{model}-streamed"
    raw = await client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=MAX_TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"x-request-id": request_id},
    )
    check_headers(raw.headers, request_id)
    text, events, usage = "", 0, None
    async for chunk in raw.parse():
        events += 1
        usage = chunk.usage or usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    if usage is None:
        raise CheckError(f"check failed: {model}: the stream has no usage")
    show(f"{model}, streamed in {events} events: {text!r}")
    show(f"  {_headers_line(raw.headers)}")
    return _settled(request_id, model, usage, cost_nanousd(endpoint.config.prices, usage))


def check_headers(headers: Mapping[str, str], request_id: str) -> None:
    """Tiers as they must be for a short request of a client that asked for none, a worker, and our own request id."""
    expected = {"x-m3-context-tier": "standard", "x-m3-service-tier": "standard", "x-request-id": request_id}
    for name, value in expected.items():
        if headers.get(name) != value:
            raise CheckError(f"check failed: {request_id}: {name} is {headers.get(name)!r}, not {value!r}")
    if not headers.get("x-m3-worker"):
        raise CheckError(f"check failed: {request_id}: the answer names no worker")


async def _check_ledger(endpoint: "Endpoint", settled: list[Settled]) -> None:
    """Wait for the ledger to have these requests, then compare. A stream is settled a moment after its last byte."""
    import httpx

    deadline = asyncio.get_running_loop().time() + LEDGER_SECONDS
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            response = await client.get(f"{endpoint.admin_url}/ledger", params={"limit": len(settled) + 1})
            response.raise_for_status()
            entries = response.json()
            if len(entries) >= len(settled) or asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(LEDGER_POLL_SECONDS)
    compare_ledger(entries, settled)


def compare_ledger(entries: list[dict[str, Any]], settled: list[Settled]) -> None:
    """Raise CheckError unless the ledger has exactly these requests, each as it was."""
    by_id = {entry["request_id"]: entry for entry in entries}
    if len(entries) != len(settled) or set(by_id) != {wanted.request_id for wanted in settled}:
        raise CheckError(
            f"check failed: the ledger has {sorted(entry['request_id'] for entry in entries)}, "
            f"but {sorted(wanted.request_id for wanted in settled)} were sent"
        )
    for wanted in settled:
        entry = by_id[wanted.request_id]
        expected = {**vars(wanted), "context_tier": "standard", "service_tier": "standard", "outcome": "ok"}
        for field, value in expected.items():
            if entry.get(field) != value:
                raise CheckError(
                    f"check failed: ledger: {wanted.request_id}: {field} is {entry.get(field)!r}, not {value!r}"
                )


def _settled(request_id: str, model: str, usage: "CompletionUsage", cost: int) -> Settled:
    details = usage.prompt_tokens_details
    return Settled(
        request_id=request_id,
        model=model,
        input_tokens=usage.prompt_tokens,
        cached_tokens=(details.cached_tokens if details else None) or 0,
        output_tokens=usage.completion_tokens,
        cost_nanousd=cost,
    )


def _headers_line(headers: Mapping[str, str]) -> str:
    return (
        f"context tier {headers.get('x-m3-context-tier')}, service tier {headers.get('x-m3-service-tier')}, "
        f"worker {headers.get('x-m3-worker')}"
    )
