"""The set of workers, and the choice among them."""

from m3_router.placement import choose
from m3_router.workers import MAX_SLOW_PROBES, Worker, WorkerAddress, Workers


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
    workers.charge(before["pod-0"], 10)
    assert workers.replace([address("pod-0", uid="new")]) == [before["pod-0"]]
    assert [(worker.address.uid, worker.state) for worker in workers] == [("pod-0", "draining"), ("new", "unready")]
    assert not workers.report(before["pod-0"], is_ready=True, reason="a late probe")
    workers.discharge(before["pod-0"], 10)
    assert [worker.address.uid for worker in workers] == ["new"]


def test_a_worker_without_work_that_leaves_is_gone_at_once() -> None:
    workers, _ = ready("a", "b")
    workers.replace([address("b")])
    assert [worker.name for worker in workers] == ["b"]
    assert [worker.name for worker in workers.ready] == ["b"]


def test_a_pod_that_came_back_to_the_list_starts_anew() -> None:
    workers, before = ready("a")
    workers.charge(before["a"], 1)
    workers.replace([])
    workers.replace([address("a")])
    (worker,) = workers
    assert worker is not before["a"]
    assert worker.state == "unready"
    workers.discharge(before["a"], 1)
    assert list(workers) == [worker]


def test_a_busy_worker_may_be_slow_and_an_idle_one_three_times() -> None:
    workers, by_name = ready("a")
    worker = by_name["a"]
    workers.charge(worker, 1)
    assert not any(workers.report_slow(worker) for _ in range(10))
    workers.discharge(worker, 1)
    assert [workers.report_slow(worker) for _ in range(MAX_SLOW_PROBES)] == [False, False, True]
    assert workers.ready == []


def test_the_fewest_tokens_win_and_ties_go_by_name() -> None:
    workers, by_name = ready("b", "a", "c")
    assert choose(workers.ready) is by_name["a"]
    workers.charge(by_name["a"], 5)
    workers.charge(by_name["b"], 4)
    assert choose(workers.ready) is by_name["c"]
    workers.charge(by_name["c"], 4)
    assert choose(workers.ready) is by_name["b"]
    assert choose(workers.ready, (by_name["b"], by_name["c"])) is by_name["a"]
    assert choose(workers.ready, tuple(by_name.values())) is None
    assert choose([]) is None
