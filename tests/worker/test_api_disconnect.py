"""A client that leaves: the engine knows within 50 ms, in prefill too, and its sequence goes with the step."""

import json
import socket
import time
from typing import Any

import httpx
import pytest

from m3_fakes.http import wait_until
from m3_fakes.worker import FakeWorker

BUDGET_SECONDS = 0.05


def send(worker: FakeWorker, **fields: Any) -> socket.socket:
    """A request on a connection of its own, sent and not waited for."""
    body = json.dumps({"model": "fake", "prompt": [1] * 200, "max_tokens": 50, **fields}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: worker\r\ncontent-length: {len(body)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", worker.port), timeout=10)
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_in_prefill_is_noticed_at_once(worker: FakeWorker, stream: bool) -> None:
    aborts = worker.engine.counters.aborts
    gate = worker.hold_steps()
    connection = send(worker, stream=stream)
    wait_until(lambda: worker.engine.running_count == 1)
    gate.release(2)  # two of the seven chunks of the prompt
    steps = worker.engine.counters.steps
    connection.close()
    left = time.monotonic()
    wait_until(lambda: worker.engine.in_flight_count == 0)
    assert time.monotonic() - left < BUDGET_SECONDS
    gate.release()  # the step it is in
    wait_until(lambda: worker.engine.running_count == 0)
    assert worker.engine.cache_used_ratio == 0
    assert worker.engine.counters.aborts == aborts + 1
    assert worker.engine.counters.steps - steps <= 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_tokens_come_is_noticed_at_once(worker: FakeWorker, stream: bool) -> None:
    gate = worker.hold_steps()
    connection = send(worker, stream=stream, prompt=[1, 2, 3])
    gate.release(3)
    wait_until(lambda: worker.engine.counters.generation_tokens >= 3)
    connection.close()
    left = time.monotonic()
    wait_until(lambda: worker.engine.in_flight_count == 0)
    assert time.monotonic() - left < BUDGET_SECONDS
    gate.release()
    wait_until(lambda: worker.engine.running_count == 0)


def test_a_client_that_leaves_while_it_waits_frees_its_place(worker: FakeWorker) -> None:
    gate = worker.hold_steps()
    running = [send(worker) for _ in range(8)]
    wait_until(lambda: worker.engine.running_count >= 1)
    waiting = send(worker)
    wait_until(lambda: worker.engine.in_flight_count == 9)
    waiting.close()
    wait_until(lambda: worker.engine.in_flight_count == 8)
    for connection in running:
        connection.close()
    wait_until(lambda: worker.engine.in_flight_count == 0)
    gate.release(10)
    wait_until(lambda: worker.engine.running_count == 0)


def test_a_client_that_leaves_within_its_body_costs_nothing(worker: FakeWorker, client: httpx.Client) -> None:
    with socket.create_connection(("127.0.0.1", worker.port), timeout=10) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: worker\r\ncontent-length: 1000\r\n\r\n{")
    assert client.post("/v1/completions", json={"model": "fake", "prompt": "x", "max_tokens": 1}).status_code == 200
