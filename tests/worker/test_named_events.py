"""Named events: a ping while nothing comes, an error instead of the rest, and nothing after a client that left."""

import asyncio
from collections.abc import Iterable
from typing import Any

from starlette.types import Message

from m3_fakes.worker import fake_model
from m3_worker.api.errors import ApiError
from m3_worker.api.generation import Delta, Generation
from m3_worker.api.named_events import Event, NamedEvents
from m3_worker.scheduling.request import FinishReason, SamplingParameters


class SlowGeneration(Generation):
    """Gives what it is told to, when it is told to."""

    def __init__(self) -> None:
        model, _ = fake_model()
        super().__init__(model, [1], SamplingParameters(max_tokens=1), (), 0)
        self.deltas: asyncio.Queue[Delta | ApiError] = asyncio.Queue()
        self.was_closed = False

    async def next(self) -> Delta:
        delta = await self.deltas.get()
        if isinstance(delta, ApiError):
            raise delta
        return delta

    def close(self) -> None:
        self.was_closed = True
        super().close()


class Plain:
    """Tells text as events named `text`."""

    def events(self, delta: Delta) -> Iterable[Event]:
        return [("text", {"text": delta.text})]

    def failed(self, error: ApiError) -> Iterable[Event]:
        return [("error", {"message": error.message})]

    def ping(self) -> Iterable[Event]:
        return [("ping", {})]


class Client:
    """What an ASGI server would pass on, and what it was sent."""

    def __init__(self) -> None:
        self.bodies: asyncio.Queue[bytes] = asyncio.Queue()
        self.is_gone = asyncio.Event()

    async def receive(self) -> Message:
        await self.is_gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            await self.bodies.put(message["body"])


def started(generation: SlowGeneration, client: Client, ping_seconds: float) -> "asyncio.Task[Any]":
    response = NamedEvents(generation, Plain(), ping_seconds)
    return asyncio.create_task(response({"type": "http"}, client.receive, client.send))


async def test_a_ping_is_sent_while_nothing_comes_and_nothing_is_lost_by_it() -> None:
    generation, client = SlowGeneration(), Client()
    task = started(generation, client, ping_seconds=0.01)
    assert await client.bodies.get() == b"event: ping\ndata: {}\n\n"
    assert await client.bodies.get() == b"event: ping\ndata: {}\n\n"
    await generation.deltas.put(Delta("hé", [], FinishReason.STOP))
    await task
    rest = [client.bodies.get_nowait() for _ in range(client.bodies.qsize())]
    assert rest[-1] == 'event: text\ndata: {"text":"hé"}\n\n'.encode()
    assert set(rest[:-1]) <= {b"event: ping\ndata: {}\n\n"}
    assert generation.was_closed


async def test_an_error_ends_the_stream() -> None:
    generation, client = SlowGeneration(), Client()
    task = started(generation, client, ping_seconds=60)
    await generation.deltas.put(ApiError(400, "too much"))
    await task
    assert client.bodies.get_nowait() == b'event: error\ndata: {"message":"too much"}\n\n'
    assert client.bodies.empty()


async def test_a_client_that_leaves_ends_the_generation() -> None:
    generation, client = SlowGeneration(), Client()
    task = started(generation, client, ping_seconds=60)
    await generation.deltas.put(Delta("a"))
    assert await client.bodies.get() == b'event: text\ndata: {"text":"a"}\n\n'
    client.is_gone.set()
    await asyncio.wait_for(task, 5)
    assert generation.was_closed
