"""`GET /openapi.json`: what every route takes and answers.

Owns the document: requests are the schemas of the very models that check them, answers and errors are written down here
in the fields that clients rely on. Where a model leaves a field open because a parser of its own checks it (messages,
input, tools), the form is described here. Routes under `/internal/` are the worker's business with its router.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from m3_worker.api.chat_request import ChatFields
from m3_worker.api.code import GENERATION_SCHEMA, REVIEW_SCHEMA, GenerateFields, ReviewFields
from m3_worker.api.completions import CompletionFields
from m3_worker.api.embeddings import EmbeddingFields
from m3_worker.api.errors import json_response
from m3_worker.api.messages import MessageFields
from m3_worker.api.messages_request import ConversationFields as CountFields
from m3_worker.api.responses import ResponseFields
from m3_worker.api.responses_request import InputFields
from m3_worker.api.tokens import DetokenizeFields, TokenizeFields
from m3_worker.serving import WorkerState

Json = dict[str, Any]
_REF = "#/components/schemas/{model}"


def openapi_routes(state: WorkerState) -> APIRouter:
    """The route of the document. Until the model is loaded it says of `model` only that it is a string."""
    router = APIRouter()

    @router.get("/openapi.json")
    async def document() -> Response:
        return json_response(openapi_document(state.model.name if state.model is not None else None))

    return router


def _object(**properties: Json) -> Json:
    """An object that has at least these."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _const(value: str) -> Json:
    return {"const": value}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


_STRING: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_ANY_OBJECT: Json = {"type": "object"}
_CHAT_USAGE = _object(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT)
_MODEL = _object(id=_STRING, object=_const("model"), created=_COUNT, owned_by=_STRING, max_model_len=_COUNT)
_ERROR = _object(
    error=_object(message=_STRING, type=_STRING, param=_or_null(_STRING), code=_or_null(_STRING)),
)
_ANTHROPIC_ERROR = _object(type=_const("error"), error=_object(type=_STRING, message=_STRING))
_EVENT: Json = {"type": "object", "properties": {"event": _STRING, "data": _STRING}, "required": ["data"]}
"""One server-sent event; its data is JSON, or `[DONE]` in chat completions and completions."""
_ERRORS = {
    400: "The request breaks a rule; the message names the field, its value and the rule.",
    404: "The model is not served here.",
    413: "The body is too large.",
    429: "The engine's queue is full; Retry-After says when to come again.",
    500: "The engine failed while it computed the answer.",
    503: "The worker is loading, draining or has failed.",
}


@dataclass(frozen=True, slots=True)
class _Route:
    """One operation; `answer` is what 200 has, or several statuses have."""

    path: str
    summary: str
    answer: Json
    body: type[BaseModel] | None = None
    streams: bool = False
    needs_model: bool = True
    media_type: str = "application/json"
    parameters: tuple[Json, ...] = ()

    @property
    def is_anthropic(self) -> bool:
        return self.path.startswith("/v1/messages")


def _chat_choice(**more: Json) -> Json:
    return _object(index=_COUNT, finish_reason=_or_null(_STRING), **more)


def _head(kind: str) -> dict[str, Json]:
    return {"id": _STRING, "object": _const(kind), "created": _COUNT, "model": _STRING}


