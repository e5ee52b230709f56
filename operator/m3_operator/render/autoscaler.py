"""The autoscaler of somebody else for an M3Deployment: a HorizontalPodAutoscaler, or KEDA's ScaledObject.

Both scale the deployment by its scale subresource, whose selector picks rank 0 of every group: an average over pods is
one over groups. Their metrics are those that workers, routers and the DCGM exporter tell Prometheus, under the names
that docs/autoscaling.md lists; quantiles are those of its recording rules.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from m3_operator import names
from m3_operator.api import M3Deployment
from m3_operator.render.pod import owner_reference
from m3_operator.spec.autoscaling import AutoscalingSpec, SignalSpec, SignalType

AUTOSCALER_KINDS: Final[Mapping[str, str]] = {"HPA": "HorizontalPodAutoscaler", "KEDA": "ScaledObject"}
"""What is made for a backend."""
_NEVER: Final = 1e9
_LATENCIES: Final = frozenset({"QueueWait", "TimeToFirstToken", "TimePerOutputToken"})


@dataclass(frozen=True)
class _Metric:
    name: str
    factor: float = 1.0  # its unit is this many times finer than the target's


_WORKER: Final[Mapping[SignalType, _Metric]] = {
    "TokensInFlight": _Metric("m3_worker_tokens_in_flight"),
    "CacheUsage": _Metric("m3_worker_kv_cache_usage_ratio"),
    "TimeToFirstToken": _Metric("m3_worker_time_to_first_token_seconds_p90"),
    "TimePerOutputToken": _Metric("m3_worker_time_per_output_token_seconds_p90"),
    "GPUUtilization": _Metric("m3_worker_gpu_utilization_ratio"),
    "TensorActivity": _Metric("m3_worker_gpu_tensor_active_ratio"),
    "GPUMemory": _Metric("m3_worker_gpu_memory_used_ratio"),
}
_DCGM: Final[Mapping[SignalType, _Metric]] = {
    "GPUUtilization": _Metric("DCGM_FI_DEV_GPU_UTIL", 100.0),
    "TensorActivity": _Metric("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"),
    "GPUMemory": _Metric("m3_dcgm_memory_used_ratio"),
}
_QUEUE: Final = _Metric("m3_router_lane_oldest_wait_seconds")


def autoscaler(deployment: M3Deployment) -> dict[str, Any] | None:
    """The object that the deployment's backend needs; None: it needs none."""
    spec = deployment.spec.autoscaling
    if spec is None or deployment.spec.suspend:  # it would work against the suspension
        return None
    render = _RENDERERS.get(spec.backend)
    return None if render is None else render(deployment, spec)


def _horizontal_pod_autoscaler(deployment: M3Deployment, spec: AutoscalingSpec) -> dict[str, Any]:
    body = {
        "scaleTargetRef": _target(deployment),
        "minReplicas": spec.min_replicas,
        "maxReplicas": spec.max_replicas,
        "metrics": [_hpa_metric(deployment, spec, signal) for signal in spec.signals],
        "behavior": _behavior(spec),
    }
    return _object(deployment, "autoscaling/v2", AUTOSCALER_KINDS["HPA"], body)


def _hpa_metric(deployment: M3Deployment, spec: AutoscalingSpec, signal: SignalSpec) -> dict[str, Any]:
    metric = _metric(spec, signal.type)
    target = _quantity(signal.target * metric.factor)
    if signal.type == "QueueWait":
        # Of the routers, and so of no pod of the deployment.
        named = {"name": metric.name, "selector": {"matchLabels": {"pool": deployment.metadata.name}}}
        return {"type": "External", "external": {"metric": named, "target": {"type": "Value", "value": target}}}
    per_pod = {"metric": {"name": metric.name}, "target": {"type": "AverageValue", "averageValue": target}}
    return {"type": "Pods", "pods": per_pod}


