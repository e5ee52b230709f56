"""`POST /v1/messages` and `POST /v1/messages/count_tokens`: Anthropic's dialect.

Owns the way of a request from its body to its answer. What a body means is messages_request's, what an answer looks
like is messages_answer's, and Anthropic's shape of an error is errors'. The `anthropic-version` header is not needed.
"""

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from m3_worker.api.chat_prompt import load_media, prepare_chat, refused
from m3_worker.api.errors import json_response, request_id_of
from m3_worker.api.fields import GenerationFields
from m3_worker.api.incoming import Incoming, off_loop, parse_object, receive_request
from m3_worker.api.messages_answer import MessageAnswer
from m3_worker.api.messages_request import ConversationFields
from m3_worker.api.named_events import NamedEvents
from m3_worker.api.streams import whole_answer
from m3_worker.api.turns import request_turn
from m3_worker.chat.conversation import ChatError, Conversation
from m3_worker.serving import WorkerState

_COMPILED = ("tools", "output_config")
"""Fields by which an answer is bound to a grammar."""

StopSequence = Annotated[str, Field(min_length=1, max_length=1000)]


class MessageFields(ConversationFields):
    """The body of `POST /v1/messages`."""

    model: str
    max_tokens: int = Field(ge=1)
    max_total_tokens: int | None = Field(None, ge=1)
    """Not Anthropic's: as in the other dialects."""
    stop_sequences: list[StopSequence] | None = Field(None, max_length=16)
    stream: bool | None = False
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """Not Anthropic's: as in the other dialects."""

    @property
    def omits_thinking(self) -> bool:
        """Whether the text of thinking is left out of the answer."""
        return self.thinking is not None and self.thinking.display == "omitted"

    @property
    def generation(self) -> GenerationFields:
        """How tokens are chosen, in the words of the other dialects."""
        names = ("model", "max_tokens", "max_total_tokens", "temperature", "top_p", "top_k", "seed")
        same = {name: getattr(self, name) for name in names}
        return GenerationFields(**same, stop=self.stop_sequences)


def message_routes(state: WorkerState) -> APIRouter:
    """The routes of this dialect."""
    router = APIRouter()

    @router.post("/v1/messages")
    async def messages(request: Request) -> Response:
        incoming = await receive_request(request, state)
        fields, conversation = await off_loop(incoming.body_bytes, _parse, incoming)
        conversation = await load_media(incoming.model, conversation)
        size = incoming.work_bytes(_COMPILED)
        asked = await off_loop(size, request_turn, incoming, conversation, fields.generation)
        turn = asked.start(tuple(fields.stop_sequences or ()))
        answer = MessageAnswer(turn, request_id_of(request), omits_thinking=fields.omits_thinking)
        if fields.stream:
            return NamedEvents(turn.generation, answer)
        headers = turn.generation.headers()
        return await whole_answer(
            turn.generation, request.receive, lambda delta: json_response(answer.whole(delta), headers=headers)
        )

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(request: Request) -> Response:
        incoming = await receive_request(request, state)
        conversation = await off_loop(incoming.body_bytes, _parse_counted, incoming)
        conversation = await load_media(incoming.model, conversation)
        chat = await off_loop(incoming.body_bytes, prepare_chat, incoming.model, conversation)
        return json_response({"input_tokens": len(chat.token_ids)})

    return router


def _parse(incoming: Incoming) -> tuple[MessageFields, Conversation]:
    fields = parse_object(MessageFields, incoming.body)
    return fields, _conversation(fields)


def _parse_counted(incoming: Incoming) -> Conversation:
    return _conversation(parse_object(ConversationFields, incoming.body))


def _conversation(fields: ConversationFields) -> Conversation:
    try:
        return fields.conversation()
    except ChatError as error:
        raise refused(error) from None
