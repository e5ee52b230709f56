"""JSON schemas taken apart for writing a grammar: references followed, allOf merged, unions listed.

Owns no meaning of its own, only the flattening: what comes out has neither `$ref`, `allOf`, `anyOf` nor `oneOf` at its
top. A stranger writes the schema, so the work it may cause is bounded.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from m3_worker.chat.argument_types import referred, type_name
from m3_worker.chat.conversation import ChatError

_MAX_STEPS = 20_000
_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
_ANNOTATIONS = frozenset({"title", "description", "default", "examples", "deprecated", "$comment", "$schema", "$id"})
_HINTS = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
"""What a schema without a type is about; else it is about any value, and any text is one."""


class Schema(dict[str, Any]):
    """One schema as it was written, without annotations, and what of it a grammar needs."""

    @property
    def types(self) -> list[str]:
        """The types that a value may have."""
        given = self.get("type")
        if isinstance(given, str):
            given = [given]
        if not isinstance(given, list) or not given:
            given = [next((kind for kind, names in _HINTS.items() if any(name in self for name in names)), "string")]
        nullable = ["null"] if self.get("nullable") is True and "null" not in given else []
        return [*given, *nullable]

    @property
    def constants(self) -> list[Any] | None:
        """The only values there are; None if they are not listed."""
        values = self.get("enum") if isinstance(self.get("enum"), list) else None
        if "const" in self:
            values = [self["const"]]
        if values is None or "type" not in self:
            return values
        types = {*self.types, "integer"} if "number" in self.types else set(self.types)
        return [value for value in values if type_name(value) in types]

    @property
    def required(self) -> list[str]:
        """Names of properties that must be there."""
        given = self.get("required")
        return [name for name in given if isinstance(name, str)] if isinstance(given, list) else []

    @property
    def properties(self) -> Mapping[str, object]:
        """The properties that are declared or required."""
        given = self.get("properties")
        declared = given if isinstance(given, Mapping) else {}
        return {**declared, **{name: {} for name in self.required if name not in declared}}

    @property
    def first_items(self) -> list[object]:
        """Schemas of an array's first elements, as far as they have their own."""
        given = self.get("prefixItems")
        return given if isinstance(given, list) else []

    @property
    def fewest_items(self) -> int:
        """How many elements there must be."""
        given = self.get("minItems")
        return given if isinstance(given, int) else 0

    @property
    def most_items(self) -> int | None:
        """How many elements there may be; None is no limit."""
        given = self.get("maxItems")
        most = given if isinstance(given, int) else None
        if self.get("items") is False:
            return len(self.first_items) if most is None else min(most, len(self.first_items))
        return most


class Schemas:
    """The schemas inside of one, which they may refer to."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._steps = 0

    def resolved(self, schema: object) -> Schema:
        """A schema with its reference followed and its allOf merged. Raises ChatError if that takes too long."""
        self._count()
        flat = Schema(schema) if isinstance(schema, Mapping) else Schema()
        for name in _ANNOTATIONS & flat.keys():
            del flat[name]
        reference = flat.pop("$ref", None)
        if isinstance(reference, str):
            flat = _merged(flat, self.resolved(referred(reference, self._root)))
        parts = flat.pop("allOf", None)
        for part in parts if isinstance(parts, list) else ():
            flat = _merged(flat, self.resolved(part))
        return flat

    def alternatives(self, schema: Schema) -> Iterator[Schema]:
        """The schemas of which a value must match one. Raises ChatError if there are too many."""
        self._count()
        for name in ("anyOf", "oneOf"):
            parts = schema.get(name)
            if isinstance(parts, list):
                rest = Schema({key: value for key, value in schema.items() if key != name})
                for part in parts:
                    yield from self.alternatives(_merged(rest, self.resolved(part)))
                return
        yield schema

    def with_definitions(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """The schema with what it may refer to."""
        return {**schema, **{name: self._root[name] for name in ("$defs", "definitions") if name in self._root}}

    def _count(self) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise ChatError("tools", "tools: the parameters of a function refer too often to each other or themselves")


def _merged(one: Schema, other: Schema) -> Schema:
    """What a value must match to match both, as far as it can be said in one schema."""
    both = Schema({**one, **other})
    for name in one.keys() & other.keys():
        ours, theirs = one[name], other[name]
        if name == "properties":
            both[name] = {**ours, **theirs}
            both[name] |= {key: {"allOf": [ours[key], theirs[key]]} for key in ours if key in theirs}
        elif name == "required":
            both[name] = [*ours, *theirs]
        elif name == "enum":
            both[name] = [value for value in ours if value in theirs]
        elif name == "type":
            narrow = [
                kind for kind in one.types if kind in other.types or (kind == "integer" and "number" in other.types)
            ]
            narrow += [kind for kind in other.types if kind == "integer" and "number" in one.types]
            both[name] = list(dict.fromkeys(narrow))
        elif name in ("anyOf", "oneOf"):
            both[name] = [{"allOf": [mine, yours]} for mine in ours for yours in theirs]
        elif name in _LOWER:
            both[name] = max(ours, theirs)
        elif name in _UPPER:
            both[name] = min(ours, theirs)
    return both