def _scaled_object(deployment: M3Deployment, spec: AutoscalingSpec) -> dict[str, Any]:
    triggers = [
        _trigger(spec, _query(deployment, spec, signal.type), signal.target, is_value=signal.type in _LATENCIES)
        for signal in spec.signals
    ]
    body: dict[str, Any] = {
        "scaleTargetRef": _target(deployment),
        "minReplicaCount": spec.min_replicas,
        "maxReplicaCount": spec.max_replicas,
        "pollingInterval": 5,
        "triggers": triggers,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(spec)}},
    }
    if spec.min_replicas == 0:
        # Any request keeps one group, and wakes it; how many groups is for the other triggers to say.
        pool = _matches({"namespace": deployment.metadata.namespace, "pool": deployment.metadata.name})
        families = (
            "m3_router_requests_waiting_for_worker",
            "m3_router_lane_requests_waiting",
            "m3_router_worker_requests_in_flight",
        )
        asked = " + ".join(f"(sum({family}{pool}) or vector(0))" for family in families)
        triggers.append(_trigger(spec, asked, _NEVER, is_value=False, wakes=True))
        body["cooldownPeriod"] = spec.idle_seconds
    return _object(deployment, "keda.sh/v1alpha1", AUTOSCALER_KINDS["KEDA"], body)


def _query(deployment: M3Deployment, spec: AutoscalingSpec, signal: SignalType) -> str:
    """PromQL: latencies and shares as they are, tokens as their sum over the groups."""
    metric, meta = _metric(spec, signal), deployment.metadata
    if signal == "QueueWait":
        return f"max({metric.name}{_matches({'namespace': meta.namespace, 'pool': meta.name})})"
    pods = _matches({"namespace": meta.namespace}, pod=f"{meta.name}-g[0-9]+-r[0-9]+")
    if signal in _LATENCIES:
        return f"max({metric.name}{pods})"
    # KEDA divides what it gets by the number of replicas, so shares are summed over the groups first.
    divisor = "" if metric.factor == 1.0 else f" / {metric.factor:g}"
    return f"sum(avg by (pod) ({metric.name}{pods})){divisor}"


def _trigger(
    spec: AutoscalingSpec, query: str, threshold: float, *, is_value: bool, wakes: bool = False
) -> dict[str, Any]:
    """`wakes`: whether any value above zero keeps the first group; memory in use would keep it for ever."""
    return {
        "type": "prometheus",
        "metricType": "Value" if is_value else "AverageValue",
        "metadata": {
            "serverAddress": spec.prometheus_url,
            "query": query,
            "threshold": f"{threshold:g}",
            "activationThreshold": "0" if wakes else f"{_NEVER:g}",
        },
    }


def _metric(spec: AutoscalingSpec, signal: SignalType) -> _Metric:
    if signal == "QueueWait":
        return _QUEUE
    is_dcgm = spec.gpu_metrics.source == "DCGM"
    return _DCGM[signal] if is_dcgm and signal in _DCGM else _WORKER[signal]


def _behavior(spec: AutoscalingSpec) -> dict[str, Any]:
    up, down = spec.up, spec.down
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": up.window_seconds,
            "selectPolicy": "Max",
            "policies": [
                *([_policy("Percent", up.max_percent, up.period_seconds)] if up.max_percent else []),
                _policy("Pods", up.max_groups, up.period_seconds),
            ],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": down.window_seconds,
            "selectPolicy": "Max",
            "policies": [_policy("Pods", down.max_groups, down.period_seconds)],
        },
    }


def _policy(kind: str, value: int, period_seconds: int) -> dict[str, Any]:
    return {"type": kind, "value": value, "periodSeconds": period_seconds}


def _quantity(value: float) -> str:
    """A number as Kubernetes writes it, to a thousandth."""
    thousandths = max(round(value * 1000), 1)
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"


def _matches(equal: Mapping[str, str], **patterns: str) -> str:
    """A selector of series. The names in it are DNS labels, which need no escaping."""
    parts = [f'{key}="{value}"' for key, value in equal.items()]
    return "{" + ",".join([*parts, *(f'{key}=~"{value}"' for key, value in patterns.items())]) + "}"


def _target(deployment: M3Deployment) -> dict[str, str]:
    return {"apiVersion": names.API_VERSION, "kind": names.DEPLOYMENT_KIND, "name": deployment.metadata.name}


def _object(deployment: M3Deployment, api_version: str, kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    meta = deployment.metadata
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": meta.name,
            "namespace": meta.namespace,
            "labels": names.worker_labels(meta.name),
            "ownerReferences": [owner_reference(names.DEPLOYMENT_KIND, meta.name, meta.uid)],
        },
        "spec": spec,
    }


_RENDERERS: Final[Mapping[str, Callable[[M3Deployment, AutoscalingSpec], dict[str, Any]]]] = {
    "HPA": _horizontal_pod_autoscaler,
    "KEDA": _scaled_object,
}
