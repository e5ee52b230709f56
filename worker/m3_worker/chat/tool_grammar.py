"""What a turn with tools may look like, as a grammar that is enforced while the model writes.

Owns the translation of tools' JSON schemas into a Lark grammar (llguidance's form) of M3's tool calls. A text that it
allows is parsed by tool_parser into arguments of the schema's types, with all that is required, in the schema's order.

Enforced are: types, properties and required, items and their number, enum and const, unions, references inside of the
schema, pattern and length of strings, bounds of numbers. An object without properties is written as JSON inside of its
element. Properties beside those declared are not offered. `format`, `not`, `if` and `uniqueItems` are left to the
model.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from m3_worker.chat.conversation import ChatError, ResponseFormat, Tool, ToolChoice
from m3_worker.chat.schemas import Schema, Schemas
from m3_worker.chat.tool_parser import BLOCK_CLOSING, BLOCK_OPENING, NAMESPACE

_INTEGER = "-?(0|[1-9][0-9]{0,199})"
_NUMBERS = {"integer": f"/{_INTEGER}/", "number": rf"/{_INTEGER}(\.[0-9]{{1,199}})?([eE][-+]?[0-9]{{1,2}})?/"}
"""As JSON has them, but never beyond what a double holds: such a one is no number to whoever reads it."""
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_MAX_LENGTH = 4000
"""Longest string whose length is counted: each character is a state of the lexer."""
_NEW_LINE = json.dumps("\n")
_ANY_TEXT = rf"/(?s:.*)/ & ~/(?s:.*){re.escape(NAMESPACE)}(?s:.*)/"
"""Without the namespace token, so that a tag can only be one."""


def needs_grammar(choice: ToolChoice, tools: Sequence[Tool]) -> bool:
    """Whether the choice promises something that only a grammar can keep."""
    if not tools:
        return False
    return choice.mode != "auto" or not choice.parallel or any(tool.strict for tool in tools)


def tool_grammar(choice: ToolChoice, tools: Sequence[Tool], answer: ResponseFormat | None = None) -> str:
    """The Lark grammar of a turn that makes such a choice among tools, of which there is at least one.

    answer: what a turn without calls must match, if not any text; only of use where calling is left to the model.
    Raises ChatError if a schema cannot be translated.
    """
    try:
        return _written(choice, tools, answer)
    except RecursionError:
        raise ChatError("tools", "tools: the parameters of a function refer to themselves without an end") from None
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(error, ChatError):
            raise
        raise ChatError("tools", f"tools: the parameters of a function are no valid JSON schema: {error}") from None


def _written(choice: ToolChoice, tools: Sequence[Tool], answer: ResponseFormat | None) -> str:
    writer = _Writer()
    if choice.mode == "none":
        return writer.grammar(writer.terminal(_ANY_TEXT))
    if choice.mode == "named":
        tools = [tool for tool in tools if tool.name == choice.name]
    call = writer.rule(" | ".join(writer.call(tool) for tool in tools))
    calls = call if choice.mode == "named" or not choice.parallel else f"{call}+"
    block = f"{_NEW_LINE} {calls} {_literal(BLOCK_CLOSING)}"
    if choice.mode == "auto" and answer is None:
        words = writer.terminal(_ANY_TEXT)
        before = writer.terminal(f"{words} {_literal(BLOCK_OPENING)}")
        return writer.grammar(f"{words} | {before} {block}")
    called = f"{_literal(BLOCK_OPENING)} {block}"
    return writer.grammar(called if answer is None else f"{called} | {_format(answer)}")


def _format(answer: ResponseFormat) -> str:
    """An answer's format as part of a grammar. Raises ChatError for one that is a grammar of its own."""
    if answer.kind == "lark":
        raise ChatError("tools", "tools: an answer bound by a grammar cannot have tools beside it; leave one out")
    if answer.kind == "regex":
        return f"/{_escaped(answer.text)}/"
    schema = {"type": "object"} if answer.kind == "json_object" else json.loads(answer.text)
    return _json(schema if isinstance(schema, Mapping) else {"allOf": [schema]})


