"""The checkpoint's chat template: what it is given, what it may do, and what of it is refused."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from m3_worker.chat.conversation import ChatError
from m3_worker.chat.template import ChatTemplate
from m3_worker.chat.thinking import ThinkingSplitter
from m3_worker.model.config import CheckpointError

USER = {"role": "user", "content": "hi"}


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
    prompt = packaged_template().render([USER], variables)
    assert prompt.startswith("]~!b[]~b]system\n")
    assert prompt.endswith(f"]~b]user\nhi[e~[\n{end}")


def test_what_a_turn_returned_renders_to_what_the_model_wrote() -> None:
    template = packaged_template()
    prompt = template.render([USER], {"thinking_mode": "enabled"})
    splitter = ThinkingSplitter(prompt)
    written = " hm </mm:think>\n\nyes "
    pieces = splitter.push(written) + splitter.finish()
    turn = {"role": "assistant", "reasoning_content": pieces[0].text, "content": pieces[1].text}
    later = template.render([USER, turn, USER], {"thinking_mode": "enabled"})
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


def test_what_a_template_cannot_work_with_is_its_complaint() -> None:
    with pytest.raises(ChatError, match="the model's chat template refuses the messages"):
        ChatTemplate("{{ messages[0].content + 1 }}").render([USER], {})
