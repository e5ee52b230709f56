"""What one M3Deployment needs now: read the spec, render what it asks for, plan the difference.

A decision also says what stands in the way, as a `Problem` with the reason that becomes a condition: what only the
operator can know. A problem stops no more than it must: a missing router stops no worker.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from m3_operator import names
from m3_operator.api import M3Deployment, SpecError, parse_deployment
from m3_operator.capacity.assessment import Assessment, assess
from m3_operator.decide.diagnosis import diagnose
from m3_operator.decide.equipment import group_objects, lacking
from m3_operator.decide.installation import Installation
from m3_operator.decide.memory import avoided_nodes, failure_records
from m3_operator.decide.model_names import name_problem
from m3_operator.decide.problem import Problem
from m3_operator.decide.revisions import Revisions, decide_revisions
from m3_operator.groups import Group, by_index
from m3_operator.observed import DeploymentSnapshot, Manifest, owner_uid, uid
from m3_operator.plan.actions import CreatePods, DeletePods, ObjectAction
from m3_operator.plan.avoidance import still_avoided
from m3_operator.plan.faults import HEALTHY, Health, examine
from m3_operator.plan.gates import Turn, next_turn
from m3_operator.plan.objects import differences
from m3_operator.plan.recovery import FailureRecord
from m3_operator.plan.rollout import places
from m3_operator.plan.steps import Steps, next_steps
from m3_operator.render.disruption import disruption_budget
from m3_operator.render.experts import has_plan, plan_config_map
from m3_operator.render.pod import owner_reference
from m3_operator.render.revisions import Template
from m3_operator.render.worker import group_service, workers_service


@dataclass(frozen=True, kw_only=True)
class DeploymentDecision:
    """What to do about one M3Deployment."""

    deployment: M3Deployment | None  # None: its spec cannot be read
    templates: Mapping[str, Template]  # by revision; the steps create groups of these
    revision: str | None  # of new groups; None: there can be none
    wanted: int  # how many groups should run
    groups: Mapping[int, Group]
    records: Mapping[int, FailureRecord]
    assessment: Assessment | None = None  # None: its spec cannot be read
    objects: tuple[ObjectAction, ...] = ()
    steps: Steps = field(default_factory=Steps)
    turn: Turn = field(default_factory=Turn)  # of the groups that wait behind gates
    problem: Problem | None = None
    health: Health = HEALTHY
    findings: Mapping[int, Problem] = field(default_factory=dict)  # by group: why it does not serve
    revisions: Revisions | None = None  # None: there is nothing that groups could be made of

    @property
    def wake_at(self) -> datetime | None:
        """When to look again even if nothing happens."""
        deadline = self.revisions.wake_at if self.revisions is not None else None
        return min((at for at in (self.steps.wake_at, self.turn.over_at, deadline) if at is not None), default=None)

    @property
    def places(self) -> list[int]:
        """Indexes of the groups that are there or missing."""
        name = self.deployment.metadata.name if self.deployment else ""
        return places(name, self.wanted, self.groups)

    @property
    def is_refused(self) -> bool:
        """Whether no group can be made of the spec as it is: it does not fit, and groups are wanted."""
        return self.wanted > 0 and self.assessment is not None and self.assessment.answer == "no"


def decide_deployment(snapshot: DeploymentSnapshot, installation: Installation, now: datetime) -> DeploymentDecision:
    """What one M3Deployment needs now."""
    groups, records = by_index(snapshot.pods), failure_records(snapshot.manifest)
    try:
        deployment = parse_deployment(snapshot.manifest, strict=False)
    except SpecError as error:
        problem = Problem("InvalidSpec", str(error))
        return DeploymentDecision(
            deployment=None, templates={}, revision=None, wanted=0, groups=groups, records=records, problem=problem
        )
    assessment = assess(deployment)
    image = deployment.spec.engine.image or installation.worker_image
    if image is None:
        problem = Problem(
            "ImageMissing", "set spec.engine.image, or start the operator with --worker-image: there is no default"
        )
        return DeploymentDecision(
            deployment=deployment,
            templates={},
            revision=None,
            wanted=deployment.spec.desired_groups,
            groups=groups,
            records=records,
            assessment=assessment,
            problem=problem,
        )
    if (lack := lacking(deployment, installation)) is not None:
        return DeploymentDecision(
            deployment=deployment,
            templates={},
            revision=None,
            wanted=deployment.spec.desired_groups,
            groups=groups,
            records=records,
            assessment=assessment,
            problem=lack,
        )
    groups_wanted = deployment.spec.desired_groups
    revisions = decide_revisions(
        snapshot,
        deployment,
        image,
        installation,
        groups_wanted=groups_wanted,
        groups=groups,
        now=now,
        is_frozen=assessment.answer == "no",
    )
    decision = DeploymentDecision(
        deployment=deployment,
        templates=revisions.templates,
        revision=revisions.target,
        wanted=groups_wanted,
        groups=groups,
        records=records,
        assessment=assessment,
        problem=routing_problem(deployment, snapshot) or name_problem(snapshot.manifest, snapshot.siblings),
        revisions=revisions,
    )
    return _planned(decision, deployment, revisions, snapshot, now)


def _planned(
    decision: DeploymentDecision,
    deployment: M3Deployment,
    revisions: Revisions,
    snapshot: DeploymentSnapshot,
    now: datetime,
) -> DeploymentDecision:
    """The decision with what is to be done."""
    wanted, groups = revisions.wanted, decision.groups
    health = examine(groups, snapshot, wanted.recovery, still_avoided(avoided_nodes(snapshot.manifest), now), now)
    steps = next_steps(wanted, groups, decision.records, snapshot.names_in_the_way, now, health=health)
    staying = groups.keys() - steps.leaving
    decision = replace(
        decision,
        health=health,
        findings=diagnose(groups, staying, decision.records, recovery=wanted.recovery, health=health, now=now),
        steps=steps,
        turn=next_turn(groups, timedelta(seconds=deployment.spec.placement.gang.timeout_seconds), now),
    )
    if decision.is_refused:
        decision = _refused(decision)
    return replace(decision, objects=_deployment_objects(decision, deployment, revisions, snapshot))


def _refused(decision: DeploymentDecision) -> DeploymentDecision:
    """What is left to do for a spec that cannot run: groups that serve go on serving, those too many still go."""
    steps, assessment = decision.steps, decision.assessment
    leaving = [action for action in steps.actions if isinstance(action, DeletePods) and action.group in steps.leaving]
    problem = decision.problem if assessment is None else Problem(assessment.reason, assessment.message)
    return replace(decision, steps=Steps(tuple(leaving)), problem=problem)


def routing_problem(deployment: M3Deployment, snapshot: DeploymentSnapshot) -> Problem | None:
    """Why no router would send this deployment anything."""
    name, reference, router = deployment.metadata.name, deployment.spec.router, snapshot.router
    if reference is not None and router is None:
        return Problem("RouterNotFound", f"spec.router.name: there is no M3Router {reference.name} in this namespace")
    if router is None or name in _served_names(router):
        return None
    where = router["metadata"]["name"]
    if reference is None and owner_uid(router) != uid(snapshot.manifest):
        message = (
            f"M3Router {where} has this deployment's name and does not serve it; list it there, or set spec.router"
        )
        return Problem("NameTaken", message)
    message = f"M3Router {where} does not list {name} in spec.deployments"
    return None if reference is None else Problem("RouterDoesNotServe", message)


def _deployment_objects(
    decision: DeploymentDecision, deployment: M3Deployment, revisions: Revisions, snapshot: DeploymentSnapshot
) -> tuple[ObjectAction, ...]:
    groups, steps = decision.groups, decision.steps
    if decision.is_refused and not groups:
        return ()
    made = {action.group for action in steps.actions if isinstance(action, CreatePods)}
    templates = {name: (one.deployment, one.gang) for name, one in decision.templates.items()}
    desired = [
        workers_service(deployment),
        disruption_budget(deployment),
        *(group_service(deployment, index) for index in sorted({*decision.places, *made})),
        *group_objects(templates, groups, steps.actions),
    ]
    live = dict(snapshot.children)
    if snapshot.experts is not None and has_plan(deployment):
        desired.append(plan_config_map(deployment, snapshot.experts.plan))
    elif has_plan(deployment):  # a plan that an earlier operator learned is good until there is a newer one
        live.pop(("ConfigMap", names.experts_name(deployment.metadata.name)), None)
    namesake = snapshot.namesake
    is_ours = namesake is not None and owner_uid(namesake) == uid(snapshot.manifest)
    if namesake is not None and is_ours:
        live[names.ROUTER_KIND, deployment.metadata.name] = namesake
    if deployment.spec.router is None and (namesake is None or is_ours):
        desired.append(_own_router(deployment))
    return tuple(differences([*desired, *revisions.objects], live, snapshot.manifest))


def _own_router(deployment: M3Deployment) -> dict[str, Any]:
    """The router of a deployment that names none. Only its list is ours: people may set all the rest."""
    meta = deployment.metadata
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.ROUTER_KIND,
        "metadata": {
            "name": meta.name,
            "namespace": meta.namespace,
            "labels": names.common_labels(meta.name, names.ROUTER_COMPONENT),
            "ownerReferences": [owner_reference(names.DEPLOYMENT_KIND, meta.name, meta.uid)],
        },
        "spec": {"deployments": [{"name": meta.name}]},
    }


def _served_names(router: Manifest) -> set[str]:
    return {str(entry.get("name")) for entry in router.get("spec", {}).get("deployments") or ()}
