"""The ledger: what is billed, to the nano-dollar, and never twice."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_router.config import ContextTier, ServiceTier
from m3_router.money.bill import Bill, Usage
from m3_router.money.bill_lines import bill_from, line_of
from m3_router.money.bill_records import Line
from m3_router.money.journal import Journal
from m3_router.money.ledger import PUBLISH_BILLS, AlreadySettledError, Ledger
from m3_router.money.segments import SETTLED, read_records, segment_paths

Done = Callable[[Usage | None], None]
# Nano-dollars per token, written down from the published list: input, output, cache read; USD per million x 1,000.
RATES: dict[tuple[ContextTier, ServiceTier], tuple[int, int, int]] = {
    ("standard", "standard"): (300, 1200, 60),
    ("long", "standard"): (600, 2400, 120),
    ("standard", "priority"): (450, 1800, 90),
    ("long", "priority"): (900, 3600, 180),
}


class ListPrices:
    """The rates above, with the threshold of 512,000 tokens inclusive or not."""

    def __init__(self, *, inclusive: bool = True) -> None:
        self._standard_tokens = 512_000 if inclusive else 511_999

    def context_tier(self, model: str, tokens: int, wall: float) -> ContextTier:
        return "standard" if tokens <= self._standard_tokens else "long"

    def cost(self, model: str, service_tier: ServiceTier, usage: Usage, wall: float) -> tuple[ContextTier, int]:
        tier = self.context_tier(model, usage.input_tokens, wall)
        fresh, output, cached = RATES[tier, service_tier]
        uncached = usage.input_tokens - usage.cached_tokens
        return tier, uncached * fresh + usage.cached_tokens * cached + usage.output_tokens * output


class Timer:
    """Runs what was put off when the test says so."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def call_later(self, _: float, callback: Callable[[], None]) -> None:
        self.due.append(callback)


