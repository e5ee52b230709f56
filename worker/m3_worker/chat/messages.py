"""The messages of a chat request, checked before the template sees them.

Owns the refusal of what the template would silently drop or what this version does not support: a message that is
accepted is rendered whole. Knows the roles and their order, not how a turn is written (template).
"""

from collections.abc import Mapping

from m3_worker.chat.conversation import OPENING_ROLES, ChatError

ROLES = ("root", *OPENING_ROLES, "user", "assistant")
_HOSTED_THINK = ("<think>", "</think>")


def check_messages(messages: object) -> list[dict[str, str]]:
    """The messages as the template takes them: role, content as one text, and an assistant's reasoning_content.

    Raises ChatError with the first rule broken.
    """
    if not isinstance(messages, list) or not messages:
        raise ChatError("messages", "messages must be a list with at least one message")
    checked = [_check_message(f"messages[{place}]", message) for place, message in enumerate(messages)]
    body = 1 if checked[0]["role"] == "root" else 0
    for place, message in enumerate(checked):
        role = message["role"]
        if role == "root" and place > 0:
            raise ChatError(f"messages[{place}].role", f"messages[{place}]: a root message can only be the first")
        if role in OPENING_ROLES and place > body:
            raise ChatError(
                f"messages[{place}].role",
                f"messages[{place}]: a {role} message can only open the conversation, after a root message if any: "
                "the model's chat format has no place for a later one",
            )
    return checked


def _check_message(where: str, message: object) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise ChatError(where, f"{where} must be an object with role and content")
    role = message.get("role")
    if role in ("tool", "function"):
        raise ChatError(f"{where}.role", f"{where}.role: {role} messages are not supported by this version")
    if role not in ROLES:
        raise ChatError(f"{where}.role", f"{where}.role is {role!r}: must be one of {', '.join(ROLES)}")
    reasoning = message.get("reasoning_content") if role == "assistant" else None
    known = {"role", "content", "reasoning_content"} if role == "assistant" else {"role", "content"}
    for name, value in message.items():
        if name not in known and value not in (None, [], {}):
            raise ChatError(
                f"{where}.{name}", f"{where}.{name} is not supported by this version in a message of {role}"
            )
    if reasoning is not None and not isinstance(reasoning, str):
        raise ChatError(f"{where}.reasoning_content", f"{where}.reasoning_content must be a string")
    content = message.get("content")
    if content is None and reasoning:
        content = ""
    checked = {"role": str(role), "content": _text_of(f"{where}.content", content)}
    if role == "assistant":
        checked |= _reasoning_of(checked["content"], reasoning)
    return checked


def _text_of(where: str, content: object) -> str:
    """Content as one text: a string, or the text parts of a list in order."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise ChatError(where, f"{where} must be a string or a list of text parts")
    texts = []
    for place, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            raise ChatError(
                f"{where}[{place}]",
                f"{where}[{place}]: parts of type {kind!r} are not supported by this version, only text is",
            )
        if not isinstance(part.get("text"), str):
            raise ChatError(f"{where}[{place}].text", f"{where}[{place}].text must be a string")
        texts.append(part["text"])
    return "".join(texts)


def _reasoning_of(content: str, reasoning: str | None) -> dict[str, str]:
    """An assistant's reasoning: its own field, or inline in the form that hosted APIs return, which M3 never saw."""
    if reasoning:
        return {"reasoning_content": reasoning}
    opening, closing = _HOSTED_THINK
    if content.startswith(opening) and closing in content:
        inside, rest = content[len(opening) :].split(closing, 1)
        return {"reasoning_content": inside, "content": rest}
    return {}
