"""Streams of our own worker, cut off after any event and gone on with: the client sees the undisturbed answer."""

import json
import re
from collections.abc import Iterator
from zlib import crc32

import httpx
import pytest

from m3_fakes.worker import CLOSING, OPENING, FakeWorker, running_worker
from m3_router.bodies.dialects import CHAT, COMPLETIONS, MESSAGES, Dialect
from m3_router.bodies.request import RequestView, parse
from m3_router.bodies.transcript import Transcript
from m3_router.bodies.usage import EventStream
from m3_router.money.bill import Usage
from m3_router.relay.continuation import resume
from m3_worker.scheduling.batch import Batch

TOKENS = 14


@pytest.fixture(scope="module")
def worker() -> Iterator[FakeWorker]:
    """A worker whose next token is a letter made of all the tokens before it, after five the end of its thinking.

    It is as good as two of them: nothing is kept of an answer.
    """
    with running_worker() as running:

        def say(batch: Batch) -> None:
            for chunk in batch.chunks:
                context = list(chunk.sequence.token_ids)
                is_thought = OPENING in context and context.index(OPENING) == len(context) - 6
                running.runner.reply = [CLOSING if is_thought else 97 + crc32(repr(context).encode()) % 26]

        running.runner.before_step = say
        yield running


@pytest.fixture(scope="module")
def client(worker: FakeWorker) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=worker.url, timeout=20) as client:
        yield client


def request_of(dialect: Dialect, text: str) -> RequestView:
    asked: dict[str, object] = {"prompt": text}
    if dialect is not COMPLETIONS:
        asked = {"messages": [{"role": "user", "content": text}], "thinking": {"type": "enabled"}}
    return parse(dialect, json.dumps({"model": "fake", "stream": True, "max_tokens": TOKENS, **asked}).encode())


def answer(client: httpx.Client, dialect: Dialect, body: bytes) -> tuple[list[bytes], int]:
    """The events of a greedy answer, and the tokens of its prompt."""
    response = client.post(dialect.path.decode(), content=body)
    assert response.status_code == 200, response.text
    events = [one for event in response.content.split(b"\n\n")[:-1] for one in one_letter_each(event + b"\n\n")]
    return events, int(response.headers["x-m3-input-tokens"])


def one_letter_each(event: bytes) -> list[bytes]:
    """An event as it would have been, had each of its tokens been sent at once."""
    text = re.search(rb'"(?:reasoning_content|thinking|content|text)":"([a-z]+)"', event)
    if text is None:
        return [event]
    before, after = event[: text.start(1)], event[text.end(1) :]
    *letters, last = [bytes([letter]) for letter in text[1]]
    unfinished = after.replace(b'"finish_reason":"length"', b'"finish_reason":null')
    return [*[before + letter + unfinished for letter in letters], before + last + after]


def told(events: bytes) -> list[tuple[str, str]]:
    """Which kinds of text a client was told, each as a whole, in their order."""
    texts: list[tuple[str, str]] = []
    for event in events.split(b"\n\n")[:-1]:
        data = event.partition(b"data: ")[2]
        value = {} if data == b"[DONE]" else json.loads(data)
        choices = [choice.get("delta") or {"text": choice.get("text", "")} for choice in value.get("choices", ())]
        for part in (value.get("delta") or {}, *choices):
            for kind in ("reasoning_content", "thinking", "content", "text"):
                if part.get(kind):
                    before = texts.pop()[1] if texts and texts[-1][0] == kind else ""
                    texts.append((kind, before + part[kind]))
    return texts


@pytest.mark.parametrize("text", ["go on", "and then"])
@pytest.mark.parametrize("dialect", [CHAT, COMPLETIONS, MESSAGES], ids=repr)
def test_the_client_sees_the_undisturbed_answer_and_its_usage(
    client: httpx.Client, dialect: Dialect, text: str
) -> None:
    view = request_of(dialect, text)
    whole, input_tokens = answer(client, dialect, view.body)
    undisturbed = EventStream(dialect, is_usage_added=False, include_cost=False)
    expected = told(b"".join([undisturbed.feed(event) for event in whole]))
    assert undisturbed.usage is not None
    assert undisturbed.usage.output_tokens == TOKENS
    assert len(expected) == (1 if dialect is COMPLETIONS else 2)
    last_text = max(place for place in range(len(whole)) if told(b"".join(whole[: place + 1])) != expected)
    for cut in range(1, last_text + 2):
        transcript = Transcript(dialect, max_bytes=10_000)
        first = EventStream(dialect, is_usage_added=False, include_cost=False)
        seen = b"".join([first.feed(event) for event in whole[:cut]])
        transcript.note(seen)
        resumption = resume(transcript, view, "native", input_tokens, first.begun)
        assert resumption is not None
        second = EventStream(dialect, is_usage_added=False, include_cost=False)
        second.rewrite = resumption.rewrite
        seen += b"".join([second.feed(event) for event in answer(client, dialect, resumption.body)[0]])
        assert told(seen) == expected
        assert second.is_complete
        assert second.usage is not None
        assert second.usage == Usage(input_tokens, second.usage.cached_tokens, 0, TOKENS)
