"""How long a process that dies is left alone, and how its end reads."""

import io
import os

import pytest

from m3_router.processes.child import LONGEST_PAUSE_SECONDS, how_it_ended, pause_seconds
from m3_router.telemetry.log import pass_on_lines


def test_pauses_double_up_to_the_longest() -> None:
    pauses = [pause_seconds(failures) for failures in range(1, 200)]
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS == max(pauses)


@pytest.mark.parametrize(("status", "said"), [(2, "ended with status 2"), (-9, "was killed by SIGKILL")])
def test_an_end_is_told_in_words(status: int, said: str) -> None:
    assert how_it_ended(status) == said


class Pieces(io.BytesIO):
    """Keeps what each write was given."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.pieces.append(data)
        return len(data)


def test_lines_are_passed_on_whole_and_one_that_was_broken_off_is_ended() -> None:
    source, end = os.pipe()
    line = b"x" * 40_000
    os.write(end, line + b"\nbroken")
    os.close(end)
    sink = Pieces()
    pass_on_lines(source, sink)
    assert sink.pieces == [line + b"\n", b"broken\n"]


def test_a_reader_that_is_gone_does_not_hold_up_the_writer() -> None:
    source, end = os.pipe()
    os.write(end, b"one\ntwo\n")
    os.close(end)
    sink = io.BytesIO()
    sink.close()
    pass_on_lines(source, sink)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(source)
