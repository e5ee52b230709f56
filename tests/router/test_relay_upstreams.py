"""Pools of other engines, aliases, canaries and breakers: what each upstream is sent, and which one is asked."""

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from m3_mock import Speaker
from m3_mock.running import Running, StartRouter, eventually, eventually_answers, post, read_stream
from m3_mock.speaker import ANSWER, texts_of

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
TURN = [{"role": "user", "content": "hi"}]
GOOD: dict[str, Any] = {"model": "mock", "messages": TURN}


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Key and certificate of an authority of its own, for `localhost`."""
    folder = tmp_path_factory.mktemp("tls")
    key, made = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    subprocess.run([*command, *names, "-keyout", key, "-out", made], check=True, capture_output=True)
    return key, made


class SecureSpeaker(Speaker):
    """Speaks TLS, below a path."""

    @asynccontextmanager
    async def running_with(self, certificate: tuple[Path, Path]) -> AsyncIterator["SecureSpeaker"]:
        key, made = certificate
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made, key)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**26, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            await self.stop()


@pytest.fixture
async def upstream(certificate: tuple[Path, Path]) -> AsyncIterator[SecureSpeaker]:
    async with SecureSpeaker(name="them", prefix="/openai").running_with(certificate) as one:
        yield one


@pytest.fixture
def trust(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate[1]))


@pytest.fixture
def key_file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "upstream.key"
    path.write_text("sk-first\n")
    return path


def external(upstream: Speaker, key_file: Path, **more: Any) -> dict[str, Any]:
    url = f"https://localhost:{upstream.port}/openai"
    return {
        "name": "them",
        "models": ["reviewer"],
        "engine": "external",
        "workers": {"url": url, "apiKeyFile": str(key_file)},
        **more,
    }


async def test_an_external_upstream_gets_its_key_its_path_and_its_model_over_tls(
    start_router: StartRouter, upstream: SecureSpeaker, trust: ssl.SSLContext, key_file: Path
) -> None:
    prices = {"standard": {"input": "1.00", "output": "5.00", "cacheRead": "0.10"}, "models": ["reviewer"]}
    router = await start_router(
        [upstream],
        worker_tls=trust,
        pools=[external(upstream, key_file, upstreamModel="their/model-9")],
        modelPrices=[prices],
        aliases={"second-opinion": "reviewer"},
    )
    body = b'{ "messages":[{"role":"user","content":"hi"}], "model" : "second-opinion", "x":1.50 }'
    answer = await router.http.post(
        CHAT, content=body, headers={"authorization": "Bearer ours", "x-api-key": "ours", "cookie": "c=1"}
    )
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER
    (got,) = upstream.received
    assert got.body == b'{ "messages":[{"role":"user","content":"hi"}], "model" : "their/model-9", "x":1.50 }'
    assert got.headers["host"] == f"localhost:{upstream.port}"
    assert (got.headers["authorization"], got.headers["x-api-key"]) == ("Bearer sk-first", "sk-first")
    assert not any(name.startswith("x-m3-") for name in got.headers)
    # 2 x 1,000 + 5 x 5,000 nano-dollars
    assert answer.headers["x-m3-cost-usd"] == "0.000027000"
    (bill,) = await router.ledger()
    assert (bill["model"], bill["pool"], bill["cost_nanousd"]) == ("reviewer", "them", 27_000)


async def test_a_new_key_of_an_upstream_holds_without_a_restart(
    start_router: StartRouter, upstream: SecureSpeaker, trust: ssl.SSLContext, key_file: Path
) -> None:
    router = await start_router([upstream], worker_tls=trust, pools=[external(upstream, key_file)])
    await asyncio.to_thread(key_file.write_text, "sk-second")

    async def shown() -> str:
        await router.chat(model="reviewer")
        return upstream.received[-1].headers["authorization"]

    async with asyncio.timeout(10):
        while await shown() != "Bearer sk-second":  # noqa: ASYNC110 - as the next request shows
            await asyncio.sleep(0.1)
    await asyncio.to_thread(key_file.unlink)
    await asyncio.sleep(1.2)
    assert await shown() == "Bearer sk-second"


async def test_an_upstream_whose_certificate_nobody_vouches_for_is_never_ready(
    start_router: StartRouter, upstream: SecureSpeaker, key_file: Path
) -> None:
    router = await start_router([upstream], ready=0, pools=[external(upstream, key_file)])
    async with asyncio.timeout(10):
        while "no TLS" not in (await router.admin.get("/workers")).text:  # noqa: ASYNC110 - as the next probe shows
            await asyncio.sleep(0.02)
    assert (await router.chat(model="reviewer")).status_code == 503
    assert upstream.received == []


async def test_a_stream_of_an_external_upstream_that_breaks_is_never_gone_on_with(
    start_router: StartRouter, upstream: SecureSpeaker, trust: ssl.SSLContext, key_file: Path
) -> None:
    upstream.die_at = 3
    router = await start_router([upstream], worker_tls=trust, pools=[external(upstream, key_file)])
    reader, _ = await router.raw(post({**GOOD, "model": "reviewer", "stream": True}))
    _, stream, is_ended = await read_stream(reader)
    assert (is_ended, texts_of(CHAT, stream)) == (False, "one two ")
    assert b'"code":"worker_error"' in stream
    assert len(upstream.received) == 1


@pytest.mark.parametrize(
    ("engine", "tier", "priority"),
    [
        ("vllm", "priority", 0),
        ("vllm", "standard", 10),
        ("vllm", "batch", 20),
        ("sglang", "priority", 0),
        ("sglang", "standard", -10),
        ("sglang", "batch", -20),
    ],
)
async def test_other_engines_are_told_the_priority_in_the_body_in_place_of_the_clients_own(
    start_router: StartRouter, speaker: Speaker, engine: str, tier: str, priority: int
) -> None:
    router = await start_router([speaker], pool={"engine": engine})
    head, tail = b'{"model":"mock","messages":[{"role":"user","content":"hi"}],', b' "x":1.50}'
    wished = b'"service_tier":"%b",' % tier.encode()
    told = b"%d" % priority
    for own in (b'"priority" : -99,', b""):
        answer = await router.http.post(CHAT, content=head + own + wished + tail)
        assert answer.status_code == 200
    first, second = speaker.received
    assert first.body == head + b'"priority" : ' + told + b"," + wished + tail
    assert second.body == b'{"priority":' + told + b"," + head[1:] + wished + tail
    assert "x-m3-priority" not in first.headers


async def test_a_clients_word_for_its_priority_never_reaches_a_worker_of_ours_as_a_header(
    start_router: StartRouter, speaker: Speaker
) -> None:
    router = await start_router([speaker])
    await router.http.post(CHAT, json=GOOD, headers={"x-m3-priority": "-99", "x-m3-attempt": "mine"})
    assert speaker.received[0].headers["x-m3-priority"] == "10"
    assert speaker.received[0].headers["x-m3-attempt"] != "mine"


def canary(speakers: list[Speaker], *weights: int) -> dict[str, Any]:
    pools = [
        {"name": one.name, "models": ["mock"], "workers": [one.url], "upstreamModel": f"mock-{one.name}"}
        for one in speakers
    ]
    shares = [{"pool": one.name, "weight": weight} for one, weight in zip(speakers, weights, strict=True)]
    return {"pools": pools, "routes": [{"model": "mock", "pools": shares}]}


async def test_a_canary_gets_its_weight_and_a_conversation_stays_where_it_began(
    start_router: StartRouter, speakers: list[Speaker]
) -> None:
    router = await start_router(speakers, **canary(speakers, 3, 1))
    text = "word " * 400  # more than one block, so that the chain of a conversation has a beginning

    async def ask(number: int, *more: dict[str, str]) -> str:
        turns = [{"role": "user", "content": f"{number} {text}"}, *more]
        return (await router.http.post(CHAT, json={"model": "mock", "messages": turns})).headers["x-m3-worker"]

    began = [await ask(number) for number in range(60)]
    for number in range(0, 60, 10):
        more = ({"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And?"})
        assert await ask(number, *more) == began[number]
    share = sum(name == f"127.0.0.1:{speakers[1].port}" for name in began) / 60
    # 15 of 60 are expected; outside of 5 to 27 a fair draw lies once in a thousand times, and the chain is no draw.
    assert 5 / 60 <= share <= 27 / 60
    for one in speakers:
        assert {got.json["model"] for got in one.received} == {f"mock-{one.name}"}
    assert {bill["pool"] for bill in await router.ledger()} == {"a", "b"}


async def test_a_pool_with_no_weight_gets_nothing(start_router: StartRouter, speakers: list[Speaker]) -> None:
    router = await start_router(speakers, **canary(speakers, 0, 1))
    for number in range(5):
        await router.chat(messages=[{"role": "user", "content": str(number)}])
    assert [len(one.received) for one in speakers] == [0, 5]


async def preferred(router: Running, speakers: list[Speaker]) -> list[Speaker]:
    name = (await router.chat()).headers["x-m3-worker"]
    for one in speakers:
        one.received.clear()
    return sorted(speakers, key=lambda one: f"127.0.0.1:{one.port}" != name)


async def test_a_breaker_opens_after_failures_and_one_request_finds_out_when_it_may_close(
    start_router: StartRouter, speakers: list[Speaker]
) -> None:
    router = await start_router(speakers)
    first, second = await preferred(router, speakers)
    first.die_at = 0
    for _ in range(5):
        assert (await router.chat()).status_code == 200
    # Three failures in a row open it: the fourth and fifth request are not sent there. The first one went there twice,
    # since a connection that was kept alive may only have been closed as it was written to.
    assert (len(first.received), len(second.received)) == (4, 5)
    worker = next(one for one in router.pool().workers if one.name.endswith(f":{first.port}"))
    assert worker.breaker.state == "open"
    first.die_at = None
    first.gate = asyncio.Event()
    await asyncio.sleep(1.1)  # the first back-off
    finding = asyncio.create_task(router.chat())
    await eventually(lambda: len(first.received) == 5, "one request finds out")
    assert worker.breaker.state == "half_open"
    assert (await router.chat()).headers["x-m3-worker"] == f"127.0.0.1:{second.port}"
    assert len(first.received) == 5
    first.gate.set()
    assert (await finding).status_code == 200
    assert worker.breaker.state == "closed"
    assert (await router.chat()).headers["x-m3-worker"] == f"127.0.0.1:{first.port}"


async def test_while_every_breaker_is_open_requests_are_refused_with_a_time_to_come_back(
    start_router: StartRouter, speaker: Speaker
) -> None:
    speaker.die_at = 0
    router = await start_router([speaker])
    assert [(await router.chat()).status_code for _ in range(3)] == [502] * 3
    answer = await router.chat()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert len(speaker.received) == 3
    speaker.die_at = None
    await eventually_answers(router.chat, 200)


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_a_worker_without_room_is_passed_over(
    start_router: StartRouter, speakers: list[Speaker], status: int
) -> None:
    router = await start_router(speakers)
    first, second = await preferred(router, speakers)
    first.status = status
    answer = await router.chat()
    assert answer.status_code == 200
    assert answer.headers["x-m3-worker"] == f"127.0.0.1:{second.port}"
    assert first.received[0].body == second.received[0].body


@pytest.mark.parametrize(
    ("incoming", "is_kept"),
    [("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True), (None, False)],
)
async def test_a_trace_goes_on_to_the_worker(
    start_router: StartRouter, speaker: Speaker, incoming: str | None, is_kept: bool
) -> None:
    # Nobody listens at the endpoint: spans are dropped, requests are not.
    router = await start_router([speaker], tracing={"endpoint": "http://127.0.0.1:9", "sampleShare": 1.0})
    headers = {} if incoming is None else {"traceparent": incoming}
    await router.http.post(CHAT, json=GOOD, headers=headers)
    version, trace, span, flags = speaker.received[0].headers["traceparent"].split("-")
    assert (version, len(trace), len(span), flags) == ("00", 32, 16, "01")
    assert (trace == "0af7651916cd43dd8448eb211c80319c") == is_kept
    assert span != "b7ad6b7169203331"
    (bill,) = await router.ledger()
    assert (bill["trace_id"], bill["span_id"]) == (trace, span)
    assert bill["parent_span_id"] == ("b7ad6b7169203331" if is_kept else "")


GARBAGE: dict[str, bytes] = {
    "no http": b"nonsense\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\ncontent-ty",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    "a chunk that is none": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("what", list(GARBAGE))
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_garbage_in_place_of_an_answer_is_502_in_the_dialect(
    start_router: StartRouter, speaker: Speaker, path: str, what: str
) -> None:
    speaker.raw_answer = GARBAGE[what]
    router = await start_router([speaker])
    answer = await router.http.post(path, json={**GOOD, "max_tokens": 9})
    assert answer.status_code == 502
    error = answer.json()["error"]
    assert error["type"] == ("api_error" if path == MESSAGES else "server_error")
    (bill,) = await router.ledger()
    assert (bill["outcome"], bill["cost_nanousd"]) == ("worker_error", 0)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


EVENT = chunk(b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"one "},"finish_reason":null}]}\n\n')
BROKEN: dict[str, bytes] = {
    "half an event": EVENT + chunk(b'data: {"id":"x","cho'),
    "no end": EVENT + b"0\r\n\r\n",
    "half an event and the end": EVENT + chunk(b'data: {"id":"x","cho') + b"0\r\n\r\n",
}


@pytest.mark.parametrize("what", list(BROKEN))
async def test_a_stream_that_breaks_in_any_way_ends_with_an_error_event(
    start_router: StartRouter, speaker: Speaker, what: str
) -> None:
    speaker.raw_answer = STREAM_HEAD + BROKEN[what]
    router = await start_router([speaker])
    reader, _ = await router.raw(post({**GOOD, "stream": True}))
    _, stream, is_ended = await read_stream(reader)
    assert not is_ended
    assert texts_of(CHAT, stream) == "one "
    *_, last, rest = stream.split(b"\n\n")
    assert rest == b""
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "worker_error"


async def test_half_an_event_of_a_worker_that_died_is_not_put_before_the_next_ones_first(
    start_router: StartRouter, speakers: list[Speaker]
) -> None:
    router = await start_router(speakers)
    first, second = await preferred(router, speakers)
    first.raw_answer = STREAM_HEAD + chunk(b'data: {"id":"x","cho')
    answer = await router.chat(stream=True)
    assert texts_of(CHAT, answer.content) == ANSWER
    assert answer.content.startswith(b'data: {"id":"%b-1"' % second.name.encode())


async def test_an_answer_that_stalls_between_its_parts_is_given_up(start_router: StartRouter, speaker: Speaker) -> None:
    speaker.gate, speaker.gate_at = asyncio.Event(), 3
    router = await start_router([speaker], limits={"idleSeconds": 0.3}, pool={"continuation": False})
    reader, _ = await router.raw(post({**GOOD, "stream": True}))
    _, stream, is_ended = await read_stream(reader)
    assert not is_ended
    assert b"sent nothing more for 0.3 s" in stream
    await asyncio.wait_for(speaker.aborted.wait(), 10)


async def test_a_body_over_the_limit_and_bodies_over_the_budget_are_refused_and_the_connection_goes_on(
    start_router: StartRouter, speaker: Speaker
) -> None:
    router = await start_router([speaker], limits={"bodyBytes": 2**20, "bufferedBytes": 2**20 + 100_000})
    speaker.gate = asyncio.Event()
    large = json.dumps({**GOOD, "x": "y" * 900_000}).encode()
    running = asyncio.create_task(router.http.post(CHAT, content=large))
    await eventually(lambda: len(speaker.asked) == 1, "one is held")  # after its tokens were counted
    too_much = await router.http.post(MESSAGES, content=large)
    assert too_much.status_code == 503
    assert too_much.json()["error"]["type"] == "overloaded_error"
    assert (await router.http.post(CHAT, content=b"x" * (2**20 + 1))).status_code == 413
    speaker.gate.set()
    assert (await running).status_code == 200
    assert speaker.asked[0].body == large
    assert (await router.http.post(CHAT, content=large)).status_code == 200
    assert router.router._connections.buffered_bytes == 0
