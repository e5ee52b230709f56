"""Why routers do not answer: what their pods say, or else what Kubernetes' Deployment of them says."""

from collections.abc import Iterable

from m3_operator.decide.diagnosis import pod_problem
from m3_operator.decide.problem import Problem
from m3_operator.observed import HelperPod, Manifest, condition


def router_trouble(running: Manifest, pods: Iterable[HelperPod] = ()) -> Problem | None:
    """What stands in the way of the routers. `running` is their Deployment; `pods` are theirs."""
    for pod in pods:
        problem = None if pod.is_ready else _crashing(pod) or pod_problem(pod)
        if problem is not None:
            return problem
    refused = condition(running, "ReplicaFailure")
    if refused.get("status") != "True":
        return None
    message = str(refused.get("message", ""))
    if "exceeded quota" in message:
        return Problem("QuotaExceeded", f"{message}; raise the quota, or ask for fewer routers")
    return Problem("TemplateRefused", f"{message}; correct spec.template")


def _crashing(pod: HelperPod) -> Problem | None:
    if pod.trouble != "CrashLoopBackOff":
        return None
    return Problem("CrashLooping", f"{pod.name} ended: {pod.last_words}; see kubectl logs --previous {pod.name}")