class FakeRecords:
    """Workers that answer when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[Bill, str, Done]] = []

    def ask(self, bill: Bill, attempt: str, done: Done) -> None:
        self.asked.append((bill, attempt, done))


class FakeStream:
    def __init__(self) -> None:
        self.offered: list[tuple[int, bytes]] = []

    def offer(self, sequences: list[int], lines: list[bytes]) -> None:
        self.offered += zip(sequences, lines, strict=True)


class Bench:
    """A ledger and all that it talks to."""

    def __init__(self, journal: Journal | None = None, *, inclusive: bool = True, ring_bills: int = 100) -> None:
        self.read: list[Bill] = []
        self.lines: list[bytes] = []
        self.timer, self.records, self.stream = Timer(), FakeRecords(), FakeStream()
        self.ledger = Ledger(
            ListPrices(inclusive=inclusive),
            lambda lines, count: self.lines.append(lines),
            (self.read.extend,),
            self.timer.call_later,
            name="here",
            journal=journal,
            records=self.records,
            stream=self.stream,
            ring_bills=ring_bills,
        )


def bill_of(request_id: str = "r", **fields: Any) -> Bill:
    line = Line(1.0, request_id, "/v1/completions", **{"service_tier": "standard", **fields})
    return bill_from(line)


@pytest.fixture
def start_journal(tmp_path: Path) -> Iterator[Callable[[], Journal]]:
    journals: list[Journal] = []

    def start() -> Journal:
        for journal in journals:
            journal.close()
        journals.append(Journal(tmp_path, 2**16, 100, awaits_redis=False))
        return journals[-1]

    yield start
    for journal in journals:
        journal.close()


def test_a_settled_bill_is_handed_to_every_reader_with_its_cost() -> None:
    bench = Bench()
    bench.ledger.settle(bill_of(), "ok", Usage(10, 4, 0, 2))
    bench.ledger.publish()
    (bill,) = bench.read
    assert (bill.cost_nanousd, bill.context_tier, bill.outcome) == (6 * 300 + 4 * 60 + 2 * 1200, "standard", "ok")
    (line,) = bench.lines
    assert line == line_of(bill) + b"\n"


@pytest.mark.parametrize(
    ("inclusive", "service_tier", "usage", "tier", "cost"),
    [
        # by hand: 511,999 x 300 + 1,000 x 1,200
        (True, "standard", (511_999, 0, 0, 1000), "standard", 154_799_700),
        (True, "standard", (512_000, 0, 0, 1000), "standard", 154_800_000),
        (True, "standard", (512_001, 0, 0, 1000), "long", 309_600_600),
        (False, "standard", (511_999, 0, 0, 1000), "standard", 154_799_700),
        (False, "standard", (512_000, 0, 0, 1000), "long", 309_600_000),
        (False, "standard", (512_001, 0, 0, 1000), "long", 309_600_600),
        # 500,000 of 512,000 cached: 12,000 x 300 + 500,000 x 60 + 10 x 1,200
        (True, "standard", (512_000, 500_000, 0, 10), "standard", 33_612_000),
        # priority is one and a half times: 12,000 x 450 + 500,000 x 90 + 10 x 1,800; long: x 2
        (True, "priority", (512_000, 500_000, 0, 10), "standard", 50_418_000),
        (True, "priority", (512_001, 500_001, 0, 10), "long", 100_836_180),
    ],
)
def test_the_price_cases_worked_by_hand(
    inclusive: bool, service_tier: ServiceTier, usage: tuple[int, int, int, int], tier: ContextTier, cost: int
) -> None:
    bill = bill_of(service_tier=service_tier)
    Bench(inclusive=inclusive).ledger.settle(bill, "ok", Usage(*usage))
    assert (bill.context_tier, bill.cost_nanousd) == (tier, cost)


@pytest.mark.parametrize(
    ("outcome", "cost"), [("ok", 300), ("client_gone", 300), ("router_lost", 300), ("worker_error", 0), ("rejected", 0)]
)
def test_only_what_was_delivered_costs(outcome: Any, cost: int) -> None:
    bill = bill_of()
    Bench().ledger.settle(bill, outcome, Usage(1, 0, 0, 0))
    assert (bill.cost_nanousd, bill.input_tokens) == (cost, 1)


def test_what_was_never_priced_is_a_line_in_the_log_only() -> None:
    bench = Bench()
    bench.ledger.settle(bill_of(service_tier=None), "rejected", None)
    bench.ledger.publish()
    assert (len(bench.read), len(bench.lines), bench.ledger.newest(10)) == (1, 1, [])


def test_the_newest_come_first_and_the_oldest_are_forgotten() -> None:
    ledger = Bench(ring_bills=3).ledger
    for number in range(5):
        ledger.settle(bill_of(str(number)), "ok", None)
    assert [bill.request_id for bill in ledger.newest(2)] == ["4", "3"]
    assert [bill.request_id for bill in ledger.newest(9)] == ["4", "3", "2"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["ok", "client_gone", "worker_error", "rejected"]), st.integers(0, 9), st.booleans()),
        min_size=1,
    ),
    st.one_of(st.none(), st.integers(0, 9)),
)
def test_however_often_a_request_ends_it_is_billed_once(ends: list[tuple[Any, int, bool]], answer: int | None) -> None:
    bench = Bench()
    ledger, bill = bench.ledger, bill_of()
    ledger.open(bill)
    for place, (outcome, tokens, is_later) in enumerate(ends):
        settle = ledger.settle_later if is_later else ledger.settle
        if place == 0:
            settle(bill, outcome, Usage(tokens, 0, 0, tokens))
            continue
        with pytest.raises(AlreadySettledError):
            settle(bill, outcome, Usage(tokens + 1, 0, 0, 0))
    for _, _, done in [*bench.records.asked, *bench.records.asked]:
        done(None if answer is None else Usage(answer, 0, 0, answer))
    ledger.close()
    outcome, tokens, is_later = ends[0]
    used = tokens if answer is None or not is_later else answer
    assert [bill.outcome for bill in bench.read] == [outcome]
    assert bill.cost_nanousd == (used * 1500 if outcome in ("ok", "client_gone") else 0)
    assert len(ledger.newest(10)) == 1


def test_bills_are_published_soon_or_when_there_are_many_and_each_once() -> None:
    bench = Bench()
    for number in range(PUBLISH_BILLS + 3):
        bench.ledger.settle(bill_of(str(number)), "ok", None)
    assert len(bench.read) == PUBLISH_BILLS
    assert len(bench.timer.due) == 2
    for publish in bench.timer.due:
        publish()
    assert [bill.request_id for bill in bench.read] == [str(number) for number in range(PUBLISH_BILLS + 3)]


def test_a_client_that_left_is_billed_by_what_its_worker_says_and_published_only_then() -> None:
    bench = Bench()
    bill, other = bill_of("left", attempts=1), bill_of("other")
    bench.ledger.open(bill)
    bench.ledger.settle_later(bill, "client_gone", Usage(99, 0, 0, 99))
    bench.ledger.settle(other, "ok", Usage(1, 0, 0, 0))
    bench.ledger.publish()
    assert [one.request_id for one in bench.read] == ["other"]
    assert bench.ledger.pending == 1
    ((asked, attempt, done),) = bench.records.asked
    assert (asked, attempt) == (bill, "here-1-1")
    done(Usage(8, 2, 0, 5))  # aborted after five tokens: 6 x 300 + 2 x 60 + 5 x 1,200
    bench.ledger.publish()
    assert [one.request_id for one in bench.read] == ["other", "left"]
    assert (bill.cost_nanousd, bill.estimated, bill.output_tokens) == (7920, False, 5)
    assert bench.ledger.pending == 0


def test_where_no_worker_can_say_the_estimate_stands_and_the_bill_says_so() -> None:
    bench = Bench()
    for request_id, estimate in (("begun", Usage(8, 0, 0, 3)), ("silent", None)):
        bill = bill_of(request_id)
        bench.ledger.open(bill)
        bench.ledger.settle_later(bill, "client_gone", estimate)
    for _, _, done in bench.records.asked:
        done(None)
    bench.ledger.publish()
    assert [(bill.cost_nanousd, bill.estimated) for bill in bench.read] == [(8 * 300 + 3 * 1200, True), (0, True)]


def test_what_was_never_dispatched_is_not_asked_for() -> None:
    bench = Bench()
    bill = bill_of()
    bench.ledger.settle_later(bill, "client_gone", None)
    assert (bench.records.asked, bill.outcome, bill.cost_nanousd) == ([], "client_gone", 0)


def test_a_continuation_whose_client_left_pays_for_what_it_got_of_both_workers() -> None:
    bench = Bench()
    bill = bill_of(attempts=1)
    bench.ledger.open(bill)
    bill.continuations, bill.attempts = 1, 2
    bill.input_tokens, bill.cached_tokens, bill.output_tokens = 1000, 600, 40
    bench.ledger.open(bill)
    bench.ledger.settle_later(bill, "client_gone", Usage(1000, 600, 0, 44))
    ((_, attempt, done),) = bench.records.asked
    assert attempt == "here-1-2"
    done(Usage(1040, 1024, 0, 25))
    assert bill.cost_nanousd == 400 * 300 + 600 * 60 + 65 * 1200


def test_the_end_of_the_router_settles_what_waits_by_its_estimates() -> None:
    bench = Bench()
    bill = bill_of()
    bench.ledger.open(bill)
    bench.ledger.settle_later(bill, "client_gone", Usage(2, 0, 0, 1))
    bench.ledger.close()
    assert [(one.cost_nanousd, one.estimated) for one in bench.read] == [(1800, True)]
    ((_, _, done),) = bench.records.asked
    done(Usage(100, 0, 0, 100))  # too late
    bench.ledger.publish()
    assert (len(bench.read), bill.cost_nanousd) == (1, 1800)


def test_what_a_killed_router_left_open_is_settled_by_the_next_one(start_journal: Callable[[], Journal]) -> None:
    first = Bench(start_journal())
    settled, running, retried, cut = (bill_of(name, worker="w") for name in ("settled", "running", "retried", "cut"))
    for bill in (settled, running, retried, cut):
        bill.attempts = 1
        first.ledger.open(bill)
    first.ledger.settle(settled, "ok", Usage(1, 0, 0, 1))
    retried.attempts, retried.worker = 2, "other"
    first.ledger.open(retried)
    first.ledger.settle_later(cut, "client_gone", Usage(5, 0, 0, 0))  # and killed before the worker has answered
    journal = start_journal()
    second = Bench(journal)
    assert second.ledger.recover() == 3
    asked = {bill.request_id: (bill.worker, attempt, done) for bill, attempt, done in second.records.asked}
    assert {name: worker for name, (worker, _, _) in asked.items()} == {"running": "w", "retried": "other", "cut": "w"}
    assert asked["running"][1] == f"{journal.name}-{running.number}-1"
    assert asked["retried"][1] == f"{journal.name}-{retried.number}-2"
    asked["running"][2](Usage(10, 0, 0, 3))
    asked["retried"][2](Usage(4, 0, 0, 0))
    asked["cut"][2](None)
    second.ledger.close()
    assert [(bill.request_id, bill.outcome, bill.cost_nanousd, bill.estimated) for bill in second.read] == [
        ("running", "router_lost", 6600, False),
        ("retried", "router_lost", 1200, False),
        ("cut", "router_lost", 0, True),
    ]
    third = Bench(start_journal())
    assert third.ledger.recover() == 0
    settled_numbers = [
        one.number for path in segment_paths(journal.directory) for one in read_records(path) if one.kind == SETTLED
    ]
    assert sorted(settled_numbers) == sorted(bill.number for bill in (settled, running, retried, cut))


def test_the_stream_gets_what_the_journal_has_and_nothing_else(start_journal: Callable[[], Journal]) -> None:
    journal = start_journal()
    bench = Bench(journal)
    for number in range(3):
        bill = bill_of(str(number))
        if number != 1:
            bench.ledger.open(bill)
        bench.ledger.settle(bill, "ok", Usage(number, 0, 0, 0))
    bench.ledger.publish()
    in_journal = [one for path in segment_paths(journal.directory) for one in read_records(path) if one.kind == SETTLED]
    assert bench.stream.offered == [(one.sequence, one.payload) for one in in_journal]
    assert len(bench.read) == 3
    assert bench.lines[0].splitlines() == [line_of(bill) for bill in bench.read]
