"""Which Secrets and ConfigMaps pods cannot start without, and what to say of those that are not there.

A kubelet that waits for a volume says so in an event only; its pod just stays Pending. So the operator asks whether the
objects exist, while something waits and not otherwise.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from m3_operator import names
from m3_operator.api import M3Deployment, M3Router
from m3_operator.decide.problem import Problem
from m3_operator.groups import Group
from m3_operator.observed import RouterSnapshot
from m3_operator.spec.fragments import PodTemplate


class Reference(NamedTuple):
    """A Secret or ConfigMap of the owner's namespace."""

    kind: str
    name: str
    field: str
    """Where the spec names it."""


def worker_references(deployment: M3Deployment, groups: Mapping[int, Group]) -> tuple[Reference, ...]:
    """What to ask for now: what workers mount, while one of them has a node, has not started and does not say why."""
    pods = (pod for group in groups.values() for pod in group.staying)
    is_stuck = any(pod.node_name is not None and not pod.has_started and not pod.trouble for pod in pods)
    return tuple(_mounted(deployment.spec.template)) if is_stuck else ()


def router_references(router: M3Router, snapshot: RouterSnapshot) -> tuple[Reference, ...]:
    """What to ask for now: what routers mount, while none of them answers. A key that we generate is not asked for."""
    running = snapshot.children.get(("Deployment", names.router_name(router.metadata.name)), {})
    if not running or router.spec.replicas == 0 or running.get("status", {}).get("availableReplicas"):
        return ()
    auth = router.spec.auth
    is_theirs = auth.mode == "Keys" and auth.secret_name is not None
    keys = [Reference("Secret", auth.secret_name or "", "spec.auth.secretName")] if is_theirs else []
    return (*keys, *_mounted(router.spec.template))


def reference_problem(missing: Iterable[Reference]) -> Problem | None:
    """What stands in the way of pods that wait for these."""
    for found in missing:
        message = f"{found.field}: there is no {found.kind} {found.name} in this namespace; create it"
        return Problem("SecretNotFound" if found.kind == "Secret" else "ConfigNotFound", message)
    return None


def _mounted(template: PodTemplate) -> Iterator[Reference]:
    field = "spec.template.volumes"
    for volume in template.volumes:
        projected = volume.get("projected") or {}
        for source in (volume, *(projected.get("sources") or ())):
            secret, config = source.get("secret") or {}, source.get("configMap") or {}
            # A Secret volume calls it secretName, a projected one name.
            yield from _required(secret, "Secret", secret.get("secretName") or secret.get("name"), field)
            yield from _required(config, "ConfigMap", config.get("name"), field)


def _required(source: Mapping[str, Any], kind: str, name: object, field: str) -> Iterator[Reference]:
    if name and not source.get("optional"):
        yield Reference(kind, str(name), field)
