"""`POST /v1/embeddings`: texts in, vectors out, pooled from the model's final hidden states and normalised.

M3 is no embedding model: a vector is the mean of its last layer's states over the tokens (`pooling: "mean"`), or the
last token's state (`"last"`), of length 1. Similar texts are near each other, and that is all it promises. Texts of one
request are computed side by side, a few at a time, so that they do not fill the engine's queue. `dimensions` keeps the
first values and normalises them again.
"""

import base64
import math
import struct
import time
import uuid
from collections import deque
from typing import Any, Literal

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from m3_worker.api.completions import prompt_token_ids
from m3_worker.api.errors import ApiError, json_response, shown
from m3_worker.api.generation import engine_failed, submit
from m3_worker.api.incoming import Incoming, off_loop, parse_object, receive_request
from m3_worker.api.streams import CLIENT_CLOSED_REQUEST, ClientGoneError, unless_gone
from m3_worker.scheduling.request import Request, SamplingParameters, TokenOutput
from m3_worker.serving import WorkerState
from m3_worker.token_stream import EngineFailedError, TokenStream

MAX_INPUTS = 2048
_AT_A_TIME = 8
Vector = tuple[float, ...]


class EmbeddingFields(BaseModel):
    """The body of `POST /v1/embeddings`."""

    model_config = ConfigDict(strict=True)

    input: Any
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = Field(None, ge=1)
    pooling: Literal["mean", "last"] | None = "mean"
    """Not OpenAI's."""


def embedding_routes(state: WorkerState) -> APIRouter:
    """The route of embeddings."""
    router = APIRouter()

    @router.post("/v1/embeddings")
    async def embeddings(request: HttpRequest) -> Response:
        incoming = await receive_request(request, state)
        fields, inputs = await off_loop(incoming.body_bytes, _prepare, incoming)
        try:
            vectors = await unless_gone(_embed(incoming, inputs, fields.pooling or "mean"), request.receive)
        except ClientGoneError:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return await off_loop(len(vectors) * len(vectors[0]) * 8, _answer, incoming, fields, inputs, vectors)

    return router


def _prepare(incoming: Incoming) -> tuple[EmbeddingFields, list[list[int]]]:
    fields = parse_object(EmbeddingFields, incoming.body)
    inputs = fields.input
    if not (isinstance(inputs, list) and inputs and isinstance(inputs[0], str | list)):
        inputs = [inputs]
    if len(inputs) > MAX_INPUTS:
        raise ApiError(400, f"input has {len(inputs)} texts: at most {MAX_INPUTS}", param="input", code="invalid_value")
    return fields, [_token_ids(incoming, text) for text in inputs]


def _token_ids(incoming: Incoming, text: object) -> list[int]:
    """Of one input. Raises ApiError 400."""
    if not isinstance(text, str) and not (isinstance(text, list) and set(map(type, text)) <= {int}):
        message = f"input has {shown(text)}: must be a string, a list of token ids, or a list of these"
        raise ApiError(400, message, param="input", code="invalid_value")
    try:
        token_ids = prompt_token_ids(text, incoming.model, add_special_tokens=True)
    except ApiError as error:
        raise ApiError(400, error.message.replace("prompt", "input", 1), param="input", code=error.code) from None
    context = incoming.model.max_context_tokens
    if len(token_ids) > context:
        message = f"input has a text of {len(token_ids)} tokens: the context holds {context}"
        raise ApiError(400, message, param="input", code="context_length_exceeded")
    return token_ids


async def _embed(incoming: Incoming, inputs: list[list[int]], pooling: Literal["mean", "last"]) -> list[Vector]:
    """The vector of each input, in order. Raises ApiError; gives up what is in the engine when it is cancelled."""
    engine = incoming.model.engine
    vectors: list[Vector] = []
    in_flight: deque[tuple[str, TokenStream]] = deque()
    try:
        for place in range(len(inputs)):
            while len(in_flight) < _AT_A_TIME and place + len(in_flight) < len(inputs):
                request = _request(incoming, inputs[place + len(in_flight)], pooling)
                in_flight.append((request.id, submit(engine, request)))
            vectors.append(_vector((await in_flight[0][1].take())[0]))
            in_flight.popleft()
            if incoming.usage_record is not None:
                incoming.usage_record.add_prompt_tokens(len(inputs[place]))
    except EngineFailedError as error:
        raise engine_failed(error) from None
    finally:
        for request_id, _ in in_flight:
            engine.abort(request_id)
    return vectors


def _request(incoming: Incoming, token_ids: list[int], pooling: Literal["mean", "last"]) -> Request:
    sampling = SamplingParameters(max_tokens=1, temperature=0.0)
    return Request(
        uuid.uuid4().hex, token_ids, sampling, incoming.priority, time.monotonic(), incoming.cache_salt, pooling=pooling
    )


def _vector(output: TokenOutput) -> Vector:
    if output.embedding is None:
        raise ApiError(501, "this worker computes no embeddings", code="unsupported")
    return output.embedding


def _answer(incoming: Incoming, fields: EmbeddingFields, inputs: list[list[int]], vectors: list[Vector]) -> Response:
    tokens = sum(map(len, inputs))
    data = [
        {"object": "embedding", "index": index, "embedding": _written(_cut(vector, fields.dimensions), fields)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    body = {"object": "list", "data": data, "model": incoming.model.name, "usage": usage}
    return json_response(body, headers={"x-m3-input-tokens": str(tokens)})


def _cut(vector: Vector, dimensions: int | None) -> Vector:
    """The first values, of length 1 again. Raises ApiError 400 if there are fewer."""
    if dimensions is None:
        return vector
    if dimensions > len(vector):
        message = f"dimensions is {dimensions}: the model's vectors have {len(vector)}"
        raise ApiError(400, message, param="dimensions", code="invalid_value")
    kept = vector[:dimensions]
    length = math.hypot(*kept) or 1.0
    return tuple(value / length for value in kept)


def _written(vector: Vector, fields: EmbeddingFields) -> list[float] | str:
    """Numbers, or their 32-bit little-endian bytes in base64."""
    if fields.encoding_format != "base64":
        return list(vector)
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
