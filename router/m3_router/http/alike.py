"""Messages like one that was read before: the same head byte for byte, but for values that come and go.

Owns what is remembered of a head that the parser has read and we have accepted, so that the next one like it needs no
parser. Recognizes a message only where it is whole, alone and of a decimal Content-Length; everything else, and every
doubt, is the parser's. Pure.
"""

import re
from typing import Final

from m3_router.http.messages import Answer, Start
from m3_router.http.wire import RESPONSE_ENDS_HERE, Head, Headers

_LENGTH_LINE: Final = b"\r\ncontent-length:"
_MAX_HEAD_BYTES: Final = 2**13  # a longer head is not worth comparing
# Values that differ from answer to answer, and change nothing of how it is framed.
_VARYING: Final = frozenset({b"date", b"request-id", b"x-request-id", b"x-m3-input-tokens"})
_VARYING_VALUE: Final = rb": (?P<v%d>[!-~](?:[ -~]*[!-~])?)"
_LENGTH_VALUE: Final = rb": (?P<length>[0-9]{1,12})"


class _Frame:
    """A head whose bytes are known but for the digits of its length."""

    __slots__ = ("_after", "_before")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before  # the head up to the digits
        self._after = after  # and from them on

    @classmethod
    def learn(cls, head: bytes) -> "_Frame | None":
        """From a head, the blank line included. None if its length is not written plainly."""
        at = head.lower().find(_LENGTH_LINE)
        if at < 0:
            return None
        at += len(_LENGTH_LINE)
        end = head.index(b"\r\n", at)
        digits = head[at:end].lstrip(b" ")
        return cls(head[: end - len(digits)], head[end:]) if digits.isdigit() else None

    def body(self, data: bytes) -> bytes | None:
        """The body, if `data` is one whole message with such a head.

        The length of the whole gives that of the body (but for a few just above a power of ten, which are left to the
        parser), so that all of its head is known, and one comparison tells.
        """
        length = len(data) - len(self._before) - len(self._after)
        length -= len(str(length))
        head = self._before + str(length).encode() + self._after
        return data[len(head) :] if data.startswith(head) else None


class RequestsAlike:
    """Requests that start as one before them on their connection. Made of slices alone: a stranger decides on them."""

    __slots__ = ("_frame", "start")

    def __init__(self, start: Start, frame: _Frame) -> None:
        self.start = start
        self._frame = frame

    @classmethod
    def learn(cls, data: bytes, start: Start) -> "RequestsAlike | None":
        """From a whole request. None if it is not alone, or has no plainly written length."""
        frame = _Frame.learn(data[: data.find(b"\r\n\r\n", 0, _MAX_HEAD_BYTES) + 4])
        return cls(start, frame) if frame is not None and frame.body(data) is not None else None

    def body(self, data: bytes) -> bytes | None:
        """The body, if `data` is one whole request like this."""
        return self._frame.body(data)


class AnswersAlike:
    """Answers of status 200 that start as one before them on their connection.

    Their `content-length` is where the body ends; the value in their head stays that of the first.
    """

    __slots__ = ("_answer", "_frame", "_headers", "_match", "_places")

    def __init__(self, head: bytes, headers: Headers, answer: Answer) -> None:
        """head: the bytes of an answer's head, the blank line included. headers: as they were parsed from it."""
        self._answer = answer
        self._headers = headers
        self._places: list[int] = []  # of the varying headers
        pattern: list[bytes] = []
        for place, line in enumerate(head.removesuffix(b"\r\n\r\n").split(b"\r\n"), -1):  # the status line is none
            name, colon, _ = line.partition(b":")
            lower = name.lower()
            if place >= 0 and colon and lower == b"content-length":
                pattern.append(re.escape(name) + _LENGTH_VALUE)
            elif place >= 0 and colon and lower in _VARYING:
                pattern.append(re.escape(name) + _VARYING_VALUE % len(self._places))
                self._places.append(place)
            else:
                pattern.append(re.escape(line))
        self._frame = None if self._places else _Frame.learn(head)
        self._match = re.compile(b"\r\n".join(pattern) + b"\r\n\r\n").match

    @classmethod
    def learn(cls, head: bytes, headers: Headers, answer: Answer) -> "AnswersAlike | None":
        """None if not every answer with such a head would be read as this one was."""
        known = answer.head.known
        if answer.status != 200 or len(head) > _MAX_HEAD_BYTES or b"content-length" not in known:
            return None
        if b"transfer-encoding" in known or b"connection" in known:
            return None
        return cls(head, headers, answer)

    def read(self, data: bytes) -> tuple[Answer, bytes] | None:
        """The answer and its body, if `data` is one whole answer like this."""
        if self._frame is not None:
            body = self._frame.body(data)
            return None if body is None else (self._answer, body)
        match = self._match(data)
        if match is None:
            return None
        end = match.end()
        if len(data) - end != int(match["length"]):
            return None
        places = self._places
        if not places:
            return self._answer, data[end:]
        headers = self._headers.copy()
        for number, place in enumerate(places):
            headers[place] = (headers[place][0], match[f"v{number}"])
        return Answer(200, Head(headers, RESPONSE_ENDS_HERE)), data[end:]
