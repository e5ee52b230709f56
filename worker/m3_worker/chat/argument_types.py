"""What a tool's JSON schema says about the type of a value that the model writes as plain text.

M3 writes 2 and "2" alike, so the schema decides which it is. Owns the reading of a schema for that purpose: types,
enums, unions, references inside of the schema, properties and items. It converts and never refuses: a text that fits
none of the types stays a string, and the caller of the tool sees what the model wrote.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic_core import from_json

_TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_MAX_REFERENCES = 64
"""Beyond, a schema says nothing more: it is a stranger's, and each is a level of recursion."""
_INTEGER = re.compile(r"-?(0|[1-9]\d*)")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_JSON_START = {"[": "array", "{": "object"}


class ArgumentType:
    """The schema of one value, and the schema around it that its references point into."""

    def __init__(self, schema: object, root: object = None) -> None:
        """`schema`: any JSON schema; what is none allows everything."""
        self._root = schema if root is None else root
        self._schemas = tuple(_alternatives(schema, self._root, set()))
        self._parts: dict[str | int, ArgumentType] = {}
        self.types = _types(schema, self._root, {}) or _TYPES
        """The JSON types that a value may have; all if the schema does not say."""

    @property
    def is_text(self) -> bool:
        """Whether every text is a value as it is: only strings are allowed."""
        return self.types == {"string"}

    @property
    def is_container(self) -> bool:
        """Whether a value may have elements."""
        return not self.types.isdisjoint({"array", "object"})

    def is_array(self, first_element: str) -> bool:
        """Whether a value whose first element has that name is an array; only asked if it may be a container."""
        if not {"array", "object"} <= self.types:
            return "array" in self.types
        return first_element == "item" and not any("item" in _mapping(one, "properties") for one in self._schemas)

    def property(self, name: str) -> "ArgumentType":
        """The type of a property."""
        if name not in self._parts:
            found = [_mapping(one, "properties")[name] for one in self._schemas if name in _mapping(one, "properties")]
            self._parts[name] = self._any_of(found or [one.get("additionalProperties") for one in self._schemas])
        return self._parts[name]

    def item(self, place: int) -> "ArgumentType":
        """The type of an array's element."""
        first = [one["prefixItems"] for one in self._schemas if isinstance(one.get("prefixItems"), list)]
        place = min(place, max(map(len, first), default=0))
        if place not in self._parts:
            found = [one[place] for one in first if place < len(one)]
            self._parts[place] = self._any_of(found or [one.get("items") for one in self._schemas])
        return self._parts[place]

    def value_of(self, text: str) -> Any:  # noqa: ANN401 # any JSON value
        """The value that a text stands for, by the most particular type that it fits."""
        for schema in self._schemas:
            for value in _constants(schema):
                if value == text or (not isinstance(value, str) and json.dumps(value) == text.strip()):
                    return value
        if self.is_text:
            return text
        found, value = _literal(text.strip(), self.types)
        if found:
            return value
        if "string" in self.types or text.strip():
            return text
        return next((empty for kind, empty in _EMPTY if kind in self.types), text)

    def _any_of(self, schemas: Iterable[object]) -> "ArgumentType":
        found = [schema for schema in schemas if isinstance(schema, Mapping)]
        return ArgumentType(found[0] if len(found) == 1 else {"anyOf": found} if found else {}, self._root)


_EMPTY: tuple[tuple[str, Any], ...] = (("array", []), ("object", {}), ("null", None))
"""What a value without any text is, if it cannot be a string."""


def _literal(text: str, types: frozenset[str]) -> tuple[bool, Any]:
    """Whether a text is one of the types other than string, and the value."""
    if text == "null" and "null" in types:
        return True, None
    if text.lower() in ("true", "false") and "boolean" in types:
        return True, text.lower() == "true"
    if _NUMBER.fullmatch(text):
        return _number(text, types)
    kind = _JSON_START.get(text[:1])
    if kind in types and ("string" not in types or types == _TYPES):  # if strings are named, it may well be one
        try:
            value = from_json(text, allow_inf_nan=False)
        except ValueError:
            return False, None
        return True, value
    return False, None


def _number(text: str, types: frozenset[str]) -> tuple[bool, int | float | None]:
    if "integer" in types and len(text) < 1000 and _INTEGER.fullmatch(text):
        return True, int(text)
    value = float(text)
    if not math.isfinite(value):
        return False, None
    if "number" in types:
        return True, value
    if "integer" in types and value.is_integer():
        return True, int(value)
    return False, None


def _types(schema: object, root: object, known: dict[str, frozenset[str]]) -> frozenset[str]:
    """The types that a schema allows; none if it does not say, or contradicts itself. `known`: those of references."""
    if not isinstance(schema, Mapping):
        return frozenset()
    said = [types for types in _type_statements(schema, root, known) if types]
    if not said:
        return frozenset()
    allowed = frozenset.intersection(*said)
    return allowed | {"null"} if schema.get("nullable") is True else allowed


def _type_statements(
    schema: Mapping[str, Any], root: object, known: dict[str, frozenset[str]]
) -> Iterator[frozenset[str]]:
    given = schema.get("type")
    given = given if isinstance(given, list) else [given]
    named = frozenset(one for one in given if isinstance(one, str)) & _TYPES
    yield named | {"integer"} if "number" in named else named
    constants = list(_constants(schema))
    if constants:
        yield frozenset(map(type_name, constants))
    for name in ("anyOf", "oneOf"):
        if isinstance(schema.get(name), list):
            parts = [_types(part, root, known) for part in schema[name]]
            if all(parts):
                yield frozenset[str]().union(*parts)
    if isinstance(schema.get("allOf"), list):
        for part in schema["allOf"]:
            yield _types(part, root, known)
    reference = schema.get("$ref")
    if isinstance(reference, str):
        if reference not in known and len(known) < _MAX_REFERENCES:
            known[reference] = frozenset()  # while it is looked at: one that leads to itself says nothing
            known[reference] = _types(referred(reference, root), root, known)
        yield known.get(reference, frozenset())
    if not named and isinstance(schema.get("properties"), Mapping):
        yield frozenset({"object"})
    if not named and "items" in schema:
        yield frozenset({"array"})


def _alternatives(schema: object, root: object, seen: set[str]) -> Iterator[Mapping[str, Any]]:
    """The schema and all that it is put together from, without their combinators' meaning; each reference once."""
    if not isinstance(schema, Mapping):
        return
    yield schema
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in seen and len(seen) < _MAX_REFERENCES:
        seen.add(reference)
        yield from _alternatives(referred(reference, root), root, seen)
    for name in ("anyOf", "oneOf", "allOf"):
        parts = schema.get(name)
        for part in parts if isinstance(parts, list) else ():
            yield from _alternatives(part, root, seen)


def referred(reference: str, root: object) -> object:
    """What a reference inside of a schema points to ("#/$defs/Place"); None if there is no such place."""
    if not reference.startswith("#"):
        return None
    found = root
    for part in reference[1:].split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _constants(schema: Mapping[str, Any]) -> Iterator[Any]:
    if isinstance(schema.get("enum"), list):
        yield from schema["enum"]
    if "const" in schema:
        yield schema["const"]


def type_name(value: object) -> str:
    if value is None:
        return "null"
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return kinds.get(type(value), "object")


def _mapping(schema: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = schema.get(name)
    return found if isinstance(found, Mapping) else {}
