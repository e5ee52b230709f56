"""The lazy view of a body, and the splice of include_usage."""

import json

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from m3_router.bodies.dialects import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    MESSAGES,
    RESPONSES,
    TOKENIZE,
    Dialect,
)
from m3_router.bodies.request import RequestView
from m3_router.bodies.request import parse as parse_dialect
from m3_router.errors import Refusal


def parse(body: bytes) -> RequestView:
    return parse_dialect(COMPLETIONS, body)


def view_of(dialect: Dialect, **fields: object) -> RequestView:
    return parse_dialect(dialect, json.dumps({"model": "m", **fields}).encode())


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [(b"[]", 0), (b"[ ]", 0), (b"[7]", 1), (b"[[1,2],[3]]", 3), (b"[\n1 ,\n2]", 2), (b'"1,2"', None), (b'["1"]', None)],
)
def test_lists_of_token_ids(prompt: bytes, tokens: int | None) -> None:
    assert parse(b'{"model":"m","prompt":' + prompt + b"}").prompt_tokens == tokens
    assert parse_dialect(EMBEDDINGS, b'{"model":"m","input":' + prompt + b"}").prompt_tokens == tokens


@given(st.lists(st.integers(0, 200_000), max_size=50), st.sampled_from([None, 0, 2]))
def test_any_list_of_token_ids_is_counted_exactly(ids: list[int], indent: int | None) -> None:
    view = parse(json.dumps({"model": "m", "prompt": ids}, indent=indent).encode())
    assert view.prompt_tokens == len(ids)


@pytest.mark.parametrize(
    ("prompt", "more", "choices"),
    [
        ("a", {}, 1),
        ([1, 2], {"n": 3}, 3),
        (["a", "b, [c"], {}, 2),
        ([[1], [2, 3], [4]], {"n": 2}, 6),
        ("a", {"n": 2, "best_of": 5}, 5),
        ("a", {"best_of": None}, 1),
    ],
)
def test_answers_are_counted_over_prompts_and_candidates(prompt: object, more: dict[str, object], choices: int) -> None:
    assert view_of(COMPLETIONS, prompt=prompt, **more).choices == choices


@pytest.mark.parametrize(
    ("dialect", "fields", "limit"),
    [
        (CHAT, {"max_tokens": 3}, 3),
        (CHAT, {"max_completion_tokens": 4}, 4),
        (CHAT, {}, None),
        (RESPONSES, {"max_output_tokens": 5, "max_tokens": 3}, 5),
        (MESSAGES, {"max_tokens": 6}, 6),
        (EMBEDDINGS, {"max_tokens": 7}, 0),
        (TOKENIZE, {}, 0),
        (COUNT_TOKENS, {}, 0),
    ],
)
def test_each_dialect_has_its_limit_of_the_answer(
    dialect: Dialect, fields: dict[str, object], limit: int | None
) -> None:
    assert view_of(dialect, **fields).max_tokens == limit


@pytest.mark.parametrize(
    ("dialect", "is_stream", "is_spliced"),
    [
        (CHAT, True, True),
        (COMPLETIONS, True, True),
        (RESPONSES, True, False),
        (MESSAGES, True, False),
        (EMBEDDINGS, False, False),
        (TOKENIZE, False, False),
    ],
)
def test_usage_is_asked_for_only_where_a_stream_would_not_have_it(
    dialect: Dialect, is_stream: bool, is_spliced: bool
) -> None:
    body = b'{"model":"m","stream":true}'
    view = parse_dialect(dialect, body)
    assert (view.is_stream, view.is_usage_added, view.body is not body) == (is_stream, is_spliced, is_spliced)


def test_who_asks_for_the_cost_gets_the_usage_event_that_carries_it() -> None:
    view = view_of(CHAT, stream=True, usage={"include": True})
    assert view.include_cost
    assert not view.is_usage_added
    assert json.loads(view.body)["stream_options"] == {"include_usage": True}
    assert not view_of(CHAT, usage={"include": False}).include_cost
    assert not view_of(CHAT, usage=None).include_cost
    with pytest.raises(Refusal, match="usage: Expected"):
        view_of(CHAT, usage=7)


@pytest.mark.parametrize(
    ("dialect", "fields", "session"),
    [
        (CHAT, {"prompt_cache_key": "k"}, "k"),
        (RESPONSES, {"prompt_cache_key": "k", "conversation": "c"}, "k"),
        (RESPONSES, {"conversation": "c"}, "c"),
        (RESPONSES, {"conversation": {"id": "c"}}, "c"),
        (MESSAGES, {"metadata": {"user_id": "u"}}, "u"),
        (MESSAGES, {"metadata": None}, None),
        (MESSAGES, {"prompt_cache_key": "k"}, None),
        (CHAT, {"metadata": {"user_id": "u"}}, None),
        (CHAT, {"prompt_cache_key": ""}, None),
        (CHAT, {"prompt_cache_key": 7}, None),
        (CHAT, {}, None),
    ],
)
def test_what_belongs_together_by_the_client_s_word(
    dialect: Dialect, fields: dict[str, object], session: str | None
) -> None:
    assert view_of(dialect, **fields).session == session


INLINE = "data:image/png;base64," + "A" * 5000
LINK = "https://example.org/a.png"


def picture(dialect: Dialect, url: str) -> dict[str, object]:
    if dialect is CHAT:
        return {"type": "image_url", "image_url": {"url": url}}
    if dialect is RESPONSES:
        return {"type": "input_image", "image_url": url}
    kind, _, data = url.partition(";base64,")
    if not data:
        return {"type": "image", "source": {"type": "url", "url": url}}
    return {"type": "image", "source": {"type": "base64", "media_type": kind[5:], "data": data}}


