"""Plain text made into the value that a tool's schema means."""

from typing import Any

import pytest

from m3_worker.chat.argument_types import ArgumentType

NODE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "n": {"$ref": "#/$defs/a~1b"}}},
        "a/b": {"type": "integer"},
        "loop": {"anyOf": [{"$ref": "#/$defs/loop"}, {"$ref": "#/$defs/loop"}]},
    },
}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "2", "2"),
        ({"type": "string"}, " x\n", " x\n"),
        ({"type": "string"}, "null", "null"),
        ({"type": "integer"}, "2", 2),
        ({"type": "integer"}, " 2\n", 2),
        ({"type": "integer"}, "2.0", 2),
        ({"type": "integer"}, "2.5", "2.5"),
        ({"type": "integer"}, "", ""),
        ({"type": "number"}, "2", 2),
        ({"type": "number"}, "-2.5e3", -2500.0),
        ({"type": "number"}, "1e999", "1e999"),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "yes", "yes"),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "integer"]}, "2", 2),
        ({"type": ["string", "integer"]}, "x", "x"),
        ({"type": "string", "nullable": True}, "null", None),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "", None),
        ({"oneOf": [{"type": "integer"}, {"type": "boolean"}]}, "true", True),
        ({"allOf": [{"type": ["string", "integer"]}, {"type": "integer"}]}, "2", 2),
        ({"enum": ["1", 2, None, True]}, "1", "1"),
        ({"enum": ["1", 2, None, True]}, "2", 2),
        ({"enum": ["1", 2, None, True]}, "null", None),
        ({"const": 5}, "5", 5),
        ({"type": "array"}, "[1, 2]", [1, 2]),
        ({"type": "array"}, "[1, 2", "[1, 2"),
        ({"type": "array"}, "", []),
        ({"type": "object"}, '{"a": 1}', {"a": 1}),
        ({"type": "object"}, "\n", {}),
        ({"properties": {}}, "", {}),
        ({"items": {}}, "", []),
        ({"type": ["string", "object"]}, '{"a": 1}', '{"a": 1}'),
        ({"type": ["string", "array"]}, "", ""),
        ({}, "2", 2),
        ({}, "x", "x"),
        ({}, "", ""),
        (True, "2", 2),
        ({"type": 5, "enum": "x", "anyOf": 3, "$ref": 7}, "x", "x"),
    ],
)
def test_a_text_is_the_most_particular_type_that_it_fits(schema: Any, text: str, value: Any) -> None:
    found = ArgumentType(schema).value_of(text)
    assert (found, type(found)) == (value, type(value))


def test_references_are_followed_also_in_circles() -> None:
    node = ArgumentType(NODE)
    assert node.types == {"object"}
    assert node.property("next").property("next").property("n").value_of("2") == 2
    assert len(ArgumentType({**NODE, "$ref": "#/$defs/loop"}).types) == 7
    assert len(ArgumentType({"$ref": "#/nowhere"}).types) == 7


def test_a_chain_of_references_is_followed_only_so_far() -> None:
    chain = {f"d{level}": {"$ref": f"#/$defs/d{level + 1}"} for level in range(5000)}
    assert len(ArgumentType({"$ref": "#/$defs/d0", "$defs": chain}).types) == 7
    assert ArgumentType({"$ref": "#/$defs/d4980", "$defs": {**chain, "d5000": {"type": "integer"}}}).types == {
        "integer"
    }


def test_the_first_element_says_whether_a_value_is_an_array() -> None:
    assert ArgumentType({}).is_array("item")
    assert not ArgumentType({}).is_array("x")
    assert not ArgumentType({"anyOf": [{"properties": {"item": {}}}, {"type": "array"}]}).is_array("item")
    assert ArgumentType({"type": "array"}).is_array("x")
    assert not ArgumentType({"type": "object"}).is_array("item")


def test_properties_of_all_alternatives_are_known() -> None:
    union = ArgumentType(
        {"anyOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"a": {"type": "boolean"}}}]}
    )
    assert union.property("a").types == {"integer", "boolean"}
    others = ArgumentType({"type": "object", "additionalProperties": {"type": "integer"}})
    assert others.property("any").types == {"integer"}


def test_elements_have_the_types_of_their_places() -> None:
    array = ArgumentType({"prefixItems": [{"type": "string"}], "items": {"type": "integer"}})
    assert [array.item(place).types for place in (0, 1, 2)] == [{"string"}, {"integer"}, {"integer"}]
