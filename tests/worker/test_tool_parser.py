"""Tool calls as they stream: typed by the tool's schema, cut anywhere, and never lost where they are malformed."""

import itertools
import json
from importlib import resources
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from m3_worker.chat.conversation import Tool
from m3_worker.chat.events import Content, Reasoning, ToolCallArguments, ToolCallEnd, ToolCallStart, TurnEvent
from m3_worker.chat.template import ChatTemplate
from m3_worker.chat.turn import TurnParser

NS = "]<]minimax[>["
USER = {"role": "user", "content": "?"}
PACKAGED = ChatTemplate(resources.files("m3_worker").joinpath("chat_template.jinja").read_text(encoding="utf-8"))

WEATHER = Tool(
    "weather",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "exact": {"type": "boolean"},
            "hours": {"type": "array", "items": {"type": "integer"}},
            "at": {"type": "object", "properties": {"lat": {"type": "number"}, "tags": {"type": "array"}}},
        },
    },
)


def tags(text: str) -> str:
    """A text in which each tag is written as {tag}, with the namespace token before it."""
    return text.replace("{", f"{NS}<").replace("}", ">")


def calls(inside: str) -> str:
    return tags("{tool_call}\n" + inside + "{/tool_call}")


def weather(inside: str) -> str:
    return tags('{invoke name="weather"}' + inside + "{/invoke}\n")


def parse(text: str, cuts: list[int] | None = None, *, was_cut: bool = False, prompt: str = "") -> list[TurnEvent]:
    """The events of a text that comes in pieces, with what follows each other of a kind put together."""
    ids = (f"id{number}" for number in itertools.count())
    parser = TurnParser(prompt, [WEATHER], lambda: next(ids))
    places = [0, *sorted({min(cut, len(text)) for cut in cuts or ()}), len(text)]
    events = [event for start, end in itertools.pairwise(places) for event in parser.push(text[start:end])]
    return joined([*events, *parser.finish(was_cut=was_cut)])


def joined(events: list[TurnEvent]) -> list[TurnEvent]:
    whole: list[TurnEvent] = []
    for event in events:
        match whole[-1:], event:
            case [Content(before)], Content(text):
                whole[-1] = Content(before + text)
            case [Reasoning(before)], Reasoning(text):
                whole[-1] = Reasoning(before + text)
            case [ToolCallArguments(index, before)], ToolCallArguments(_, text):
                whole[-1] = ToolCallArguments(index, before + text)
            case _:
                whole.append(event)
    return whole


def called(events: list[TurnEvent]) -> list[tuple[str, Any]]:
    """Name and arguments of the calls that are complete."""
    names = {event.index: event.name for event in events if isinstance(event, ToolCallStart)}
    ended = [event.index for event in events if isinstance(event, ToolCallEnd)]
    arguments = {event.index: event.json_fragment for event in joined(events) if isinstance(event, ToolCallArguments)}
    return [(names[index], json.loads(arguments[index])) for index in ended]


def content(events: list[TurnEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Content))


def one_by_one(text: str) -> list[int]:
    return list(range(len(text)))


def test_a_call_is_named_first_and_its_arguments_follow_as_one_json_object() -> None:
    text = "Let me see." + calls(weather('{city}Zürich & <b>\n"x"{/city}{days}3{/days}'))
    assert parse(text) == [
        Content("Let me see."),
        ToolCallStart(0, "id0", "weather"),
        ToolCallArguments(0, '{"city":"Zürich & <b>\\n\\"x\\"","days":3}'),
        ToolCallEnd(0),
    ]


def test_a_string_is_passed_on_while_it_is_written() -> None:
    parser = TurnParser("", [WEATHER])
    parser.push(tags('{tool_call}\n{invoke name="weather"}{city}'))
    assert parser.push("Zür") == [ToolCallArguments(0, "Zür")]
    assert parser.push("ich]<]mini") == [ToolCallArguments(0, "ich")]
    assert parser.push("max[>[</cit") == []
    assert parser.push("y>") == [ToolCallArguments(0, '"')]


