"""Bugs that are planted into the operator, one at a time: the simulation finds each of them within a few seeds.

They are planted around the product's code (what it sends, what its store keeps, what was decided), never inside it.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from m3_operator.decide.deployment import DeploymentDecision
from m3_operator.groups import Group, GroupState
from m3_operator.handlers import Feed
from m3_operator.observed import Key
from m3_operator.plan.actions import CreatePods, DeletePods
from m3_operator.reconcile import deployments
from m3_operator.reconcile.telling import Teller
from m3_operator.store import Store
from m3_simulation import ending, rules
from m3_simulation.operator_process import Wiring
from m3_simulation.simulation import Outcome, Plan, simulate
from m3_simulation.wire import Request

SEEDS = range(1, 9)
SLOW_WATCH = {"watch_delay_seconds": 20.0}


def found(plan: Plan, seeds: range) -> Outcome:
    """The first seed that breaks a rule."""
    for outcome in outcomes(plan, seeds):
        if outcome.broken is not None:
            return outcome
    pytest.fail(f"not found by seeds {seeds}")


def outcomes(plan: Plan, seeds: range = SEEDS) -> Iterator[Outcome]:
    return (simulate(seed, plan) for seed in seeds)


def assert_found(plan: Plan, *expected: str, seeds: range = SEEDS) -> None:
    outcome = found(plan, seeds)
    assert outcome.broken is not None
    assert outcome.broken.rule in expected, f"seed {outcome.seed}: {outcome.broken}\n{outcome.history.tail(40)}"


def test_a_drain_that_is_skipped() -> None:
    def at_once(request: Request) -> Request:
        is_drain = request.method == "DELETE" and request.kind == "Pod"
        return replace(request, body={**request.body, "gracePeriodSeconds": 0}) if is_drain else request

    assert_found(Plan(Wiring(tamper=at_once)), rules.DRAIN)


def test_a_uid_that_is_not_asked_for() -> None:
    def by_name_alone(request: Request) -> Request:
        return replace(request, body={key: value for key, value in request.body.items() if key != "preconditions"})

    # It takes a namesake that its process has not been told of, and all that follows from that.
    plan = Plan(Wiring(tamper=by_name_alone), change_every_seconds=15.0, fault_every_seconds=20.0, **SLOW_WATCH)
    assert_found(plan, rules.OWN, rules.BUDGET, rules.REVISIONS, seeds=range(5, 11))


def test_a_stale_read_that_is_trusted() -> None:
    def whatever_it_is_by_now(request: Request) -> Request:
        preconditions = dict(request.body.get("preconditions") or {})
        preconditions.pop("resourceVersion", None)
        return replace(request, body={**request.body, "preconditions": preconditions}) if preconditions else request

    # Groups that have begun to serve are taken for ones that still load.
    pace = {"change_every_seconds": 15.0, "fault_every_seconds": 600.0, **SLOW_WATCH}
    assert_found(Plan(Wiring(tamper=whatever_it_is_by_now), **pace), rules.BUDGET, seeds=range(9, 15))


def test_a_budget_that_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_at_once(decision: DeploymentDecision) -> DeploymentDecision:
        outdated = [group for group in decision.groups.values() if group.revision != decision.revision]
        drains = [DeletePods(group.index, group.pods[:1], "planted") for group in outdated if group.is_ready]
        steps = replace(decision.steps, actions=(*decision.steps.actions, *drains))
        return replace(decision, steps=steps) if decision.revision else decision

    _decide_otherwise(monkeypatch, all_at_once)
    assert_found(Plan(), rules.BUDGET)


def test_a_surge_that_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_more(decision: DeploymentDecision) -> DeploymentDecision:
        made = [action for action in decision.steps.actions if isinstance(action, CreatePods)]
        more = [replace(action, group=action.group + 1) for action in made if action.group + 1 not in decision.groups]
        return replace(decision, steps=replace(decision.steps, actions=(*decision.steps.actions, *more)))

    _decide_otherwise(monkeypatch, one_more)
    assert_found(Plan(), rules.SURGE)


def test_a_group_that_is_said_to_serve_while_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    serves = property(lambda group: group.state in (GroupState.READY, GroupState.LOADING))
    monkeypatch.setattr(Group, "is_ready", serves)
    assert_found(Plan(), rules.HONEST)


def test_a_rank_of_another_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_up(decision: DeploymentDecision) -> DeploymentDecision:
        if decision.revision is None or len(decision.groups) > decision.wanted:
            return decision
        broken = {
            index: group
            for index, group in decision.groups.items()
            if group.missing_ranks and group.state is GroupState.FAILED and not group.finished
        }
        kept = [action for action in decision.steps.actions if action.group not in broken]
        filled = [
            CreatePods(index, tuple(range(len(group.pods) + len(group.missing_ranks))), decision.revision, "planted")
            for index, group in broken.items()
            if decision.deployment and group.nodes == decision.deployment.spec.parallelism.nodes
        ]
        return replace(decision, steps=replace(decision.steps, actions=(*kept, *filled)))

    _decide_otherwise(monkeypatch, fill_up)
    assert_found(Plan(change_every_seconds=20.0), rules.REVISIONS)


def test_a_group_that_crashes_and_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3_operator.plan.recovery.restart_delay", lambda *_: timedelta())
    assert_found(Plan(change_every_seconds=20.0, fault_every_seconds=600.0), rules.BACKOFF)


def test_an_old_version_that_replaces_a_newer_one() -> None:
    assert_found(Plan(Wiring(store=_Credulous)), rules.REDUNDANT)


def test_writes_of_its_own_that_it_does_not_remember() -> None:
    assert_found(Plan(Wiring(store=_Forgetful, feed=_Reminding)), rules.REDUNDANT)


def test_a_status_that_is_written_though_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    tell = Teller.tell

    async def always(self: Teller, key: Key, manifest: Any, status: Any, happenings: Any) -> Any:
        return await tell(self, key, {**manifest, "status": {}}, status, happenings)

    monkeypatch.setattr(Teller, "tell", always)
    assert_found(Plan(), rules.REDUNDANT, ending.QUIET)


def test_events_that_are_lost_and_no_full_list_that_repairs_it() -> None:
    plan = Plan(Wiring(looks_again=False))
    assert_found(plan, ending.CAUSE, ending.TRUE, ending.LEFT_OVER, ending.QUIET, seeds=range(9, 17))


class _Credulous(Store):
    """Takes every word for the newest."""

    words = 10**9

    def put(self, kind: str, manifest: Any) -> set[Key]:
        self.words += 1
        return super().put(kind, {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": str(self.words)}})


class _Forgetful(Store):
    """Does not listen to the answers to its writes, only to lists and watches."""

    is_listening = False

    def put(self, kind: str, manifest: Any) -> set[Key]:
        return super().put(kind, manifest) if self.is_listening else set()

    def replace(self, kind: str, manifests: Any, seen_before: Any) -> set[Key]:
        self.is_listening = True
        touched = super().replace(kind, manifests, seen_before)
        self.is_listening = False
        return touched


class _Reminding(Feed):
    """Lets its forgetful store listen to watches."""

    def on_event(self, kind: str, event: Any) -> None:
        assert isinstance(self.store, _Forgetful)
        self.store.is_listening = True
        super().on_event(kind, event)
        self.store.is_listening = False


def _decide_otherwise(
    monkeypatch: pytest.MonkeyPatch, otherwise: Callable[[DeploymentDecision], DeploymentDecision]
) -> None:
    decide = deployments.decide_deployment
    monkeypatch.setattr(deployments, "decide_deployment", lambda *given: otherwise(decide(*given)))
