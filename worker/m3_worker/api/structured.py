"""What the answer has to look like, as requests say it: OpenAI's `response_format`, vLLM's `structured_outputs`.

Owns these fields and their translation into a GrammarSpec. Which schemas can be enforced is grammar's; where thinking
comes first, chat says after which text the constraint begins. vLLM's older `guided_*` fields are refused with the
names that replaced them (docs.vllm.ai, structured outputs).
"""

import json
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from m3_worker.api.errors import ApiError
from m3_worker.grammar import Grammar, GrammarError, GrammarSpec
from m3_worker.serving import ServedModel

REPLACED = {
    "guided_json": "structured_outputs.json",
    "guided_regex": "structured_outputs.regex",
    "guided_choice": "structured_outputs.choice",
    "guided_grammar": "structured_outputs.grammar",
}


class JsonSchemaFormat(BaseModel):
    """`response_format.json_schema`."""

    model_config = ConfigDict(strict=True, extra="ignore")

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None
    """Every schema is enforced, whether this is true or not."""


class ResponseFormatFields(BaseModel):
    """`response_format`."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_is_there(self) -> "ResponseFormatFields":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is required with type json_schema, and only with it")
        return self

    @property
    def spec(self) -> GrammarSpec | None:
        """What is to be enforced; None for any text."""
        if self.json_schema is not None:
            return json_schema_spec(self.json_schema.schema_)
        return GrammarSpec("json_object") if self.type == "json_object" else None


class StructuredOutputs(BaseModel):
    """`structured_outputs`: exactly one of its fields, as vLLM has them."""

    model_config = ConfigDict(strict=True, extra="forbid")

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    """A JSON schema, as an object or as text."""
    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1)
    grammar: str | None = None
    """In Lark's notation."""
    json_object: Literal[True] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "StructuredOutputs":
        given = sum(value is not None for _, value in self)
        if given != 1:
            raise ValueError(f"must have exactly one of json, regex, choice, grammar and json_object, not {given}")
        return self

    @property
    def spec(self) -> GrammarSpec:
        """What is to be enforced."""
        if self.json_ is not None:
            return (
                GrammarSpec("json_schema", self.json_) if isinstance(self.json_, str) else json_schema_spec(self.json_)
            )
        if self.regex is not None:
            return GrammarSpec("regex", self.regex)
        if self.choice is not None:
            return choice_spec(self.choice)
        return GrammarSpec("json_object") if self.grammar is None else GrammarSpec("lark", self.grammar)


class StructuredFields(BaseModel):
    """The two fields, for a dialect's own to build on."""

    structured_fields: ClassVar[frozenset[str]] = frozenset({"response_format", "structured_outputs"})

    response_format: ResponseFormatFields | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def grammar_spec(self) -> GrammarSpec | None:
        """What the answer has to look like, from its first token on; None if it may be any text.

        Raises ApiError 400 if both fields ask for something.
        """
        wanted = self.response_format.spec if self.response_format else None
        if self.structured_outputs is None:
            return wanted
        if wanted is not None:
            message = "response_format and structured_outputs both say what the answer has to look like: give one"
            raise ApiError(400, message, param="structured_outputs", code="invalid_value")
        return self.structured_outputs.spec

    def compiled(self, model: ServedModel) -> Grammar | None:
        """The grammar, if any. Raises ApiError 400. May take half a second: call it off the event loop."""
        spec = self.grammar_spec
        param = "response_format" if self.structured_outputs is None else "structured_outputs"
        return None if spec is None else compile_spec(model, spec, param)


def json_schema_spec(schema: dict[str, Any]) -> GrammarSpec:
    """A schema to be enforced; its properties come in the order in which it names them."""
    return GrammarSpec("json_schema", json.dumps(schema, ensure_ascii=False, separators=(",", ":")))


def choice_spec(choices: list[str]) -> GrammarSpec:
    """One of some texts, word for word."""
    return GrammarSpec("lark", "start: " + " | ".join(map(json.dumps, choices)))


def compile_spec(model: ServedModel, spec: GrammarSpec, param: str) -> Grammar:
    """A model's grammar. Raises ApiError 400 that names the field. May take half a second: not for the event loop."""
    try:
        return model.grammars.compile(spec)
    except GrammarError as error:
        raise ApiError(400, f"{param} cannot be enforced: {error}", param=param, code="invalid_grammar") from None
