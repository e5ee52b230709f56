"""`POST /v1/responses` and `POST /v1/responses/input_tokens`: OpenAI's Responses dialect, without a memory.

Owns the way of a request from its body to its answer. What a body means is responses_request's, what an answer looks
like is responses_answer's. Nothing is stored: a response says `store: false`, and whatever refers to an earlier one is
refused by name.
"""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from m3_worker.api.chat_prompt import load_media, prepare_chat, refused
from m3_worker.api.errors import ApiError, json_response, shown
from m3_worker.api.fields import GenerationFields
from m3_worker.api.incoming import Incoming, off_loop, parse_object, receive_request
from m3_worker.api.named_events import NamedEvents
from m3_worker.api.responses_answer import ResponseAnswer
from m3_worker.api.responses_request import InputFields
from m3_worker.api.streams import whole_answer
from m3_worker.api.turns import request_turn
from m3_worker.chat.conversation import ChatError, Conversation
from m3_worker.scheduling.request import SamplingParameters
from m3_worker.serving import WorkerState

# What needs a memory, or a feature that this worker lacks, and the values at which it needs none.
_REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "previous_response_id": ((), "this worker stores nothing: send the earlier items in input"),
    "conversation": ((), "this worker stores nothing: send the earlier items in input"),
    "prompt": ((), "this worker stores no prompts: send instructions and input"),
    "background": ((False,), "this worker stores nothing: stream the response instead"),
    "truncation": (("disabled",), "this worker leaves out nothing of a conversation"),
    "top_logprobs": ((0,), "only chat completions and completions report log probabilities"),
}
_COMPILED = ("tools", "text")
"""Fields by which an answer is bound to a grammar."""
_ECHOED = ("instructions", "max_output_tokens", "metadata", "reasoning", "text", "tool_choice", "tools", "user")


class ResponseFields(InputFields):
    """The body of `POST /v1/responses`."""

    model: str
    max_output_tokens: int | None = Field(None, ge=1)
    stream: bool | None = False
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)

    @property
    def generation(self) -> GenerationFields:
        """How tokens are chosen, in the words of the other dialects."""
        same = {name: getattr(self, name) for name in ("model", "temperature", "top_p", "top_k", "seed")}
        return GenerationFields(**same, max_tokens=self.max_output_tokens)


def response_routes(state: WorkerState) -> APIRouter:
    """The routes of this dialect."""
    router = APIRouter()

    @router.post("/v1/responses")
    async def responses(request: Request) -> Response:
        incoming = await receive_request(request, state)
        fields, conversation = await off_loop(incoming.body_bytes, _parse, incoming)
        conversation = await load_media(incoming.model, conversation)
        size = incoming.work_bytes(_COMPILED)
        asked = await off_loop(size, request_turn, incoming, conversation, fields.generation)
        turn = asked.start()
        answer = ResponseAnswer(turn, _echoed(incoming.body, asked.sampling))
        if fields.stream:
            return NamedEvents(turn.generation, answer)
        headers = turn.generation.headers()
        return await whole_answer(
            turn.generation, request.receive, lambda delta: json_response(answer.whole(delta), headers=headers)
        )

    @router.post("/v1/responses/input_tokens")
    async def input_tokens(request: Request) -> Response:
        incoming = await receive_request(request, state)
        conversation = await off_loop(incoming.body_bytes, _parse_counted, incoming)
        conversation = await load_media(incoming.model, conversation)
        chat = await off_loop(incoming.body_bytes, prepare_chat, incoming.model, conversation)
        return json_response({"object": "response.input_tokens", "input_tokens": len(chat.token_ids)})

    return router


def _parse(incoming: Incoming) -> tuple[ResponseFields, Conversation]:
    _check_supported(incoming.body)
    fields = parse_object(ResponseFields, incoming.body)
    return fields, _conversation(fields)


def _parse_counted(incoming: Incoming) -> Conversation:
    _check_supported(incoming.body)
    return _conversation(parse_object(InputFields, incoming.body))


def _check_supported(body: dict[str, Any]) -> None:
    """Raises ApiError 400 for a field that needs what this worker lacks."""
    for name, (neutral, reason) in _REFUSED.items():
        value = body.get(name)
        if value is not None and not any(type(value) is type(one) and value == one for one in neutral):
            raise ApiError(400, f"{name} is {shown(value)}: {reason}", param=name, code="unsupported_field")


def _conversation(fields: InputFields) -> Conversation:
    try:
        return fields.conversation()
    except ChatError as error:
        raise refused(error) from None


def _echoed(body: dict[str, Any], sampling: SamplingParameters) -> dict[str, Any]:
    """What a response says of its request: what was asked for, and what was taken where nothing was."""
    asked = {name: body.get(name) for name in _ECHOED}
    return {
        **asked,
        "metadata": asked["metadata"] or {},
        "text": asked["text"] or {"format": {"type": "text"}},
        "tool_choice": asked["tool_choice"] or "auto",
        "tools": asked["tools"] or [],
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "background": False,
        "previous_response_id": None,
        "store": False,
        "truncation": "disabled",
    }
