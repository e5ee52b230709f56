"""Settings that are a command line: one field, one flag, both ways.

Owns the spelling of flags, their help, and the one line that a bad flag gets.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

from pydantic import BaseModel, ConfigDict, ValidationError


class CommandLineSettings(BaseModel):
    """Frozen settings whose fields are the flags of one command: `max_waiting` is `--max-waiting`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    program: ClassVar[str]
    summary: ClassVar[str]
    positional: ClassVar[str | None] = None

    def arguments(self) -> list[str]:
        """What differs from the defaults, as `parse_arguments` reads it back."""
        words = []
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if not field.is_required() and value == field.default:
                continue
            if name == self.positional:
                words.append(f"./{value}" if str(value).startswith("-") else str(value))
            elif value is True:
                words.append(flag(name))
            else:
                words.append(f"{flag(name)}={value!r}" if isinstance(value, float) else f"{flag(name)}={value}")
        return words

    @classmethod
    def parse_arguments(cls, argv: Sequence[str]) -> Self:
        """Settings from a command line. A bad one ends the process: exit code 2, one line with flag, value and rule."""
        parser = _Parser(prog=cls.program, description=cls.summary, allow_abbrev=False)
        for name, field in cls.model_fields.items():
            default = "" if field.is_required() or field.default is None else f" (default {field.default})"
            about = f"{field.description or ''}{default}".replace("%", "%%")
            if name == cls.positional:
                parser.add_argument(name, metavar=name.upper(), help=about)
            else:
                bare: dict[str, Any] = {"nargs": "?", "const": True} if field.annotation is bool else {}
                parser.add_argument(
                    flag(name),
                    dest=name,
                    metavar="VALUE",
                    help=about,
                    required=field.is_required(),
                    default=argparse.SUPPRESS,
                    **bare,
                )
        given = vars(parser.parse_args(list(argv)))
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            parser.error(cls._first_fault(error))

    @classmethod
    def _first_fault(cls, error: ValidationError) -> str:
        fault = error.errors(include_url=False, include_context=False)[0]
        rule = fault["msg"].removeprefix("Value error, ")
        if not fault["loc"]:
            return rule
        name = str(fault["loc"][0])
        where = name.upper() if name == cls.positional else flag(name)
        return f"{where} {fault['input']}: {rule[:1].lower()}{rule[1:]}"


def flag(field: str) -> str:
    """The flag of a field: `max_waiting` is `--max-waiting`."""
    return "--" + field.replace("_", "-")


def without_nul(value: Path) -> Path:
    """A path that the system can open. Raises ValueError."""
    if "\0" in str(value):
        raise ValueError("must not contain a NUL character")
    return value


class _Parser(argparse.ArgumentParser):
    """argparse, with a fault on one line and no usage above it."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message} (see {self.prog} --help)\n")
        raise SystemExit(2)