_CODE = {"status": {"enum": ["completed", "incomplete"]}, "incomplete_text": _or_null(_STRING), "usage": _CHAT_USAGE}
_ROUTES = (
    _Route(
        "/v1/chat/completions",
        "Messages in, assistant messages out.",
        _object(
            **_head("chat.completion"),
            choices=_list(_chat_choice(message=_object(role=_const("assistant")))),
            usage=_CHAT_USAGE,
        ),
        ChatFields,
        streams=True,
    ),
    _Route(
        "/v1/completions",
        "Prompts in, what follows them out.",
        _object(**_head("text_completion"), choices=_list(_chat_choice(text=_STRING)), usage=_CHAT_USAGE),
        CompletionFields,
        streams=True,
    ),
    _Route(
        "/v1/responses",
        "OpenAI's Responses, without a memory.",
        _object(id=_STRING, object=_const("response"), status=_STRING, output=_list(_ANY_OBJECT), usage=_ANY_OBJECT),
        ResponseFields,
        streams=True,
    ),
    _Route(
        "/v1/responses/input_tokens",
        "Tokens of a request to responses.",
        _object(object=_const("response.input_tokens"), input_tokens=_COUNT),
        InputFields,
    ),
    _Route(
        "/v1/messages",
        "Anthropic's Messages.",
        _object(
            id=_STRING,
            type=_const("message"),
            role=_const("assistant"),
            content=_list(_object(type={"enum": ["text", "thinking", "tool_use"]})),
            stop_reason={"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
            usage=_object(input_tokens=_COUNT, output_tokens=_COUNT, cache_read_input_tokens=_COUNT),
        ),
        MessageFields,
        streams=True,
    ),
    _Route("/v1/messages/count_tokens", "Tokens of Anthropic's messages.", _object(input_tokens=_COUNT), CountFields),
    _Route(
        "/v1/embeddings",
        "Texts in, normalised vectors out: the mean of the final hidden states, or the last token's.",
        _object(
            object=_const("list"),
            data=_list(
                _object(index=_COUNT, embedding={"anyOf": [_list({"type": "number"}), {"type": "string"}]}),
            ),
            model=_STRING,
            usage=_object(prompt_tokens=_COUNT, total_tokens=_COUNT),
        ),
        EmbeddingFields,
    ),
    _Route(
        "/v1/code/generate",
        "A task in, files out.",
        _object(**_head("code.generation"), result=_or_null(GENERATION_SCHEMA), **_CODE),
        GenerateFields,
    ),
    _Route(
        "/v1/code/review",
        "Code in, findings out.",
        _object(**_head("code.review"), result=_or_null(REVIEW_SCHEMA), **_CODE),
        ReviewFields,
    ),
    _Route(
        "/tokenize",
        "A prompt or messages in, token ids out.",
        _object(count=_COUNT, max_model_len=_COUNT, tokens=_list(_COUNT), token_strs=_or_null(_list(_STRING))),
        TokenizeFields,
        needs_model=False,
    ),
    _Route("/detokenize", "Token ids in, text out.", _object(prompt=_STRING), DetokenizeFields, needs_model=False),
    _Route("/v1/models", "The model that is served.", _object(object=_const("list"), data=_list(_MODEL))),
    _Route(
        "/v1/models/{name}",
        "The model, how long a context it has, and where its context tiers part.",
        _MODEL,
        parameters=({"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}},),
    ),
    _Route("/health", "200 while requests are taken.", _object(status=_STRING)),
    _Route("/metrics", "Prometheus' text form.", _STRING, media_type="text/plain"),
    _Route("/openapi.json", "This document.", _ANY_OBJECT),
)

# What models leave open for a parser of their own, as OpenAI and Anthropic define it.
_PART = _object(type=_STRING)
_INPUT: Json = {"anyOf": [_STRING, {"type": "array", "items": _ANY_OBJECT, "minItems": 1}]}
_CONTENT: Json = {"anyOf": [_STRING, {"type": "array", "items": _PART, "minItems": 1}]}
_CHAT_MESSAGE: Json = {
    **_object(role={"enum": ["root", "system", "developer", "user", "assistant", "tool"]}),
    "properties": {
        "role": {"enum": ["root", "system", "developer", "user", "assistant", "tool"]},
        "content": _or_null(_CONTENT),
        "reasoning_content": _or_null(_STRING),
        "tool_calls": _or_null(_list(_object(id=_STRING, function=_object(name=_STRING, arguments=_STRING)))),
        "tool_call_id": _STRING,
    },
}
_TOKEN_IDS: Json = {"type": "array", "items": _COUNT, "minItems": 1}
_TEXT: Json = {"type": "string", "minLength": 1}
_TEXTS: Json = {
    "anyOf": [
        _TEXT,
        _TOKEN_IDS,
        {"type": "array", "items": _TEXT, "minItems": 1},
        {"type": "array", "items": _TOKEN_IDS, "minItems": 1},
    ]
}
_CHAT_TOOL = _object(type=_const("function"), function=_object(name=_TEXT))
_CHAT_MESSAGES: Json = {"type": "array", "items": _CHAT_MESSAGE, "minItems": 1}
_OPEN_FIELDS: dict[type[BaseModel], Json] = {
    ChatFields: {"messages": _CHAT_MESSAGES, "tools": _or_null(_list(_CHAT_TOOL))},
    CompletionFields: {"prompt": _TEXTS},
    TokenizeFields: {
        "prompt": _or_null(_TEXTS),
        "messages": _or_null(_CHAT_MESSAGES),
        "tools": _or_null(_list(_CHAT_TOOL)),
    },
    EmbeddingFields: {"input": _TEXTS},
    ResponseFields: {"input": _INPUT},
    InputFields: {"input": _INPUT},
    MessageFields: {"messages": _list(_object(role={"enum": ["user", "assistant"]}, content=_CONTENT))},
    CountFields: {"messages": _list(_object(role={"enum": ["user", "assistant"]}, content=_CONTENT))},
}


def openapi_document(model_name: str | None) -> Json:
    """The document of a worker that serves the model of that name."""
    bodies = [route.body for route in _ROUTES if route.body is not None]
    names, definitions = models_json_schema([(body, "validation") for body in bodies], ref_template=_REF)
    schemas: Json = definitions["$defs"]
    refs = {body: names[body, "validation"] for body in bodies}
    for route in _ROUTES:
        if route.body is not None:
            name = refs[route.body]["$ref"].rsplit("/", 1)[1]
            _complete(schemas[name], _OPEN_FIELDS.get(route.body, {}), model_name, needs_model=route.needs_model)
    return {
        "openapi": "3.1.0",
        "info": {"title": "m3-worker", "version": "1", "description": "MiniMax-M3 over OpenAI's and Anthropic's APIs."},
        "paths": {route.path: {_method(route): _operation(route, refs)} for route in _ROUTES},
        "components": {"schemas": {**schemas, "Error": _ERROR, "AnthropicError": _ANTHROPIC_ERROR}},
    }


def _complete(schema: Json, open_fields: Json, model_name: str | None, *, needs_model: bool) -> None:
    """Describe what the model left open, and which model can be asked for."""
    named: Json = _STRING if model_name is None else {"enum": [model_name]}
    schema["properties"].update(open_fields, model=named if needs_model else _or_null(named))
    if needs_model and "model" not in schema.get("required", ()):
        schema["required"] = ["model", *schema.get("required", ())]


def _method(route: _Route) -> str:
    return "get" if route.body is None else "post"


def _operation(route: _Route, refs: dict[type[BaseModel], Json]) -> Json:
    operation: Json = {"summary": route.summary, "responses": dict(_responses(route))}
    if route.parameters:
        operation["parameters"] = list(route.parameters)
    if route.body is not None:
        schema = refs[route.body]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _responses(route: _Route) -> Iterator[tuple[str, Json]]:
    content: Json = {route.media_type: {"schema": route.answer}}
    if route.streams:
        content["text/event-stream"] = {"schema": _EVENT}
    yield "200", {"description": "The answer.", "content": content}
    if route.path == "/health":
        yield "503", {"description": _ERRORS[503], "content": content}
    error = "AnthropicError" if route.is_anthropic else "Error"
    failure = {"application/json": {"schema": {"$ref": _REF.format(model=error)}}}
    for status in _error_statuses(route):
        told = 529 if route.is_anthropic and status == 429 else status
        yield str(told), {"description": _ERRORS[status], "content": failure}


def _error_statuses(route: _Route) -> Iterable[int]:
    if route.body is not None:
        return _ERRORS
    return {"/v1/models": (503,), "/v1/models/{name}": (404, 503)}.get(route.path, ())
