"""The way from a conversation to the engine that every dialect goes: rendered, tokenised, its grammar compiled.

Owns the refusals on that way as API errors; the rules themselves are chat's.
"""

from m3_worker.api.errors import ApiError
from m3_worker.api.structured import compile_spec
from m3_worker.chat.conversation import ChatError, Conversation
from m3_worker.chat.prompt import PreparedChat, prepare
from m3_worker.grammar import Grammar
from m3_worker.serving import ServedModel


def prepare_chat(model: ServedModel, conversation: Conversation) -> PreparedChat:
    """Check and render a conversation by the checkpoint's own template. Raises ApiError 400."""
    if model.template is None:
        raise ApiError(400, "the checkpoint has no chat template: use /v1/completions", code="no_chat_template")
    try:
        return prepare(conversation, model.template, model.tokenizer)
    except ChatError as error:
        raise refused(error) from None


def compile_chat(model: ServedModel, chat: PreparedChat, conversation: Conversation) -> Grammar | None:
    """What the answer is held to, if anything; the sampling parameters take it.

    Raises ApiError 400. May take half a second: call it off the event loop.
    """
    if chat.grammar is None:
        return None
    return compile_spec(model, chat.grammar, "tools" if conversation.tools else "response_format")


def refused(error: ChatError) -> ApiError:
    """A conversation that breaks a rule, as the client is told."""
    return ApiError(400, str(error), param=error.param, code="invalid_value")