@pytest.mark.parametrize(
    ("inside", "arguments"),
    [
        ("", {}),
        ("{hours}{/hours}", {"hours": []}),
        ("{at}{/at}", {"at": {}}),
        ("{city}{/city}", {"city": ""}),
        ("{hours}{item}1{/item}{item}2{/item}{/hours}", {"hours": [1, 2]}),
        ("{hours}\n{item}1{/item}\n{/hours}\n", {"hours": [1]}),
        ("{hours}[1, 2]{/hours}", {"hours": [1, 2]}),
        ("{at}{lat}1{/lat}{tags}{item}{item}a{/item}{/item}{/tags}{/at}", {"at": {"lat": 1, "tags": [["a"]]}}),
        ("{exact}true{/exact}{days} 4 {/days}", {"exact": True, "days": 4}),
        ("{days}four{/days}", {"days": "four"}),
        ("{unknown}5{/unknown}", {"unknown": 5}),
        ("{unknown}{x}5{/x}{/unknown}", {"unknown": {"x": 5}}),
        ("{city}</city>{/cit}{/invoke}{/city}", {"city": f"</city>{NS}</cit>{NS}</invoke>"}),
        (f"{{days}}{NS}1{{/days}}", {"days": f"{NS}1"}),
        ("{city}2{/city}", {"city": "2"}),
    ],
)
def test_arguments_have_the_types_of_the_schema(inside: str, arguments: dict[str, Any]) -> None:
    text = calls(weather(inside))
    for cuts in ([], one_by_one(text)):
        events = parse(text, cuts)
        assert called(events) == [("weather", arguments)]
        assert content(events) == ""


def test_calls_side_by_side_are_numbered() -> None:
    events = parse(calls(weather("{days}1{/days}") + weather("{days}2{/days}")) + "\n" + calls(weather("")))
    assert [event for event in events if isinstance(event, ToolCallStart)] == [
        ToolCallStart(0, "id0", "weather"),
        ToolCallStart(1, "id1", "weather"),
        ToolCallStart(2, "id2", "weather"),
    ]
    assert called(events) == [("weather", {"days": 1}), ("weather", {"days": 2}), ("weather", {})]
    assert content(events) == ""


def test_calls_follow_thinking_and_thinking_never_calls() -> None:
    thought = calls(weather("{days}1{/days}"))
    events = parse(f"{thought}</mm:think>{calls(weather('{days}2{/days}'))}", prompt="ai\n<mm:think>")
    assert events[0] == Reasoning(thought)
    assert called(events) == [("weather", {"days": 2})]


@pytest.mark.parametrize(
    ("text", "expected_calls", "expected_content"),
    [
        ("a{b", [], "a{b"),
        ("{tool_call", [], "{tool_call"),
        ("{tool_call}\n", [], "{tool_call}\n"),
        ("{tool_call}\n{/tool_call}", [], "{tool_call}\n{/tool_call}"),
        ("{tool_call}hello{/tool_call}", [], "{tool_call}hello{/tool_call}"),
        ("{tool_call}\n{call}x", [], "{tool_call}\n{call}x"),
        ("{tool_call}\n{invoke name=weather}x", [], "{tool_call}\n{invoke name=weather}x"),
        ('{tool_call}{invoke name="weather"}x{/invoke}{/tool_call}', [{}], "x{/invoke}{/tool_call}"),
        (
            '{tool_call}{invoke name="weather"}{hours}{item}5{/item}{days}{/invoke}',
            [{"hours": [5]}],
            "{days}{/invoke}",
        ),
        (
            '{tool_call}{invoke name="weather"}{days}5{/days}{invoke name="weather"}',
            [{"days": 5}],
            '{invoke name="weather"}',
        ),
        ('{tool_call}{invoke name="weather"}{days}5{/days}{/invoke}and{/tool_call}', [{"days": 5}], "and{/tool_call}"),
    ],
)
def test_what_is_no_call_is_content_once_and_what_was_understood_of_a_call_is_valid(
    text: str, expected_calls: list[Any], expected_content: str
) -> None:
    text = tags(text)
    for cuts in ([], one_by_one(text)):
        events = parse(text, cuts)
        starts = [event for event in events if isinstance(event, ToolCallStart)]
        assert [arguments for _, arguments in called(events)] == expected_calls
        assert len(starts) == len(expected_calls)
        assert content(events) == tags(expected_content)


def test_a_value_ends_at_its_own_closing_tag_only() -> None:
    events = parse(calls(weather("{days}5{/city}")))
    assert (called(events), content(events)) == ([], "")


def test_a_call_that_the_model_does_not_end_is_complete_if_its_arguments_are() -> None:
    text = tags('{tool_call}\n{invoke name="weather"}{days}5{/days}')
    assert called(parse(text)) == [("weather", {"days": 5})]


