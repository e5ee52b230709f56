"""The journal: what is in it survives the writer's death, whatever the death left behind."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_router.money import segments
from m3_router.money.journal import Journal
from m3_router.money.segments import (
    HEAD,
    MAX_PAYLOAD_BYTES,
    OPENED,
    READ_BYTES,
    RECORD,
    SETTLED,
    JournalError,
    read_records,
    segment_paths,
    settled_after,
)

SEGMENT_BYTES = 2**16
Start = Callable[..., Journal]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts journals in one directory; closes those that a test has not."""
    journals: list[Journal] = []

    def begin(*, retain_segments: int = 100, awaits_redis: bool = False, segment_bytes: int = SEGMENT_BYTES) -> Journal:
        journal = Journal(tmp_path / "ledger", segment_bytes, retain_segments, awaits_redis=awaits_redis)
        journals.append(journal)
        return journal

    yield begin
    for journal in journals:
        journal.close()


def records(directory: Path) -> list[tuple[int, int, bytes]]:
    return [(one.kind, one.number, one.payload) for path in segment_paths(directory) for one in read_records(path)]


def unsettled(journal: Journal) -> dict[int, bytes]:
    return {one.number: one.payload for one in journal.take_unsettled()}


def test_what_was_opened_and_not_settled_is_handed_to_the_next_start(start: Start) -> None:
    journal = start()
    first, second = journal.opened(0, b"first"), journal.opened(0, b"second")
    assert journal.opened(second, b"second, again") == second
    journal.settled(first, b"paid")
    journal.close()
    following = start()
    assert following.name == journal.name
    assert following.open_bills == 1
    assert unsettled(following) == {second: b"second, again"}
    assert following.take_unsettled() == []
    following.settled(second, b"paid late")
    following.close()
    assert start().take_unsettled() == []


def test_numbers_and_sequences_are_never_given_twice(start: Start) -> None:
    given: list[int] = []
    for _ in range(3):
        journal = start()
        number = journal.opened(0, b"bill")
        given += [number, journal.settled(number, b"bill")]
        journal.close()
    assert given == sorted(set(given))
    assert given[-1] < 2**53  # a JSON number, wherever it is read


def test_a_record_that_lies_across_two_reads_of_its_file_is_read(start: Start) -> None:
    journal = start(segment_bytes=4 * READ_BYTES)
    written = []
    while sum(map(len, written)) < 3 * READ_BYTES:
        written.append(bytes([1 + len(written) % 255]) * (1 + 7919 * len(written) % MAX_PAYLOAD_BYTES))
        journal.settled(journal.last_sequence + 1, written[-1])
    (path,) = segment_paths(journal.directory)
    assert [one.payload for one in read_records(path)] == written  # while it is open
    journal.close()
    assert [one.payload for one in read_records(path)] == written


def test_records_are_read_as_they_were_written_over_many_segments(start: Start) -> None:
    journal = start()
    written = []
    for place in range(500):
        payload = bytes([place % 256]) * (place % 700 + 1)
        number = journal.opened(0, payload)
        written.append((OPENED, number, payload))
        journal.settled(number, payload)
        written.append((SETTLED, number, payload))
    assert journal.segments > 4
    assert records(journal.directory) == written
    journal.close()
    assert records(journal.directory) == written
    used = sum(path.stat().st_size for path in segment_paths(journal.directory))
    assert used < sum(len(payload) + RECORD.size for _, _, payload in written) + 100 * HEAD.size  # what is left is cut


@settings(max_examples=40)
@given(cut=st.integers(0, 400), noise=st.binary(max_size=64))
def test_a_torn_tail_ends_what_is_read_and_nothing_before_it(
    tmp_path_factory: pytest.TempPathFactory, cut: int, noise: bytes
) -> None:
    directory = tmp_path_factory.mktemp("ledger")
    journal = Journal(directory, SEGMENT_BYTES, 10, awaits_redis=False)
    ends = [HEAD.size]
    numbers = []
    for _ in range(5):
        numbers.append(journal.opened(0, b"p" * 50))
        ends.append(ends[-1] + RECORD.size + 50)
    (path,) = segment_paths(directory)
    journal.close()
    whole = path.read_bytes()
    assert len(whole) == ends[-1]
    kept = HEAD.size + cut
    torn = whole[:kept] + noise + bytes(1000)
    path.write_bytes(torn)
    read = [one.number for one in read_records(path)]
    untouched = [number for number, end in zip(numbers, ends[1:], strict=True) if torn[:end] == whole[:end]]
    assert read == untouched
    following = Journal(directory, SEGMENT_BYTES, 10, awaits_redis=False)
    assert sorted(unsettled(following)) == untouched
    assert following.opened(0, b"new") > max(numbers)
    following.close()


