"""Exact counts, asked of workers over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from m3_fakes.worker import FakeWorker, running_worker
from m3_mock import MockEngine
from m3_router.bodies.dialects import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, Dialect
from m3_router.bodies.request import RequestView, parse
from m3_router.http.worker_end import WorkerConnections
from m3_router.relay.counting import ExactCounts
from m3_router.workers.workers import WorkerAddress


@dataclass(frozen=True)
class Asked:
    """As much of a worker as counting looks at."""

    address: WorkerAddress
    engine: str = "native"

    @property
    def host_line(self) -> bytes:
        return f"host: {self.address.name}\r\n".encode()


@dataclass
class World:
    """Counts, and how they are asked in one line."""

    counts: ExactCounts
    worker: Asked

    def ask(self, dialect: Dialect, view: RequestView, **worker: Any) -> "asyncio.Future[int | None]":
        found: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        asked = Asked(self.worker.address, **worker) if worker else self.worker
        self.counts.count(dialect, view, asked, found.set_result)
        return found


@asynccontextmanager
async def world_with(url: str, **settings: Any) -> AsyncIterator[World]:
    loop = asyncio.get_running_loop()
    connections = WorkerConnections(loop)
    counts = ExactCounts(loop, connections, **settings)
    try:
        yield World(counts, Asked(WorkerAddress.from_url(url)))
    finally:
        counts.close()
        connections.close()


@pytest.fixture
async def world(engine: MockEngine) -> AsyncIterator[World]:
    async with world_with(engine.url) as one:
        yield one


def chat(text: str = "hello", **fields: Any) -> RequestView:
    body = {"model": "mock", "messages": [{"role": "user", "content": text}], **fields}
    return parse(CHAT, json.dumps(body).encode())


def answering(body: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


async def test_a_chat_body_is_counted_by_the_workers_tokenizer_as_it_came(world: World, engine: MockEngine) -> None:
    view = chat("five!", temperature=0.5, x_unknown=[1])
    assert await world.ask(CHAT, view) == 5  # a byte each
    [received] = engine.received
    assert (received.method, received.path, received.body) == ("POST", "/tokenize", view.body)
    assert received.headers["host"] == world.worker.address.name
    assert received.headers["content-type"] == "application/json"


async def test_a_prompt_is_counted_too(world: World, engine: MockEngine) -> None:
    view = parse(COMPLETIONS, b'{"model": "mock", "prompt": "twelve bytes"}')
    assert await world.ask(COMPLETIONS, view) == 12
    assert engine.received[0].path == "/tokenize"


async def test_a_body_of_messages_is_counted_where_anthropic_counts(world: World, engine: MockEngine) -> None:
    engine.raw_answer = answering('{"input_tokens": 512001}')
    view = parse(MESSAGES, b'{"model": "mock", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}')
    assert await world.ask(MESSAGES, view) == 512_001
    assert (engine.received[0].path, engine.received[0].body) == ("/v1/messages/count_tokens", view.body)


async def test_a_second_one_like_it_is_not_asked_again(world: World, engine: MockEngine) -> None:
    assert await world.ask(CHAT, chat()) == 5
    answer = world.ask(CHAT, chat())
    assert answer.done()  # at once
    assert answer.result() == 5
    assert await world.ask(CHAT, chat("other")) == 5
    assert len(engine.received) == 2
    assert (world.counts.outcomes["counted"], world.counts.outcomes["remembered"]) == (2, 1)


async def test_of_many_the_oldest_is_forgotten(engine: MockEngine) -> None:
    async with world_with(engine.url, max_remembered=2) as world:
        for text in ("one", "two", "one", "three", "one", "two"):
            await world.ask(CHAT, chat(text))
        texts = [received.json["messages"][0]["content"] for received in engine.received]
        assert texts == ["one", "two", "three", "two"]


async def test_the_same_body_asked_twice_at_once_is_one_question(world: World, engine: MockEngine) -> None:
    engine.gate = asyncio.Event()
    first, second = world.ask(CHAT, chat()), world.ask(CHAT, chat())
    await engine.arrived.wait()
    engine.gate.set()
    assert (await first, await second) == (5, 5)
    assert len(engine.received) == 1
    assert world.counts.outcomes["joined"] == 1


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (EMBEDDINGS, b'{"model": "mock", "input": "hello"}'),
    ],
)
async def test_dialects_that_no_worker_counts_are_not_asked(
    world: World, engine: MockEngine, dialect: Dialect, body: bytes
) -> None:
    answer = world.ask(dialect, parse(dialect, body))
    assert answer.done()
    assert answer.result() is None
    assert engine.received == []
    assert world.counts.outcomes["unsupported"] == 1


async def test_an_external_upstream_is_not_asked(world: World, engine: MockEngine) -> None:
    assert world.ask(CHAT, chat(), engine="external").result() is None
    assert engine.received == []


async def test_a_worker_that_does_not_answer_in_time_is_left(engine: MockEngine) -> None:
    engine.gate = asyncio.Event()
    async with world_with(engine.url, wait_seconds=0.5) as world:
        assert await world.ask(CHAT, chat()) is None
        await asyncio.wait_for(engine.aborted.wait(), 20)  # and hears of it
        assert world.counts.outcomes["timed_out"] == 1
        engine.gate.set()
        assert await world.ask(CHAT, chat()) == 5  # failures are not remembered


async def test_no_more_than_so_many_are_asked_at_once(engine: MockEngine) -> None:
    engine.gate = asyncio.Event()
    async with world_with(engine.url, max_in_flight=2) as world:
        waiting = [world.ask(CHAT, chat(str(number))) for number in range(3)]
        assert waiting[2].done()
        assert waiting[2].result() is None
        engine.gate.set()
        assert [await one for one in waiting] == [1, 1, None]
        assert world.counts.outcomes["busy"] == 1
        assert await world.ask(CHAT, chat("2")) == 1  # there is room again


@pytest.mark.parametrize(
    "answer",
    [
        answering('{"error": {"message": "no"}}', "404 Not Found"),
        answering('{"count": 5}', "500 Oops"),
        answering('{"count": -5}'),
        answering('{"count": "5"}'),
        answering('{"count": 5000000000}'),
        answering('{"count": 5'),
        answering(""),
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{",
    ],
    ids=["404", "500", "negative", "text", "too many digits", "cut", "empty", "not HTTP", "closed early"],
)
async def test_an_answer_without_a_number_is_none(world: World, engine: MockEngine, answer: bytes) -> None:
    engine.raw_answer = answer
    assert await world.ask(CHAT, chat()) is None
    assert world.counts.outcomes["failed"] == 1
    assert "0 asked" in repr(world.counts)


async def test_a_worker_that_is_not_there_is_none(engine: MockEngine) -> None:
    await engine.stop()
    async with world_with(engine.url) as world:
        assert await world.ask(CHAT, chat()) is None
        assert world.counts.outcomes["failed"] == 1
    await engine.start()


TOKENS = json.dumps(list(range(500_000)))  # 3.4 MB


@pytest.mark.parametrize(
    "body",
    [
        '{"count":500000,"max_model_len":1048576,"tokens":' + TOKENS + ',"token_strs":null}',
        '{"tokens":' + TOKENS + ',"count":500000,"max_model_len":1048576}',
    ],
    ids=["number first", "number last"],
)
async def test_half_a_million_token_ids_are_not_kept_for_their_number(
    world: World, engine: MockEngine, body: str
) -> None:
    engine.raw_answer = answering(body)
    assert await world.ask(CHAT, chat()) == 500_000


async def test_who_waits_when_the_router_stops_is_told(engine: MockEngine) -> None:
    engine.gate = asyncio.Event()
    async with world_with(engine.url) as world:
        answer = world.ask(CHAT, chat())
        await engine.arrived.wait()
    assert answer.result() is None


@pytest.fixture(scope="module")
def native_worker() -> Iterator[FakeWorker]:
    with running_worker() as worker:
        yield worker


BILLED: list[tuple[Dialect, dict[str, Any], tuple[str, ...]]] = [
    (CHAT, {"messages": [{"role": "user", "content": "héllo"}]}, ("prompt_tokens",)),
    (
        CHAT,
        {
            "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
            "stream": True,
            "temperature": 0.5,
            "thinking": {"type": "enabled"},
            "response_format": {"type": "json_object"},
            "tools": [{"type": "function", "function": {"name": "look"}}],
            "metadata": {"a": "b"},
        },
        ("prompt_tokens",),
    ),
    (COMPLETIONS, {"prompt": "once upon", "echo": True}, ("prompt_tokens",)),
    (
        MESSAGES,
        {
            "system": "be kind",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
            "metadata": {"user_id": "u"},
            "stop_sequences": ["x"],
            "stream": True,
        },
        ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
    ),
]


@pytest.mark.parametrize(("dialect", "fields", "billed"), BILLED, ids=["chat", "rich chat", "prompt", "messages"])
async def test_a_native_worker_counts_what_it_then_bills(
    native_worker: FakeWorker, dialect: Dialect, fields: dict[str, Any], billed: tuple[str, ...]
) -> None:
    body = {"model": "fake", "max_tokens": 2, **fields}
    async with world_with(native_worker.url, wait_seconds=10) as world, httpx.AsyncClient(timeout=10) as client:
        counted = await world.ask(dialect, parse(dialect, json.dumps(body).encode()))
        answer = await client.post(native_worker.url + dialect.path.decode(), json={**body, "stream": False})
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    assert counted == sum(usage.get(name) or 0 for name in billed)
