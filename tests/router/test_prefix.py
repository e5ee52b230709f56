"""The chain of a prompt: one conversation is one chain through every dialect, and a digest covers all before it."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from m3_router.bodies.bodies import decode_request
from m3_router.placement.prefix import Blocks, chain, seed

SEED = seed("m3", "salt")
LONG = "All work and no play makes Jack a dull boy.\n" * 100
PNG = "iVBORw0KGgoAAAANSUhEUg" * 100
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "description": "Où"}}, "required": ["city"]}


def chain_of(dialect: str, body: Mapping[str, Any] | bytes, block_bytes: int = 64, start: int = SEED) -> list[int]:
    raw = body if isinstance(body, bytes) else json.dumps({"model": "m3", **body}, ensure_ascii=False).encode()
    return chain(dialect, decode_request(raw), start, block_bytes)


CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be brief. " + LONG},
        {"role": "user", "content": [{"type": "text", "text": "What is on this picture? "},
                                     {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PNG}}]},
        {"role": "assistant", "content": "Rain.", "reasoning_content": "Grey \"clouds\"."},
        {"role": "user", "content": "And the weather in Zürich?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}},
            {"id": "call_2", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "sun"}]},
        {"role": "user", "content": "Thanks.\n" + LONG},
    ],
    "tools": [{"type": "function", "function": {"name": "weather", "description": "Says it.", "parameters": SCHEMA}}],
}  # fmt: skip

RESPONSES: dict[str, Any] = {
    "instructions": "Be brief. " + LONG,
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "What is on this picture? "},
                                     {"type": "input_image", "image_url": "data:image/png;base64," + PNG}]},
        {"type": "reasoning", "id": "rs_1", "content": [{"type": "reasoning_text", "text": "Grey \"clouds\"."}],
         "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Rain."}]},
        {"type": "message", "role": "user", "content": "And the weather in Zürich?"},
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city":"Zürich"}'},
        {"type": "function_call", "call_id": "call_2", "name": "weather", "arguments": '{"city":"Bern"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
        {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "sun"}]},
        {"role": "user", "content": "Thanks.\n" + LONG},
    ],
    "tools": [{"type": "function", "name": "weather", "description": "Says it.", "parameters": SCHEMA}],
}  # fmt: skip

MESSAGES: dict[str, Any] = {
    "system": [{"type": "text", "text": "Be brief. "}, {"type": "text", "text": LONG}],
    "messages": [
        {"role": "user", "content": [
            {"type": "text", "text": "What is on this picture? "},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Grey \"clouds\".", "signature": "s"},
                                          {"type": "text", "text": "Rain."}]},
        {"role": "user", "content": "And the weather in Zürich?"},
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Zürich"}},
            {"type": "tool_use", "id": "toolu_2", "name": "weather", "input": {"city": "Bern"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "rain"}]},
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": "sun"},
            {"type": "text", "text": "Thanks.\n" + LONG}]},
    ],
    "tools": [{"name": "weather", "description": "Says it.", "input_schema": SCHEMA}],
}  # fmt: skip


def test_one_conversation_is_one_chain_through_every_dialect() -> None:
    expected = chain_of("chat", CHAT)
    assert len(expected) > 100
    assert chain_of("responses", RESPONSES) == expected
    assert chain_of("messages", MESSAGES) == expected
    assert chain_of("count_tokens", MESSAGES) == expected
    assert chain_of("tokenize", CHAT) == expected


def test_escapes_and_whitespace_of_the_client_do_not_matter() -> None:
    for dialect, body in (("chat", CHAT), ("responses", RESPONSES), ("messages", MESSAGES)):
        plain = json.dumps({"model": "m3", **body}, ensure_ascii=False, separators=(",", ":")).encode()
        escaped = json.dumps({"model": "m3", **body}, ensure_ascii=True, indent=2).encode()
        assert b"\\u00fc" in escaped
        assert chain_of(dialect, escaped) == chain_of(dialect, plain)


def test_the_next_turn_of_a_conversation_keeps_the_whole_blocks_of_the_last() -> None:
    turns = CHAT["messages"]
    for end in range(2, len(turns)):
        before = chain_of("chat", {**CHAT, "messages": turns[:end]})
        after = chain_of("chat", {**CHAT, "messages": turns[: end + 1]})
        assert after[: len(before)] == before


def first_difference(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize(
    "changed",
    [
        {"system": "Be brief!"},
        {"system": "Be brief. ", "messages": [{"role": "assistant", "content": LONG}]},
        {"tools": [{"name": "weather", "input_schema": SCHEMA}]},
        {"messages": [{"role": "user", "content": "!" + LONG}]},
        {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": LONG}]}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": LONG}]}]},
    ],
)
def test_what_the_engine_would_tell_apart_early_differs_from_the_first_block_on(changed: dict[str, Any]) -> None:
    body = {"system": "Be brief.", "messages": [{"role": "user", "content": LONG}], "tools": []}
    base, other = chain_of("messages", body), chain_of("messages", {**body, **changed})
    assert not set(base) & set(other)


def test_nothing_is_shared_across_models_salts_and_adapters() -> None:
    body = {"messages": [{"role": "user", "content": LONG}]}
    seeds = {seed("m3", ""), seed("m4", ""), seed("m3", "a"), seed("m3", "", "a"), seed("m3a", ""), seed("m", "3")}
    assert len(seeds) == 6
    chains = [chain_of("chat", body, start=start) for start in seeds]
    assert len({digest for one in chains for digest in one}) == sum(len(one) for one in chains)


def test_every_digest_covers_everything_before_it() -> None:
    text = "".join(chr(97 + i % 26) for i in range(64 * 20))
    base = chain_of("completions", {"prompt": text})
    for at in (0, 100, 700, 64 * 19):
        changed = text[:at] + "#" + text[at + 1 :]
        assert first_difference(base, chain_of("completions", {"prompt": changed})) == (at + 1) // 64


def test_swapped_and_repeated_blocks_make_another_chain() -> None:
    blocks = ["a" * 64, "b" * 64, "c" * 64, "b" * 64, "a" * 64]
    digests = Blocks(SEED, 64)
    for block in blocks:
        digests.add(block.encode())
    assert len(set(digests.finish())) == 5


@given(
    data=st.binary(max_size=600), cuts=st.lists(st.integers(0, 600), max_size=8), block_bytes=st.sampled_from([64, 100])
)
def test_the_chain_does_not_depend_on_the_pieces(data: bytes, cuts: list[int], block_bytes: int) -> None:
    blocks = Blocks(SEED, block_bytes)
    edges = [0, *sorted(cuts), len(data)]
    for i in range(len(edges) - 1):
        blocks.add(memoryview(data)[edges[i] : edges[i + 1]])
    expected, digest = [], SEED
    for at in range(0, len(data) - block_bytes + 1, block_bytes):
        digest = xxhash.xxh3_64(data[at : at + block_bytes], seed=digest).intdigest()
        expected.append(digest)
    if data and not expected:
        expected = [xxhash.xxh3_64(data, seed=SEED).intdigest()]
    assert blocks.finish() == expected


def test_a_short_prompt_has_one_digest_and_none_has_no_chain() -> None:
    assert len(chain_of("chat", {"messages": [{"role": "user", "content": "hi"}]}, 1024)) == 1
    hi, ho = ({"messages": [{"role": "user", "content": text}]} for text in ("hi", "ho"))
    assert chain_of("chat", hi, 1024) != chain_of("chat", ho, 1024)
    assert chain_of("chat", {}) == []
    assert chain_of("completions", {}) == []


def test_a_developer_message_and_a_plain_input_are_what_they_are_elsewhere() -> None:
    system = {"role": "system", "content": LONG}
    user = {"role": "user", "content": "Hello. " + LONG}
    expected = chain_of("chat", {"messages": [system, user]})
    assert chain_of("chat", {"messages": [{**system, "role": "developer"}, user]}) == expected
    assert chain_of("responses", {"instructions": LONG, "input": user["content"]}) == expected
    assert chain_of("responses", {"input": [{**system, "role": "developer"}, user]}) == expected


def test_an_image_counts_by_its_bytes_wherever_they_are_written() -> None:
    def image(part: dict[str, Any]) -> list[int]:
        return chain_of("messages", {"messages": [{"role": "user", "content": [part]}]})

    inline = image({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}})
    assert image({"type": "image_url", "image_url": {"url": "data:image/png;base64," + PNG}}) == inline
    assert image({"type": "image", "source": {"type": "base64", "data": PNG + "A"}}) != inline
    link = image({"type": "image", "source": {"type": "url", "url": "https://pictures.example/1.png"}})
    assert image({"type": "image_url", "image_url": {"url": "https://pictures.example/1.png"}}) == link
    assert link != inline


def test_token_ids_are_a_prompt_too() -> None:
    ids = list(range(1000, 1400))
    short, long = chain_of("completions", {"prompt": ids[:300]}), chain_of("completions", {"prompt": ids})
    assert long[: len(short)] == short
    assert len(long) > len(short) > 10
    assert chain_of("embeddings", {"input": LONG}) == chain_of("completions", {"prompt": LONG})


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": 7}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": 7}]}]},
        {"messages": [{"role": "user", "content": [7]}], "tools": "none"},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": 1, "arguments": "{"}}]}]},
        {"input": None, "messages": None, "tools": None, "system": None, "instructions": None},
    ],
)
def test_what_is_no_conversation_gets_some_chain_and_no_error(body: dict[str, Any]) -> None:
    for dialect in ("chat", "responses", "messages"):
        assert chain_of(dialect, body) == chain_of(dialect, body)


def test_a_name_or_text_cannot_pass_for_a_mark() -> None:
    inner = "a\x01assistant\x02b"
    as_text = chain_of("chat", {"messages": [{"role": "user", "content": inner}]})
    as_turns = chain_of("chat", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    assert as_text != as_turns
