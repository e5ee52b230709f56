"""Enforced tool calls: whatever a model that knows nothing writes under the grammar is a call that validates."""

import json
from random import Random
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_worker.byte_vocabulary import BYTES, M3_TOKENS, byte_level_tokenizer
from m3_worker.chat.conversation import ChatError, ResponseFormat, Tool, ToolChoice
from m3_worker.chat.events import Content, ToolCallArguments, ToolCallEnd, ToolCallStart
from m3_worker.chat.tool_grammar import needs_grammar, tool_grammar
from m3_worker.chat.turn import TurnParser
from m3_worker.grammar import GrammarError, Grammars, GrammarSpec, masks
from m3_worker.tokenizer import Tokenizer

NS = "]<]minimax[>["
TOKENIZER = Tokenizer(byte_level_tokenizer(M3_TOKENS))
VOCABULARY = BYTES + len(M3_TOKENS)
END = TOKENIZER.id_of("[e~[") or 0
TAG = TOKENIZER.id_of(NS) or 0
GRAMMARS = Grammars(TOKENIZER, VOCABULARY, [END])
REQUIRED = ToolChoice("required")
PLAIN = Tool("f", parameters={"type": "object", "properties": {"a": {"type": "string"}}})
MAX_TOKENS = 3000


def schema_of(required: bool = True, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties) if required else []}


def write(text: str, seed: int = 0) -> str:
    """What a model that chooses evenly writes under a grammar; it likes tags, and what patterns end with."""
    random, written = Random(seed), []
    matcher = GRAMMARS.compile(GrammarSpec("lark", text)).matcher()
    while True:
        (mask,) = masks([matcher])
        assert matcher.failure is None
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")[:VOCABULARY]).tolist()
        favourites = [token for token in (END, TAG) if token in allowed] or [
            token for token in b"zx/05" if token in allowed
        ]
        token = random.choice(favourites if favourites and random.random() < 0.4 else allowed)
        assert matcher.accept(token)
        if token == END:
            return TOKENIZER.decode(written)
        written.append(token)
        assert len(written) < MAX_TOKENS, TOKENIZER.decode(written)


def accepts(text: str, answer: str) -> bool:
    """Whether a grammar allows an answer, to its end."""
    matcher = GRAMMARS.compile(GrammarSpec("lark", text)).matcher()
    for token in [*TOKENIZER.encode(answer, add_special_tokens=False), END]:
        (mask,) = masks([matcher])
        if not mask[token // 32] >> token % 32 & 1:
            return False
        matcher.accept(token)
    return True


def called(text: str, tools: list[Tool]) -> list[tuple[str, Any]]:
    """The calls in a turn's text, which has nothing else in it."""
    parser = TurnParser("</mm:think>", tools)
    events = [*parser.push(text), *parser.finish()]
    assert not any(isinstance(event, Content) for event in events), text
    names = [event.name for event in events if isinstance(event, ToolCallStart)]
    assert sum(isinstance(event, ToolCallEnd) for event in events) == len(names)
    arguments = [
        "".join(one.json_fragment for one in events if isinstance(one, ToolCallArguments) and one.index == index)
        for index in range(len(names))
    ]
    return [(name, json.loads(one)) for name, one in zip(names, arguments, strict=True)]


def scalars() -> st.SearchStrategy[dict[str, Any]]:
    bounds = st.integers(-5, 5)
    return st.one_of(
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}, {"type": "string"}]),
        st.sampled_from(
            [{"enum": ["red", "re", 5, None, "é\n<"]}, {"const": "x y"}, {"type": "string", "enum": ["", "a"]}]
        ),
        st.builds(lambda low: {"type": "string", "minLength": low, "maxLength": low + 3}, st.integers(0, 3)),
        st.sampled_from(["^[a-z]{2,4}$", "/", "^a", "z$"]).map(lambda one: {"type": "string", "pattern": one}),
        st.builds(lambda low, wide: {"type": "integer", "minimum": low, "maximum": low + abs(wide)}, bounds, bounds),
        st.sampled_from([{"type": "integer"}, {"type": "number", "minimum": 0.5}, {"type": ["number", "boolean"]}]),
    )


