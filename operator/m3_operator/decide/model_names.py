"""Who has the name of a model, when several M3Deployments behind one router claim it.

A router sends a model's requests to one pool. The deployment that was there first keeps the name; a later one says that
the name is taken, and disturbs nobody.
"""

from collections.abc import Iterable

from m3_operator.decide.problem import Problem
from m3_operator.observed import Manifest, served_model


def holders(deployments: Iterable[Manifest]) -> dict[str, str]:
    """By the name of each model, the deployment that has it: the oldest, and of equally old ones the first by name."""
    found: dict[str, str] = {}
    for manifest in sorted(deployments, key=_seniority):
        found.setdefault(served_model(manifest), manifest["metadata"]["name"])
    return found


def name_problem(deployment: Manifest, siblings: Iterable[Manifest]) -> Problem | None:
    """Why this deployment gets no requests, if another behind its router has its model's name."""
    model, name = served_model(deployment), deployment["metadata"]["name"]
    holder = holders([deployment, *siblings])[model]
    if holder == name:
        return None
    message = (
        f"M3Deployment {holder} serves the model {model} behind the same router, and was there first; "
        "set another spec.model.servedNames, or another spec.router"
    )
    return Problem("ModelNameTaken", message)


def _seniority(manifest: Manifest) -> tuple[str, str]:
    metadata = manifest["metadata"]
    return metadata.get("creationTimestamp") or "", metadata["name"]
