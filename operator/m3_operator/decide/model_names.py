"""Who has the name of a model, when several M3Deployments behind one router claim it.

A router sends a model's requests to one pool, unless it has a route that divides them (`spec.routes`): then the
deployments of the route have the name together. Otherwise the one that was there first keeps it; a later one says that
the name is taken, and disturbs nobody.
"""

from collections.abc import Iterable

from m3_operator.decide.problem import Problem
from m3_operator.observed import Manifest, served_model


def holders(deployments: Iterable[Manifest], router: Manifest | None) -> dict[str, tuple[str, ...]]:
    """By the name of each model, the deployments that have it: those of its route, or the oldest (of equally old ones
    the first by name).
    """
    claims: dict[str, list[str]] = {}
    for manifest in sorted(deployments, key=_seniority):
        claims.setdefault(served_model(manifest), []).append(manifest["metadata"]["name"])
    routes = _routes(router)
    found = {}
    for model, names in claims.items():
        routed = tuple(name for name in names if name in routes.get(model, ()))
        found[model] = routed or (names[0],)
    return found


def name_problem(deployment: Manifest, siblings: Iterable[Manifest], router: Manifest | None) -> Problem | None:
    """Why this deployment gets no requests, if another behind its router has its model's name."""
    model, name = served_model(deployment), deployment["metadata"]["name"]
    having = holders([deployment, *siblings], router)[model]
    if name in having:
        return None
    message = (
        f"M3Deployment {having[0]} serves the model {model} behind the same router, and was there first; "
        "set another spec.model.servedNames, or another spec.router, or divide the model in the router's spec.routes"
    )
    return Problem("ModelNameTaken", message)


def _routes(router: Manifest | None) -> dict[str, set[str]]:
    """By model, the pools that a router divides it between."""
    routes = (router or {}).get("spec", {}).get("routes") or ()
    return {str(route.get("model")): {str(share.get("pool")) for share in route.get("pools") or ()} for route in routes}


def _seniority(manifest: Manifest) -> tuple[str, str]:
    metadata = manifest["metadata"]
    return metadata.get("creationTimestamp") or "", metadata["name"]