def test_a_record_with_a_changed_byte_is_not_read(start: Start) -> None:
    journal = start()
    journal.opened(0, b"first")
    journal.opened(0, b"second")
    journal.close()
    (path,) = segment_paths(journal.directory)
    whole = path.read_bytes()
    for place in range(HEAD.size + RECORD.size + 5, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        assert [one.payload for one in read_records(path)] == [b"first"], place


def test_the_oldest_segments_go_when_all_in_them_is_settled(start: Start) -> None:
    journal = start(retain_segments=2)
    late = journal.opened(0, b"x" * 1000)
    for _ in range(200):
        journal.settled(journal.opened(0, b"x" * 1000), b"x" * 1000)
    assert journal.segments > 4  # the first has an open bill, and nothing behind it goes before
    journal.settled(late, b"x" * 1000)
    while journal.segments > 2:
        journal.settled(journal.opened(0, b"x" * 1000), b"x" * 1000)
    journal.close()
    assert len(segment_paths(journal.directory)) == 2


def test_nothing_goes_that_redis_does_not_have(start: Start) -> None:
    journal = start(retain_segments=2, awaits_redis=True)
    sequences = [journal.settled(journal.opened(0, b"x" * 1000), b"x" * 1000) for _ in range(200)]
    before = journal.segments
    assert before > 4
    assert [one.sequence for one in settled_after(journal.directory, 0, 2**30)] == sequences
    journal.confirm(sequences[100])
    assert 2 < journal.segments < before
    journal.confirm(sequences[-1])
    assert journal.segments == 2


def test_settled_bills_are_read_from_where_one_left_off_and_in_portions(start: Start) -> None:
    journal = start()
    sequences = [journal.settled(journal.opened(0, b"o" * 500), b"s" * 500) for _ in range(300)]
    read: list[int] = []
    while portion := settled_after(journal.directory, read[-1] if read else 0, 10_000):
        assert len(portion) == 20 or portion[-1].sequence == sequences[-1]
        read += [one.sequence for one in portion]
    assert read == sequences


def test_a_directory_belongs_to_one_process(start: Start) -> None:
    start()
    with pytest.raises(JournalError, match="another router"):
        start()


def test_files_of_another_journal_are_refused(start: Start, tmp_path: Path) -> None:
    journal = start()
    journal.opened(0, b"bill")
    journal.close()
    other = Journal(tmp_path / "other", SEGMENT_BYTES, 10, awaits_redis=False)
    other.opened(0, b"bill")
    other.close()
    (path,) = segment_paths(other.directory)
    path.rename(segments.segment_path(journal.directory, 2**60))
    with pytest.raises(JournalError, match="belongs to the journal"):
        start()


def test_without_room_the_router_goes_on_and_counts_what_is_not_kept(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = start()

    def full(path: Path, size_bytes: int) -> tuple[int, object]:
        raise OSError(28, "No space left on device")

    # The spare that was made ready is used up first.
    monkeypatch.setattr("m3_router.money.journal_keeper.create", full)
    numbers = [journal.opened(0, b"x" * 10_000) for _ in range(20)]
    assert len(set(numbers)) == 20
    assert journal.lost_records > 0
    kept = len(records(journal.directory))
    assert kept + journal.lost_records == 20
    assert "no room" in caplog.text
    for number in numbers:
        journal.settled(number, b"x")
    assert journal.open_bills == 0


def test_a_directory_without_room_for_one_segment_is_refused(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, size_bytes: int) -> tuple[int, object]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("m3_router.money.journal_keeper.create", full)
    with pytest.raises(JournalError, match="no room"):
        start()


def test_a_bill_too_long_for_a_record_is_counted_as_lost(start: Start) -> None:
    journal = start(segment_bytes=2**20)
    journal.opened(0, b"x" * (segments.MAX_PAYLOAD_BYTES + 1))
    assert journal.lost_records == 1
    journal.opened(0, b"short")
    assert [payload for _, _, payload in records(journal.directory)] == [b"short"]


WRITER = """
import sys
from pathlib import Path
from m3_router.money.journal import Journal

journal = Journal(Path(sys.argv[1]), 2**16, 100, awaits_redis=False)
while True:
    number = journal.opened(0, b"o" * 300)
    print("opened", number, flush=True)
    if number % 3:
        journal.settled(number, b"s" * 300)
        print("settled", number, flush=True)
"""


def test_sigkill_loses_nothing_that_was_told(tmp_path: Path) -> None:
    directory = tmp_path / "ledger"
    opened: set[int] = set()
    settled: set[int] = set()
    for lines in (1, 50, 400):
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(directory)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            told = [writer.stdout.readline() for _ in range(lines)]
            writer.send_signal(signal.SIGKILL)
            told += writer.stdout.readlines()
        for line in told:
            kind, _, number = line.strip().partition(" ")
            if line.endswith("\n"):
                (opened if kind == "opened" else settled).add(int(number))
    journal = Journal(directory, 2**16, 100, awaits_redis=False)
    try:
        found = records(directory)
        assert opened <= {number for kind, number, _ in found if kind == OPENED}
        in_file = [number for kind, number, _ in found if kind == SETTLED]
        assert settled <= set(in_file)
        assert len(in_file) == len(set(in_file))
        # One record of each kind may have been written and not told: the process died in between.
        assert len(set(in_file) - settled) <= 3
        assert set(unsettled(journal)) == {number for kind, number, _ in found if kind == OPENED} - set(in_file)
    finally:
        journal.close()
