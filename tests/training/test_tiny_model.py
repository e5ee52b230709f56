"""What the tiny M3 is trained on: enough of it, without contradictions, and nothing of what it is examined by.

How well the trained model answers is tested where it is served (`tests/worker/test_packaged.py`).
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus() -> Iterator[ModuleType]:
    """The module of that name; `training` is no part of the installed package."""
    sys.path.insert(0, str(ROOT / "training"))
    try:
        from tiny_model import corpus

        yield corpus
    finally:
        sys.path.remove(str(ROOT / "training"))


def test_there_are_hundreds_of_answers_and_each_can_be_asked_for_in_several_ways(corpus: ModuleType) -> None:
    pairs = corpus.load().pairs
    assert len(pairs) > 300
    assert [pair.answer for pair in pairs if len(pair.ask) < 2] == []


def test_the_documentation_is_part_of_what_is_learned(corpus: ModuleType) -> None:
    documents = corpus.load().documents
    assert (ROOT / "README.md").read_text(encoding="utf-8") in documents
    assert len(documents) > 5


def test_a_question_with_two_answers_is_refused(
    corpus: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        text = f'topic: {name}\npairs:\n- ask: ["Why?"]\n  answer: {name}\n'
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(corpus, "QUESTIONS", tmp_path)
    with pytest.raises(ValueError, match=r"'Why\?' is asked 2 times"):
        corpus.load()


def test_forms_are_filled_with_every_word(corpus: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'topic: x\npairs:\n- ask: ["Why?"]\n  forms: ["What is X?", "Where is X?"]\n'
    text += "  about: [rain, snow]\n  answer: No.\n"
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(corpus, "QUESTIONS", tmp_path)
    (pair,) = corpus.load().pairs
    assert pair.ask == ("Why?", "What is rain?", "What is snow?", "Where is rain?", "Where is snow?")


def test_an_answer_that_yaml_reads_as_something_else_is_refused(
    corpus: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.yaml").write_text('topic: x\npairs:\n- ask: ["Why?"]\n  answer: 42\n', encoding="utf-8")
    monkeypatch.setattr(corpus, "QUESTIONS", tmp_path)
    with pytest.raises(ValueError, match=r"x\.yaml: 42 must be a text"):
        corpus.load()
