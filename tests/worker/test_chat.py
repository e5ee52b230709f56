"""Chat: what of a conversation is accepted, how it is rendered, and how thinking is split from the answer."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_worker.chat.conversation import ChatError
from m3_worker.chat.messages import check_messages
from m3_worker.chat.template import ChatTemplate
from m3_worker.chat.thinking import ThinkingSplitter
from m3_worker.model_config import CheckpointError

USER = {"role": "user", "content": "hi"}


def test_messages_come_out_as_the_template_takes_them() -> None:
    assert check_messages(
        [
            {"role": "root", "content": "r"},
            {"role": "system", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "yes", "reasoning_content": "why", "tool_calls": None, "refusal": None},
            {"role": "assistant", "content": None, "reasoning_content": "only thinking"},
        ]
    ) == [
        {"role": "root", "content": "r"},
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes", "reasoning_content": "why"},
        {"role": "assistant", "content": "", "reasoning_content": "only thinking"},
    ]


def test_thinking_inline_as_hosted_apis_return_it_becomes_reasoning_content() -> None:
    (message,) = check_messages([{"role": "assistant", "content": "<think>why</think>yes"}])
    assert message == {"role": "assistant", "content": "yes", "reasoning_content": "why"}


@pytest.mark.parametrize(
    ("messages", "param", "message"),
    [
        (None, "messages", "messages must be a list with at least one message"),
        ([], "messages", "messages must be a list with at least one message"),
        (["hi"], "messages[0]", "messages[0] must be an object with role and content"),
        (
            [{"role": "robot", "content": "x"}],
            "messages[0].role",
            "messages[0].role is 'robot': must be one of root, system",
        ),
        (
            [USER, {"role": "tool", "content": "x"}],
            "messages[1].role",
            "tool messages are not supported by this version",
        ),
        (
            [USER, {"role": "system", "content": "x"}],
            "messages[1].role",
            "a system message can only open the conversation",
        ),
        (
            [{"role": "system", "content": "x"}, {"role": "developer", "content": "y"}],
            "messages[1].role",
            "messages[1]: a developer message can only open the conversation",
        ),
        ([USER, {"role": "root", "content": "x"}], "messages[1].role", "a root message can only be the first"),
        ([{"role": "user"}], "messages[0].content", "messages[0].content must be a string or a list of text parts"),
        ([{"role": "user", "content": 5}], "messages[0].content", "must be a string or a list of text parts"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0]",
            "parts of type 'image_url' are not supported by this version, only text is",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "must be a string"),
        ([{"role": "user", "content": "x", "name": "eve"}], "messages[0].name", "messages[0].name is not supported"),
        (
            [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}],
            "messages[0].tool_calls",
            "messages[0].tool_calls is not supported by this version",
        ),
        (
            [{"role": "assistant", "content": "x", "reasoning_content": 1}],
            "messages[0].reasoning_content",
            "must be a string",
        ),
    ],
)
def test_what_would_be_lost_is_refused_by_name(messages: Any, param: str, message: str) -> None:
    with pytest.raises(ChatError) as refusal:
        check_messages(messages)
    assert refusal.value.param == param
    assert message in str(refusal.value)


def packaged_template() -> ChatTemplate:
    return ChatTemplate(resources.files("m3_worker").joinpath("chat_template.jinja").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("variables", "end"),
    [
        ({}, "]~b]ai\n"),
        ({"thinking_mode": "adaptive"}, "]~b]ai\n"),
        ({"thinking_mode": "enabled"}, "]~b]ai\n<mm:think>"),
        ({"thinking_mode": "disabled"}, "]~b]ai\n</mm:think>"),
    ],
)
def test_the_prompt_ends_where_the_thinking_mode_says(variables: dict[str, str], end: str) -> None:
    prompt = packaged_template().render(check_messages([USER]), variables)
    assert prompt.startswith("]~!b[]~b]system\n")
    assert prompt.endswith(f"]~b]user\nhi[e~[\n{end}")


def test_what_a_turn_returned_renders_to_what_the_model_wrote() -> None:
    template = packaged_template()
    prompt = template.render(check_messages([USER]), {"thinking_mode": "enabled"})
    splitter = ThinkingSplitter(prompt)
    written = " hm </mm:think>\n\nyes "
    pieces = splitter.push(written) + splitter.finish()
    turn = {"role": "assistant", "reasoning_content": pieces[0].text, "content": pieces[1].text}
    later = template.render(check_messages([USER, turn, USER]), {"thinking_mode": "enabled"})
    assert later.startswith(prompt + written)


def test_json_in_a_template_keeps_key_order_and_non_ascii_text() -> None:
    template = ChatTemplate("{{ messages[0] | tojson }}")
    assert template.render([{"z": "é<&", "a": "1"}], {}) == '{"z": "é<&", "a": "1"}'


def test_a_template_reads_the_special_tokens_it_names() -> None:
    assert (
        ChatTemplate("{{ bos_token }}{{ messages[0].content }}", {"bos_token": "]~!b["}).render([USER], {}) == "]~!b[hi"
    )


def test_a_template_cannot_reach_python() -> None:
    template = ChatTemplate("{{ messages.__class__.__mro__ }}")
    with pytest.raises(ChatError, match="unsafe"):
        template.render([USER], {})


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"thinking_mode": "on"}, "thinking_mode is 'on': must be one of enabled, disabled, adaptive"),
        (
            {"enable_thinking": True},
            "chat_template_kwargs.enable_thinking: the model's chat template does not read it; it reads",
        ),
        ({"messages": []}, "chat_template_kwargs.messages: the model's chat template does not read it"),
    ],
)
def test_a_variable_that_would_be_dropped_is_refused(variables: dict[str, Any], message: str) -> None:
    with pytest.raises(ChatError) as refusal:
        packaged_template().render([USER], variables)
    assert str(refusal.value).startswith(message)


def test_a_complaint_of_the_template_is_told() -> None:
    template = ChatTemplate("{{ raise_exception('no such turn') }}")
    with pytest.raises(ChatError, match="the model's chat template refuses the messages: no such turn"):
        template.render([USER], {})


def test_a_template_comes_from_its_file_or_from_the_tokenizer_s_config(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path) is None
    config = {"chat_template": "config{{ eos_token }}", "eos_token": {"content": "[e~["}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = ChatTemplate.load(tmp_path)
    assert loaded is not None
    assert loaded.render([USER], {}) == "config[e~["
    (tmp_path / "chat_template.jinja").write_text("file")
    loaded = ChatTemplate.load(tmp_path)
    assert loaded is not None
    assert loaded.render([USER], {}) == "file"


def test_a_template_that_does_not_compile_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(CheckpointError, match=r"chat_template.jinja: chat template: "):
        ChatTemplate.load(tmp_path)


def split(prompt: str, pieces: list[str]) -> dict[str, str]:
    splitter = ThinkingSplitter(prompt)
    found = {"reasoning": "", "content": ""}
    for segments in [*map(splitter.push, pieces), splitter.finish()]:
        for segment in segments:
            assert segment.text
            found[segment.kind] += segment.text
    return found


@pytest.mark.parametrize(
    ("prompt", "text", "reasoning", "content"),
    [
        ("ai\n<mm:think>", "why</mm:think>yes", "why", "yes"),
        ("ai\n<mm:think>", "never ends", "never ends", ""),
        ("ai\n</mm:think>", "yes", "", "yes"),
        ("ai\n", "<mm:think>why</mm:think>\n\nyes", "why", "\n\nyes"),
        ("ai\n", "\n<mm:think>why</mm:think>yes", "why", "yes"),
        ("ai\n", "</mm:think>yes", "", "yes"),
        ("ai\n", "yes", "", "yes"),
        ("ai\n", "<mm:th", "", "<mm:th"),
        ("ai\n", "yes <mm:think>no</mm:think>", "", "yes <mm:think>no</mm:think>"),
        ("ai\n<mm:think>", "a </mm: b</mm:think>c", "a </mm: b", "c"),
    ],
)
def test_thinking_is_split_from_the_answer_wherever_the_text_is_cut(
    prompt: str, text: str, reasoning: str, content: str
) -> None:
    expected = {"reasoning": reasoning, "content": content}
    assert split(prompt, [text]) == expected
    assert split(prompt, list(text)) == expected


@given(st.text(st.sampled_from("<>/m:think a")), st.integers(0, 40), st.sampled_from(["", "<mm:think>", "</mm:think>"]))
def test_how_thinking_is_cut_does_not_matter(text: str, cut: int, prompt: str) -> None:
    assert split(prompt, [text[:cut], text[cut:]]) == split(prompt, [text])
