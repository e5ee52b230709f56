"""An answer cut off anywhere and gone on with: what the next worker is asked, and that the client sees one answer."""

import json
from typing import Any

import pytest

from m3_router.bodies.dialects import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, Dialect
from m3_router.bodies.request import RequestView, parse
from m3_router.bodies.transcript import Transcript
from m3_router.bodies.usage import EventStream
from m3_router.money.bill import Usage
from m3_router.relay.continuation import Resumption, resume

Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"
THOUGHT, ANSWER = ["Let ", "me ", "sée."], ["It ", "is ", '"4', '2".']
PROMPT_TOKENS = 10


def data(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def named(name: str, **fields: object) -> bytes:
    return f"event: {name}\n".encode() + data(type=name, **fields)


def chat_stream(identity: str, thought: list[str], answer: list[str], usage: Usage) -> list[bytes]:
    """The events of a worker's answer, each text one token."""

    def chunk(delta: Json, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return data(id=identity, object="chat.completion.chunk", created=len(identity), model="m", choices=[choice])

    told = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    return [
        chunk({"role": "assistant", "content": ""}),
        *[chunk({"reasoning_content": text}) for text in thought],
        *[chunk({"content": text}) for text in answer],
        chunk({}, "stop"),
        data(id=identity, object="chat.completion.chunk", created=len(identity), model="m", choices=[], usage=told),
        DONE,
    ]


def completion_stream(identity: str, thought: list[str], answer: list[str], usage: Usage) -> list[bytes]:
    def chunk(text: str, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
        return data(id=identity, object="text_completion", created=len(identity), model="m", choices=[choice])

    last = chat_stream(identity, thought, answer, usage)[-2].replace(b"chat.completion.chunk", b"text_completion")
    return [*[chunk(text) for text in answer], chunk("", "stop"), last, DONE]


def message_stream(identity: str, thought: list[str], answer: list[str], usage: Usage) -> list[bytes]:
    read = usage.cached_tokens
    told = {
        "input_tokens": usage.input_tokens - read,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": read,
    }
    message = {"id": identity, "role": "assistant", "content": [], "usage": {**told, "output_tokens": 0}}
    events = [named("message_start", message=message), named("ping")]
    index = 0
    for kind, texts in (("thinking", thought), ("text", answer)):
        if not texts:
            continue
        events.append(named("content_block_start", index=index, content_block={"type": kind, kind: ""}))
        events += [
            named("content_block_delta", index=index, delta={"type": f"{kind}_delta", kind: text}) for text in texts
        ]
        events.append(named("content_block_stop", index=index))
        index += 1
    told["output_tokens"] = usage.output_tokens
    return [*events, named("message_delta", delta={"stop_reason": "end_turn"}, usage=told), named("message_stop")]


STREAMS = {CHAT.name: chat_stream, COMPLETIONS.name: completion_stream, MESSAGES.name: message_stream}
BODIES: dict[str, Json] = {
    CHAT.name: {"messages": [{"role": "user", "content": "6 x 7?"}], "thinking": {"type": "enabled"}, "x": 1.5},
    COMPLETIONS.name: {"prompt": "6 x 7 = ", "x": 1.5},
    MESSAGES.name: {"messages": [{"role": "user", "content": "6 x 7?"}], "max_tokens": 50, "x": 1.5},
}


def view_of(dialect: Dialect, **more: object) -> RequestView:
    fields = {"model": "m", "stream": True, **BODIES[dialect.name], **more}
    return parse(dialect, json.dumps(fields).encode())


def noted(dialect: Dialect, events: list[bytes], max_bytes: int = 10_000) -> Transcript:
    transcript = Transcript(dialect, max_bytes)
    for event in events:
        transcript.note(event)
    return transcript


def begun_text(dialect: Dialect, body: Json) -> tuple[str, str]:
    """Reasoning and content with which a resumed body says that the turn begins."""
    if dialect is COMPLETIONS:
        return "", body["prompt"].removeprefix("6 x 7 = ")
    first, *rest = body["messages"]
    assert first == BODIES[dialect.name]["messages"][0]
    if not rest:
        assert "continue_final_message" not in body
        return "", ""
    (last,) = rest
    assert (last["role"], body["continue_final_message"]) == ("assistant", True)
    if dialect is CHAT:
        assert body["add_generation_prompt"] is False
        return last.get("reasoning_content", ""), last.get("content", "")
    blocks = {block["type"]: block.get("thinking", block.get("text")) for block in last["content"]}
    return blocks.get("thinking", ""), blocks.get("text", "")


def read(dialect: Dialect, events: bytes) -> tuple[str, str, set[str]]:
    """What a client makes of a stream: thinking, text, ids. Checks the order of Anthropic's blocks."""
    thought, answer, identities = "", "", set()
    open_block, next_block = None, 0
    for event in events.split(b"\n\n")[:-1]:
        value = json.loads(event.partition(b"data: ")[2]) if b"[DONE]" not in event else {}
        identity = value.get("id") or value.get("message", {}).get("id")
        if identity:
            identities.add(identity)
        for choice in value.get("choices", ()):
            delta = choice.get("delta", {})
            thought += delta.get("reasoning_content", "")
            answer += delta.get("content", "") + choice.get("text", "")
        match value.get("type"):
            case "content_block_start":
                assert (open_block, value["index"]) == (None, next_block)
                open_block, next_block = value["index"], next_block + 1
            case "content_block_delta":
                assert value["index"] == open_block
                thought += value["delta"].get("thinking", "")
                answer += value["delta"].get("text", "")
            case "content_block_stop":
                assert value["index"] == open_block
                open_block = None
            case "message_delta":
                assert open_block is None
    return thought, answer, identities


def rest_of(texts: list[str], sent: str) -> list[str]:
    """The tokens that are left of a text after those that were sent."""
    while sent:
        assert sent.startswith(texts[0])
        sent, texts = sent[len(texts[0]) :], texts[1:]
    return texts


CASES = [(CHAT, THOUGHT), (CHAT, []), (COMPLETIONS, []), (MESSAGES, THOUGHT), (MESSAGES, [])]


@pytest.mark.parametrize(("dialect", "thought"), CASES)
@pytest.mark.parametrize("cuts", [1, 2])
def test_wherever_an_answer_breaks_off_the_client_sees_one_answer_and_one_usage(
    dialect: Dialect, thought: list[str], cuts: int
) -> None:
    stream_of = STREAMS[dialect.name]
    output = len(thought) + len(ANSWER) + 1  # the last one ends the turn
    whole = stream_of("first", thought, ANSWER, Usage(PROMPT_TOKENS, 4, 0, output))
    view = view_of(dialect)
    last_text = max(place for place, event in enumerate(whole) if ANSWER[-1].encode()[1:3] in event)
    for cut in range(last_text + 2 if dialect is MESSAGES else last_text + 1):
        client = b"".join(whole[: cut + 1])
        begun = EventStream(dialect, is_usage_added=False, include_cost=False)
        begun.feed(client)
        transcript = noted(dialect, whole[: cut + 1])
        for attempt in range(cuts):
            resumption = resume(transcript, view, "native", PROMPT_TOKENS, begun.begun)
            assert isinstance(resumption, Resumption)
            thought_sent, answer_sent = begun_text(dialect, json.loads(resumption.body))
            assert (thought_sent, answer_sent) == read(dialect, client)[:2]
            left = rest_of(thought, thought_sent), rest_of(ANSWER, answer_sent)
            sent_tokens = output - 1 - len(left[0]) - len(left[1])
            second = stream_of("second", *left, Usage(PROMPT_TOKENS + sent_tokens, 4, 0, output - sent_tokens))
            scanner = EventStream(dialect, is_usage_added=False, include_cost=False)
            scanner.rewrite = resumption.rewrite
            if attempt + 1 < cuts:
                part = scanner.feed(b"".join(second[:4]))
                if any(b'"stop' in event for event in second[:4]):
                    break  # the second answer is as good as over: nothing to go on with
                transcript.note(part)
                client += part
        if attempt + 1 < cuts:
            continue
        client += scanner.feed(b"".join(second))
        thought_read, answer_read, identities = read(dialect, client)
        assert (thought_read, answer_read) == ("".join(thought), "".join(ANSWER))
        assert identities == {"first"}
        assert scanner.usage == Usage(PROMPT_TOKENS, 4, 0, output)
        assert scanner.is_complete
        assert client.count(b'"role":"assistant"') <= 1


def test_every_other_field_of_the_request_goes_on_as_it_was() -> None:
    for dialect in (CHAT, COMPLETIONS, MESSAGES):
        view = view_of(dialect, temperature=0.5)
        events = STREAMS[dialect.name]("first", [], ANSWER, Usage(1, 0, 0, 1))[:4]
        resumption = resume(noted(dialect, events), view, "native", None)
        assert resumption is not None
        body = json.loads(resumption.body)
        for name, value in json.loads(view.body).items():
            assert name in ("messages", "prompt", "max_tokens") or body[name] == value


def test_a_native_worker_is_told_what_prompt_and_answer_may_have_and_others_what_is_left() -> None:
    events = chat_stream("first", [], ANSWER, Usage(1, 0, 0, 1))[:3]  # two tokens

    def body(engine: str, input_tokens: int | None, **limits: int) -> Json:
        resumption = resume(noted(CHAT, events), view_of(CHAT, **limits), engine, input_tokens)
        assert resumption is not None
        found: Json = json.loads(resumption.body)
        return found

    native = body("native", 10, max_tokens=30)
    assert (native["max_tokens"], native["max_total_tokens"]) == (30, 40)
    assert body("native", None, max_tokens=30)["max_tokens"] == 28
    assert body("vllm", 10, max_completion_tokens=30)["max_completion_tokens"] == 28
    assert "max_total_tokens" not in body("native", 10)
    assert resume(noted(CHAT, events), view_of(CHAT, max_tokens=2), "native", 10) is None


def test_where_the_first_prompt_was_not_counted_each_event_is_a_token() -> None:
    events = chat_stream("first", [], ANSWER, Usage(1, 0, 0, 1))[:3]
    resumption = resume(noted(CHAT, events), view_of(CHAT), "vllm", None)
    assert resumption is not None
    assert resumption.merged(Usage(12, 11, 1, 5)) == Usage(10, 10, 0, 7)


CALL = data(id="c", choices=[{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "call"}]}}])
BEGUN = chat_stream("first", [], ANSWER, Usage(1, 0, 0, 1))[:3]
THINKING = chat_stream("first", THOUGHT, [], Usage(1, 0, 0, 1))[:3]
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("events", "more", "engine"),
    [
        ([*BEGUN, CALL], {}, "native"),
        (chat_stream("first", [], ANSWER, Usage(1, 0, 0, 1))[:-2], {}, "native"),  # it was finished
        (BEGUN, {"n": 2}, "native"),
        (BEGUN, {"logprobs": True}, "native"),
        (BEGUN, {"return_token_ids": True}, "native"),
        (BEGUN, {"min_tokens": 5}, "native"),
        (BEGUN, {"response_format": {"type": "json_object"}}, "native"),
        (BEGUN, {"structured_outputs": {"regex": "a"}}, "native"),
        (BEGUN, {"tools": [TOOL], "tool_choice": "required"}, "native"),
        (BEGUN, {"continue_final_message": True}, "native"),
        (BEGUN, {}, "external"),
        (THINKING, {}, "vllm"),
        ([*BEGUN, b"data: {half}\n\n"], {}, "native"),
    ],
)
def test_what_cannot_be_gone_on_with_is_not(events: list[bytes], more: Json, engine: str) -> None:
    assert resume(noted(CHAT, events), view_of(CHAT, **more), engine, PROMPT_TOKENS) is None


