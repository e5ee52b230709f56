"""What must be true in the end, once nothing goes wrong any more and enough time has passed.

Every deployment is Ready, and really serves what its spec asks for; or its Ready condition has the reason that this
module finds by itself in the world. Nothing is left of what was deleted, and nothing more is written.
"""

from collections.abc import Mapping
from typing import Any

from m3_operator import names
from m3_operator.observed import condition, owner_uid
from m3_simulation.allowances import reaches_all_groups, wanted_groups
from m3_simulation.api_server import ApiServer, Manifest
from m3_simulation.controllers import gpus_of, owners_of
from m3_simulation.fleet import BAD_IMAGE, CRASHING_IMAGE, Fleet
from m3_simulation.rules import Rules

CAUSE = "in the end every object is Ready, or says why not"
TRUE = "in the end what is Ready really serves"
LEFT_OVER = "nothing is left of deleted owners"
QUIET = "nothing is written in an unchanged world"
_CRASHED = ("CrashLooping", "RestartBudgetExhausted", "BackingOff", "Unschedulable", "GroupsNotReady")
AT_THE_END = (CAUSE, TRUE, LEFT_OVER, QUIET)


def judge_ending(server: ApiServer, fleet: Fleet, rules: Rules) -> None:
    """Judge the world as it is in the end."""
    for found in server.objects.values():
        orphan = owners_of(found) and not any(owner in server.uids for owner in owners_of(found))
        told = f"{found['kind']} {found['metadata']['name']} is left of an owner that is gone"
        rules.require(LEFT_OVER, holds=not orphan, message=told)
    for worker in fleet.workers.values():
        told = f"the process of {worker.identity[2]} (uid {worker.uid}) runs without its pod"
        rules.require(LEFT_OVER, holds=worker.uid in server.uids, message=told)
    for deployment in server.of_kind(names.DEPLOYMENT_KIND):
        _judge_deployment(server, fleet, rules, deployment)
    for router in server.of_kind(names.ROUTER_KIND):
        ready = condition(router, "Ready")
        holds = ready.get("status") == "True" or _excuses_its_router(server, router)
        told = f"M3Router {router['metadata']['name']}: {dict(ready)}"
        rules.require(CAUSE, holds=bool(ready) and holds, message=told)


def _excuses_its_router(server: ApiServer, router: Manifest) -> bool:
    """Whether the deployment that a router was made for is not as it should be, and so the router cannot be either."""
    owner = server.objects.get((names.DEPLOYMENT_KIND, router["metadata"]["namespace"], router["metadata"]["name"]))
    return owner is not None and _expected(server, owner) is not None


def _judge_deployment(server: ApiServer, fleet: Fleet, rules: Rules, deployment: Manifest) -> None:
    name, spec, uid = deployment["metadata"]["name"], deployment["spec"], deployment["metadata"]["uid"]
    ready = condition(deployment, "Ready")
    serving = fleet.serving(uid)
    told = f"M3Deployment {name}: {dict(ready)}; {len(serving)} groups serve; spec {_short(spec)}"
    expected = _expected(server, deployment)
    is_current = ready.get("observedGeneration") == deployment["metadata"]["generation"]
    if expected is not None:
        holds = ready.get("status") == "False" and ready.get("reason") in expected and bool(ready.get("message"))
        rules.require(CAUSE, holds=holds and is_current, message=f"{told}; expected {' or '.join(expected)}")
        return
    rules.require(CAUSE, holds=ready.get("status") == "True" and is_current, message=told)
    pods = [pod for pod in server.of_kind("Pod") if owner_uid(pod) == uid]
    images = {pod["spec"]["containers"][0]["image"] for pod in pods}
    shapes = {pod["metadata"]["annotations"][names.NODES_ANNOTATION] for pod in pods}
    wanted = wanted_groups(spec)
    is_as_wanted = len(serving) == wanted and (
        not reaches_all_groups(spec)
        or (
            images == {spec["engine"]["image"]}
            and shapes == {str(spec["parallelism"]["nodes"])}
            and len(pods) == wanted * spec["parallelism"]["nodes"]
        )
    )
    rules.require(TRUE, holds=is_as_wanted, message=f"{told}; {len(pods)} pods, images {images}, shapes {shapes}")


def _expected(server: ApiServer, deployment: Manifest) -> tuple[str, ...] | None:
    """The reasons for not being Ready that the world gives; None: it must be Ready."""
    spec = deployment["spec"]
    causes = (
        (("InvalidSpec",), int(spec.get("replicas", 1)) < 0),
        (("RouterNotFound",), bool(spec.get("router"))),
        (("Suspended",), bool(spec.get("suspend"))),
        (("ScaledToZero",), spec.get("replicas") == 0),
        (("DoesNotFit",), "accelerator" in spec),
        (("ImagePullFailed", "Unschedulable"), _runs(server, deployment, BAD_IMAGE)),
        (_CRASHED, _runs(server, deployment, CRASHING_IMAGE)),
        (("Unschedulable",), _lacks_gpus(server, deployment)),
    )
    return next((reasons for reasons, holds in causes if holds), None)


def _runs(server: ApiServer, deployment: Manifest, image: str) -> bool:
    """Whether such an image is asked for, or was, by a group that the rollout leaves as it is."""
    spec, uid = deployment["spec"], deployment["metadata"]["uid"]
    pods = () if reaches_all_groups(spec) else [pod for pod in server.of_kind("Pod") if owner_uid(pod) == uid]
    images = {spec["engine"]["image"], *(pod["spec"]["containers"][0]["image"] for pod in pods)}
    return any(image in one for one in images)


def _lacks_gpus(server: ApiServer, deployment: Manifest) -> bool:
    """Whether a pod of it waits for GPUs that others hold."""
    return any(
        gpus_of(pod) and not pod["spec"].get("nodeName")
        for pod in server.of_kind("Pod")
        if owner_uid(pod) == deployment["metadata"]["uid"]
    )


def _short(spec: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in spec.items() if key not in ("model", "drain"))
