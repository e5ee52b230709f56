"""Grammars: what each kind allows and forbids, where it begins, what is refused, and that a stranger cannot grow it."""

import json
import time

import pytest

from m3_fakes.worker import CLOSING, END_OF_TURN, OPENING, byte_tokenizer
from m3_worker.grammar import MAX_TEXT_BYTES, GrammarError, Grammars, GrammarSpec, Matcher, allows_only, masks

VOCABULARY = 259
INTEGER = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
GRAMMARS = Grammars(byte_tokenizer(), VOCABULARY, {END_OF_TURN})


def matcher(kind: str, text: str = "", **more: str) -> Matcher:
    return GRAMMARS.compile(GrammarSpec(kind, text, **more)).matcher()  # type: ignore[arg-type] # spelled by the test


def allowed(one: Matcher) -> set[int]:
    """Token ids that may follow."""
    (mask,) = masks([one])
    return {token for token in range(VOCABULARY) if mask[token // 32] >> (token % 32) & 1}


def follows(one: Matcher, text: str | bytes) -> bool:
    """Whether each byte of the text is allowed where it comes."""
    data = text.encode() if isinstance(text, str) else text
    return all(byte in allowed(one) and one.accept(byte) for byte in data)


@pytest.mark.parametrize(
    ("kind", "text", "right", "wrong"),
    [
        ("json_schema", INTEGER, '{"a": -12}', '{"a": "x"}'),
        ("json_schema", '{"enum": ["yes", "nö"]}', '"nö"', '"no"'),
        ("json_object", "", '{"k": [1, {"z": null}]}', "[1]"),
        ("regex", "[a-c]{2}[0-9]+", "ab17", "abc"),
        ("lark", 'start: "a" rest\nrest: "b" rest | "c"', "abbc", "ac!"),
    ],
)
def test_what_the_grammar_says_is_allowed_and_nothing_else(kind: str, text: str, right: str, wrong: str) -> None:
    one = matcher(kind, text)
    assert END_OF_TURN not in allowed(one)
    assert follows(one, right)
    assert END_OF_TURN in allowed(one)
    assert not follows(matcher(kind, text), wrong)


def test_a_finished_answer_can_only_end() -> None:
    one = matcher("json_schema", INTEGER)
    assert follows(one, '{"a": 1}')
    assert one.is_finished
    assert allowed(one) == {END_OF_TURN}
    assert one.accept(END_OF_TURN)
    assert one.failure is None


def test_special_tokens_and_ids_without_a_token_are_never_part_of_an_answer() -> None:
    sparse = Grammars(byte_tokenizer(), 300, {END_OF_TURN}).compile(GrammarSpec("regex", "(.|\\n)*x")).matcher()
    (mask,) = masks([sparse])
    assert {token for token in range(256, 300) if mask[token // 32] >> (token % 32) & 1} == {OPENING, CLOSING}


def test_the_constraint_can_begin_after_a_text_before_which_the_answer_cannot_end() -> None:
    one = matcher("json_schema", INTEGER, after="</mm:think>")
    assert allowed(one) == set(range(VOCABULARY)) - {END_OF_TURN}
    assert follows(one, "let me see {")
    assert one.accept(CLOSING)
    assert ord("{") in allowed(one)
    assert ord("x") not in allowed(one)
    assert follows(one, '{"a": 1}')
    assert one.is_finished


def test_the_text_before_the_constraint_may_come_in_pieces() -> None:
    one = matcher("regex", "[0-9]+", after="ab--")
    assert follows(one, "xx ab-ab--")
    assert allowed(one) == set(b"0123456789")


def test_an_answer_may_choose_by_its_first_token_whether_to_think() -> None:
    thinking = matcher("regex", "[0-9]+", opening="<mm:think>", after="</mm:think>")
    assert allowed(thinking) == {OPENING, *b"0123456789"}
    assert thinking.accept(OPENING)
    assert follows(thinking, "hmm")
    assert thinking.accept(CLOSING)
    assert allowed(thinking) == set(b"0123456789")
    direct = matcher("regex", "[0-9]+", opening="<mm:think>", after="</mm:think>")
    assert direct.accept(ord("7"))
    assert allowed(direct) == {END_OF_TURN, *b"0123456789"}


def test_masks_of_several_answers_are_those_of_each() -> None:
    several = [matcher("regex", "a+"), matcher("regex", "x", after="!"), matcher("regex", "b"), matcher("json_object")]
    together = masks(several)
    assert [row.tolist() for row in together] == [masks([one])[0].tolist() for one in several]


def test_a_token_outside_of_the_grammar_fails_for_good() -> None:
    one = matcher("regex", "[0-9]+")
    assert not one.accept(ord("x"))
    assert one.failure == "Parser Error: token \"x\" doesn't satisfy the grammar; byte 'x' fails parse"
    assert not one.is_finished


def test_whether_only_some_tokens_are_left_can_be_asked() -> None:
    one = matcher("regex", "a")
    assert allows_only(masks([one])[0], [97])
    assert not allows_only(masks([matcher("regex", "[ab]")])[0], [97])
    assert one.accept(97)
    assert allows_only(masks([one])[0], [END_OF_TURN, 5])


def test_a_known_grammar_is_not_compiled_again_and_answers_do_not_share_their_place() -> None:
    spec = GrammarSpec("regex", "abc")
    grammar = GRAMMARS.compile(spec)
    assert GRAMMARS.compile(GrammarSpec("regex", "abc")) is grammar
    first, second = grammar.matcher(), grammar.matcher()
    assert follows(first, "ab")
    assert allowed(second) == {ord("a")}


def test_the_oldest_grammar_is_forgotten_when_too_many_are_known() -> None:
    grammars = Grammars(byte_tokenizer(), VOCABULARY, {END_OF_TURN}, kept=2)
    first = grammars.compile(GrammarSpec("regex", "a"))
    second = grammars.compile(GrammarSpec("regex", "b"))
    assert grammars.compile(GrammarSpec("regex", "a")) is first
    grammars.compile(GrammarSpec("regex", "c"))
    assert grammars.compile(GrammarSpec("regex", "a")) is first
    assert grammars.compile(GrammarSpec("regex", "b")) is not second


DEEP = '{"items": ' * 300 + "{}" + "}" * 300
MANY = json.dumps({"properties": {f"p{number}": {"type": "integer"} for number in range(600)}})


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("json_schema", '{"type": "integerx"}', "Invalid type: integerx"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', 'Unimplemented keys: ["uniqueItems"]'),
        ("json_schema", '{"enum": []}', "Unsatisfiable schema"),
        ("json_schema", "{", "EOF while parsing"),
        ("json_schema", '{"$ref": "http://127.0.0.1/x"}', "Default retriever does not fetch resources"),
        ("json_schema", DEEP, "recursion limit exceeded"),
        ("json_schema", MANY, "Current row has"),
        ("regex", "[a-z{3,5}", "unclosed character class"),
        ("lark", 'strt: "a"', "no start rule found"),
        ("regex", "a" * (MAX_TEXT_BYTES + 1), f"it has {MAX_TEXT_BYTES + 1} bytes: the limit is {MAX_TEXT_BYTES}"),
    ],
    ids=lambda value: value[:20],
)
def test_what_cannot_be_enforced_is_refused_in_one_line(kind: str, text: str, message: str) -> None:
    with pytest.raises(GrammarError) as caught:
        matcher(kind, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300


def test_what_blows_up_costs_bounded_time() -> None:
    began = time.process_time()
    for text in ("(.*a.{300})+b", "((((a{0,1000}){0,1000}){0,1000}){0,1000})", "(x{0,60000}y{0,60000})+"):
        try:
            one = matcher("regex", text)
        except GrammarError:
            continue
        for _ in range(30):
            options = allowed(one) - {END_OF_TURN}
            if one.failure is not None or not options:
                break
            one.accept(min(options))
    assert time.process_time() - began < 5