@pytest.mark.parametrize(
    "more",
    [
        {"n": 1, "logprobs": False, "min_tokens": 0, "response_format": {"type": "text"}, "tools": []},
        {"tools": [TOOL], "tool_choice": "auto"},
        {"continue_final_message": False},
    ],
)
def test_fields_that_bind_nothing_do_not_stand_in_the_way(more: Json) -> None:
    assert resume(noted(CHAT, BEGUN), view_of(CHAT, **more), "vllm", PROMPT_TOKENS) is not None


@pytest.mark.parametrize(
    ("dialect", "more"),
    [
        (COMPLETIONS, {"prompt": [1, 2]}),
        (COMPLETIONS, {"prompt": ["a", "b"]}),
        (COMPLETIONS, {"echo": True}),
        (COMPLETIONS, {"suffix": "x"}),
        (MESSAGES, {"thinking": {"type": "enabled", "display": "omitted"}}),
        (MESSAGES, {"output_config": {"format": {"type": "json_schema"}}}),
    ],
)
def test_what_cannot_be_gone_on_with_in_other_dialects(dialect: Dialect, more: Json) -> None:
    events = STREAMS[dialect.name]("first", [], ANSWER, Usage(1, 0, 0, 1))[:4]
    assert resume(noted(dialect, events), view_of(dialect), "native", 1) is not None
    assert resume(noted(dialect, events), view_of(dialect, **more), "native", 1) is None


