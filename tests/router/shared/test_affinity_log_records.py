"""What replicas tell each other: nothing is lost, nothing told twice without need, and memory is bounded."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_router.shared.affinity_notes import Note, Told, records_of
from m3_router.shared.affinity_records import ENTRY_BLOCKS, RECORD_BLOCKS, Gone, Held, Outbox, Record, decode, encode

HOLDER = ("pool", "worker", "epoch")
digests = st.lists(st.integers(0, 2**64 - 1), max_size=50)


@given(digests)
def test_an_entry_says_what_its_records_said(chain: list[int]) -> None:
    records: list[Record] = [Held("p", "w", "e", chain), Gone("p", "w", "later", chain[:3])]
    assert [record for entry in encode(records) for record in decode(entry)] == records


def test_an_entry_is_arrays_in_msgpack() -> None:
    (entry,) = encode([Held("p", "w", "e", [1, 2**64 - 2]), Gone("p", "w", "e", [])])
    plain = [["held", "p", "w", "e", [1, 2**64 - 2]], ["gone", "p", "w", "e", []]]
    assert msgspec.msgpack.decode(entry) == plain


def test_records_make_entries_of_bounded_size_in_their_order() -> None:
    records = [(Held, Gone)[number % 2]("p", f"w{number}", "e", [2**64 - 1] * 3000) for number in range(10)]
    entries = list(encode(records))
    assert [record for entry in entries for record in decode(entry)] == records
    assert len(entries) == 4
    assert max(len(entry) for entry in entries) < 9 * (ENTRY_BLOCKS + 3000)
    assert list(encode([])) == []


def test_a_long_chain_is_told_in_several_records() -> None:
    chain = list(range(2 * RECORD_BLOCKS + 1))
    records = records_of([(HOLDER, chain, True), (HOLDER, chain[-2:], False)], Told(10**6, 60), 0)
    assert [type(record) for record in records] == [Held, Held, Held, Gone]
    assert [digest for record in records[:3] for digest in record.digests] == chain
    assert max(len(record.digests) for record in records) == RECORD_BLOCKS
    assert records[3] == Gone(*HOLDER, chain[-2:])


def test_of_what_is_lost_and_sent_again_the_records_are_in_that_order() -> None:
    notes: list[Note] = [(HOLDER, [1, 2], True), (HOLDER, [2], False), (HOLDER, [1, 2], True), (HOLDER, [1, 2], True)]
    assert records_of(notes, Told(100, 60), 0) == [Held(*HOLDER, [1, 2]), Gone(*HOLDER, [2]), Held(*HOLDER, [2])]


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(5),
        msgspec.msgpack.encode([["held", "p", "w", "e"]]),
        msgspec.msgpack.encode([["held", "p", "w", "e", b"12345678"]]),
        msgspec.msgpack.encode([["held", "p", "w", "e", [1, "2"]]]),
        msgspec.msgpack.encode([["held", "p", "w", 7, []]]),
        msgspec.msgpack.encode([["another", "p", "w", "e", []]]),
    ],
)
def test_an_entry_that_is_none_is_refused(entry: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(entry)


def test_of_a_next_turn_only_what_is_new_is_told() -> None:
    told = Told(1000, 60)
    assert told.new(HOLDER, [1, 2, 3], 0) == [1, 2, 3]
    assert told.new(HOLDER, [1, 2, 3, 4, 5], 1) == [4, 5]
    assert told.new(HOLDER, [1, 2, 9], 2) == [9]
    assert told.new(("pool", "other", "epoch"), [1, 2, 3], 3) == [1, 2, 3]
    assert told.new(HOLDER, [], 4) == []


def test_what_a_worker_lost_is_told_when_it_is_sent_again() -> None:
    told = Told(5, 60)
    told.new(HOLDER, [1, 2, 3, 4], 0)
    told.gone(HOLDER, [3, 4, 77])
    told.gone(("pool", "other", "epoch"), [1])
    assert told.new(HOLDER, [1, 2, 3], 1) == [3]
    assert told.new(HOLDER, [1, 2, 3, 4], 2) == [4]  # four are told, so that none was forgotten


def test_everything_is_told_again_after_a_while_and_when_much_was_told() -> None:
    told = Told(4, 60)
    told.new(HOLDER, [1, 2], 0)
    assert told.new(HOLDER, [1, 2], 60) == []
    assert told.new(HOLDER, [1, 2], 60.5) == [1, 2]
    told.new(HOLDER, [3, 4], 61)
    assert told.new(HOLDER, [1, 2], 62) == [1, 2]
    told.forget()
    assert told.new(HOLDER, [1, 2], 63) == [1, 2]


def test_who_hears_all_that_is_told_knows_every_chain() -> None:
    chance = random.Random(7)
    told, known = Told(200, 1e9), set[int]()
    chains: list[list[int]] = [[]]
    for number in range(300):
        chain = [*chance.choice(chains)]
        del chain[chance.randrange(len(chain) + 1) :]
        for _ in range(chance.randrange(10)):
            chain.append(hash((chain[-1] if chain else 0, chance.randrange(3))))  # as a chain's digests are: by prefix
        chains.append(chain)
        known.update(told.new(HOLDER, chain, number))
        assert known.issuperset(chain)


def test_entries_wait_in_order_until_they_are_sent() -> None:
    outbox = Outbox(100)
    for entry in (b"a" * 10, b"b" * 10, b"c" * 10):
        outbox.add(entry)
    assert outbox.next(20) == [b"a" * 10, b"b" * 10]
    assert outbox.next(1) == [b"a" * 10]
    outbox.sent(outbox.next(20))
    assert (outbox.unsent, outbox.next(20)) == (1, [b"c" * 10])
    outbox.send_again()
    assert outbox.next(100) == [b"a" * 10, b"b" * 10, b"c" * 10]


def test_the_oldest_entries_give_way_and_only_unsent_ones_are_missed() -> None:
    outbox = Outbox(30)
    outbox.add(b"a" * 10)
    outbox.sent(outbox.next(10))
    for letter in (b"b", b"c", b"d"):
        outbox.add(letter * 10)
    assert (outbox.unsent, outbox.dropped) == (3, 0)
    outbox.add(b"e" * 10)
    assert (outbox.unsent, outbox.dropped) == (3, 1)
    assert outbox.next(100) == [b"c" * 10, b"d" * 10, b"e" * 10]
    outbox.add(b"f" * 50)  # more than there is room for
    assert outbox.next(100) == [b"f" * 50]


def test_what_was_dropped_while_it_was_being_sent_does_not_count_as_sent() -> None:
    outbox = Outbox(30)
    for letter in (b"a", b"b", b"c"):
        outbox.add(letter * 10)
    sending = outbox.next(20)
    outbox.add(b"d" * 10)  # a is dropped
    outbox.sent(sending)
    assert outbox.next(100) == [b"c" * 10, b"d" * 10]
