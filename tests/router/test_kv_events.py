"""What a worker says of its cache takes the right prefixes out of the index, and confirms those that are there."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator

import pytest

from m3_fakes.cache_sink import HeldBlocks
from m3_router.kv_events.alignment import Alignment, Anchors
from m3_router.kv_events.lines import Alive, Batch, Cleared, EventsError, LineReader, Removed, Snapshot, Start, Stored
from m3_router.kv_events.view import MAX_SENT_BLOCKS, CacheView
from m3_worker.api.kv_events import event_lines
from m3_worker.scheduling.host_pages import HostPages
from m3_worker.scheduling.kv_events import EventLog
from m3_worker.scheduling.pages import Pages
from m3_worker.scheduling.request import Request, SamplingParameters, Sequence


def page(number: int) -> str:
    return f"{number:016x}" + 48 * "0"


def stored(*pages: int, request: str | None = None, first: int = 0, medium: str = "device") -> Stored:
    assert medium in ("device", "host")
    return Stored([page(number) for number in pages], "device" if medium == "device" else "host", request, first)


def removed(*pages: int, medium: str = "device") -> Removed:
    return Removed([page(number) for number in pages], "device" if medium == "device" else "host")


class Followed:
    """A view that is told batch after batch; pages have four tokens."""

    def __init__(self) -> None:
        self.index = HeldBlocks()
        self.view = CacheView(self.index)
        self.view.take(Start("e", 4, 0))
        self.view.take(Snapshot(0, [stored(99)], more=False))
        self.number = 0

    def batch(self, *events: Stored | Removed | Cleared) -> set[int]:
        self.number += 1
        self.view.take(Batch(self.number, list(events)))
        return self.index.held


# Alignment


def ends_and_touches(alignment: Alignment, pages: int) -> list[tuple[list[int], list[int]]]:
    return [([*alignment.ending(page)], [*alignment.touching(page)]) for page in range(pages)]


def test_a_block_ends_where_its_last_token_lies_and_is_touched_by_every_page_that_holds_some_of_it() -> None:
    # The blocks end at 3.2, 6.4, 9.6, 12.8 and 16 tokens; a page has four.
    assert ends_and_touches(Alignment([1, 2, 3, 4, 5], [(5, 16.0)], 4), 5) == [
        ([1], [1]),
        ([2], [2, 3]),
        ([3], [3, 4]),
        ([4, 5], [4, 5]),
        ([], []),
    ]
    # One block of two pages and a half, then one of half a page.
    assert ends_and_touches(Alignment([1, 2], [(1, 10.0), (2, 12.0)], 4), 3) == [([], [1]), ([], [1]), ([1, 2], [1, 2])]


def test_blocks_are_spread_between_the_token_counts_that_are_known() -> None:
    # Two blocks of 8 tokens each, then two of 2.
    alignment = Alignment([1, 2, 3, 4], [(2, 16.0), (4, 20.0)], 4)
    assert [[*alignment.ending(page)] for page in range(5)] == [[], [1], [], [2], [3, 4]]


def test_anchors_that_contradict_each_other_are_left_out() -> None:
    alignment = Alignment([1, 2], [(1, 8.0), (1, 9.0), (2, 4.0)], 4)
    assert ends_and_touches(alignment, 3) == [([], [1]), ([1], [1]), ([], [])]
    assert ends_and_touches(Alignment([], [], 4), 1) == [([], [])]


def test_every_earlier_turn_is_an_anchor() -> None:
    anchors = Anchors()
    anchors.add([1, 2], 25)
    anchors.add([1, 2, 3, 4], 90)
    anchors.add([7], 30)
    anchors.add([], 5)
    assert anchors.along([1, 2, 3, 4, 5]) == [(2, 20.0), (4, 80.0)]


def test_the_oldest_anchors_are_forgotten() -> None:
    anchors = Anchors(2)
    for digest in range(5):
        anchors.add([digest], 30)
    assert [digest for digest in range(5) if anchors.along([digest])] == [2, 3, 4]


# Lines


def test_lines_are_read_at_every_cut() -> None:
    lines: list[dict[str, object]] = [
        {"kind": "start", "epoch": "e", "page_tokens": 4, "number": 1},
        {"kind": "snapshot", "number": 1, "cleared": 1, "more": False, "events": [
            {"event": "stored", "names": [page(1)], "parent": None, "medium": "host"}]},
        {"kind": "batch", "number": 2, "unix_seconds": 1.5, "events": [
            {"event": "stored", "names": [page(2)], "parent": page(1), "medium": "device", "request": "r",
             "first_page": 3},
            {"event": "removed", "names": [page(1)], "medium": "host"}, {"event": "cleared"}]},
        {"kind": "alive", "number": 2},
    ]  # fmt: skip
    expected = [
        Start("e", 4, 1),
        Snapshot(1, [stored(1, medium="host")], more=False, cleared=1),
        Batch(2, [stored(2, request="r", first=3), removed(1, medium="host"), Cleared()]),
        Alive(2),
    ]
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    for cut in range(len(data) + 1):
        reader = LineReader()
        assert [*reader.feed(data[:cut]), *reader.feed(data[cut:])] == expected


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"{}",
        b'{"kind":"other"}',
        b'{"kind":"alive"}',
        b'{"kind":"batch","number":1,"events":[{"event":"stored","names":["00"],"medium":"tape"}]}',
    ],
)
def test_a_line_of_another_form_is_refused(line: bytes) -> None:
    with pytest.raises(EventsError):
        list(LineReader().feed(line + b"\n"))


def test_a_name_that_is_no_hash_is_refused() -> None:
    followed = Followed()
    with pytest.raises(EventsError, match="is not the name of a page"):
        followed.batch(Stored(["zz"], "device", "r"))
    assert followed.view.number is None


# The view


@pytest.mark.parametrize("is_answered_first", [True, False])
def test_pages_confirm_blocks_and_take_them_away(is_answered_first: bool) -> None:
    followed = Followed()
    followed.view.sent("r", [1, 2, 3])  # of 14 tokens: the blocks end at 4, 8 and 12
    if is_answered_first:
        followed.view.answered("r", 14)
    followed.batch(stored(10, 11, request="r"))
    followed.batch(stored(12, request="r", first=2))
    if not is_answered_first:
        assert followed.index.held == set()
        followed.view.answered("r", 14)
    assert followed.index.held == {1, 2, 3}
    assert followed.batch(removed(12)) == {1, 2}
    assert followed.batch(removed(11, 98)) == {1}
    assert (followed.view.confirmed_blocks, followed.view.removed_blocks) == (3, 2)


def test_a_page_that_went_before_its_request_was_answered_counts_as_gone() -> None:
    followed = Followed()
    followed.index.held = {1, 2, 3}  # as dispatched
    followed.view.sent("r", [1, 2, 3])
    followed.batch(stored(10, 11, 12, request="r"))
    followed.batch(removed(12))
    followed.view.answered("r", 14)
    assert followed.index.held == {1, 2}


def test_the_next_turn_takes_what_the_first_left() -> None:
    followed = Followed()
    followed.view.sent("1", [1, 2, 3])
    followed.batch(stored(10, 11, 12, request="1"))
    followed.view.answered("1", 14)
    followed.view.sent("2", [1, 2, 3, 4])
    followed.batch(stored(13, request="2", first=3))
    followed.view.answered("2", 18)
    assert followed.index.held == {1, 2, 3, 4}
    assert followed.batch(removed(13), removed(12)) == {1, 2}
    followed.view.sent("3", [1, 2, 3, 5])
    followed.view.answered("3", 18)
    assert followed.batch(stored(12, 14, request="3", first=2)) == {1, 2, 3, 5}


def test_a_page_is_gone_when_it_is_in_neither_medium() -> None:
    followed = Followed()
    followed.view.sent("r", [1, 2])
    followed.view.answered("r", 10)
    followed.batch(stored(10, 11, request="r"))
    assert followed.batch(stored(11, medium="host"), removed(11)) == {1, 2}
    assert followed.batch(removed(11, medium="host")) == {1}
    followed.batch(stored(10, medium="host"))
    assert followed.batch(removed(10, medium="host")) == {1}
    followed.batch(stored(10, medium="host"), removed(10))
    followed.batch(stored(10, request="another"))  # copied back
    assert followed.batch(removed(10, medium="host")) == {1}
    assert followed.batch(removed(10)) == set()


def test_what_was_replaced_within_a_step_is_there() -> None:
    followed = Followed()
    for request in ("1", "2"):
        followed.view.sent(request, [1])
        followed.view.answered(request, 6)
    followed.batch(stored(10, request="1"))
    assert followed.batch(removed(10), stored(10, request="2")) == {1}
    assert followed.batch(removed(10), removed(98)) == set()


def test_a_cleared_cache_is_a_new_epoch_and_holds_nothing_of_requests_on_their_way_either() -> None:
    followed = Followed()
    for request in ("answered", "on its way"):
        followed.view.sent(request, [hash(request)])
    followed.view.answered("answered", 6)
    followed.batch(stored(10, request="answered"), stored(11, request="on its way"))
    followed.batch(Cleared())
    followed.view.answered("on its way", 6)
    assert (followed.index.held, followed.index.epochs) == (set(), ["e.0", "e.2"])


def test_who_comes_late_calls_the_epoch_as_the_others_do() -> None:
    followed = Followed()
    followed.view.take(Start("later", 4, 0))
    assert followed.view.number is None
    assert followed.index.epochs == ["e.0"]  # nothing is certain before the snapshot
    followed.view.take(Snapshot(9, [stored(10)], more=False, cleared=5))
    assert followed.index.epochs == ["e.0", "later.5"]
    followed.view.take(Batch(10, [Cleared()]))
    followed.view.take(Start("later", 4, 11))
    followed.view.take(Snapshot(11, [], more=False, cleared=10))
    assert followed.index.epochs == ["e.0", "later.5", "later.10"]


def test_a_snapshot_takes_away_what_went_unseen() -> None:
    followed = Followed()
    followed.view.sent("r", [1, 2, 3])
    followed.view.answered("r", 14)
    followed.batch(stored(10, 11, 12, request="r"))
    followed.view.take(Start("e", 4, 7))
    followed.view.take(Snapshot(7, [stored(10), stored(77)], more=True))
    followed.view.take(Snapshot(7, [stored(11, medium="host")], more=False))
    assert followed.index.held == {1, 2}
    followed.view.take(Batch(8, [removed(11, medium="host")]))
    assert followed.index.held == {1}


def test_batches_that_are_missing_are_noticed() -> None:
    followed = Followed()
    followed.batch()
    with pytest.raises(EventsError, match="batch 3 came after 1"):
        followed.view.take(Batch(3, []))
    assert followed.view.number is None
    with pytest.raises(EventsError, match="batch 4 came after None"):
        followed.view.take(Batch(4, []))


def test_requests_that_say_too_little_change_nothing() -> None:
    followed = Followed()
    followed.view.sent("empty", [])
    followed.view.sent("unanswered", [1])
    followed.view.sent("of unknown length", [2])
    followed.batch(stored(10, request="unanswered"), stored(11, request="of unknown length"), stored(12, request="?"))
    followed.view.answered("of unknown length", None)
    followed.view.answered("never sent", 5)
    assert followed.batch(removed(10, 11, 12)) == set()


def test_chains_that_wait_are_bounded() -> None:
    followed = Followed()
    long = list(range(MAX_SENT_BLOCKS // 2))
    for request in ("a", "b", "c"):
        followed.view.sent(request, long)
    followed.view.answered("a", 1_000_000)
    assert followed.batch(stored(10, request="a")) == set()
    followed.view.answered("c", 4 * len(long))
    assert followed.batch(stored(10, request="c")) == {0}


# Against the worker's own pages

PAGE_TOKENS = 4
BLOCK_TOKENS = 8


def chain_of(prompt: list[int]) -> list[int]:
    return [hash(tuple(prompt[:end])) for end in range(BLOCK_TOKENS, len(prompt) + 1, BLOCK_TOKENS)]


class Engine:
    """The worker's pages and log, and a view that follows them."""

    def __init__(self, device_pages: int, host_pages: int) -> None:
        self.pages = Pages(device_pages, PAGE_TOKENS, HostPages(host_pages))
        self.log = EventLog("e", PAGE_TOKENS)
        self.index = HeldBlocks()
        self.view = CacheView(self.index)
        self._reader = LineReader()

    def compute(self, request_id: str, prompt: list[int]) -> None:
        request = Request(request_id, prompt, SamplingParameters(max_tokens=1), client_id=request_id)
        sequence = Sequence(request)
        cached = self.pages.admit(sequence, self.pages.found(sequence))
        assert cached is not None
        sequence.admit(cached)
        sequence.advance(sequence.remaining_tokens)
        self.pages.commit(sequence)
        self.pages.release(request_id)
        self.log.append(self.pages.take_events(), 0.0)

    def cached_tokens(self, prompt: list[int]) -> int:
        sequence = Sequence(Request("question", [*prompt, 0], SamplingParameters(max_tokens=1)))
        return len(self.pages.found(sequence)) * PAGE_TOKENS

    def predicted_tokens(self, prompt: list[int]) -> int:
        chain = chain_of(prompt)
        depth = next((place for place, digest in enumerate(chain) if digest not in self.index.held), len(chain))
        return depth * BLOCK_TOKENS

    async def follow(self, lines: AsyncGenerator[bytes]) -> None:
        while self.view.number is None or self.view.number < self.log.last_number:
            for line in self._reader.feed(await anext(lines)):
                self.view.take(line)


