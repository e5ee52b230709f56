"""KV events: the log, and those who follow it over HTTP and ZeroMQ, always come to know what is cached."""

import asyncio
import contextlib
import json
from array import array
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
import zmq
import zmq.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_fakes.worker import FakeWorker
from m3_worker.kv_event_stream import follow
from m3_worker.kv_events_zmq import KvEventPublisher, payload
from m3_worker.scheduling.host_pages import HostPages
from m3_worker.scheduling.kv_events import Cleared, Event, EventBatch, EventLog, Medium, Removed, Snapshot, Stored
from m3_worker.scheduling.pages import Pages
from m3_worker.scheduling.request import Request, SamplingParameters, Sequence

END = (-1).to_bytes(8, "big", signed=True)


def stored(*names: str, parent: str | None = None) -> Stored:
    tokens = array("q", range(4 * len(names)))
    return Stored(tuple(name.encode() for name in names), parent.encode() if parent else None, tokens)


def known(events: list[Event]) -> set[tuple[bytes, Medium]]:
    """What a follower of these events has."""
    there: set[tuple[bytes, Medium]] = set()
    for event in events:
        if isinstance(event, Cleared):
            there.clear()
        elif isinstance(event, Removed):
            assert {(name, event.medium) for name in event.names} <= there
            there -= {(name, event.medium) for name in event.names}
        else:
            there |= {(name, event.medium) for name in event.names}
    return there


def test_batches_count_up_from_one_and_empty_ones_do_not_count() -> None:
    log = EventLog("e", 4)
    log.append([stored("a")], 5.0)
    log.append([], 6.0)
    log.append([Removed((b"a",))], 7.0)
    assert log.after(0) == [EventBatch(1, 5.0, (stored("a"),)), EventBatch(2, 7.0, (Removed((b"a",)),))]
    assert log.after(1) == [EventBatch(2, 7.0, (Removed((b"a",)),))]
    assert log.after(2) == []


def test_what_left_the_ring_or_is_not_yet_there_cannot_be_had() -> None:
    log = EventLog("e", 4, ring_batches=2)
    for name in "abc":
        log.append([stored(name)], 0.0)
    assert log.after(0) is None
    assert log.after(1) is not None
    assert log.after(4) is None
    assert log.first_number == 2


def test_the_ring_is_bounded_in_tokens_too() -> None:
    log = EventLog("e", 4, ring_tokens=10)
    for name in "abc":
        log.append([stored(name)], 0.0)
    assert log.first_number == 2


def test_a_snapshot_has_what_is_stored_with_parents_and_tokens() -> None:
    log = EventLog("e", 4)
    log.append([stored("a", "b"), stored("c", parent="b")], 0.0)
    log.append([Stored((b"b",), None, array("q"), Medium.HOST), Removed((b"b",)), Removed((b"c",))], 0.0)
    snapshot = log.snapshot()
    assert (snapshot.number, snapshot.cleared) == (2, 0)
    assert snapshot.stored == [
        Stored((b"a",), None, array("q", [0, 1, 2, 3])),
        Stored((b"b",), b"a", array("q", [4, 5, 6, 7]), Medium.HOST),
    ]
    log.append([Cleared()], 0.0)
    log.append([stored("d")], 0.0)
    assert log.snapshot() == Snapshot(4, 3, [stored("d")])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30), st.booleans()), max_size=40), st.integers(0, 6))
def test_who_follows_knows_what_can_be_found(requests: list[tuple[int, int, bool]], slots: int) -> None:
    pages, log, told = Pages(9, 4, HostPages(slots)), EventLog("e", 4), list[Event]()
    prompts: list[list[int]] = []
    for number, (family, tokens, clear) in enumerate(requests):
        prompts.append([family] * tokens + [number])
        sequence = Sequence(Request(str(number), prompts[-1], SamplingParameters(max_tokens=1)))
        cached = pages.admit(sequence, pages.found(sequence))
        assert cached is not None
        sequence.admit(cached)
        sequence.advance(sequence.remaining_tokens)
        pages.commit(sequence)
        pages.release(sequence.id)
        if clear and number % 5 == 4:
            pages.forget_content()
        told += (events := pages.take_events())
        log.append(events, 0.0)
    there = known(told)
    assert there == known(list(log.snapshot().stored))
    assert len([1 for _, medium in there if medium is Medium.DEVICE]) == pages.found_pages
    assert len([1 for _, medium in there if medium is Medium.HOST]) == pages.host_pages
    for prompt in prompts:
        sequence = Sequence(Request("q", [*prompt, 0], SamplingParameters(max_tokens=1)))
        assert set(pages.found(sequence)) <= {name for name, _ in there}


