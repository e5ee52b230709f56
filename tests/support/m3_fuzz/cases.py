"""One connection of a fuzzing client: what is sent in which pieces with which pauses, and how it ends."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from m3_fuzz.mutation import Mutator

Ending = Literal["read", "half-close", "reset"]
"""read: until the router closes; half-close: say that nothing more comes, then read; reset: leave at once."""


@dataclass(frozen=True)
class Piece:
    """Bytes, after a pause."""

    pause_seconds: float
    data: bytes


@dataclass(frozen=True)
class Case:
    """What one client does."""

    number: int
    pieces: Sequence[Piece]
    ending: Ending

    @property
    def data(self) -> bytes:
        """All that is sent."""
        return b"".join(piece.data for piece in self.pieces)


def make_case(number: int, seed: int, corpus: Sequence[bytes]) -> Case:
    """The case of a number: it depends on that and the seed alone."""
    generator = random.Random(f"{seed}-{number}")
    data = Mutator(generator, corpus).one()
    way = generator.choice(("whole", "whole", "halves", "packets", "drip"))
    if way == "whole":
        pieces = [Piece(0, data)]
    elif way == "halves":
        at = generator.randint(0, len(data))
        pieces = [Piece(0, data[:at]), Piece(generator.choice((0, 0.01, 0.2)), data[at:])]
    elif way == "packets":
        size = generator.choice((7, 100, 1448))
        pieces = [Piece(0, data[at : at + size]) for at in range(0, min(len(data), 50 * size), size)]
        pieces.append(Piece(0, data[50 * size :]))
    else:  # slowly: a byte at a time, up to longer than a head may take
        pieces = [Piece(0.05, data[at : at + 1]) for at in range(min(len(data), 60))]
    return Case(number, pieces, generator.choice(("read", "read", "half-close", "reset")))
