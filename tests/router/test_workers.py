"""The set of workers: who is there, how each feels, and what each has in flight."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_router.workers.breaker import FAILURES_TO_OPEN
from m3_router.workers.workers import DECODE_DIVISOR, MAX_SLOW_PROBES, Charge, Worker, WorkerAddress, Workers


def address(name: str, uid: str = "", port: int = 80) -> WorkerAddress:
    return WorkerAddress(uid=uid or name, name=name, host="10.0.0.1", port=port)


def ready(*names: str) -> tuple[Workers, dict[str, Worker]]:
    workers = Workers()
    workers.replace([address(name) for name in names])
    by_name = {worker.name: worker for worker in workers}
    for worker in by_name.values():
        workers.report(worker, is_ready=True, reason="")
    return workers, by_name


def test_a_worker_is_ready_only_after_it_said_so() -> None:
    workers = Workers()
    workers.replace([address("a")])
    assert workers.ready == []
    (worker,) = workers
    assert workers.report(worker, is_ready=True, reason="200")
    assert workers.ready == [worker]
    assert not workers.report(worker, is_ready=True, reason="200")
    assert workers.report(worker, is_ready=False, reason="refused")
    assert workers.ready == []


def test_a_replaced_pod_is_another_worker_and_the_old_one_drains() -> None:
    workers, before = ready("pod-0")
    charge = Charge(10, 0)
    workers.charge(before["pod-0"], charge)
    assert workers.replace([address("pod-0", uid="new")]) == [before["pod-0"]]
    assert [(worker.address.uid, worker.state) for worker in workers] == [("pod-0", "draining"), ("new", "unready")]
    assert not workers.report(before["pod-0"], is_ready=True, reason="a late probe")
    workers.discharge(before["pod-0"], charge)
    assert [worker.address.uid for worker in workers] == ["new"]


def test_a_worker_without_work_that_leaves_is_gone_at_once() -> None:
    workers, _ = ready("a", "b")
    workers.replace([address("b")])
    assert [worker.name for worker in workers] == ["b"]
    assert [worker.name for worker in workers.ready] == ["b"]


def test_a_pod_that_came_back_to_the_list_starts_anew() -> None:
    workers, before = ready("a")
    charge = Charge(1, 1)
    workers.charge(before["a"], charge)
    workers.replace([])
    workers.replace([address("a")])
    (worker,) = workers
    assert worker is not before["a"]
    assert worker.state == "unready"
    workers.discharge(before["a"], charge)
    assert list(workers) == [worker]


def test_a_busy_worker_may_be_slow_and_an_idle_one_three_times() -> None:
    workers, by_name = ready("a")
    worker = by_name["a"]
    charge = Charge(1, 1)
    workers.charge(worker, charge)
    assert not any(workers.report_slow(worker) for _ in range(10))
    workers.discharge(worker, charge)
    assert [workers.report_slow(worker) for _ in range(MAX_SLOW_PROBES)] == [False, False, True]
    assert workers.ready == []


def test_a_charge_is_given_back_once_whatever_is_said_twice() -> None:
    workers, by_name = ready("a")
    worker = by_name["a"]
    charge = Charge(1000, 40, is_long=True)
    workers.charge(worker, charge)
    assert (worker.prefill_tokens, worker.decode_tokens, worker.long_prefills, worker.requests) == (1000, 40, 1, 1)
    workers.first_byte(worker, charge)
    workers.first_byte(worker, charge)
    assert (worker.prefill_tokens, worker.decode_tokens, worker.long_prefills, worker.requests) == (0, 40, 0, 1)
    workers.discharge(worker, charge)
    workers.discharge(worker, charge)
    assert (worker.prefill_tokens, worker.decode_tokens, worker.long_prefills, worker.requests) == (0, 0, 0, 0)


def test_a_charge_that_failed_before_its_first_byte_serves_the_next_worker() -> None:
    workers, by_name = ready("a", "b")
    charge = Charge(1000, 40, is_long=True)
    for worker in by_name.values():
        workers.charge(worker, charge)
        assert worker.tokens == charge.tokens == 1040
        workers.discharge(worker, charge)
        assert (worker.tokens, worker.long_prefills, worker.requests) == (0, 0, 0)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["charge", "first byte", "end"]), st.booleans()), max_size=60)
)
def test_load_is_the_sum_of_what_is_charged(steps: list[tuple[int, str, bool]]) -> None:
    workers, by_name = ready("a")
    worker = by_name["a"]
    state: dict[int, tuple[Charge, bool]] = {}  # charge, whether it still computes its prompt
    for number, step, is_long in steps:
        if step == "charge" and number not in state:
            state[number] = (Charge(100 + number, 10 + number, is_long), True)
            workers.charge(worker, state[number][0])
        elif step == "first byte" and number in state:
            workers.first_byte(worker, state[number][0])
            state[number] = (state[number][0], False)
        elif step == "end" and number in state:
            workers.discharge(worker, state.pop(number)[0])
        waiting = [charge for charge, is_prefilling in state.values() if is_prefilling]
        assert worker.prefill_tokens == sum(charge.prefill_tokens for charge in waiting)
        assert worker.decode_tokens == sum(charge.decode_tokens for charge, _ in state.values())
        assert worker.long_prefills == sum(charge.is_long for charge in waiting)
        assert worker.requests == len(state)


def test_a_new_epoch_starts_the_workers_time_anew_and_the_same_one_does_not() -> None:
    workers, by_name = ready("a")
    worker = by_name["a"]
    assert worker.slot == -1
    workers.set_epoch(worker, "1", 0, 10.0)
    workers.set_epoch(worker, "1", 0, 20.0)
    assert (worker.epoch, worker.slot, worker.since) == ("1", 0, 10.0)
    workers.set_epoch(worker, "2", 1, 30.0)
    assert (worker.epoch, worker.slot, worker.since) == ("2", 1, 30.0)


def test_failed_requests_open_the_breaker_and_do_not_touch_readiness() -> None:
    workers, by_name = ready("a")
    worker = by_name["a"]
    for _ in range(FAILURES_TO_OPEN):
        workers.failed(worker, 5.0, "reset by peer")
    assert (worker.state, worker.breaker.state, worker.reason) == ("ready", "open", "reset by peer")
    assert not workers.report(worker, is_ready=True, reason="200")
    assert worker.breaker.state == "open"


def test_the_request_that_finds_out_closes_the_breaker_or_leaves_the_question_to_the_next() -> None:
    workers, by_name = ready("a")
    worker = by_name["a"]
    for _ in range(FAILURES_TO_OPEN):
        workers.failed(worker, 0.0, "reset by peer")
    first = Charge(1, 1)
    workers.charge(worker, first)
    assert first.is_probe
    assert worker.breaker.state == "half_open"
    workers.discharge(worker, first)  # its client left
    assert worker.breaker.state == "open"
    second = Charge(1, 1)
    workers.charge(worker, second)
    workers.succeeded(worker)
    workers.discharge(worker, second)
    assert worker.breaker.state == "closed"
    third = Charge(1, 1)
    workers.charge(worker, third)
    assert not third.is_probe


def test_what_was_predicted_and_what_was_cached_are_summed() -> None:
    workers, by_name = ready("a")
    worker = by_name["a"]
    workers.note_cached(worker, 100, 90)
    workers.note_cached(worker, 50, 0)
    assert (worker.predicted_cached_tokens, worker.actual_cached_tokens) == (150, 90)


def test_remote_load_counts_for_placement_and_not_as_our_own() -> None:
    workers, by_name = ready("a")
    worker = by_name["a"]
    workers.charge(worker, Charge(1000, 40))
    workers.set_remote_tokens(worker, 500)
    assert worker.tokens == 1040
    assert worker.load_tokens() == 1000 + 40 // DECODE_DIVISOR + 500


def test_an_upstream_is_addressed_with_its_scheme_and_path() -> None:
    plain = WorkerAddress.from_url("http://10.0.0.1:8000")
    assert (plain.uid, plain.host, plain.port, plain.tls, plain.path_prefix) == (
        "10.0.0.1:8000", "10.0.0.1", 8000, False, b"",
    )  # fmt: skip
    upstream = WorkerAddress.from_url("https://models.example/openai/")
    assert (upstream.name, upstream.host, upstream.port, upstream.tls, upstream.path_prefix) == (
        "models.example", "models.example", 443, True, b"/openai",
    )  # fmt: skip
    assert (
        WorkerAddress.from_url("http://models.example:80/a").uid
        != WorkerAddress.from_url("http://models.example:80/b").uid
    )
    for bad in ("http://10.0.0.1", "10.0.0.1:8000", "https://:443"):
        with pytest.raises(ValueError, match="has no host and port"):
            WorkerAddress.from_url(bad)


def test_a_worker_that_left_stays_among_the_workers_until_its_last_request_has_ended() -> None:
    workers, by_name = ready("a")
    charges = [Charge(1, 1), Charge(1, 1)]
    for charge in charges:
        workers.charge(by_name["a"], charge)
    workers.replace([])
    workers.discharge(by_name["a"], charges[0])
    assert list(workers) == [by_name["a"]]
    workers.discharge(by_name["a"], charges[1])
    assert list(workers) == []