def test_pages_are_told_with_the_request_that_filled_them_and_their_place_in_it() -> None:
    pages = Pages(9, 4)

    def run(request_id: str, client_id: str | None, prompt: list[int]) -> list[tuple[str | None, int, int]]:
        request = Request(request_id, prompt, SamplingParameters(max_tokens=1), client_id=client_id)
        sequence = Sequence(request)
        cached = pages.admit(sequence, pages.found(sequence))
        assert cached is not None
        sequence.admit(cached)
        sequence.advance(sequence.remaining_tokens)
        pages.commit(sequence)
        pages.release(request_id)
        events = pages.take_events()
        return [(event.client_id, event.first_page, len(event.names)) for event in events if isinstance(event, Stored)]

    assert run("1", "first", [1] * 9) == [("first", 0, 2)]
    assert run("2", "next turn", [1] * 18) == [("next turn", 2, 2)]
    assert run("3", None, [2] * 5) == [(None, 0, 1)]


async def test_a_follower_gets_every_batch_and_a_snapshot_when_it_fell_behind() -> None:
    log = EventLog("e", 4, ring_batches=2)
    log.append([stored("a")], 0.0)
    async with contextlib.aclosing(follow(log, 0, 30)) as parts, asyncio.timeout(10):
        first = await anext(parts)
        assert isinstance(first, list)
        assert [batch.number for batch in first] == [1]
        asyncio.get_running_loop().run_in_executor(None, log.append, [stored("b")], 0.0)
        second = await anext(parts)
        assert isinstance(second, list)
        assert [batch.number for batch in second] == [2]
        for name in "cde":
            log.append([stored(name)], 0.0)
        third = await anext(parts)
        assert isinstance(third, Snapshot)
        assert (third.number, len(third.stored)) == (5, 5)
        log.close()
        with pytest.raises(StopAsyncIteration):
            await anext(parts)


async def test_a_follower_to_whom_nothing_comes_hears_that_the_log_is_alive() -> None:
    async with contextlib.aclosing(follow(EventLog("e", 4), 0, 0.01)) as parts, asyncio.timeout(10):
        assert await anext(parts) == []


@contextlib.contextmanager
def followed(client: httpx.Client, **query: Any) -> Iterator[Iterator[dict[str, Any]]]:
    with client.stream("GET", "/internal/kv-events", params=query) as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        yield (json.loads(line) for line in response.iter_lines())


def complete(client: httpx.Client, prompt: list[int], request_id: str = "some request") -> None:
    body = {"model": "fake", "prompt": prompt, "max_tokens": 1}
    assert client.post("/v1/completions", json=body, headers={"x-request-id": request_id}).status_code == 200


def test_a_router_follows_over_http(worker: FakeWorker, client: httpx.Client) -> None:
    client.delete("/internal/prefix-cache").raise_for_status()
    with followed(client, tokens="true") as lines:
        start = next(lines)
        assert (start["kind"], start["page_tokens"]) == ("start", 4)
        assert start["epoch"] == worker.engine.events.epoch
        snapshot = next(lines)
        assert (snapshot["kind"], snapshot["more"]) == ("snapshot", False)
        complete(client, [7, 8, 9, 10, 11, 12, 13, 14, 15], "the client's own")
        batch = next(line for line in lines if line["kind"] == "batch" and line["events"] != [{"event": "cleared"}])
        (event,) = batch["events"]
        assert (event["event"], event["medium"], event["parent"]) == ("stored", "device", None)
        assert event["token_ids"] == [7, 8, 9, 10, 11, 12, 13, 14]
        assert (event["request"], event["first_page"]) == ("the client's own", 0)
        assert [len(name) for name in event["names"]] == [64, 64]
    complete(client, [77] * 5, "x" * 129)
    with followed(client, epoch=start["epoch"], after=batch["number"]) as lines:
        assert next(lines)["kind"] == "start"
        later = next(lines)
        assert (later["kind"], later["number"]) == ("batch", batch["number"] + 1)
        assert "token_ids" not in later["events"][0]
        assert "request" not in later["events"][0]  # its name is too long to be kept


