"""Thinking split from the answer, wherever the text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_worker.chat.thinking import ThinkingSplitter


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
