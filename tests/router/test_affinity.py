"""The index of prefixes: who holds how much, epochs, slots, generations, and session pins."""

import random

import pytest

from m3_router.config.services import AffinitySettings
from m3_router.placement.affinity import MAX_RETIRED_SLOTS, MAX_SESSIONS, Affinity


def affinity_of(index_blocks: int = 1000) -> Affinity:
    return Affinity(AffinitySettings(index_blocks=index_blocks, session_seconds=100))


def chain_of(name: str, blocks: int) -> list[int]:
    """A chain whose digests depend on all before; `name` may continue another's by a slash."""
    digests: list[int] = []
    for part in name.split("/"):
        source = random.Random(f"{digests[-1:]}{part}")
        digests += [source.getrandbits(64) for _ in range(blocks)]
    return digests


def test_each_worker_is_matched_as_deep_as_it_holds() -> None:
    affinity = affinity_of()
    a, b, c = (affinity.slot_of(name, "1") for name in "abc")
    affinity.record(chain_of("system/x/y", 10), a)
    affinity.record(chain_of("system/x", 10), b)
    affinity.record(chain_of("system/z", 10), c)
    matches = affinity.match(chain_of("system/x/y/new", 10))
    assert (matches.of(a), matches.of(b), matches.of(c), matches.blocks) == (30, 20, 10, 30)
    assert matches.of(-1) == 0
    nothing = affinity.match(chain_of("other", 10))
    assert (nothing.blocks, nothing.of(a)) == (0, 0)
    assert affinity.match([]).blocks == 0


@pytest.mark.parametrize("seed", range(20))
def test_halving_finds_what_a_scan_finds(seed: int) -> None:
    source = random.Random(seed)
    affinity = affinity_of(100_000)
    slots = [affinity.slot_of(str(i), "1") for i in range(8)]
    held: dict[int, set[int]] = {slot: set() for slot in slots}
    for _ in range(60):
        name = "/".join(source.choice("pq") for _ in range(source.randint(1, 5)))
        chain = chain_of(name, 7)[: source.randint(1, 35)]
        slot = source.choice(slots)
        affinity.record(chain, slot)
        held[slot].update(chain)
    for _ in range(60):
        chain = chain_of("/".join(source.choice("pqr") for _ in range(5)), 7)[: source.randint(1, 35)]
        matches = affinity.match(chain)
        for slot in slots:
            depth = next((i for i, digest in enumerate(chain) if digest not in held[slot]), len(chain))
            assert matches.of(slot) == depth


def test_a_worker_with_a_new_epoch_holds_nothing_at_once() -> None:
    affinity = affinity_of()
    chain = chain_of("x", 10)
    old = affinity.slot_of("a", "1")
    affinity.record(chain, old)
    assert affinity.slot_of("a", "1") == old
    new = affinity.slot_of("a", "2")
    assert new != old
    assert affinity.match(chain).blocks == 0
    affinity.record(chain, old)  # a request that was placed before
    assert affinity.match(chain).blocks == 0
    affinity.record(chain, new)
    assert affinity.match(chain).of(new) == 10


def test_a_worker_that_left_or_was_cleared_holds_nothing() -> None:
    affinity = affinity_of()
    chain = chain_of("x", 10)
    a, b = affinity.slot_of("a", "1"), affinity.slot_of("b", "1")
    affinity.record(chain, a)
    affinity.record(chain, b)
    affinity.retire(a)
    assert (affinity.match(chain).of(a), affinity.match(chain).of(b)) == (0, 10)
    after = affinity.cleared(b)
    assert affinity.match(chain).blocks == 0
    assert affinity.slot_of("b", "1") == after
    assert affinity.slots == 1
    affinity.retire(99)
    assert affinity.cleared(99) == 99


def test_no_stale_bit_is_ever_read_through_a_reused_slot() -> None:
    """Workers restart while traffic flows: a match never names what the present life of a worker was not sent."""
    source = random.Random(3)
    affinity = affinity_of(1000)
    epochs = dict.fromkeys("abcd", 0)
    slots = {name: affinity.slot_of(name, "0") for name in epochs}
    held: dict[str, set[int]] = {name: set() for name in epochs}
    seen: set[int] = set()
    for _ in range(4000):
        name = source.choice("abcd")
        if source.random() < 0.05:
            epochs[name] += 1
            slots[name] = affinity.slot_of(name, str(epochs[name]))
            held[name].clear()
        chain = chain_of("/".join(source.choice("pqrst") for _ in range(4)), 5)
        matches = affinity.match(chain)
        for other, slot in slots.items():
            assert set(chain[: matches.of(slot)]) <= held[other]
        affinity.record(chain, slots[name])
        held[name].update(chain)
        seen.add(slots[name])
    assert sum(epochs.values()) > 150
    assert len(seen) <= 4 + 2 * (MAX_RETIRED_SLOTS + 1)


def test_a_crash_loop_does_not_use_up_slots() -> None:
    affinity = affinity_of(1_000_000)
    used = {affinity.slot_of("a", str(i)) for i in range(2000)}
    assert max(used) <= 2 * (MAX_RETIRED_SLOTS + 1)
    assert affinity.slots == 1


def test_memory_is_bounded_and_what_is_used_survives() -> None:
    affinity = affinity_of(1000)
    slot = affinity.slot_of("a", "1")
    kept = chain_of("kept", 10)
    affinity.record(kept, slot)
    for i in range(500):
        affinity.record(chain_of(f"passing {i}", 20), slot)
        if i % 20 == 0:
            affinity.record(kept, slot)
        assert len(affinity) <= 2 * (1000 + 20)
        assert affinity.match(kept).of(slot) == 10
    assert affinity.match(chain_of("passing 0", 20)).blocks == 0
    assert affinity.match(chain_of("passing 499", 20)).blocks == 20


