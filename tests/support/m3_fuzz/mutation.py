"""Changes bytes, as a seeded generator says: the same seed gives the same bytes, in whichever order they are sent."""

import random
import re
from collections.abc import Callable, Sequence

_TOKENS = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b"\xff",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"0\r\n\r\n",
    b"\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 0\r\n",
    b"Connection: close\r\n",
    b"HTTP/1.1",
    b"data: ",
    b"[DONE]",
    b'"usage":',
    b"\n\n",
)
_NUMBERS = (
    b"0",
    b"1",
    b"-1",
    b"255",
    b"65536",
    b"4294967296",
    b"9223372036854775807",
    b"1e9",
    b"0x10",
    b"00",
    b"9" * 40,
)
_NUMBER = re.compile(rb"\d+")
MAX_BYTES = 2**20


class Mutator:
    """One generator's changes. `corpus` is what it splices from."""

    def __init__(self, generator: random.Random, corpus: Sequence[bytes]) -> None:
        self._random = generator
        self._corpus = corpus
        self._ways: tuple[Callable[[bytes], bytes], ...] = (
            self._flip,
            self._insert,
            self._delete,
            self._repeat,
            self._splice,
            self._number,
            self._truncate,
            self._swap,
        )

    def one(self) -> bytes:
        """A member of the corpus; one in four as it is, the others changed once or a few times."""
        data = self._random.choice(self._corpus)
        if self._random.random() < 0.25:
            return data
        return self.mutate(data)

    def mutate(self, data: bytes) -> bytes:
        """These bytes, changed."""
        for _ in range(self._random.choice((1, 1, 1, 2, 3, 6))):
            data = self._random.choice(self._ways)(data)[:MAX_BYTES]
        return data

    def _at(self, data: bytes) -> int:
        """Somewhere; half of the time near the beginning, where heads are."""
        end = min(len(data), 400) if self._random.random() < 0.5 else len(data)
        return self._random.randint(0, end)

    def _flip(self, data: bytes) -> bytes:
        at = self._at(data)
        return data[:at] + bytes([self._random.randrange(256)]) + data[at + 1 :]

    def _insert(self, data: bytes) -> bytes:
        at = self._at(data)
        return data[:at] + self._random.choice(_TOKENS) + data[at:]

    def _delete(self, data: bytes) -> bytes:
        at = self._at(data)
        return data[:at] + data[at + self._random.choice((1, 1, 2, 5, 50)) :]

    def _repeat(self, data: bytes) -> bytes:
        at = self._at(data)
        piece = data[at : at + self._random.choice((1, 4, 20, 200))]
        return data[:at] + piece * self._random.choice((1, 2, 10, 300)) + data[at:]

    def _splice(self, data: bytes) -> bytes:
        other = self._random.choice(self._corpus)
        begin = self._at(other)
        at = self._at(data)
        return data[:at] + other[begin : begin + self._random.choice((10, 100, 1000))] + data[at:]

    def _number(self, data: bytes) -> bytes:
        found = list(_NUMBER.finditer(data[:4000]))
        if not found:
            return self._insert(data)
        number = self._random.choice(found)
        return data[: number.start()] + self._random.choice(_NUMBERS) + data[number.end() :]

    def _truncate(self, data: bytes) -> bytes:
        return data[: self._at(data)]

    def _swap(self, data: bytes) -> bytes:
        begin, end = sorted((self._at(data), self._at(data)))
        middle = (begin + end) // 2
        return data[:begin] + data[middle:end] + data[begin:middle] + data[end:]