@pytest.mark.parametrize("seed", range(4))
async def test_the_index_says_of_every_prompt_what_the_worker_holds_of_it(seed: int) -> None:
    chance = random.Random(seed)
    engine = Engine(chance.randrange(30, 60), chance.choice([0, 20]))
    lines = event_lines(engine.log, None, with_tokens=False)
    prompts: list[list[int]] = []
    async with asyncio.timeout(60):
        await engine.follow(lines)
        for number in range(200):
            beginning = chance.choice(prompts) if prompts and chance.random() < 0.7 else []
            # Half a block more than whole blocks, as the alignment assumes: here it has to be exact.
            prompt = [*beginning[: len(beginning) // BLOCK_TOKENS * BLOCK_TOKENS], number]
            prompt += [chance.randrange(3) for _ in range(BLOCK_TOKENS * chance.randrange(1, 5) + 3)]
            prompt = prompt[:84]
            prompts.append(prompt)
            request_id = str(number)
            engine.view.sent(request_id, chain_of(prompt))
            engine.compute(request_id, prompt)
            if chance.random() < 0.5:
                await engine.follow(lines)
            engine.view.answered(request_id, len(prompt))
            if number % 50 == 49:
                engine.pages.forget_content()
                engine.log.append(engine.pages.take_events(), 0.0)
            await engine.follow(lines)
            assert engine.index.epochs[-1] == f"e.{engine.log.snapshot().cleared}"
            for asked in prompts[-40:]:
                whole_blocks = engine.cached_tokens(asked) // BLOCK_TOKENS * BLOCK_TOKENS
                assert engine.predicted_tokens(asked) == whole_blocks
    await lines.aclose()
