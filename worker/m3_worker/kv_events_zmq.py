"""KV events over ZeroMQ, in the form that vLLM publishes them, for routers that know that form.

Owns two sockets on the event loop. PUB: three frames, an empty topic, the batch's sequence number (8 bytes, big endian,
from 0) and a msgpack array [seconds, events], where an event is an array that begins with its class:

    ["BlockStored", [hash, ...], parent hash | nil, [token id, ...], page tokens, nil, medium, nil]
    ["BlockRemoved", [hash, ...], medium]
    ["AllBlocksCleared"]

The nils are vLLM's LoRA id and name, the media "GPU" and "CPU", hashes are 32 bytes. ROUTER, if asked for: a request of
an empty frame and a sequence number is answered with an empty frame, a number and a payload for each batch from there
on, and at the end with the number -1 and an empty payload. Source: vLLM's vllm/distributed/kv_events.py.
"""

import asyncio
import contextlib
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from m3_worker.kv_event_stream import follow
from m3_worker.scheduling.kv_events import Cleared, Event, EventBatch, EventLog, Medium, Removed, Snapshot

_END = (-1).to_bytes(8, "big", signed=True)
_MEDIA = {Medium.DEVICE: "GPU", Medium.HOST: "CPU"}
_ALIVE_SECONDS = 3600.0
"""A subscriber hears nothing between batches; this only bounds a wait."""
_HIGH_WATER_MESSAGES = 16384


class KvEventPublisher:
    """The sockets of one worker."""

    def __init__(self, endpoint: str, replay_endpoint: str | None) -> None:
        """Binds. Raises OSError that names flag and endpoint."""
        self._context = zmq.asyncio.Context()
        self._publish = self._bind(zmq.PUB, "--kv-events-zmq", endpoint)
        self._replay = self._bind(zmq.ROUTER, "--kv-events-zmq-replay", replay_endpoint) if replay_endpoint else None

    @property
    def endpoints(self) -> tuple[str, str | None]:
        """Where it is bound, with the ports that the system chose."""
        sockets = (self._publish, self._replay)
        first, second = (None if s is None else s.getsockopt_string(zmq.LAST_ENDPOINT) for s in sockets)
        return first or "", second

    async def run(self, log: EventLog) -> None:
        """Publish what comes, and answer who asks, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._publish_all(log))
            if self._replay is not None:
                tasks.create_task(self._answer_all(log, self._replay))

    def close(self) -> None:
        """Close the sockets; what was not sent is dropped."""
        self._context.destroy(linger=0)

    async def _publish_all(self, log: EventLog) -> None:
        async with contextlib.aclosing(follow(log, 0, _ALIVE_SECONDS)) as parts:
            async for part in parts:
                if isinstance(part, Snapshot):
                    continue  # it fell behind the ring: subscribers see the gap in the numbers
                for batch in part:
                    await self._publish.send_multipart([b"", _sequence(batch), payload(batch, log.page_tokens)])

    async def _answer_all(self, log: EventLog, socket: zmq.asyncio.Socket) -> None:
        while True:
            frames = await socket.recv_multipart()
            if len(frames) != 3 or len(frames[2]) != 8:
                continue  # not a request; a ROUTER has nobody to complain to
            client = frames[0]
            after = max(int.from_bytes(frames[2], "big"), log.first_number - 1)
            for batch in log.after(after) or []:
                await socket.send_multipart([client, b"", _sequence(batch), payload(batch, log.page_tokens)])
            await socket.send_multipart([client, b"", _END, b""])

    def _bind(self, kind: int, flag: str, endpoint: str) -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        socket.set_hwm(_HIGH_WATER_MESSAGES)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise OSError(f"{flag} {endpoint}: cannot bind: {error.strerror}") from None
        return socket


def payload(batch: EventBatch, page_tokens: int) -> bytes:
    """One batch in msgpack."""
    return msgspec.msgpack.encode([batch.unix_seconds, [_event(event, page_tokens) for event in batch.events]])


def _event(event: Event, page_tokens: int) -> list[Any]:
    if isinstance(event, Cleared):
        return ["AllBlocksCleared"]
    names, medium = list(event.names), _MEDIA[event.medium]
    if isinstance(event, Removed):
        return ["BlockRemoved", names, medium]
    return ["BlockStored", names, event.parent, event.token_ids.tolist(), page_tokens, None, medium, None]


def _sequence(batch: EventBatch) -> bytes:
    return (batch.number - 1).to_bytes(8, "big")
