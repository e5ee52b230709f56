"""`POST /v1/chat/completions`: messages in, one or several assistant messages out.

Owns the way of a request from its body to its answer. What a body means is chat_request's, what an answer looks like is
chat_answer's, and the conversation between them is chat's.
"""

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from m3_worker.api.chat_answer import ChatAnswer
from m3_worker.api.chat_prompt import compile_chat, load_media, prepare_chat, refused
from m3_worker.api.chat_request import ChatFields
from m3_worker.api.choices import Choices, seeded
from m3_worker.api.fields import parse_fields
from m3_worker.api.generation import Generation
from m3_worker.api.incoming import INLINE_BYTES, Incoming, off_loop, receive_request
from m3_worker.api.streams import EventStream, whole_answer
from m3_worker.chat.conversation import ChatError, Conversation
from m3_worker.chat.prompt import PreparedChat
from m3_worker.scheduling.request import SamplingParameters
from m3_worker.serving import ServedModel, WorkerState

_COMPILED = frozenset({"tools", "response_format", "structured_outputs"})


def chat_routes(state: WorkerState) -> APIRouter:
    """The routes of this dialect."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        incoming = await receive_request(request, state)
        is_slow = not _COMPILED.isdisjoint(incoming.body)
        fields, conversation = await off_loop(incoming.body_bytes, _parse, incoming)
        conversation = await load_media(incoming.model, conversation)
        size = INLINE_BYTES + 1 if is_slow else incoming.body_bytes
        chat, sampling = await off_loop(size, _prepare, incoming.model, fields, conversation)
        choices = Choices.start(
            partial(
                Generation,
                incoming.model,
                chat.token_ids,
                seeded(sampling, number),
                fields.stops,
                incoming.priority,
                cache_salt=incoming.cache_salt,
                usage_record=incoming.usage_record,
                media=chat.media,
            )
            for number in range(fields.answers)
        )
        answer = ChatAnswer(fields, chat, choices)
        if fields.stream:
            return EventStream(choices, answer.chunks, answer.usage_chunk if fields.streams_usage else None)
        return await whole_answer(choices, request.receive, answer.whole)

    return router


def _parse(incoming: Incoming) -> tuple[ChatFields, Conversation]:
    fields = parse_fields(ChatFields, incoming.body)
    try:
        return fields, fields.conversation(fields.grammar_spec)
    except ChatError as error:
        raise refused(error) from None


def _prepare(
    model: ServedModel, fields: ChatFields, conversation: Conversation
) -> tuple[PreparedChat, SamplingParameters]:
    chat = prepare_chat(model, conversation)
    grammar = compile_chat(model, chat, conversation)
    return chat, fields.sampling(model, len(chat.token_ids), fields.wanted_logprobs, grammar)
