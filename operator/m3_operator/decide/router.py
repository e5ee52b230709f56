"""What one M3Router needs now: read the spec, render what it asks for, plan the difference.

A problem stops no more than it must: a router serves the deployments that are there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from m3_operator import names
from m3_operator.api import M3Deployment, M3Router, SpecError, parse_deployment, parse_router
from m3_operator.decide.installation import Installation
from m3_operator.decide.model_names import holders
from m3_operator.decide.problem import Problem
from m3_operator.decide.tenant import accepted
from m3_operator.observed import Manifest, RouterSnapshot
from m3_operator.plan.actions import ObjectAction
from m3_operator.plan.objects import differences
from m3_operator.render.extras import MONITOR_KIND
from m3_operator.render.router import cluster_config, router_objects
from m3_operator.render.router_access import router_network_policy, router_pod_monitor
from m3_router.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class RouterDecision:
    """What to do about one M3Router."""

    router: M3Router | None  # None: its spec cannot be read
    objects: tuple[ObjectAction, ...] = ()
    needs_keys: bool = False
    problem: Problem | None = None
    remark: Problem | None = None  # what is not as it was asked for, while the routers serve all the rest


def decide_router(snapshot: RouterSnapshot, installation: Installation) -> RouterDecision:
    """What one M3Router needs now."""
    try:
        router = parse_router(snapshot.manifest, strict=False)
    except SpecError as error:
        return RouterDecision(router=None, problem=Problem("InvalidSpec", str(error)))
    image = router.spec.image or installation.router_image
    if image is None:
        problem = Problem(
            "ImageMissing", "set spec.image, or start the operator with --router-image: there is no default"
        )
        return RouterDecision(router=router, problem=problem)
    deployments, missing = _readable_deployments(snapshot)
    if not deployments:
        return RouterDecision(router=router, problem=missing)
    there = [manifest for manifest in snapshot.deployments.values() if manifest is not None]
    served = holders(there, snapshot.manifest)
    left_out = [found for found in deployments if found.metadata.name not in served[found.spec.model.served_name]]
    try:
        config = cluster_config(router, [found for found in deployments if found not in left_out])
    except ConfigError as error:
        refused = Problem("ConfigRefused", " ".join(str(error).split()))
        if missing is not None:  # what is not there is the likely cause, and what to mend first
            refused = Problem(
                missing.reason, f"{missing.message}; without it the configuration is refused: {refused.message}"
            )
        return RouterDecision(router=router, problem=refused)
    desired = [
        *router_objects(router, config, image=image, tenants=accepted(router, snapshot)),
        *_access(router, installation),
    ]
    return RouterDecision(
        router=router,
        objects=tuple(differences(desired, snapshot.children, snapshot.manifest)),
        needs_keys=_needs_keys(router, snapshot),
        problem=missing,
        remark=_name_taken(left_out, served),
    )


def _access(router: M3Router, installation: Installation) -> list[Manifest]:
    """What some routers have beside; a PodMonitor only where the cluster knows them."""
    monitor = router_pod_monitor(router) if MONITOR_KIND in installation.optional_kinds else None
    policy = router_network_policy(router, installation.namespace)
    return [made for made in (policy, monitor) if made is not None]


def _name_taken(left_out: Sequence[M3Deployment], served: Mapping[str, tuple[str, ...]]) -> Problem | None:
    if not left_out:
        return None
    first = left_out[0]
    model, name = first.spec.model.served_name, first.metadata.name
    message = f"M3Deployment {name} gets no requests: M3Deployment {served[model][0]} serves the model {model} already"
    return Problem("ModelNameTaken", message)


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
