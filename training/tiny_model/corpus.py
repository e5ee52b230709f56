"""What the tiny M3 is to know: questions and answers by topic, and the documentation.

Owns the reading and checking of `questions/*.yaml`, and which documents are read. Knows no token and no randomness.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
QUESTIONS = Path(__file__).parent / "questions"
DOCUMENTS = ("README.md", "docs/*.md", "*/README.md", "charts/m3serve/README.md")


@dataclass(frozen=True)
class Pair:
    """One answer and the ways to ask for it."""

    topic: str
    """What the question is about, in words that follow "about"."""
    ask: tuple[str, ...]
    answer: str
    weight: int = 1
    """How often it is learned while others are learned once."""


@dataclass(frozen=True)
class Corpus:
    """All that is learned from text."""

    pairs: tuple[Pair, ...]
    documents: tuple[str, ...]


def load() -> Corpus:
    """Read all of it. Raises ValueError that names what is wrong."""
    pairs = tuple(pair for path in sorted(QUESTIONS.glob("*.yaml")) for pair in _pairs(path))
    asked = Counter(question for pair in pairs for question in pair.ask)
    question, times = asked.most_common(1)[0]
    if times > 1:
        raise ValueError(f"{QUESTIONS}: {question!r} is asked {times} times: one question has one answer")
    paths = sorted({path for pattern in DOCUMENTS for path in ROOT.glob(pattern)})
    return Corpus(pairs, tuple(path.read_text(encoding="utf-8") for path in paths))


def _pairs(path: Path) -> list[Pair]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        Pair(content["topic"], _asked(entry, path), _text(entry["answer"], path), int(entry.get("weight", 1)))
        for entry in content["pairs"]
    ]


def _asked(entry: dict[str, object], path: Path) -> tuple[str, ...]:
    """The questions as they are written, then each of `forms` with each of `about` in the place of X."""
    parts = [entry.get(name, []) for name in ("ask", "forms", "about")]
    asks, forms, about = ([_text(line, path) for line in part] for part in parts if isinstance(part, list))
    return (*asks, *(form.replace("X", word) for form in forms for word in about))


def _text(value: object, path: Path) -> str:
    if not isinstance(value, str) or not value or value != value.strip():
        raise ValueError(f"{path}: {value!r} must be a text without space around it")
    return value
