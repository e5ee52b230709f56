"""What an administrator can change on a running router, and what each act needs to know.

Owns the table of acts: names, fields, and how a field is checked. What an act does belongs to whoever hands in the
function; a router offers those that it was given, and the console shows no others.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

Run = Callable[[Mapping[str, str]], Awaitable[str]]
"""Does it, and returns one sentence about what has come of it. Raises ActError."""

FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "drain": ("pool", "worker"),  # no new requests for this worker; what it has goes on
    "undrain": ("pool", "worker"),
    "revoke": ("sha256",),  # an API key by its digest, on every replica, until the keys file says the same
    "reload": (),  # read the configuration and the keys again now
    "reset-affinity": (),  # forget which worker has which prefix
}
MAX_FIELD_CHARACTERS: Final = 256
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class ActError(Exception):
    """An act that cannot be done. The message is for people; `status` is 400, 404 or 409."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Acts:
    """The acts of one router, by name."""

    by_name: Mapping[str, Run]

    def __post_init__(self) -> None:
        if unknown := self.by_name.keys() - FIELDS.keys():
            raise ValueError(f"there are no acts {', '.join(sorted(unknown))}")

    @property
    def names(self) -> list[str]:
        """Those that this router offers, in the order of FIELDS."""
        return [name for name in FIELDS if name in self.by_name]

    def find(self, name: str) -> Run:
        """The function of an act. Raises ActError (404)."""
        if name not in self.by_name:
            there = ", ".join(self.names) or "none"
            raise ActError(404, f"There is no act {name[:MAX_FIELD_CHARACTERS]!r} here; there are: {there}.")
        return self.by_name[name]


def checked_fields(act: str, document: object) -> dict[str, str]:
    """The fields of an act as they came, checked. Raises ActError (400)."""
    fields = FIELDS[act]
    if not isinstance(document, dict) or set(document) != set(fields):
        expected = "{" + ", ".join(f'"{field}": "..."' for field in fields) + "}"
        raise ActError(400, f"{act} takes exactly {expected}.")
    checked = {}
    for name in fields:
        value = document[name]
        if not isinstance(value, str) or not 0 < len(value) <= MAX_FIELD_CHARACTERS or not value.isprintable():
            raise ActError(400, f"{name}: expected 1 to {MAX_FIELD_CHARACTERS} printable characters.")
        if name == "sha256":
            value = value.lower()
            if not _DIGEST.fullmatch(value):
                raise ActError(400, "sha256: expected the key's SHA-256 digest as 64 hexadecimal digits, not the key.")
        checked[name] = value
    return checked
