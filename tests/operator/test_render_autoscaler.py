"""Autoscalers of others: valid to Kubernetes, aimed at the scale subresource, and only where they are asked for."""

from typing import Any

import kubernetes_validate
import pytest

from m3_operator.api import M3Deployment, SpecError, parse_deployment
from m3_operator.render.autoscaler import autoscaler
from m3_operator.render.router import hold_when_empty
from m3_operator.spec.autoscaling import SignalType
from m3_router.config import PoolSettings

SIGNALS: tuple[SignalType, ...] = SignalType.__args__  # type: ignore[attr-defined]
ALL = [{"type": name, "target": 0.5} for name in SIGNALS]


def deployment(spec: dict[str, Any] | None = None, **autoscaling: Any) -> M3Deployment:
    scaling = {"maxReplicas": 4, "signals": ALL, **autoscaling}
    manifest = {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": "m3", "namespace": "prod", "uid": "uid-1"},
        "spec": {"model": {"name": "M", "source": {"tiny": {}}}, "autoscaling": scaling, **(spec or {})},
    }
    return parse_deployment(manifest, strict=True)


def spec_of(found: M3Deployment) -> dict[str, Any]:
    rendered = autoscaler(found)
    assert rendered is not None
    return dict(rendered["spec"])


DCGM = {"gpuMetrics": {"source": "DCGM", "url": "http://dcgm:9400/metrics"}}


@pytest.mark.parametrize("gpu_metrics", [{}, DCGM], ids=["worker", "dcgm"])
def test_the_horizontal_pod_autoscaler_is_valid_to_kubernetes(gpu_metrics: dict[str, Any]) -> None:
    found = autoscaler(deployment(backend="HPA", **gpu_metrics))
    kubernetes_validate.validate(found, "1.37", strict=True)
    assert found is not None
    assert found["spec"]["scaleTargetRef"]["kind"] == "M3Deployment"
    assert len(found["spec"]["metrics"]) == len(ALL)


def test_targets_are_in_the_unit_of_their_metric() -> None:
    signals = [
        {"type": "GPUUtilization", "target": 0.8},
        {"type": "QueueWait", "target": 1.5},
        {"type": "TokensInFlight", "target": 200000},
    ]
    gpu, queue, tokens = spec_of(deployment(backend="HPA", signals=signals, **DCGM))["metrics"]
    assert gpu["pods"]["metric"]["name"] == "DCGM_FI_DEV_GPU_UTIL"
    assert gpu["pods"]["target"]["averageValue"] == "80"
    assert queue["external"]["target"] == {"type": "Value", "value": "1500m"}
    assert queue["external"]["metric"]["selector"] == {"matchLabels": {"pool": "m3"}}
    assert tokens["pods"]["target"]["averageValue"] == "200000"


def test_pace_becomes_the_autoscalers_behaviour() -> None:
    found = spec_of(deployment(backend="HPA", up={"maxGroups": 2, "maxPercent": 50}, down={"windowSeconds": 600}))
    assert found["behavior"]["scaleUp"] == {
        "stabilizationWindowSeconds": 30,
        "selectPolicy": "Max",
        "policies": [
            {"type": "Percent", "value": 50, "periodSeconds": 60},
            {"type": "Pods", "value": 2, "periodSeconds": 60},
        ],
    }
    assert found["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 600


def test_keda_asks_prometheus_and_wakes_by_any_request() -> None:
    sleepy = {"minReplicas": 0, "idleSeconds": 300, "prometheusUrl": "http://prometheus:9090"}
    found = spec_of(deployment(backend="KEDA", **sleepy))
    assert (found["minReplicaCount"], found["cooldownPeriod"]) == (0, 300)
    assert len(found["triggers"]) == len(ALL) + 1
    assert all(trigger["metadata"]["serverAddress"] == "http://prometheus:9090" for trigger in found["triggers"])
    assert (
        'm3_router_requests_waiting_for_worker{namespace="prod",pool="m3"}'
        in found["triggers"][-1]["metadata"]["query"]
    )
    assert [trigger["metadata"]["activationThreshold"] for trigger in found["triggers"]] == ["1e+09"] * len(ALL) + ["0"]
    awake = spec_of(deployment(backend="KEDA", prometheusUrl="http://prometheus:9090"))
    assert len(awake["triggers"]) == len(ALL)


@pytest.mark.parametrize("backend", ["Builtin", "External"])
def test_nothing_is_made_for_backends_without_an_object(backend: str) -> None:
    assert autoscaler(deployment(backend=backend)) is None


def test_a_suspended_deployment_has_no_autoscaler_that_would_work_against_it() -> None:
    assert autoscaler(deployment({"suspend": True}, backend="HPA")) is None


def test_routers_hold_requests_of_a_deployment_that_may_sleep() -> None:
    sleepy = hold_when_empty(deployment(minReplicas=0, idleSeconds=60, holdSeconds=90))
    assert sleepy == {"holdWhenEmptySeconds": 90}
    assert hold_when_empty(deployment()) == {}
    pool = {"name": "m3", "models": ["M"], "workers": ["http://a:1"], **sleepy}
    assert PoolSettings.model_validate(pool).hold_when_empty_seconds == 90


@pytest.mark.parametrize(
    ("autoscaling", "sentence"),
    [
        ({"minReplicas": 5}, "minReplicas must be at most"),
        ({"minReplicas": 0}, "minReplicas 0 needs autoscaling.idleSeconds"),
        ({"minReplicas": 0, "idleSeconds": 60, "backend": "HPA"}, "does not go with backend HPA"),
        ({"signals": []}, "must name at least one signal"),
        ({"signals": [ALL[0], ALL[0]]}, "must name no type twice"),
        ({"backend": "KEDA"}, "needs autoscaling.prometheusUrl"),
        ({"gpuMetrics": {"source": "DCGM"}}, "needs autoscaling.gpuMetrics.url"),
        ({"signals": [{"type": "QueueWait", "target": 0}]}, "signals.0.target"),
    ],
)
def test_what_makes_no_sense_is_refused(autoscaling: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        deployment(**autoscaling)
