"""Requests made from the OpenAPI document, and bytes that are none: no 500, no hang, and nothing stays behind."""

import gc
import json
import os
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import BaseRoute

from m3_fakes.http import wait_until
from m3_fakes.worker import CONTEXT_TOKENS, MAX_BODY_BYTES, FakeWorker, running_worker
from m3_worker.api.openapi import openapi_document
from m3_worker.app import build_app
from m3_worker.serving import WorkerState

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
DOCUMENT = openapi_document("fake")
POSTED = sorted(path for path, item in DOCUMENT["paths"].items() if "post" in item)

schema = schemathesis.openapi.from_dict(DOCUMENT)
schema.config.generation.update(modes=list(schemathesis.GenerationMode))


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[FakeWorker]:
    with running_worker() as worker:
        yield worker
        wait_until(lambda: worker.engine.in_flight_count == 0)
        wait_until(lambda: worker.engine.running_count == worker.engine.waiting_count == 0)
        wait_until(lambda: worker.engine.cache_used_ratio == 0)
        assert httpx.get(f"{worker.url}/health").json() == {"status": "ok"}


@schema.parametrize()
@settings(
    max_examples=4,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_whatever_is_sent_the_answer_is_as_documented(case: schemathesis.Case, fuzzed: FakeWorker) -> None:
    if isinstance(case.body, dict):
        _make_short(case.body)
    response = case.call(base_url=fuzzed.url, timeout=20)
    case.validate_response(response, checks=CHECKS)


def _make_short(body: dict[str, Any]) -> None:
    """Ask for less of what takes long, where it is asked for rightly."""
    for name, most in {
        "max_tokens": 4,
        "max_completion_tokens": 4,
        "max_output_tokens": 4,
        "n": 2,
        "best_of": 2,
    }.items():
        value = body.get(name)
        if type(value) is int and value > most:
            body[name] = most
    if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
        body["max_tokens"] = 4
    if body.get("max_output_tokens") is None:
        body["max_output_tokens"] = 4


def paths_of(routes: list[BaseRoute]) -> Iterator[str]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route.path.replace(":path}", "}")
        else:
            yield from paths_of(getattr(getattr(route, "original_router", None), "routes", []))


def test_every_route_is_in_the_document_and_every_path_is_a_route() -> None:
    served = set(paths_of(build_app(WorkerState(1024)).routes))
    assert {path for path in served if not path.startswith("/internal/")} == set(DOCUMENT["paths"])


def test_the_document_is_served_and_names_the_model(client: httpx.Client) -> None:
    served = client.get("/openapi.json").json()
    assert served == json.loads(json.dumps(DOCUMENT))
    assert served["components"]["schemas"]["ChatFields"]["properties"]["model"] == {"enum": ["fake"]}
    assert openapi_document(None)["components"]["schemas"]["ChatFields"]["properties"]["model"] == {"type": "string"}
    for component in served["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(component)


def exchange(worker: FakeWorker, sent: bytes, *, is_all: bool) -> bytes:
    """What comes back until the worker closes the connection; `is_all`: it is told that no more bytes will come."""
    with socket.create_connection(("127.0.0.1", worker.port), timeout=20) as connection:
        connection.sendall(sent)
        if is_all:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while part := connection.recv(65536):
            received += part
        return received


def request_bytes(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("path", POSTED)
def test_bodies_that_are_broken_anywhere_are_told_so(fuzzed: FakeWorker, path: str) -> None:
    random_bytes = random.Random(path)  # a seed, not a secret
    whole = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hé"}], "max_tokens": 2}).encode()
    bodies = [
        b"",
        b"null",
        b"[]",
        b'"' + b"a" * 1000,
        b"\xff\xfe",
        b'{"model": "fake", "messages": ' + b"[" * 3000,
        *(whole[: random_bytes.randrange(len(whole))] for _ in range(5)),
        *(_with_one_byte_changed(whole, random_bytes) for _ in range(10)),
    ]
    for body in bodies:
        answer = exchange(fuzzed, request_bytes(path, body), is_all=False)
        status = int(answer.split(b" ", 2)[1])
        assert status in (200, 400, 404), (body, answer)


def _with_one_byte_changed(whole: bytes, source: random.Random) -> bytes:
    place = source.randrange(len(whole))
    return whole[:place] + bytes([source.randrange(256)]) + whole[place + 1 :]


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{",
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
    ],
    ids=range(12),
)
def test_bytes_that_are_no_request_end_their_connection_and_no_other(fuzzed: FakeWorker, sent: bytes) -> None:
    try:
        answer = exchange(fuzzed, sent, is_all=True)
    except ConnectionError:
        answer = b""
    assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200")), answer[:200]
    assert httpx.get(f"{fuzzed.url}/health").status_code == 200


def test_a_context_full_of_anything_is_counted_or_refused(fuzzed: FakeWorker) -> None:
    for length in (CONTEXT_TOKENS - 30, CONTEXT_TOKENS, 10 * CONTEXT_TOKENS):
        body = {"model": "fake", "max_tokens": 1, "messages": [{"role": "user", "content": "x" * length}]}
        assert httpx.post(f"{fuzzed.url}/v1/messages", json=body).status_code in (200, 400)


def _flood(worker: FakeWorker) -> int:
    """Bad requests as large as they may be: malformed, too long, never sent to their end. Returns the bytes sent."""
    size = MAX_BODY_BYTES - 1000
    broken = request_bytes("/v1/chat/completions", b'{"messages": "' + b"a" * (size - 20))
    too_long = {"model": "fake", "max_tokens": 1, "prompt": [1] * (size // 4)}
    whole = [broken, request_bytes("/v1/completions", json.dumps(too_long).encode())]
    times = 12 * 2**20 // size
    for sent in whole * times:
        assert exchange(worker, sent, is_all=False).split(b" ", 2)[1] == b"400"
    for _ in range(times):
        with socket.create_connection(("127.0.0.1", worker.port), timeout=20) as connection:
            connection.sendall(broken[: size // 2])
    return (sum(map(len, whole)) + size // 2) * times


def _resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_memory_is_back_where_it_was_after_a_flood_of_bad_requests(
    fuzzed: FakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    _flood(fuzzed)  # what is allocated once and kept
    before = _resident_bytes()
    sent = sum(_flood(fuzzed) for _ in range(3))
    wait_until(lambda: _resident_bytes() - before < sent / 4)
    assert not caplog.records  # none of it is a fault of the worker's