def test_who_comes_from_another_epoch_gets_a_snapshot(worker: FakeWorker, client: httpx.Client) -> None:
    complete(client, [3] * 9)
    with followed(client, epoch="of another start", after=0) as lines:
        assert next(lines)["kind"] == "start"
        snapshot = next(lines)
        assert snapshot["kind"] == "snapshot"
        assert snapshot["number"] == worker.engine.events.last_number
        assert snapshot["cleared"] == worker.engine.events.snapshot().cleared
        assert len(snapshot["events"]) == worker.engine.pages.found_pages


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"after": "-1"}, "after is -1: must be the number of a batch, 0 or more"),
        ({"after": "9" * 30}, f"after is {'9' * 30}: must be the number of a batch, 0 or more"),
        ({"tokens": "yes"}, "tokens is yes: must be true or false"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused(client: httpx.Client, query: dict[str, str], message: str) -> None:
    answer = client.get("/internal/kv-events", params=query)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


def test_what_was_cached_is_forgotten_when_asked(worker: FakeWorker, client: httpx.Client) -> None:
    complete(client, [5] * 9)
    assert client.delete("/internal/prefix-cache").status_code == 204
    complete(client, [6])
    assert worker.engine.pages.found_pages == 0


def test_a_batch_has_vllms_form() -> None:
    events = (
        Stored((b"x" * 32,), b"p" * 32, array("q", [1, 2])),
        Removed((b"x" * 32,), Medium.HOST),
        Cleared(),
    )
    assert msgspec.msgpack.decode(payload(EventBatch(1, 2.5, events), 2)) == [
        2.5,
        [
            ["BlockStored", [b"x" * 32], b"p" * 32, [1, 2], 2, None, "GPU", None],
            ["BlockRemoved", [b"x" * 32], "CPU"],
            ["AllBlocksCleared"],
        ],
    ]


async def test_a_subscriber_gets_numbered_batches_and_asks_for_those_it_missed() -> None:
    log = EventLog("e", 4)
    log.append([stored("a")], 1.0)
    publisher = KvEventPublisher("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
    running = asyncio.create_task(publisher.run(log))
    publish_at, replay_at = publisher.endpoints
    assert replay_at is not None
    with zmq.asyncio.Context() as context:
        subscriber, asking = context.socket(zmq.SUB), context.socket(zmq.DEALER)
        async with asyncio.timeout(10):
            subscriber.connect(publish_at)
            subscriber.subscribe(b"")
            asking.connect(replay_at)
            number = 1
            while not await subscriber.poll(20):  # a new subscriber misses what is sent before it is known
                number += 1
                log.append([stored(f"x{number}")], 1.0)
            topic, sequence, data = await subscriber.recv_multipart()
            assert (topic, len(sequence)) == (b"", 8)
            missed = int.from_bytes(sequence, "big")
            assert msgspec.msgpack.decode(data) == msgspec.msgpack.decode(payload((log.after(missed) or [])[0], 4))
            await asking.send_multipart([b"not a request"])
            await asking.send_multipart([b"", (0).to_bytes(8, "big")])
            replayed = []
            while (frames := await asking.recv_multipart())[1] != END:
                replayed.append(int.from_bytes(frames[1], "big"))
            assert replayed == list(range(log.last_number))
        subscriber.close(linger=0)
        asking.close(linger=0)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    publisher.close()


async def test_an_endpoint_that_cannot_be_bound_is_named() -> None:
    first = KvEventPublisher("tcp://127.0.0.1:*", None)
    taken, _ = first.endpoints
    with pytest.raises(OSError, match=f"--kv-events-zmq {taken}: cannot bind: Address already in use"):
        KvEventPublisher(taken, None)
    first.close()
