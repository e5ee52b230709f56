"""`GET /v1/models` and `GET /v1/models/{id}`: what this worker serves, how long a context, and where its tiers part.

One object serves both dialects: OpenAI's fields (`object`, `created`) beside Anthropic's (`type`, `display_name`,
`created_at`). Prices and entitlement are the router's; here is only what the model's context allows.
"""

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from m3_worker.api.errors import json_response, not_ready
from m3_worker.api.incoming import require_model
from m3_worker.serving import ServedModel, WorkerState

STANDARD_TIER_TOKENS = 512_000
"""Longest input of the standard context tier, inclusive, as M3's prices have it; a router can be told otherwise."""
MAX_OUTPUT_TOKENS = 524_288
"""The most that MiniMax's own API lets M3 write in one answer."""


def model_routes(state: WorkerState) -> APIRouter:
    """The routes about the model itself."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models() -> Response:
        model = _loaded(state)
        page = {"has_more": False, "first_id": model.name, "last_id": model.name}
        return json_response({"object": "list", "data": [_model_object(model)], **page})

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return json_response(_model_object(require_model(_loaded(state), name)))

    return router


def context_tiers(max_context_tokens: int) -> list[dict[str, Any]]:
    """The tiers that a context reaches, each with the longest input in tokens: one token is left for the answer."""
    longest = max_context_tokens - 1
    tiers = [{"name": "standard", "max_input_tokens": min(STANDARD_TIER_TOKENS, longest)}]
    if longest > STANDARD_TIER_TOKENS:
        tiers.append({"name": "long", "max_input_tokens": longest})
    return tiers


def _loaded(state: WorkerState) -> ServedModel:
    if state.model is None:
        raise not_ready(state)
    return state.model


def _model_object(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "type": "model",
        "display_name": model.name,
        "created": model.created_seconds,
        "created_at": datetime.fromtimestamp(model.created_seconds, UTC).isoformat().replace("+00:00", "Z"),
        "owned_by": "m3serve",
        "max_model_len": model.max_context_tokens,
        "max_output_tokens": min(MAX_OUTPUT_TOKENS, model.max_context_tokens - 1),
        "context_tier": {"threshold_tokens": STANDARD_TIER_TOKENS, "inclusive": True},
        "context_tiers": context_tiers(model.max_context_tokens),
    }
