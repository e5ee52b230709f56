"""What a line of the operator's log says about whom."""

import asyncio
import json
import logging
from collections.abc import Iterator

import pytest

from m3_operator.log import Cycles, JsonFormatter, TextFormatter
from m3_operator.observed import Key

KEY = Key("M3Deployment", "ns", "m3")


class Lines(logging.Handler):
    """Keeps what a formatter makes of each record."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    found = logging.getLogger("test_log")
    found.propagate = False
    found.setLevel(logging.INFO)
    yield found
    found.handlers.clear()


def test_a_json_line_names_object_and_cycle(logger: logging.Logger) -> None:
    lines = Lines(JsonFormatter())
    logger.addHandler(lines)
    cycles = Cycles("abc")
    with cycles.of(KEY):
        logger.warning("%s: lost\nits node", KEY)
    with cycles.of(KEY):
        logger.info("again")
    logger.info("nobody's")
    first, second, third = (json.loads(line) for line in lines.lines)
    assert first.pop("time").startswith("20")
    assert first == {
        "level": "warning",
        "logger": "test_log",
        "message": "M3Deployment ns/m3: lost\nits node",
        "kind": "M3Deployment",
        "namespace": "ns",
        "name": "m3",
        "reconcile_id": "abc-1",
    }
    assert second["reconcile_id"] == "abc-2"
    assert "reconcile_id" not in third
    assert all("\n" not in line for line in lines.lines)


async def test_what_a_cycle_starts_belongs_to_it_and_two_cycles_at_once_are_kept_apart(logger: logging.Logger) -> None:
    lines = Lines(JsonFormatter())
    logger.addHandler(lines)
    cycles = Cycles("c")

    async def child(name: str) -> None:
        await asyncio.sleep(0)
        logger.info("child of %s", name)

    async def cycle(name: str) -> None:
        with cycles.of(Key("M3Router", "ns", name)):
            await asyncio.gather(child(name), child(name))

    await asyncio.gather(cycle("a"), cycle("b"))
    found = [json.loads(line) for line in lines.lines]
    assert len(found) == 4
    assert all(line["message"] == f"child of {line['name']}" for line in found)
    assert {(line["name"], line["reconcile_id"]) for line in found} == {("a", "c-1"), ("b", "c-2")}


def test_a_defect_keeps_its_traceback_in_one_json_line(logger: logging.Logger) -> None:
    lines = Lines(JsonFormatter())
    logger.addHandler(lines)
    try:
        raise ValueError("odd")
    except ValueError:
        logger.exception("defect")
    (line,) = lines.lines
    assert json.loads(line)["exception"].endswith("ValueError: odd")


def test_a_text_line_has_the_cycle_in_brackets(logger: logging.Logger) -> None:
    lines = Lines(TextFormatter())
    logger.addHandler(lines)
    with Cycles("abc").of(KEY):
        logger.info("words")
    logger.info("words")
    assert lines.lines[0].endswith("INFO test_log [abc-1] words")
    assert lines.lines[1].endswith("INFO test_log words")
