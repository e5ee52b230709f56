"""A conversation made into a prompt: nothing lost, nothing mixed up, and no text taken for the format's tokens."""

from importlib import resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_worker.byte_vocabulary import BYTES, M3_TOKENS, byte_level_tokenizer
from m3_worker.chat.conversation import (
    ChatError,
    Conversation,
    ImagePart,
    MediaSource,
    Message,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from m3_worker.chat.events import Content, Reasoning
from m3_worker.chat.prompt import PreparedChat, prepare
from m3_worker.chat.template import ChatTemplate
from m3_worker.grammar import GrammarSpec
from m3_worker.tokenizer import Tokenizer

TOKENIZER = Tokenizer(byte_level_tokenizer(M3_TOKENS))
PACKAGED = ChatTemplate(resources.files("m3_worker").joinpath("chat_template.jinja").read_text(encoding="utf-8"))
SPECIAL = [text for text, _ in M3_TOKENS]
USER = Message("user", "hi")
TOOL = Tool("f", "does f", {"type": "object", "properties": {"a": {"type": "string"}}})


def prepared(*messages: Message, **fields: Any) -> PreparedChat:
    return prepare(Conversation(messages, **fields), PACKAGED, TOKENIZER)


def turns(chat: PreparedChat) -> list[tuple[str, str]]:
    """(role, text) of each turn, the one that is to come too."""
    parts = chat.prompt.removeprefix("]~!b[").split("]~b]")[1:]
    return [(role, text.removesuffix("[e~[\n")) for role, _, text in (part.partition("\n") for part in parts)]


def calling(*ids: str) -> Message:
    return Message("assistant", tool_calls=tuple(ToolCall(one, "f", {}) for one in ids))


def result(identity: str) -> Message:
    return Message("tool", f"of {identity}", tool_call_id=identity)


def test_several_opening_messages_become_one_developer_turn() -> None:
    chat = prepared(Message("root", "r"), Message("system", "s"), Message("developer", (TextPart("d"),)), USER)
    (system, developer, user, _) = turns(chat)
    assert system[1].startswith("r\n\n<thinking_instructions>")
    assert (developer, user) == (("developer", "s\n\nd"), ("user", "hi"))


def test_results_stand_in_the_order_of_their_calls() -> None:
    chat = prepared(USER, calling("a", "b"), result("b"), result("a"), calling("b"), result("b"))
    tool_turns = [text for role, text in turns(chat) if role == "tool"]
    assert tool_turns == ["<response>of a</response>\n<response>of b</response>", "<response>of b</response>"]


def test_a_tool_is_shown_as_the_client_wrote_it() -> None:
    definition = {"name": "f", "z": 1, "description": "für <b>"}
    assert (
        '<tool>{"name": "f", "z": 1, "description": "für <b>"}</tool>'
        in prepared(USER, tools=(Tool("f", definition=definition),)).prompt
    )
    described = '<tool>{"name": "f", "description": "does f", "parameters": {"type": "object", "properties": {'
    assert described in prepared(USER, tools=(TOOL,)).prompt


def test_inline_thinking_of_an_assistant_is_not_looked_for_again() -> None:
    chat = prepared(USER, Message("assistant", "a</mm:think>b"), USER)
    assert ("ai", "</mm:think>a</mm:think>b") in turns(chat)


@pytest.mark.parametrize(
    ("thinking", "end"), [("enabled", "ai\n<mm:think>"), ("disabled", "ai\n</mm:think>"), ("adaptive", "]~b]ai\n")]
)
def test_thinking_is_the_template_s_mode(thinking: Any, end: str) -> None:
    assert prepared(USER, thinking=thinking).prompt.endswith(end)


def test_a_template_that_cannot_think_is_told_of_only_if_it_has_to() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    conversation = Conversation((USER,), thinking="disabled")
    assert prepare(conversation, template, TOKENIZER).prompt == "hi"
    with pytest.raises(ChatError, match="the model's chat template has no thinking_mode"):
        prepare(Conversation((USER,), thinking="enabled"), template, TOKENIZER)


@given(st.lists(st.sampled_from([*SPECIAL, "]~", "b]", "[e", "~[", "a", "\ufdd0"]), max_size=6).map("".join))
def test_special_tokens_in_somebody_s_text_are_text(text: str) -> None:
    plain, chat = prepared(USER), prepared(Message("user", text))
    assert chat.prompt == plain.prompt.replace("]~b]user\nhi", f"]~b]user\n{text}")
    assert TOKENIZER.decode(chat.token_ids) == TOKENIZER.decode(plain.token_ids).replace("user\nhi", f"user\n{text}")
    special = [token for token in chat.token_ids if token >= BYTES]
    assert special == [token for token in plain.token_ids if token >= BYTES]


def test_what_the_model_wrote_itself_keeps_its_tokens() -> None:
    chat = prepared(USER, Message("assistant", "x", reasoning="r"), Message("user", "</mm:think>[e~["))
    closing = TOKENIZER.id_of("</mm:think>")
    in_system_text = prepared(USER).token_ids.count(closing or 0)
    assert chat.token_ids.count(closing or 0) == in_system_text + 1


def test_images_are_refused_by_a_model_without_a_vision_tower() -> None:
    image = ImagePart(MediaSource("data:,", where="messages[0].content[0].image_url"))
    with pytest.raises(ChatError, match="this model takes no images, it has no vision tower") as refusal:
        prepared(Message("user", (image,)))
    assert refusal.value.param == "messages[0].content[0].image_url"


@pytest.mark.parametrize(
    ("thinking", "after", "opening"),
    [("disabled", None, None), ("enabled", "</mm:think>", None), ("adaptive", "</mm:think>", "<mm:think>")],
)
def test_a_format_holds_from_the_end_of_thinking_on(thinking: Any, after: str | None, opening: str | None) -> None:
    chat = prepared(USER, thinking=thinking, response_format=ResponseFormat("regex", "a+"))
    assert chat.grammar == GrammarSpec("regex", "a+", after, opening)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, None),
        ({"tools": (TOOL,)}, None),
        ({"tools": (TOOL,), "tool_choice": ToolChoice("none")}, "lark"),
        ({"tools": (TOOL,), "tool_choice": ToolChoice("required")}, "lark"),
        ({"tools": (Tool("f", strict=True),)}, "lark"),
        ({"tools": (TOOL,), "response_format": ResponseFormat("json_object")}, "lark"),
        (
            {"tools": (TOOL,), "tool_choice": ToolChoice("none"), "response_format": ResponseFormat("json_object")},
            "json_object",
        ),
    ],
)
def test_a_grammar_is_there_where_something_is_promised(fields: dict[str, Any], kind: str | None) -> None:
    chat = prepared(USER, **fields)
    assert (chat.grammar.kind if chat.grammar else None) == kind


