"""Who routes to an M3Deployment: the router that it names, or one of its own."""

from typing import Any

from m3_operator import names
from m3_operator.api import M3Deployment
from m3_operator.decide.problem import Problem
from m3_operator.observed import DeploymentSnapshot, Manifest, owner_uid, uid
from m3_operator.render.pod import owner_reference


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


def own_router(deployment: M3Deployment) -> dict[str, Any]:
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
