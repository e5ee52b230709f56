"""What a line of the log carries beside its words: the object of the cycle it was written in, and that cycle's id.

Owns the two formats. The words are the callers'; nothing here looks into manifests, so no Secret can get into a line.
"""

import contextlib
import itertools
import json
import logging
import secrets
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from m3_operator.observed import Key

FORMATS: Final = ("text", "json")


@dataclass(frozen=True, slots=True)
class Cycle:
    """One look at one object."""

    key: Key
    reconcile_id: str


_cycle: ContextVar[Cycle | None] = ContextVar("cycle", default=None)


@dataclass
class Cycles:
    """Numbers the cycles of this process: a random stem, because two replicas' logs are read together."""

    stem: str = field(default_factory=lambda: secrets.token_hex(3))
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @contextlib.contextmanager
    def of(self, key: Key) -> Iterator[Cycle]:
        """Lines written inside, also by tasks started inside, belong to this cycle."""
        cycle = Cycle(key, f"{self.stem}-{next(self._numbers)}")
        token = _cycle.set(cycle)
        try:
            yield cycle
        finally:
            _cycle.reset(token)


def configure(level: str, log_format: str) -> None:
    """All lines of the process go to stderr, from this level on, in this format (one of FORMATS)."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


class TextFormatter(logging.Formatter):
    """`time level logger [cycle] words`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s%(cycle)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        cycle = _cycle.get()
        record.cycle = f" [{cycle.reconcile_id}]" if cycle is not None else ""
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message; in a cycle kind, namespace, name and reconcile_id."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        cycle = _cycle.get()
        if cycle is not None:
            key = cycle.key
            entry |= {"kind": key.kind, "namespace": key.namespace, "name": key.name}
            entry["reconcile_id"] = cycle.reconcile_id
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)
