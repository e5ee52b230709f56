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
    for tenant in server.of_kind(names.TENANT_KIND):
        _judge_tenant(server, rules, tenant)
    for router in server.of_kind(names.ROUTER_KIND):
        ready = condition(router, "Ready")
        holds = ready.get("status") == "True" or _excuses_its_router(server, router)
        told = f"M3Router {router['metadata']['name']}: {dict(ready)}"
        rules.require(CAUSE, holds=bool(ready) and holds, message=told)


def _judge_tenant(server: ApiServer, rules: Rules, tenant: Manifest) -> None:
    """It is accepted, or told which of the things that it asks for is not there."""
    spec, ready = tenant["spec"], condition(tenant, "Ready")
    there = {found["metadata"]["name"] for found in server.of_kind(names.ROUTER_KIND)}
    asked = spec.get("routers") or sorted(there)
    expected = {"RouterNotFound" for name in asked or [""] if name not in there}
    expected |= {"PlanNotFound" for name in asked if name in there and "plan" in spec}
    is_told = ready.get("status") == str(not expected) and ready.get("reason") in (expected or {"Accepted"})
    is_current = ready.get("observedGeneration") == tenant["metadata"]["generation"]
    told = f"M3Tenant {tenant['metadata']['name']}: {dict(ready)}; expected {sorted(expected) or 'Accepted'}"
    rules.require(CAUSE, holds=is_told and is_current, message=told)


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
    pods = _pods(server, deployment)
    images = {pod["spec"]["containers"][0]["image"] for pod in pods}
    shapes = {pod["metadata"]["annotations"][names.NODES_ANNOTATION] for pod in pods}
    wanted = wanted_groups(spec)
    is_as_wanted = len(serving) == wanted and (
        not _is_brought_to_all(deployment)
        or (
            images == {spec["engine"]["image"]}
            and shapes == {str(spec["parallelism"]["nodes"])}
            and len(pods) == wanted * spec["parallelism"]["nodes"]
        )
    )
    rules.require(TRUE, holds=is_as_wanted, message=f"{told}; {len(pods)} pods, images {images}, shapes {shapes}")


def _expected(server: ApiServer, deployment: Manifest) -> tuple[str, ...] | None:
    """The reasons for not being Ready that the world gives; None: it must be Ready.

    Of several causes any may be told: which of them to mend first is nobody's to say.
    """
    spec = deployment["spec"]
    causes = (
        (("InvalidSpec",), int(spec.get("replicas", 1)) < 0),
        (("RouterNotFound",), bool(spec.get("router"))),
        (("Suspended",), bool(spec.get("suspend"))),
        (("ScaledToZero",), spec.get("replicas") == 0),
        (("DoesNotFit",), "accelerator" in spec),
        (("ImagePullFailed", "Unschedulable"), _runs(server, deployment, BAD_IMAGE)),
        (_CRASHED, _runs(server, deployment, CRASHING_IMAGE)),
        (("RecoveryOff", "Unschedulable"), _is_left_alone(server, deployment)),
        (("Unschedulable",), _lacks_gpus(server, deployment)),
    )
    return tuple(reason for reasons, holds in causes if holds for reason in reasons) or None


def _runs(server: ApiServer, deployment: Manifest, image: str) -> bool:
    """Whether such an image is asked for of all groups, or is that of a group which the rollout leaves as it is."""
    if _is_brought_to_all(deployment):
        return image in deployment["spec"]["engine"]["image"]
    return any(image in pod["spec"]["containers"][0]["image"] for pod in _pods(server, deployment))


def _is_brought_to_all(deployment: Manifest) -> bool:
    """Whether all groups are to be what the spec asks for: nobody holds the rollout back, and it was not given up."""
    is_rolled_back = condition(deployment, "RolledBack").get("status") == "True"
    return reaches_all_groups(deployment["spec"]) and not (is_rolled_back and _may_roll_back(deployment))


def _may_roll_back(deployment: Manifest) -> bool:
    rollout = deployment["spec"].get("rollout") or {}
    return bool(rollout.get("autoRollback")) and bool(condition(deployment, "RolledBack").get("message"))


def _is_left_alone(server: ApiServer, deployment: Manifest) -> bool:
    """Whether a pod of it has ended, and nobody is to make its group again."""
    is_off = (deployment["spec"].get("recovery") or {}).get("policy") == "None"
    return is_off and any(pod["status"].get("phase") == "Failed" for pod in _pods(server, deployment))


def _pods(server: ApiServer, deployment: Manifest) -> list[Manifest]:
    return [pod for pod in server.of_kind("Pod") if owner_uid(pod) == deployment["metadata"]["uid"]]


def _lacks_gpus(server: ApiServer, deployment: Manifest) -> bool:
    """Whether a pod of it waits for GPUs that others hold."""
    return any(gpus_of(pod) and not pod["spec"].get("nodeName") for pod in _pods(server, deployment))


def _short(spec: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in spec.items() if key not in ("model", "drain"))