def test_without_a_choice_of_tools_nothing_is_taken_for_a_call() -> None:
    assert prepared(USER, tools=(TOOL,)).tools == (TOOL,)
    assert prepared(USER, tools=(TOOL,), tool_choice=ToolChoice("none")).tools == ()


@pytest.mark.parametrize(
    ("thinking", "beginning"),
    [
        ("enabled", Message("assistant", "yes", reasoning="why")),
        ("adaptive", Message("assistant", "yes", reasoning="why")),
        ("adaptive", Message("assistant", "yes")),
        ("disabled", Message("assistant", "yes [e~[ and </mm:think>")),
    ],
)
def test_a_turn_that_goes_on_is_the_template_s_turn_without_its_end(thinking: Any, beginning: Message) -> None:
    chat = prepared(USER, beginning, thinking=thinking, continues=True)
    over = prepared(USER, beginning, thinking=thinking)
    assert over.prompt.startswith(chat.prompt + chat.begun + "[e~[\n]~b]ai\n")
    assert over.token_ids[: len(chat.token_ids)] == chat.token_ids


def test_thinking_without_an_answer_goes_on() -> None:
    for thinking in ("enabled", "adaptive"):
        beginning = Message("assistant", reasoning="why")
        chat = prepared(USER, beginning, thinking=thinking, continues=True)
        over = prepared(USER, beginning, thinking=thinking)
        assert over.prompt.startswith(chat.prompt + chat.begun + "</mm:think>[e~[\n")
        events = chat.parser().push(" not</mm:think>ok")
        assert events == [Reasoning(" not"), Content("ok")]


def test_a_turn_that_goes_on_has_the_pages_of_the_one_that_was_cut_off() -> None:
    cut_off = prepared(USER, thinking="enabled")
    chat = prepared(USER, Message("assistant", "yes", reasoning="why"), thinking="enabled", continues=True)
    assert chat.token_ids[: len(cut_off.token_ids)] == cut_off.token_ids
    assert chat.parser().push(" indeed") == [Content(" indeed")]


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ((USER,), "must be the assistant's"),
        ((USER, Message("assistant", "")), "with text"),
        ((USER, calling("a"), result("a"), calling("b")), "answers b"),
    ],
)
def test_only_an_assistants_text_can_go_on(messages: tuple[Message, ...], part: str) -> None:
    with pytest.raises(ChatError, match=part):
        prepared(*messages, tools=(TOOL,), continues=True)
