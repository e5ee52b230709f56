"""What `m3 chat` makes of an endpoint's answers."""

import json
from collections.abc import Iterator

import httpx
import pytest

from m3_operator.chat import ChatError, ChatRequest, first_model, for_terminal, refusal, stream_chat, stream_text


def chunk(content: str | None) -> str:
    return f"data: {json.dumps({'choices': [{'delta': {'content': content}}]})}"


def answer(status: int, **kwargs: object) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "http://m3/v1/models"), **kwargs)  # type: ignore[arg-type]


def test_the_text_of_a_stream_is_that_of_its_deltas() -> None:
    lines = [": comment", chunk(None), chunk("Hel"), "", chunk("lo"), 'data: {"choices":[],"usage":{}}', "data: [DONE]"]

    assert list(stream_text(iter(lines))) == ["Hel", "lo"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([chunk("Hel")], "the stream ended before the answer was complete"),
        ([chunk("Hel"), 'data: {"error":{"message":"worker lost"}}'], "the stream ended with an error: worker lost"),
        (["data: {"], "a line that is not a JSON object"),
    ],
)
def test_a_stream_that_does_not_end_well_is_an_error(lines: list[str], message: str) -> None:
    with pytest.raises(ChatError, match=message):
        list(stream_text(iter(lines)))


def test_a_models_text_cannot_steer_a_terminal() -> None:
    assert for_terminal("a\x1b[2J\x07b\tc\r\nd é\x9b") == "a\ufffd[2J\ufffdb\tc\ufffd\nd é\ufffd"


def test_a_refusal_is_one_line_with_status_and_reason_and_says_what_a_missing_key_needs() -> None:
    unauthorized = answer(401, json={"error": {"message": "unknown API key"}})

    assert refusal(unauthorized) == ("http://m3/v1/models answered 401: unknown API key; give --key or set M3_API_KEY")
    assert refusal(answer(502, text="bad\n")) == "http://m3/v1/models answered 502: bad"
    assert refusal(answer(503)) == "http://m3/v1/models answered 503: Service Unavailable"


def test_an_endpoint_without_a_model_says_how_to_name_one() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"data": []}))

    with httpx.Client(transport=transport, base_url="http://m3") as client, pytest.raises(ChatError, match="--model"):
        first_model(client)


@pytest.fixture
def unused_url() -> Iterator[str]:
    import socket

    with socket.socket() as held:  # bound and not listening: connecting is refused
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def test_nobody_at_the_address_is_one_line(unused_url: str) -> None:
    with pytest.raises(ChatError, match=f"no answer from {unused_url}: "):
        list(stream_chat(ChatRequest(url=f"{unused_url}/v1", text="Hello")))
    with pytest.raises(ChatError, match="no answer from ftp://x: "):
        list(stream_chat(ChatRequest(url="ftp://x", text="Hello")))
