"""From a snapshot to a decision: read the spec, render what it asks for, plan the difference. Pure.

A decision also says what stands in the way, as a `Problem` with the reason that becomes a condition: what only the
operator can know. A problem stops no more than it must: a missing router stops no worker, and a router serves the
deployments that are there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from m3_operator import names
from m3_operator.api import M3Deployment, M3Router, SpecError, parse_deployment, parse_router
from m3_operator.capacity.assessment import Assessment, assess
from m3_operator.groups import Group, by_index
from m3_operator.observed import DeploymentSnapshot, Manifest, RouterSnapshot, owner_uid, parse_time, uid
from m3_operator.plan.actions import DeletePods, ObjectAction
from m3_operator.plan.objects import differences
from m3_operator.plan.recovery import FailureRecord
from m3_operator.plan.steps import Steps, Wanted, next_steps
from m3_operator.render.pod import owner_reference
from m3_operator.render.router import cluster_config, router_objects
from m3_operator.render.worker import group_service, revision, workers_service
from m3_router.config import ConfigError


@dataclass(frozen=True)
class Images:
    """What runs where a spec names no image."""

    worker: str | None = None
    router: str | None = None


@dataclass(frozen=True)
class Problem:
    """What stands in the way: a reason for programs, a sentence for people."""

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class DeploymentDecision:
    """What to do about one M3Deployment."""

    deployment: M3Deployment | None  # None: its spec cannot be read
    image: str | None
    revision: str | None
    groups: Mapping[int, Group]
    records: Mapping[int, FailureRecord]
    assessment: Assessment | None = None  # None: its spec cannot be read
    objects: tuple[ObjectAction, ...] = ()
    steps: Steps = field(default_factory=Steps)
    problem: Problem | None = None

    @property
    def is_refused(self) -> bool:
        """Whether no group can be made of the spec as it is: it does not fit, and groups are wanted."""
        is_wanted = self.deployment is not None and self.deployment.spec.desired_groups > 0
        return is_wanted and self.assessment is not None and self.assessment.answer == "no"


@dataclass(frozen=True, kw_only=True)
class RouterDecision:
    """What to do about one M3Router."""

    router: M3Router | None  # None: its spec cannot be read
    objects: tuple[ObjectAction, ...] = ()
    needs_keys: bool = False
    problem: Problem | None = None


def decide_deployment(snapshot: DeploymentSnapshot, images: Images, now: datetime) -> DeploymentDecision:
    """What one M3Deployment needs now."""
    groups, records = by_index(snapshot.pods), failure_records(snapshot.manifest)
    try:
        deployment = parse_deployment(snapshot.manifest, strict=False)
    except SpecError as error:
        problem = Problem("InvalidSpec", str(error))
        return DeploymentDecision(
            deployment=None, image=None, revision=None, groups=groups, records=records, problem=problem
        )
    assessment = assess(deployment)
    image = deployment.spec.engine.image or images.worker
    if image is None:
        problem = Problem(
            "ImageMissing", "set spec.engine.image, or start the operator with --worker-image: there is no default"
        )
        return DeploymentDecision(
            deployment=deployment,
            image=None,
            revision=None,
            groups=groups,
            records=records,
            assessment=assessment,
            problem=problem,
        )
    current = revision(deployment, image)
    wanted = Wanted(
        deployment=deployment.metadata.name,
        groups=deployment.spec.desired_groups,
        nodes=deployment.spec.parallelism.nodes,
        revision=current,
    )
    decision = DeploymentDecision(
        deployment=deployment,
        image=image,
        revision=current,
        groups=groups,
        records=records,
        assessment=assessment,
        objects=tuple(_deployment_objects(deployment, groups, snapshot)),
        steps=next_steps(wanted, groups, records, snapshot.names_in_the_way, now),
        problem=routing_problem(deployment, snapshot),
    )
    return _refused(decision, assessment) if decision.is_refused else decision


def _refused(decision: DeploymentDecision, assessment: Assessment) -> DeploymentDecision:
    """What is left to do for a spec that cannot run: groups that serve go on serving, those too many still go.

    Nothing is made, and no group is replaced: there is nothing to replace it by.
    """
    wanted = decision.deployment.spec.desired_groups if decision.deployment else 0
    surplus = [action for action in decision.steps.actions if isinstance(action, DeletePods) and action.group >= wanted]
    return replace(
        decision,
        objects=decision.objects if decision.groups else (),
        steps=Steps(tuple(surplus)),
        problem=Problem(assessment.reason, assessment.message),
    )


def decide_router(snapshot: RouterSnapshot, images: Images) -> RouterDecision:
    """What one M3Router needs now."""
    try:
        router = parse_router(snapshot.manifest, strict=False)
    except SpecError as error:
        return RouterDecision(router=None, problem=Problem("InvalidSpec", str(error)))
    image = router.spec.image or images.router
    if image is None:
        problem = Problem(
            "ImageMissing", "set spec.image, or start the operator with --router-image: there is no default"
        )
        return RouterDecision(router=router, problem=problem)
    deployments, missing = _readable_deployments(snapshot)
    if not deployments:
        return RouterDecision(router=router, problem=missing)
    try:
        config = cluster_config(router, deployments)
    except ConfigError as error:
        return RouterDecision(router=router, problem=Problem("ConfigRefused", " ".join(str(error).split())))
    desired = router_objects(router, config, image=image)
    return RouterDecision(
        router=router,
        objects=tuple(differences(desired, snapshot.children, snapshot.manifest)),
        needs_keys=_needs_keys(router, snapshot),
        problem=missing,
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
    deployment: M3Deployment, groups: Mapping[int, Group], snapshot: DeploymentSnapshot
) -> list[ObjectAction]:
    indexes = sorted({*range(deployment.spec.desired_groups), *groups})
    desired = [workers_service(deployment), *(group_service(deployment, index) for index in indexes)]
    live = {("Service", name): service for name, service in snapshot.services.items()}
    namesake = snapshot.namesake
    is_ours = namesake is not None and owner_uid(namesake) == uid(snapshot.manifest)
    if namesake is not None and is_ours:
        live[names.ROUTER_KIND, deployment.metadata.name] = namesake
    if deployment.spec.router is None and (namesake is None or is_ours):
        desired.append(_own_router(deployment))
    return differences(desired, live, snapshot.manifest)


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


def _readable_deployments(snapshot: RouterSnapshot) -> tuple[list[M3Deployment], Problem | None]:
    deployments: list[M3Deployment] = []
    problem: Problem | None = None
    for name, manifest in snapshot.deployments.items():
        if manifest is None:
            message = f"spec.deployments: there is no M3Deployment {name} in this namespace"
            problem = problem or Problem("DeploymentNotFound", message)
            continue
        try:
            deployments.append(parse_deployment(manifest, strict=False))
        except SpecError as error:
            problem = problem or Problem("DeploymentInvalid", f"M3Deployment {name}: {error}")
    return deployments, problem


def _needs_keys(router: M3Router, snapshot: RouterSnapshot) -> bool:
    """Whether the generated keys may be missing: only while no router runs, for a running one has read them."""
    if router.spec.auth.mode != "Keys" or router.spec.auth.secret_name is not None:
        return False
    running = snapshot.children.get(("Deployment", names.router_name(router.metadata.name)), {})
    return not running.get("status", {}).get("availableReplicas")


def _served_names(router: Manifest) -> set[str]:
    return {str(entry.get("name")) for entry in router.get("spec", {}).get("deployments") or ()}