def test_a_tool_call_of_anthropics_is_not_gone_on_with() -> None:
    block = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    start = message_stream("first", [], [], Usage(1, 0, 0, 1))[0]
    events = [start, named("content_block_start", index=0, content_block=block)]
    assert resume(noted(MESSAGES, events), view_of(MESSAGES), "native", 1) is None


@pytest.mark.parametrize("dialect", [RESPONSES, EMBEDDINGS], ids=repr)
def test_dialects_that_have_no_way_to_begin_a_turn_are_not_kept(dialect: Dialect) -> None:
    assert not noted(dialect, [data(type="response.created")]).is_resumable


def test_a_long_stream_costs_its_text_and_one_that_is_too_long_nothing() -> None:
    chunk = chat_stream("first", [], ["word "], Usage(1, 0, 0, 1))[1]
    transcript = noted(CHAT, [chunk] * 1000 + [b": keep-alive\n\n"] + [chunk] * 1000)
    transcript.read()
    assert (transcript.content, transcript.events, transcript.is_resumable) == ("word " * 2000, 2000, True)
    transcript = noted(CHAT, [chunk] * 2001)
    transcript.read()
    assert (transcript.content, transcript.is_resumable) == ("", False)


def test_events_of_any_form_are_read() -> None:
    chunk = chat_stream("first", [], ["a"], Usage(1, 0, 0, 1))[1]
    transcript = noted(CHAT, [chunk.replace(b"\n", b"\r\n"), chunk, chunk.replace(b"data: ", b"data:")])
    transcript.read()
    assert (transcript.content, transcript.id, transcript.created) == ("aaa", "first", 5)
