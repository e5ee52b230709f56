"""`POST /tokenize` and `POST /detokenize`, in vLLM's shapes: text or messages to token ids, and back.

Owns no rule about prompts: a prompt counts here exactly as completions and chat count it.
"""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from m3_worker.api.chat_prompt import load_media, prepare_chat, refused
from m3_worker.api.chat_request import ConversationFields
from m3_worker.api.completions import prompt_token_ids
from m3_worker.api.errors import ApiError, json_response
from m3_worker.api.incoming import Incoming, off_loop, parse_object, receive_request
from m3_worker.chat.conversation import ChatError, Conversation
from m3_worker.serving import ServedModel, WorkerState


class TokenizeFields(ConversationFields):
    """The body of `POST /tokenize`: one of prompt and messages."""

    prompt: Any = None
    messages: Any = None
    add_special_tokens: bool | None = True
    """Whether the tokenizer adds what it adds around a prompt; messages are what the chat template makes of them."""
    return_token_strs: bool | None = False


class DetokenizeFields(BaseModel):
    """The body of `POST /detokenize`."""

    model_config = ConfigDict(strict=True)

    tokens: list[int]


def token_routes(state: WorkerState) -> APIRouter:
    """The routes between text and token ids."""
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        incoming = await receive_request(request, state, needs_model=False)
        fields, conversation = await off_loop(incoming.body_bytes, _parse, incoming)
        if conversation is not None:
            conversation = await load_media(incoming.model, conversation)
        return json_response(await off_loop(incoming.body_bytes, _tokenize, incoming.model, fields, conversation))

    @router.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        incoming = await receive_request(request, state, needs_model=False)
        return json_response(await off_loop(incoming.body_bytes, _detokenize, incoming))

    return router


def _parse(incoming: Incoming) -> tuple[TokenizeFields, Conversation | None]:
    """The fields, and the conversation if there is one."""
    fields = parse_object(TokenizeFields, incoming.body)
    if (fields.prompt is None) == (fields.messages is None):
        raise ApiError(400, "give one of prompt and messages", param="prompt", code="invalid_value")
    try:
        return fields, None if fields.messages is None else fields.conversation()
    except ChatError as error:
        raise refused(error) from None


def _tokenize(model: ServedModel, fields: TokenizeFields, conversation: Conversation | None) -> dict[str, Any]:
    if conversation is None:
        special = fields.add_special_tokens is not False
        token_ids = prompt_token_ids(fields.prompt, model, add_special_tokens=special)
    else:
        token_ids = prepare_chat(model, conversation).token_ids
    texts = [model.tokenizer.token_text(token_id) for token_id in token_ids] if fields.return_token_strs else None
    return {
        "count": len(token_ids),
        "max_model_len": model.max_context_tokens,
        "tokens": token_ids,
        "token_strs": texts,
    }


def _detokenize(incoming: Incoming) -> dict[str, str]:
    fields = parse_object(DetokenizeFields, incoming.body)
    size = incoming.model.vocab_size
    outside = next((token_id for token_id in fields.tokens if not 0 <= token_id < size), None)
    if outside is not None:
        message = f"tokens has the token id {outside}: ids are 0 to {size - 1}"
        raise ApiError(400, message, param="tokens", code="invalid_value")
    tokenizer = incoming.model.tokenizer
    return {"prompt": b"".join(map(tokenizer.token_bytes, fields.tokens)).decode(errors="replace")}
