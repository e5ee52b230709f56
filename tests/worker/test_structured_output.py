"""Structured output: every finished answer of an untrained model validates, sampled directly and over HTTP."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3_fakes.http import sse_events
from m3_fakes.noise import NoiseRunner
from m3_fakes.worker import (
    CONTEXT_TOKENS,
    END_OF_TURN,
    MAX_BODY_BYTES,
    PAGE_TOKENS,
    byte_tokenizer,
    fake_model,
    serving,
)
from m3_routed import reached
from m3_worker.engine import Engine
from m3_worker.grammar import Grammars, GrammarSpec
from m3_worker.sampling import sample
from m3_worker.scheduling.pages import Pages
from m3_worker.scheduling.request import FinishReason, Request, SamplingParameters, Sequence
from m3_worker.scheduling.scheduler import Scheduler, SchedulerLimits
from m3_worker.serving import WorkerState

pytestmark = pytest.mark.either_way  # what is sampled directly goes no way

VOCABULARY = 259
TOKENIZER = byte_tokenizer()
GRAMMARS = Grammars(TOKENIZER, VOCABULARY, {END_OF_TURN})
FAVOURED = {END_OF_TURN: 6.0, ord('"'): 6.0, ord("}"): 5.0, ord("]"): 5.0, ord(":"): 3.0, ord(","): 1.0}
NAMES = st.sampled_from(["a", "name", "größe", 'quote"d', "back\\slash", "<t>", ""])


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    """Schemas of the kinds that are in use, nested."""
    small = st.integers(0, 3)
    values = st.none() | st.booleans() | st.integers(-99, 99) | NAMES
    leaves = st.one_of(
        st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": "number"}, {"type": "integer"}]),
        st.builds(
            lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more}, st.integers(-50, 50), small
        ),
        st.builds(lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more}, small, small),
        st.sampled_from(["^[a-f]{2,4}$", "^(yes|no)$", "[0-9]"]).map(lambda one: {"type": "string", "pattern": one}),
        st.sampled_from(["date", "uuid", "ipv4"]).map(lambda one: {"type": "string", "format": one}),
        st.lists(values, min_size=1, max_size=4, unique_by=repr).map(lambda one: {"enum": one}),
        values.map(lambda one: {"const": one}),
    )

    def nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        return st.one_of(
            st.builds(
                lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
                inner,
                small,
                small,
            ),
            st.lists(inner, min_size=1, max_size=3).map(lambda some: {"anyOf": some}),
            st.builds(with_properties, st.dictionaries(NAMES, inner, max_size=3), st.booleans(), st.booleans()),
        )

    return st.recursive(leaves, nested, max_leaves=6)


def with_properties(properties: dict[str, Any], are_required: bool, is_closed: bool) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if are_required:
        schema["required"] = list(properties)
    if is_closed:
        schema["additionalProperties"] = False
    return schema


def answers(specs: list[GrammarSpec], noise: NoiseRunner, max_tokens: int = 120) -> list[tuple[str, FinishReason]]:
    """What comes of each, side by side: its text without the end, and why it ended."""
    stops = frozenset({END_OF_TURN})
    sequences = []
    for spec in specs:
        wanted = SamplingParameters(max_tokens, stop_token_ids=stops, grammar=GRAMMARS.compile(spec))
        sequences.append(Sequence(Request("a", [1], wanted)))
    reasons: dict[int, FinishReason] = {}
    while len(reasons) < len(sequences):
        rows = [row for row in range(len(sequences)) if row not in reasons]
        for row, token in zip(rows, sample(noise.logits(len(rows)), [sequences[row] for row in rows]), strict=True):
            assert token.failure is None
            reason = sequences[row].append(token.token_id)
            if reason is not None:
                reasons[row] = reason
    return [(TOKENIZER.decode(one.token_ids[1:]), reasons[row]) for row, one in enumerate(sequences)]


def test_every_finished_answer_to_a_random_schema_validates() -> None:
    tried, finished = 0, 0

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
    @given(st.lists(schemas(), min_size=10, max_size=10), st.integers(0, 2**32))
    def check(ten: list[dict[str, Any]], seed: int) -> None:
        nonlocal tried, finished
        specs = [GrammarSpec("json_schema", json.dumps(schema)) for schema in ten]
        for schema, (text, reason) in zip(ten, answers(specs, NoiseRunner(VOCABULARY, seed, FAVOURED)), strict=True):
            tried += 1
            if reason is FinishReason.STOP:
                finished += 1
                checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
                jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(text))

    check()
    assert tried >= 200
    assert finished > tried * 0.7


@pytest.mark.parametrize("expression", ["[a-f]{3}-[0-9]+x", "(ja|nein|vielleicht)!?", 'é{2,5}(\\\\|")'])
def test_every_finished_answer_to_an_expression_matches_it(expression: str) -> None:
    noise = NoiseRunner(VOCABULARY, 5, {END_OF_TURN: 3.0})
    for text, reason in answers([GrammarSpec("regex", expression)] * 10, noise):
        assert reason is FinishReason.STOP
        assert re.fullmatch(expression, text)


@pytest.fixture(scope="module")
def untrained(way: str) -> Iterator[httpx.Client]:
    with (
        reached(way, noisy_worker, "fake", context_tokens=CONTEXT_TOKENS) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


@contextmanager
def noisy_worker() -> Iterator[str]:
    """A worker with the real sampling over noise; its context is 256 tokens."""
    model, _ = fake_model()
    scheduler = Scheduler(SchedulerLimits(8, 32), Pages(256, PAGE_TOKENS))
    engine = Engine(scheduler, NoiseRunner(VOCABULARY, 3, FAVOURED), max_waiting=8)
    state = WorkerState(MAX_BODY_BYTES, replace(model, engine=engine))
    with serving(state, engine) as port:
        yield f"http://127.0.0.1:{port}"


def complete(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"model": "fake", "prompt": "x", "max_tokens": 200, "temperature": 1, **fields}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}


@pytest.mark.parametrize("wanted", [{"response_format": FORMAT}, {"structured_outputs": {"json": PERSON}}])
def test_a_schema_is_enforced_over_http_in_each_of_several_answers(
    untrained: httpx.Client, wanted: dict[str, Any]
) -> None:
    for choice in complete(untrained, n=4, **wanted)["choices"]:
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["text"]), PERSON)
        assert list(json.loads(choice["text"])) == ["name", "age"]


def test_a_streamed_answer_is_bound_too(untrained: httpx.Client) -> None:
    body = {"model": "fake", "prompt": "x", "max_tokens": 200, "response_format": FORMAT, "stream": True}
    events = sse_events(untrained.post("/v1/completions", json=body))
    jsonschema.validate(json.loads("".join(event["choices"][0]["text"] for event in events)), PERSON)


@pytest.mark.parametrize(
    ("wanted", "form"),
    [
        ({"regex": "[0-9]{3}"}, "[0-9]{3}"),
        ({"choice": ["yes", 'a "quoted" one', "größer"]}, 'yes|a "quoted" one|größer'),
        ({"grammar": 'start: "<" /[a-c]+/ ">"'}, "<[a-c]+>"),
        ({"json": json.dumps({"type": "integer", "minimum": 5, "maximum": 17})}, "5|6|7|8|9|1[0-7]"),
    ],
)
def test_each_of_vllm_s_structured_outputs_is_enforced(
    untrained: httpx.Client, wanted: dict[str, Any], form: str
) -> None:
    for choice in complete(untrained, n=3, structured_outputs=wanted, max_tokens=100)["choices"]:
        assert choice["finish_reason"] == "stop"
        assert re.fullmatch(form, choice["text"])


@pytest.mark.parametrize(
    "wanted", [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}]
)
def test_an_answer_that_is_cut_off_says_so_and_another_is_any_object(
    untrained: httpx.Client, wanted: dict[str, Any]
) -> None:
    for choice in complete(untrained, n=4, **wanted)["choices"]:
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["text"]), dict)
        assert choice["text"].lstrip().startswith("{")
    (cut,) = complete(untrained, max_tokens=3, response_format=FORMAT)["choices"]
    assert cut["finish_reason"] == "length"


def test_any_text_may_come_if_nothing_is_asked_for(untrained: httpx.Client) -> None:
    assert complete(untrained, response_format={"type": "text"}, max_tokens=1)["choices"]


MANY = {"type": "object", "properties": {f"p{number}": {"type": "null"} for number in range(600)}}
OUTGROWN = {"type": "object", "properties": {"a": MANY}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("wanted", "param", "message"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "wrong"}}}},
            "response_format",
            "response_format cannot be enforced: Invalid type: wrong",
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format",
            "json_schema is required with type json_schema",
        ),
        (
            {"response_format": {"type": "xml"}},
            "response_format.type",
            "must be 'text', 'json_object' or 'json_schema'",
        ),
        ({"structured_outputs": {}}, "structured_outputs", "must have exactly one of json, regex"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs", "must have exactly one of"),
        ({"structured_outputs": {"regex": "(("}}, "structured_outputs", "unclosed group"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "not a known field"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
            "response_format and structured_outputs both say",
        ),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos", "has to end where it is complete"),
        ({"structured_outputs": {"json": OUTGROWN}, "temperature": 0}, None, "the answer outgrew its grammar"),
    ],
)
def test_what_cannot_be_enforced_is_a_400_with_the_reason(
    untrained: httpx.Client, wanted: dict[str, Any], param: str | None, message: str
) -> None:
    response = untrained.post("/v1/completions", json={"model": "fake", "prompt": "x", **wanted})
    assert response.status_code == 400
    error = response.json()["error"]
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert error["param"] == param


def test_a_stream_whose_grammar_is_outgrown_ends_with_an_error_event(untrained: httpx.Client) -> None:
    body = {"model": "fake", "prompt": "x", "structured_outputs": {"json": OUTGROWN}, "stream": True}
    response = untrained.post("/v1/completions", json=body)
    assert "the answer outgrew its grammar" in response.text
    assert "[DONE]" not in response.text