@pytest.mark.parametrize("dialect", [CHAT, RESPONSES, MESSAGES], ids=repr)
def test_pictures_are_counted_and_those_that_stand_in_the_body_are_no_text(dialect: Dialect) -> None:
    text = {"type": "text", "text": f'an "image_url" {INLINE}'}
    name = "input" if dialect is RESPONSES else "messages"

    def of(*parts: object) -> RequestView:
        turns = [{"role": "user", "content": "hi"}, {"role": "user", "content": [text, *parts]}]
        return view_of(dialect, **{name: turns})

    none = of()
    assert (none.media_items, none.text_bytes) == (0, len(none.body))
    two = of(picture(dialect, INLINE), picture(dialect, LINK))
    assert two.media_items == 2
    assert len(two.body) - two.text_bytes == pytest.approx(5000, abs=100)


def test_pictures_in_tool_results_count_too() -> None:
    block = {"type": "tool_result", "tool_use_id": "t", "content": [picture(MESSAGES, INLINE)]}
    assert view_of(MESSAGES, messages=[{"role": "user", "content": [block]}]).media_items == 1
    item = {"type": "function_call_output", "call_id": "c", "output": [picture(RESPONSES, LINK)]}
    assert view_of(RESPONSES, input=[item]).media_items == 1


@pytest.mark.parametrize("content", [[7], {"a": 1}, 5, None, [{"type": 7}]])
def test_content_that_cannot_be_read_is_left_to_the_worker(content: object) -> None:
    assert view_of(CHAT, messages=[{"role": "user", "content": content}]).media_items == 0
    assert view_of(RESPONSES, input=[{"role": "user", "content": content}]).media_items == 0


def test_messages_are_read_in_passing_and_stay_as_they_were_written() -> None:
    body = (
        b'{"model":"m","messages":[{"role":"user","content": "caf\\u00e9" , "x":1},{"role":"tool","tool_call_id":"t"}]}'
    )
    first, second = parse_dialect(CHAT, body).fields.messages or ()
    assert (first.role, bytes(first.content)) == ("user", b'"caf\\u00e9"')
    assert (second.role, bytes(second.tool_call_id), bytes(second.content)) == ("tool", b'"t"', b"")


@pytest.mark.parametrize(
    ("body", "spliced"),
    [
        (b'{"model":"m","stream":true}', b'{"stream_options":{"include_usage":true},"model":"m","stream":true}'),
        (
            b' { "model":"m", "stream":true }',
            b' {"stream_options":{"include_usage":true}, "model":"m", "stream":true }',
        ),
        (
            b'{"model":"m","stream":true,"stream_options":null}',
            b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}',
        ),
        (
            b'{"a":{"stream_options":{}},"stream_options" : {},"model":"m","stream":true}',
            b'{"a":{"stream_options":{}},"stream_options" : {"include_usage":true},"model":"m","stream":true}',
        ),
        (
            b'{"stream_options":{"include_usage":false,"x":1.50},"model":"m","stream":true}',
            b'{"stream_options":{"include_usage":true,"x":1.50},"model":"m","stream":true}',
        ),
    ],
)
def test_include_usage_is_spliced_in_and_all_other_bytes_stay(body: bytes, spliced: bytes) -> None:
    view = parse(body)
    assert (view.body, view.is_usage_added) == (spliced, True)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}',
        b'{"model":"m"}',
        b'{"model":"m","stream":false}',
    ],
)
def test_a_body_that_needs_no_splice_is_the_same_object(body: bytes) -> None:
    view = parse(body)
    assert view.body is body
    assert not view.is_usage_added


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["stream_options", "a", '"']) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(JSON, st.none() | st.fixed_dictionaries({}, optional={"include_usage": st.booleans(), "x": JSON}), st.booleans())
def test_after_the_splice_the_body_means_the_same_but_for_include_usage(
    other: object, options: object, first: bool
) -> None:
    fields = {"model": "m", "stream": True}
    fields = {"o": other, **fields} if first else {**fields, "o": other}
    if options is not None:
        fields["stream_options"] = options
    before = dict(fields)
    body = json.dumps(fields, ensure_ascii=False).encode()
    assume(body.count(b'stream_options"') <= 4)  # with more of them, it is refused
    after = json.loads(parse(body).body)
    assert after.pop("stream_options") == {**(before.pop("stream_options", None) or {}), "include_usage": True}
    assert after == before


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        (b"", None, "not valid JSON"),
        (b"\xff", None, "not valid JSON"),
        (b'{"a":' + b"[" * 200_000, None, "not valid JSON"),
        (b'{"model":"m"} x', None, "not valid JSON"),
        (b'"m"', None, "not an object"),
        (b"{}", "model", "required"),
        (b'{"model":"m","max_tokens":"a"}', "max_tokens", "Expected `int | null`, got `str`"),
        (b'{"model":"m","max_completion_tokens":-3}', "max_completion_tokens", "-3 is below 0"),
        (b'{"model":"m","n":0}', "n", "0 is not between 1 and 128"),
        (b'{"model":"m","messages":"hi"}', "messages", "Expected `array | null`, got `str`"),
        (b'{"model":"m","stream":true,"stream_options":[]}', "stream_options", "Expected `object | null`"),
        (b'{"model":"m","stream":true,"stream\\u005foptions":{}}', "stream_options", "plainly"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(body: bytes, param: str | None, part: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse(body)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert part in refused.value.message
    assert set(msgspec.json.decode(refused.value.body())["error"]) == {"message", "type", "param", "code"}


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers() -> None:
    view = parse(b'{"model":"m","prompt":[1,2,3]}')
    view.check_fits(3)
    with pytest.raises(Refusal, match="maximum context length is 2 tokens, but the prompt has 3"):
        view.check_fits(2)