def test_what_others_hold_is_copied_up_with_what_is_used() -> None:
    affinity = affinity_of(1000)
    a, b = affinity.slot_of("a", "1"), affinity.slot_of("b", "1")
    shared = chain_of("shared", 10)
    affinity.record(shared, a)
    affinity.record(shared, b)
    for i in range(200):
        affinity.record(chain_of(f"passing {i}", 20), a)
        if i % 20 == 0:
            affinity.record([*shared, i], a)
    assert affinity.match(shared).of(b) == 10


def test_an_engines_own_word_takes_blocks_out() -> None:
    affinity = affinity_of()
    a, b = affinity.slot_of("a", "1"), affinity.slot_of("b", "1")
    chain = chain_of("x", 10)
    affinity.record(chain, a)
    affinity.record(chain, b)
    affinity.removed(a, [*chain[6:], 12345])
    matches = affinity.match(chain)
    assert (matches.of(a), matches.of(b)) == (6, 10)
    affinity.removed(b, chain)
    affinity.removed(a, chain)
    assert len(affinity) == 0


def test_what_other_replicas_tell_of_a_known_life_counts() -> None:
    affinity = affinity_of()
    slot = affinity.slot_of("a", "1")
    affinity.apply("a", "1", chain_of("x", 10))
    assert affinity.match(chain_of("x", 10)).of(slot) == 10


def test_what_is_told_of_another_epoch_counts_only_once_it_is_seen() -> None:
    affinity = affinity_of()
    chain = chain_of("x", 10)
    before = affinity.slot_of("a", "2")
    affinity.apply("a", "1", chain)  # an old record of the stream
    assert affinity.match(chain).of(before) == 0
    affinity.apply("a", "3", chain)  # the others have seen it restart
    assert affinity.match(chain).of(before) == 0
    after = affinity.slot_of("a", "3")
    assert affinity.match(chain).of(after) == 10
    assert affinity.slots == 1


def test_a_fresh_replica_believes_the_newest_epoch_of_the_stream_until_it_sees_one() -> None:
    affinity = affinity_of()
    affinity.apply("a", "1", chain_of("x", 10))
    affinity.apply("a", "2", chain_of("y", 10))
    slot = affinity.slot_of("a", "2")
    assert affinity.match(chain_of("y", 10)).of(slot) == 10
    assert affinity.match(chain_of("x", 10)).blocks == 0
    affinity.apply("gone", "1", chain_of("z", 10))
    affinity.apply("coming", "1", chain_of("z", 10))
    affinity.retire_unseen({"a", "coming"})
    assert affinity.slots == 2
    assert affinity.match(chain_of("z", 10)).of(affinity.slot_of("coming", "1")) == 10


def test_replicas_that_heard_the_same_have_the_same_matches() -> None:
    one, other = affinity_of(), affinity_of()
    one_slots = {name: one.slot_of(name, "1") for name in "abc"}
    other_slots = {name: other.slot_of(name, "1") for name in "cba"}  # found in another order
    for i, name in enumerate("abcabcabc"):
        chain = chain_of(f"s/{i % 4}/{i}", 5)
        one.record(chain, one_slots[name])
        other.apply(name, "1", chain)
    for i in range(9):
        mine, theirs = one.match(chain_of(f"s/{i % 4}/{i}", 5)), other.match(chain_of(f"s/{i % 4}/{i}", 5))
        assert {n: mine.of(s) for n, s in one_slots.items()} == {n: theirs.of(s) for n, s in other_slots.items()}


def test_a_session_stays_pinned_while_its_worker_lives_and_its_time_lasts() -> None:
    affinity = affinity_of()
    a = affinity.slot_of("a", "1")
    affinity.pin("s", a, 0.0)
    assert affinity.pinned("s", 99.0) == a
    assert affinity.pinned("s", 100.0) == -1
    assert affinity.pinned("other", 0.0) == -1
    affinity.pin("s", a, 50.0)
    affinity.slot_of("a", "2")
    assert affinity.pinned("s", 60.0) == -1
    affinity.pin("t", a, 60.0)  # to a life that has ended
    assert affinity.pinned("t", 60.0) == -1


def test_a_pin_does_not_follow_its_slot_to_another_worker() -> None:
    affinity = affinity_of(1000)
    a = affinity.slot_of("a", "0")
    affinity.pin("s", a, 0.0)
    for i in range(1, 1000):
        if affinity.slot_of("a", str(i)) == a:
            break
    else:
        pytest.fail("the slot was never used again")
    assert affinity.pinned("s", 1.0) == -1


def test_pins_are_bounded_and_used_ones_stay() -> None:
    affinity = affinity_of()
    a = affinity.slot_of("a", "1")
    affinity.pin("first", a, 0.0)
    for i in range(MAX_SESSIONS):
        affinity.pin(str(i), a, 0.0)
    assert affinity.pinned("first", 1.0) == a
    affinity.pin("first", a, 1.0)
    for i in range(MAX_SESSIONS):
        affinity.pin(f"more {i}", a, 1.0)
    assert affinity.pinned("first", 2.0) == a
    assert affinity.pinned("0", 2.0) == -1


def test_a_reset_forgets_everything_and_keeps_the_slots() -> None:
    affinity = affinity_of()
    a = affinity.slot_of("a", "1")
    affinity.record(chain_of("x", 10), a)
    affinity.pin("s", a, 0.0)
    affinity.reset()
    assert affinity.match(chain_of("x", 10)).blocks == 0
    assert affinity.pinned("s", 1.0) == -1
    assert len(affinity) == 0
    assert affinity.slot_of("a", "1") == a