class _Writer:
    """Collects the rules and terminals of one grammar; each method returns the expression that stands for them."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._names: dict[str, str] = {}
        self._schemas = Schemas({})

    def grammar(self, start: str) -> str:
        """All of it, with what it starts with."""
        return "\n".join([f"start: {start}", *self._lines, ""])

    def rule(self, expression: str) -> str:
        """A rule of its own; one of the same expression is made once."""
        return self._named("r", expression)

    def terminal(self, expression: str) -> str:
        """A terminal of its own: in one, expressions can be intersected."""
        return self._named("T", expression)

    def call(self, tool: Tool) -> str:
        """A call of a tool. Raises ChatError if its schema is too large."""
        self._schemas = Schemas(tool.parameters)
        arguments = self._properties(self._schemas.resolved({**tool.parameters, "type": "object"}))
        opening, closing = f'{NAMESPACE}<invoke name="{tool.name}">', f"{NAMESPACE}</invoke>\n"
        return self.rule(f"{_literal(opening)} {arguments} {_literal(closing)}")

    def _named(self, kind: str, expression: str) -> str:
        name = self._names.get(expression)
        if name is None:
            name = self._names[expression] = f"{kind}{len(self._names)}"
            self._lines.append(f"{name}: {expression}")
        return name

    def _element(self, name: str, schema: object) -> str:
        """A value with its tags: a rule that is named before it is written, since a schema may lead to itself."""
        resolved = self._schemas.resolved(schema)
        key = f"{name} of {json.dumps(resolved)} in {id(self._schemas)}"
        rule = self._names.get(key)
        if rule is None:
            rule = self._names[key] = f"e{len(self._names)}"
            values = dict.fromkeys(self._values(resolved, f"{NAMESPACE}</{name}>"))
            self._lines.append(f"{rule}: {_literal(f'{NAMESPACE}<{name}>')} ({' | '.join(values)})")
        return rule

    def _values(self, schema: Schema, closing: str) -> Iterator[str]:
        """What a value may be, each with the closing tag: a string and its end are one terminal."""
        for one in self._schemas.alternatives(schema):
            constants = one.constants
            if constants is None:
                yield from (self._value(kind, one, closing) for kind in one.types)
            else:
                for value in constants:
                    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                    yield _literal(text + closing)

    def _value(self, kind: str, schema: Schema, closing: str) -> str:
        end = _literal(closing)
        match kind:
            case "string":
                return self.terminal(f"({_string(schema, self.terminal(_ANY_TEXT))}) {end}")
            case "boolean":
                value = '("true" | "false")'
            case "null":
                value = '"null"'
            case "integer" | "number":
                bounds = {name: schema[name] for name in _BOUNDS if name in schema}
                value = _json({"type": kind, **bounds}) if bounds else self.terminal(_NUMBERS[kind])
            case "array":
                value = self._items(schema)
            case _ if schema.properties:
                value = self._properties(schema)
            case _:
                value = _json(self._schemas.with_definitions({**schema, "type": "object"}))
        return f"{value} {end}"

    def _properties(self, schema: Schema) -> str:
        elements = [
            self._element(name, part) + ("" if name in schema.required else "?")
            for name, part in schema.properties.items()
        ]
        return self.rule(" ".join(elements) or '""')

    def _items(self, schema: Schema) -> str:
        """Elements of an array: those of the first places stand in order, and none without the one before it."""
        first, fewest, most = schema.first_items, schema.fewest_items, schema.most_items
        rest = ""
        if most is None or most > len(first):
            bound = "" if most is None else most - len(first)
            rest = f"{self._element('item', schema.get('items'))}{{{max(fewest - len(first), 0)},{bound}}}"
        for place, part in reversed(list(enumerate(first[:most]))):
            rest = f"({self._element('item', part)} {rest})" + ("" if place < fewest else "?")
        return self.rule(rest or '""')


def _string(schema: Mapping[str, object], any_text: str) -> str:
    """A string's text as the expression of a terminal. Raises ChatError for a length beyond what is counted."""
    parts = [any_text]
    fewest, most = schema.get("minLength") or 0, schema.get("maxLength")
    if not isinstance(fewest, int) or fewest > _MAX_LENGTH:
        raise ChatError("tools", f"tools: a minLength of {fewest} cannot be enforced: at most {_MAX_LENGTH} can")
    if fewest or (isinstance(most, int) and most <= _MAX_LENGTH):
        bound = most if isinstance(most, int) and most <= _MAX_LENGTH else ""
        parts.append(f"/(?s:.){{{fewest},{bound}}}/")
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        parts.append(_pattern(pattern))
    return " & ".join(parts)


def _pattern(pattern: str) -> str:
    """JSON schema's pattern, which is found anywhere unless it is anchored, as one of the whole text."""
    inner = pattern.removeprefix("^")
    is_anchored = inner.endswith("$") and not inner.endswith("\\$")
    before = "" if inner != pattern else "(?s:.*)"
    after = "" if is_anchored else "(?s:.*)"
    body = _escaped(inner.removesuffix("$") if is_anchored else inner)
    return f"/{before}({body}){after}/"


def _escaped(expression: str) -> str:
    """A regular expression as it stands between slashes."""
    return re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\/", expression).replace("\n", r"\n")


def _json(schema: Mapping[str, object]) -> str:
    """JSON without white space, of which a model may never have enough."""
    return f"%json {json.dumps({**schema, 'x-guidance': {'whitespace_flexible': False}})}"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