def containers(children: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["city", "item", "größe", "a b"])
    return st.one_of(
        st.builds(
            lambda properties, needed: {
                "type": "object",
                "properties": properties,
                "required": [name for name in properties if name in needed],
                "additionalProperties": False,
            },
            st.dictionaries(names, children, min_size=1, max_size=3),
            st.sets(names),
        ),
        st.builds(
            lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
            children,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.builds(
            lambda first, items: {"type": "array", "prefixItems": [first], "items": items, "maxItems": 2},
            children,
            children,
        ),
    )


SCHEMAS = st.recursive(scalars(), containers, max_leaves=5)


@settings(max_examples=50, deadline=None)
@given(SCHEMAS, st.integers(0, 2**32))
def test_what_is_written_under_the_grammar_is_a_call_that_validates(schema: dict[str, Any], seed: int) -> None:
    tool = Tool("f", parameters=schema_of(value=schema))
    text = write(tool_grammar(REQUIRED, [tool]), seed)
    found = called(text, [tool])
    assert found
    for name, arguments in found:
        assert name == "f"
        jsonschema.validate(arguments, tool.parameters)


@pytest.mark.parametrize(
    "schema",
    [
        {
            "$ref": "#/$defs/node",
            "$defs": {"node": schema_of(name={"type": "string"}, next={"$ref": "#/$defs/leaf"}), "leaf": {"enum": [1]}},
        },
        {**schema_of(children={"type": "array", "items": {"$ref": "#"}}), "additionalProperties": False},
        schema_of(value={"anyOf": [{"type": "null"}, schema_of(x={"type": "integer"})]}),
        schema_of(
            value={"oneOf": [schema_of(kind={"const": "a"}, x={"type": "integer"}), schema_of(kind={"const": "b"})]}
        ),
        schema_of(value={"type": "object"}),
        schema_of(value={"type": "object", "additionalProperties": {"type": "integer"}}),
        schema_of(value={"allOf": [schema_of(a={"type": "integer"}), schema_of(b={"type": "boolean"})]}),
        schema_of(value={"allOf": [schema_of(a={"minimum": 3}), schema_of(a={"type": "integer", "maximum": 3})]}),
        {"type": "object", "required": ["undeclared"]},
        {},
    ],
    ids=lambda schema: next(iter(schema), "any"),
)
def test_schemas_put_together_from_others_are_enforced(schema: dict[str, Any]) -> None:
    tool = Tool("f", parameters=schema)
    for seed in range(5):
        for _, arguments in called(write(tool_grammar(REQUIRED, [tool]), seed), [tool]):
            jsonschema.validate(arguments, schema)


def block(*calls: str) -> str:
    return f"{NS}<tool_call>\n{''.join(calls)}{NS}</tool_call>"


def call(name: str, inside: str = "") -> str:
    return f'{NS}<invoke name="{name}">{inside}{NS}</invoke>\n'


A = f"{NS}<a>x<&\n]<]{NS}</a>"


@pytest.mark.parametrize(
    ("choice", "allowed", "forbidden"),
    [
        (
            ToolChoice("required"),
            [block(call("f", A)), block(call("g"), call("f"))],
            ["", "Hi", block(), f"Hi{block(call('f'))}"],
        ),
        (ToolChoice("required", parallel=False), [block(call("g"))], [block(call("g"), call("f"))]),
        (ToolChoice("named", "f"), [block(call("f", A))], [block(call("g")), block(call("f"), call("f")), "Hi"]),
        (ToolChoice("none"), ["", "Hi ]<]"], [block(call("f")), f"Hi{NS}"]),
        (
            ToolChoice("auto", parallel=False),
            ["", "Hi", block(call("f")), f"Hi{block(call('f', A))}"],
            [block(call("f"), call("f")), f"{NS}x", block(call("h"))],
        ),
    ],
    ids=lambda value: value.mode if isinstance(value, ToolChoice) else "",
)
def test_a_choice_allows_what_it_says(choice: ToolChoice, allowed: list[str], forbidden: list[str]) -> None:
    text = tool_grammar(choice, [PLAIN, Tool("g")])
    assert [answer for answer in allowed if not accepts(text, answer)] == []
    assert [answer for answer in forbidden if accepts(text, answer)] == []


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        (ResponseFormat("json_object"), '{"a":1}', "[1]"),
        (ResponseFormat("json_schema", '{"type": "array", "items": {"type": "integer"}}'), "[1]", '{"a":1}'),
        (ResponseFormat("regex", "a/[0-9]"), "a/5", "a/b"),
    ],
)
def test_an_answer_is_a_call_or_has_its_format(answer: ResponseFormat, right: str, wrong: str) -> None:
    text = tool_grammar(ToolChoice("auto"), [PLAIN], answer)
    assert accepts(text, right)
    assert accepts(text, block(call("f", A)))
    assert not accepts(text, wrong)


def test_a_grammar_is_needed_only_for_promises_that_the_model_alone_cannot_keep() -> None:
    assert not needs_grammar(ToolChoice("auto"), [PLAIN])
    assert not needs_grammar(ToolChoice("none"), [])
    assert needs_grammar(ToolChoice("none"), [PLAIN])
    assert needs_grammar(ToolChoice("auto", parallel=False), [PLAIN])
    assert needs_grammar(ToolChoice("auto"), [Tool("f", strict=True)])


SELF: dict[str, Any] = {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}}
TWICE = {f"d{level}": {"anyOf": [{"$ref": f"#/$defs/d{level + 1}"}] * 2} for level in range(40)}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({**SELF, "$defs": {"a": {"$ref": "#/$defs/a"}}}, "refer to themselves without an end"),
        ({**SELF, "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}, "refer to themselves without an end"),
        ({**SELF, "$defs": {"a": {"$ref": "#/$defs/d0"}, **TWICE}}, "refer too often to each other or themselves"),
        (schema_of(a={"type": "string", "minLength": 5000}), "a minLength of 5000 cannot be enforced: at most 4000"),
        (schema_of(a={"allOf": [{"minimum": "x"}, {"minimum": 5}]}), "are no valid JSON schema"),
    ],
)
def test_a_schema_that_cannot_be_translated_is_refused(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(ChatError, match=message):
        tool_grammar(REQUIRED, [Tool("f", parameters=schema)])


def test_a_pattern_that_cannot_be_enforced_is_refused_when_it_is_compiled() -> None:
    tool = Tool("f", parameters=schema_of(a={"type": "string", "pattern": "a(?=b)"}))
    with pytest.raises(GrammarError, match="not supported"):
        GRAMMARS.compile(GrammarSpec("lark", tool_grammar(REQUIRED, [tool])))


def test_an_answer_bound_by_a_grammar_of_its_own_has_no_tools_beside_it() -> None:
    with pytest.raises(ChatError, match="cannot have tools beside it"):
        tool_grammar(ToolChoice("auto"), [PLAIN], ResponseFormat("lark", "start: /a/"))
