"""Why routers do not answer, from what Kubernetes' Deployment of them says."""

from collections.abc import Iterable

from m3_operator.decide.diagnosis import pod_problem
from m3_operator.decide.problem import Problem
from m3_operator.observed import Manifest, ObservedPod, condition


def router_trouble(running: Manifest, pods: Iterable[ObservedPod] = ()) -> Problem | None:
    """What stands in the way of the routers. `running` is their Deployment; `pods` are theirs, where they are seen."""
    for pod in pods:
        problem = pod_problem(pod)
        if problem is not None:
            return problem
    refused = condition(running, "ReplicaFailure")
    if refused.get("status") != "True":
        return None
    message = str(refused.get("message", ""))
    if "exceeded quota" in message:
        return Problem("QuotaExceeded", f"{message}; raise the quota, or ask for fewer routers")
    return Problem("TemplateRefused", f"{message}; correct spec.template")
