"""The metrics of several processes as one text. Pure.

Owns the merging: every sample gets a label that says whose it is, and the samples of a family stand together under one
HELP and one TYPE, which the text format demands. Source: Prometheus, "Exposition formats", text-based format 0.0.4.
"""

from collections.abc import Mapping
from typing import Final

LABEL: Final = "process"


class _Family:
    __slots__ = ("head", "samples")

    def __init__(self) -> None:
        self.head: dict[str, str] = {}  # HELP and TYPE, those of the first process that has them
        self.samples: list[str] = []


def merged(texts: Mapping[int, str]) -> str:
    """One exposition of several, by number of the process. None of them may have a label `process` of its own."""
    families: dict[str, _Family] = {}
    for process, text in texts.items():
        name = ""
        for line in text.split("\n"):  # a label's value may hold any other separator of lines
            if line.startswith(("# HELP ", "# TYPE ")):
                _, kind, name, _ = (line + " ").split(" ", 3)
                families.setdefault(name, _Family()).head.setdefault(kind, line)
            elif line and not line.startswith("#"):
                sample = _name_of(line)
                if not name or not sample.startswith(name):
                    name = sample  # without a head
                families.setdefault(name, _Family()).samples.append(_labelled(line, sample, process))
    lines = [line for family in families.values() for line in (*family.head.values(), *family.samples)]
    return "\n".join([*lines, ""])


def _name_of(line: str) -> str:
    end = len(line.split(" ", 1)[0])
    brace = line.find("{", 0, end)
    return line[: end if brace < 0 else brace]


def _labelled(line: str, name: str, process: int) -> str:
    pair = f'{LABEL}="{process}"'
    rest = line[len(name) :]
    if not rest.startswith("{"):
        return f"{name}{{{pair}}}{rest}"
    return f"{name}{{{pair}{rest[1:]}" if rest.startswith("{}") else f"{name}{{{pair},{rest[1:]}"
