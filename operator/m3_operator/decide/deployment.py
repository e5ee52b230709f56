"""What one M3Deployment needs now: read the spec, render what it asks for, plan the difference.

A decision also says what stands in the way, as a `Problem` with the reason that becomes a condition: what only the
operator can know. A problem stops no more than it must: a missing router stops no worker.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from m3_operator import names
from m3_operator.api import M3Deployment, SpecError, parse_deployment
from m3_operator.capacity.assessment import Assessment, assess
from m3_operator.decide.installation import Installation
from m3_operator.decide.problem import Problem
from m3_operator.decide.revisions import Revisions, decide_revisions
from m3_operator.groups import Group, by_index
from m3_operator.observed import DeploymentSnapshot, Manifest, owner_uid, parse_time, uid
from m3_operator.plan.actions import CreatePods, DeletePods, ObjectAction
from m3_operator.plan.objects import differences
from m3_operator.plan.recovery import FailureRecord
from m3_operator.plan.rollout import places
from m3_operator.plan.steps import Steps, next_steps
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
    problem: Problem | None = None
    revisions: Revisions | None = None  # None: there is nothing that groups could be made of

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
    groups_wanted = deployment.spec.desired_groups
    revisions = decide_revisions(snapshot, deployment, image, groups_wanted=groups_wanted, groups=groups, now=now)
    decision = DeploymentDecision(
        deployment=deployment,
        templates=revisions.templates,
        revision=revisions.target,
        wanted=groups_wanted,
        groups=groups,
        records=records,
        assessment=assessment,
        problem=routing_problem(deployment, snapshot),
        revisions=revisions,
    )
    if decision.is_refused:
        return _refused(decision, assessment, snapshot, now)
    steps = next_steps(revisions.wanted, groups, records, snapshot.names_in_the_way, now)
    wakes = [at for at in (steps.wake_at, revisions.wake_at) if at is not None]
    steps = replace(steps, wake_at=min(wakes, default=None))
    return replace(decision, objects=_deployment_objects(decision, steps, snapshot), steps=steps)


def _refused(
    decision: DeploymentDecision, assessment: Assessment, snapshot: DeploymentSnapshot, now: datetime
) -> DeploymentDecision:
    """What is left to do for a spec that cannot run: groups that serve go on serving, those too many still go.

    Nothing is made, and no group is replaced: there is nothing to replace it by.
    """
    if decision.revisions is None:
        return decision
    frozen = decision.revisions.wanted
    frozen = replace(frozen, rollout=replace(frozen.rollout, is_paused=True))
    steps = next_steps(frozen, decision.groups, decision.records, snapshot.names_in_the_way, now)
    leaving = [action for action in steps.actions if isinstance(action, DeletePods) and action.group in steps.leaving]
    return replace(
        decision,
        objects=_deployment_objects(decision, Steps(), snapshot) if decision.groups else (),
        steps=Steps(tuple(leaving)),
        problem=Problem(assessment.reason, assessment.message),
    )


def failure_records(manifest: Manifest) -> dict[int, FailureRecord]:
    """What an M3Deployment's status remembers of its groups' failures."""
    records = {}
    for group in manifest.get("status", {}).get("groups") or ():
        failure = group.get("lastFailure")
        if failure:
            records[int(group["index"])] = FailureRecord(
                restarts=int(group.get("restarts", 0)),
                failed_at=parse_time(failure.get("time")),
                reason=str(failure.get("reason", "")),
            )
    return records


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
    decision: DeploymentDecision, steps: Steps, snapshot: DeploymentSnapshot
) -> tuple[ObjectAction, ...]:
    deployment, revisions = decision.deployment, decision.revisions
    if deployment is None or revisions is None:
        return ()
    made = {action.group for action in steps.actions if isinstance(action, CreatePods)}
    indexes = sorted({*decision.places, *made})
    desired = [workers_service(deployment), *(group_service(deployment, index) for index in indexes)]
    live = dict(snapshot.children)
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
