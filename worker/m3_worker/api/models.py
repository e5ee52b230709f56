"""`GET /v1/models`, `GET /v1/models/{id}`: what this worker serves; and `POST /tokenize` in vLLM's shape."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.responses import Response

from m3_worker.api.chat import Thinking, render_prompt, template_variables
from m3_worker.api.completions import prompt_token_ids
from m3_worker.api.errors import ApiError, field_error, json_response, not_ready
from m3_worker.api.incoming import Incoming, off_loop, receive_request, require_model
from m3_worker.serving import ServedModel, WorkerState


class TokenizeFields(BaseModel):
    """The body of `POST /tokenize`: one of prompt and messages."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str
    prompt: Any = None
    messages: Any = None
    add_special_tokens: bool | None = True
    chat_template_kwargs: dict[str, Any] | None = None
    thinking: Thinking | None = None


def model_routes(state: WorkerState) -> APIRouter:
    """The routes about the model itself."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": [_model_object(_loaded(state))]})

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return json_response(_model_object(require_model(_loaded(state), name)))

    @router.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        incoming = await receive_request(request, state)
        token_ids = await off_loop(incoming.body_bytes, _tokenize, incoming)
        context = incoming.model.max_context_tokens
        return json_response({"count": len(token_ids), "max_model_len": context, "tokens": token_ids})

    return router


def _loaded(state: WorkerState) -> ServedModel:
    if state.model is None:
        raise not_ready(state)
    return state.model


def _model_object(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_seconds,
        "owned_by": "m3serve",
        "max_model_len": model.max_context_tokens,
    }


def _tokenize(incoming: Incoming) -> list[int]:
    try:
        fields = TokenizeFields.model_validate(incoming.body)
    except ValidationError as error:
        raise field_error(error, TokenizeFields.model_fields) from None
    if (fields.prompt is None) == (fields.messages is None):
        raise ApiError(400, "give one of prompt and messages", param="prompt", code="invalid_value")
    if fields.messages is None:
        special = fields.add_special_tokens is not False
        return prompt_token_ids(fields.prompt, incoming.model, add_special_tokens=special)
    variables = template_variables(fields.chat_template_kwargs, fields.thinking)
    text = render_prompt(fields.messages, variables, incoming.model)
    return incoming.model.tokenizer.encode(text, add_special_tokens=False)
