"""The ledger: what is billed, and never twice."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_router.bill import Bill, Usage
from m3_router.config import ContextTierSettings, PriceSettings
from m3_router.ledger import PUBLISH_BILLS, AlreadySettledError, Ledger
from m3_router.prices import PriceTable


class Timer:
    """Runs what was put off when the test says so."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def call_later(self, _: float, callback: Callable[[], None]) -> None:
        self.due.append(callback)


def ignore(lines: bytes, count: int) -> None:
    pass


def ledger_of(ring_bills: int = 100, timer: Timer | None = None) -> tuple[Ledger, list[Bill]]:
    read: list[Bill] = []
    prices = PriceTable(PriceSettings(), ContextTierSettings())
    return Ledger(prices, ignore, (read.extend,), (timer or Timer()).call_later, ring_bills), read


def bill_of(request_id: str = "r", **fields: Any) -> Bill:
    return Bill(time=1.0, request_id=request_id, path="/v1/completions", **{"service_tier": "standard", **fields})


def test_a_settled_bill_is_handed_to_every_reader_with_its_cost() -> None:
    ledger, read = ledger_of()
    ledger.settle(bill_of(), "ok", Usage(10, 4, 2))
    ledger.publish()
    assert (read[0].cost_nanousd, read[0].context_tier, read[0].outcome) == (
        6 * 300 + 4 * 60 + 2 * 1200,
        "standard",
        "ok",
    )


@pytest.mark.parametrize(("outcome", "cost"), [("ok", 300), ("client_gone", 300), ("worker_error", 0), ("rejected", 0)])
def test_only_what_was_delivered_costs(outcome: str, cost: int) -> None:
    ledger, read = ledger_of()
    ledger.settle(bill_of(), outcome, Usage(1, 0, 0))
    ledger.publish()
    assert (read[0].cost_nanousd, read[0].input_tokens) == (cost, 1)


def test_what_was_never_priced_is_a_line_in_the_log_only() -> None:
    ledger, read = ledger_of()
    ledger.settle(bill_of(service_tier=None), "rejected", None)
    ledger.publish()
    assert (len(read), ledger.newest(10)) == (1, [])


def test_the_newest_come_first_and_the_oldest_are_forgotten() -> None:
    ledger, _ = ledger_of(ring_bills=3)
    for number in range(5):
        ledger.settle(bill_of(str(number)), "ok", None)
    assert [bill.request_id for bill in ledger.newest(2)] == ["4", "3"]
    assert [bill.request_id for bill in ledger.newest(9)] == ["4", "3", "2"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["ok", "client_gone", "worker_error", "rejected"]), st.integers(0, 9)), min_size=1
    )
)
def test_however_often_a_request_ends_it_is_billed_once(ends: list[tuple[str, int]]) -> None:
    ledger, read = ledger_of()
    bill = bill_of()
    outcome, tokens = ends[0]
    ledger.settle(bill, outcome, Usage(tokens, 0, tokens))
    cost = bill.cost_nanousd
    for outcome, tokens in ends[1:]:
        with pytest.raises(AlreadySettledError):
            ledger.settle(bill, outcome, Usage(tokens + 1, 0, 0))
    ledger.publish()
    assert (len(read), bill.cost_nanousd, len(ledger.newest(10))) == (1, cost, 1)


def test_bills_are_published_soon_or_when_there_are_many_and_each_once() -> None:
    timer = Timer()
    ledger, read = ledger_of(timer=timer)
    for number in range(PUBLISH_BILLS + 3):
        ledger.settle(bill_of(str(number)), "ok", None)
    assert len(read) == PUBLISH_BILLS
    assert len(timer.due) == 2
    for publish in timer.due:
        publish()
    assert [bill.request_id for bill in read] == [str(number) for number in range(PUBLISH_BILLS + 3)]
