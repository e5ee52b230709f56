"""The way from a conversation to the engine that every dialect goes: rendered, tokenised, its grammar compiled.

Owns the refusals on that way as API errors; the rules themselves are chat's.
"""

from m3_worker.api.errors import ApiError
from m3_worker.api.structured import compile_spec
from m3_worker.chat.conversation import ChatError, Conversation, ImagePart, VideoPart
from m3_worker.chat.prompt import PreparedChat, prepare
from m3_worker.chat.rules import check
from m3_worker.grammar import Grammar
from m3_worker.media.items import MediaError, MediaMemoryError, MediaReference
from m3_worker.serving import ServedModel


async def load_media(model: ServedModel, conversation: Conversation) -> Conversation:
    """The conversation with its images and videos read, which `prepare_chat` needs.

    Raises ApiError 400 for one that is refused, 429 if the worker holds too many already.
    """
    parts = conversation.media
    if not parts or model.media is None:
        return conversation
    try:
        check(conversation)  # nothing is fetched for a conversation that breaks another rule
        loaded = await model.media.load([_reference(part) for part in parts])
    except ChatError as error:
        raise refused(error) from None
    except MediaError as error:
        raise ApiError(400, f"{error.where}: {error}", param=error.where, code="invalid_media") from None
    except MediaMemoryError as error:
        raise ApiError(429, str(error), code="media_memory_full", retry_after_seconds=1) from None
    return conversation.with_media(loaded)


def _reference(part: ImagePart | VideoPart) -> MediaReference:
    return MediaReference("image" if isinstance(part, ImagePart) else "video", part.source.url, part.source.where)


def prepare_chat(model: ServedModel, conversation: Conversation) -> PreparedChat:
    """Check and render a conversation by the checkpoint's own template. Raises ApiError 400."""
    if model.template is None:
        raise ApiError(400, "the checkpoint has no chat template: use /v1/completions", code="no_chat_template")
    try:
        vision = None if model.media is None else model.media.config
        return prepare(conversation, model.template, model.tokenizer, vision)
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
