"""Fields of a checkpoint's JSON files, read and checked one by one.

Owns the error that every refusal of a checkpoint is, and the few ways to read a field: a section, a number, one of the
allowed values. Knows no field by name: that is `config`'s and `vision_config`'s.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

Json = Mapping[str, Any]
T = TypeVar("T", int, float)

ABSENT = object()
"""Stands for a field that may be absent, in a list of allowed values."""


class CheckpointError(Exception):
    """A checkpoint that cannot be served. The message is one line that names the file or field, and the rule."""


def read_json(path: Path) -> Json:
    """One JSON object from a file of the checkpoint. Raises CheckpointError that names the file."""
    try:
        parsed = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; a checkpoint directory must have it") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, not {type(parsed).__name__}")
    return parsed


def section(parent: Json, name: str, prefix: str = "") -> Json:
    """The object under `name`. Raises CheckpointError if there is none."""
    value = parent.get(name)
    if not isinstance(value, dict):
        raise CheckpointError(f"{prefix}{name} is missing: must be an object")
    return value


def require(fields: Json, name: str, allowed: tuple[object, ...], prefix: str = "") -> None:
    """Raise CheckpointError unless the field has one of the allowed values, type included."""
    value = fields.get(name, ABSENT)
    if any(value is option or (type(value) is type(option) and value == option) for option in allowed):
        return
    shown = "missing" if value is ABSENT else json.dumps(value)
    options = " or ".join(json.dumps(option) for option in allowed if option is not ABSENT)
    raise CheckpointError(f"{prefix}{name} is {shown}: only {options} is supported")


def number(fields: Json, name: str, kind: type[T], prefix: str = "") -> T:
    """A positive number. Raises CheckpointError if it is missing or something else."""
    value = fields.get(name, ABSENT)
    is_number = is_int(value) if kind is int else is_int(value) or isinstance(value, float)
    if not is_number or not value > 0:
        shown = "missing" if value is ABSENT else json.dumps(value)
        raise CheckpointError(f"{prefix}{name} is {shown}: must be a positive {'integer' if kind is int else 'number'}")
    return kind(value)


def is_int(value: object) -> bool:
    """JSON has no integers, Python's bool is one: neither 1.0 nor True counts."""
    return isinstance(value, int) and not isinstance(value, bool)