@pytest.mark.parametrize(
    "inside", ["{days}5{/days}", "{days}5", "{city}Ber", "{city}Ber]<]mini", "{hours}{item}1{/item}"]
)
def test_a_call_that_a_limit_cuts_off_has_no_end_and_no_valid_arguments(inside: str) -> None:
    events = parse(tags('{tool_call}\n{invoke name="weather"}' + inside), was_cut=True)
    assert not any(isinstance(event, ToolCallEnd) for event in events)
    (fragment,) = [event.json_fragment for event in events if isinstance(event, ToolCallArguments)]
    with pytest.raises(ValueError, match="line 1"):
        json.loads(fragment)


def test_without_tools_all_is_content() -> None:
    text = calls(weather(""))
    parser = TurnParser("")
    assert [*parser.push(text), *parser.finish()] == [Content(text)]


def test_elements_nested_without_end_are_malformed_and_not_followed() -> None:
    text = tags('{tool_call}{invoke name="weather"}' + "{at}" * 5000)
    (arguments,) = [arguments for _, arguments in called(parse(text))]
    assert json.dumps(arguments).count("at") == 64
    assert content(parse(text)).count("<at>") == 5000 - 64


pieces = st.sampled_from(
    [NS, "]<]", "minimax[>[", "<", ">", "/", "\n", " ", "x", "5", "true", '"', "<tool_call>", "</tool_call>"]
    + ['<invoke name="weather">', "</invoke>", "</mm:think>", "<mm:think>"]
    + [
        tags(tag)
        for tag in ("{tool_call}", "{/tool_call}", '{invoke name="weather"}', "{/invoke}", "{item}", "{/item}")
    ]
    + [tags(f"{{{end}{name}}}") for name in ("city", "days", "hours", "at") for end in ("", "/")]
)


@given(st.lists(pieces, max_size=24).map("".join), st.lists(st.integers(0, 300), max_size=6), st.booleans())
def test_how_a_turn_is_cut_does_not_matter_and_complete_calls_are_valid(
    text: str, cuts: list[int], starts_call: bool
) -> None:
    text = tags('{tool_call}\n{invoke name="weather"}') + text if starts_call else text
    whole = parse(text)
    called(whole)
    assert parse(text, cuts) == whole
    assert parse(text, one_by_one(text)) == whole


NAMES = st.sampled_from(["city", "item", "a b", "x-1", "größe", "name"])
PARTS = ["<", "&", "\n", "a", '"', "\\", "é", NS, "]<]", "</item>", " ", "{", "5"]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=6).map("".join)


def typed(children: st.SearchStrategy[tuple[Any, Any]]) -> st.SearchStrategy[tuple[Any, Any]]:
    """(schema, value) of an object or an array of such."""
    return st.one_of(objects(children), children.flatmap(arrays))


def objects(children: st.SearchStrategy[tuple[Any, Any]]) -> st.SearchStrategy[tuple[Any, Any]]:
    return st.dictionaries(NAMES, children, max_size=3).map(
        lambda parts: (
            {"type": "object", "properties": {name: schema for name, (schema, _) in parts.items()}},
            {name: value for name, (_, value) in parts.items()},
        )
    )


def arrays(child: tuple[Any, Any]) -> st.SearchStrategy[tuple[Any, Any]]:
    schema, value = child
    return st.integers(0, 3).map(lambda count: ({"type": "array", "items": schema}, [value] * count))


SCALARS = st.one_of(
    TEXTS.map(lambda value: ({"type": "string"}, value)),
    st.integers().map(lambda value: ({"type": "integer"}, value)),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda value: ({"type": "number"}, value)),
    st.booleans().map(lambda value: ({"type": ["boolean", "null"]}, value)),
    st.sampled_from(["1", "red", ""]).map(lambda value: ({"enum": ["1", "red", ""]}, value)),
)


@given(objects(st.recursive(SCALARS, typed, max_leaves=6)), st.lists(st.integers(0, 400), max_size=5))
def test_what_the_template_writes_is_parsed_back(argument: tuple[Any, Any], cuts: list[int]) -> None:
    schema, arguments = argument
    assume(not any(f"{NS}</" in text for text in strings(arguments)))
    tool = Tool("f", parameters=schema)
    turn = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    written = PACKAGED.render([USER, turn], {}).rsplit("]~b]ai\n</mm:think>")[1].removesuffix("[e~[\n]~b]ai\n")
    parser = TurnParser("</mm:think>", [tool])
    places = [0, *sorted({min(cut, len(written)) for cut in cuts}), len(written)]
    events = [event for start, end in itertools.pairwise(places) for event in parser.push(written[start:end])]
    assert called([*events, *parser.finish()]) == [("f", arguments)]
    assert content(events) == ""


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for child in value.values() for text in strings(child)]
    if isinstance(value, list):
        return [text for child in value for text in strings(child)]
    return [value] if isinstance(value, str) else []
