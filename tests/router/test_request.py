"""The lazy view of a body, and the splice of include_usage."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_router.errors import Refusal
from m3_router.request import MAX_OUTPUT_CHARGE_TOKENS, parse


def test_token_ids_are_counted_exactly_and_text_is_estimated() -> None:
    exact = parse(b'{"model":"m","prompt":[1, 2,3],"max_tokens":10}')
    assert (exact.input_tokens, exact.is_exact, exact.charge_tokens) == (3, True, 13)
    text = parse(json.dumps({"model": "m", "prompt": "x" * 4000}).encode())
    assert not text.is_exact
    assert 1000 <= text.input_tokens <= 1020
    assert text.charge_tokens >= 2000 + MAX_OUTPUT_CHARGE_TOKENS


@pytest.mark.parametrize(
    ("prompt", "tokens"), [(b"[]", 0), (b"[ ]", 0), (b"[7]", 1), (b"[[1,2],[3]]", 3), (b"[\n1 ,\n2]", 2)]
)
def test_lists_of_token_ids(prompt: bytes, tokens: int) -> None:
    assert parse(b'{"model":"m","prompt":' + prompt + b"}").input_tokens == tokens


@given(st.lists(st.integers(0, 200_000), max_size=50), st.sampled_from([None, 0, 2]))
def test_any_list_of_token_ids_is_counted_exactly(ids: list[int], indent: int | None) -> None:
    view = parse(json.dumps({"model": "m", "prompt": ids}, indent=indent).encode())
    assert (view.input_tokens, view.is_exact) == (len(ids), True)


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
    after = json.loads(parse(json.dumps(fields, ensure_ascii=False).encode()).body)
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
        (b'{"model":"m","max_completion_tokens":-3}', "max_tokens", "-3 is below 0"),
        (b'{"model":"m","n":0}', "n", "0 is not between 1 and 128"),
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
