"""One member of a JSON object set, and every other byte of it as it was.

Owns how a field is put into a body that is not ours: beside the others where it was absent, in the place of its old
value where it was not. What cannot be done without guessing is refused. Pure.
"""

from typing import Final

import msgspec

from m3_router.bodies.bodies import decode_members
from m3_router.errors import bad_request

_MAX_CANDIDATES: Final = 4  # places that may look like the member before we ask for plainer JSON
_WHITE_SPACE: Final = b" \t\r\n"


def with_member(body: bytes, name: str, value: bytes, old: msgspec.Raw | None) -> bytes:
    """The object `body`, valid JSON, with its top-level member `name` set to `value`, which is JSON too.

    old: the member's value as it was decoded from this body; None or empty if there is none. Raises Refusal (400) if
    the member is written so that its place is not certain. Setting anew takes a copy, replacing a pass over the body.
    """
    key = b'"%b"' % name.encode()
    raw = b"" if old is None else bytes(memoryview(old))
    if not raw:
        at = body.index(b"{") + 1
        separator = b"" if body[_after_white_space(body, at)] == 0x7D else b","  # }
        return b"%b%b:%b%b%b" % (body[:at], key, value, separator, body[at:])
    at = 0
    for _ in range(_MAX_CANDIDATES):
        at = body.find(key, at)
        if at < 0:
            break
        at += len(key)
        colon = _after_white_space(body, at)
        if body[colon] != 0x3A:  # :
            continue
        start = _after_white_space(body, colon + 1)
        if body.startswith(raw, start):
            spliced = b"".join((body[:start], value, body[start + len(raw) :]))
            if _member(spliced, name) == value:  # else it was that of an inner object
                return spliced
    raise bad_request(f"{name}: write the name of this field plainly, and once.", param=name)


def _after_white_space(body: bytes, at: int) -> int:
    while body[at] in _WHITE_SPACE:
        at += 1
    return at


def _member(body: bytes, name: str) -> bytes | None:
    try:
        return bytes(memoryview(decode_members(body)[name]))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, KeyError):
        return None
