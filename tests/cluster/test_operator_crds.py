"""The custom resource definitions on a real API server: what it fills in, and what it refuses in whose words.

Every refusal is asked of the API server and of the models, which must say the same sentence: `m3 up` has no server.
"""

import copy
import json
from typing import Any

import pytest

from m3_operator.api import SpecError, parse_deployment, parse_router, parse_tenant
from m3_testcluster.cluster import Cluster, KubectlError


def deployment(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": "m3"},
        "spec": {"model": {"name": "M", "source": {"tiny": {}}}, **spec},
    }


def router(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Router",
        "metadata": {"name": "m3"},
        "spec": {"deployments": [{"name": "m3"}], **spec},
    }


def tenant(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "serving.m3.dev/v1alpha1", "kind": "M3Tenant", "metadata": {"name": "ada"}, "spec": spec}


PARSE = {"M3Deployment": parse_deployment, "M3Router": parse_router, "M3Tenant": parse_tenant}


def scaled(**autoscaling: Any) -> dict[str, Any]:
    signals = [{"type": "QueueWait", "target": 2}]
    return deployment(autoscaling={"maxReplicas": 4, "signals": signals, **autoscaling})


def source(**sources: Any) -> dict[str, Any]:
    return deployment(model={"name": "M", "source": sources})


def downloaded(cache: dict[str, Any] | None) -> dict[str, Any]:
    found = source(huggingFace={"repo": "a/b", "revision": "0123456789abcdef0123456789abcdef01234567"})
    if cache is not None:
        found["spec"]["model"]["cache"] = cache
    return found


def engine(parallelism: dict[str, Any] | None = None, **said: Any) -> dict[str, Any]:
    model = {"name": "M", "source": {"hostPath": {"path": "/m"}}}
    return deployment(model=model, engine=said, parallelism=parallelism or {})


def named(name: str) -> dict[str, Any]:
    return {**deployment(), "metadata": {"name": name}}


# What both say, for rules between fields, which we word ourselves.
RULES = [
    (
        deployment(parallelism={"gpusPerNode": 8, "tensor": 3}),
        "spec.parallelism",
        "parallelism.tensor must divide parallelism.gpusPerNode, and be 1 when gpusPerNode is 0",
    ),
    (
        deployment(parallelism={"gpusPerNode": 0, "tensor": 2}),
        "spec.parallelism",
        "parallelism.tensor must divide parallelism.gpusPerNode, and be 1 when gpusPerNode is 0",
    ),
    (source(), "spec.model.source", "model.source: set exactly one of pvc, hostPath, image, huggingFace, tiny"),
    (
        source(tiny={}, hostPath={"path": "/x"}),
        "spec.model.source",
        "model.source: set exactly one of pvc, hostPath, image, huggingFace, tiny",
    ),
    (downloaded(None), "spec.model", "model.cache: needed by model.source.huggingFace, and of no other source"),
    (
        deployment(model={"name": "M", "source": {"tiny": {}}, "cache": {"size": "1Gi"}}),
        "spec.model",
        "model.cache: needed by model.source.huggingFace, and of no other source",
    ),
    (downloaded({}), "spec.model.cache", "model.cache: mode PVC takes either claimName"),
    (downloaded({"claimName": "c", "size": 1}), "spec.model.cache", "model.cache: mode PVC takes either claimName"),
    (
        downloaded({"mode": "NodeLocal", "size": "1Gi"}),
        "spec.model.cache",
        "model.cache: mode PVC takes either claimName",
    ),
    (
        downloaded({"claimName": "c", "retain": False}),
        "spec.model.cache",
        "model.cache: storageClassName, accessModes and retain are of a claim that is made",
    ),
    (
        downloaded({"claimName": "c", "accessModes": ["ReadWriteOnce"]}),
        "spec.model.cache",
        "model.cache: storageClassName, accessModes and retain are of a claim that is made",
    ),
    (downloaded({"size": "1Gi", "path": "/x"}), "spec.model.cache", "model.cache.path: of mode NodeLocal"),
    (source(tiny={"heads": 8, "kvHeads": 3}), "spec.model.source.tiny", "kvHeads must divide heads"),
    (source(tiny={"experts": 2, "expertsPerToken": 4}), "spec.model.source.tiny", "expertsPerToken must be at most"),
    (source(tiny={"layers": 2, "denseLayers": 3}), "spec.model.source.tiny", "denseLayers must be at most layers"),
    (source(tiny={"headDim": 64, "indexDim": 16}), "spec.model.source.tiny", "indexDim must be at least half"),
    (
        deployment(template={"resources": {"limits": {"nvidia.com/gpu": "1"}}}),
        "spec",
        "GPUs come from parallelism.gpusPerNode",
    ),
    (
        deployment(
            accelerator={"resourceName": "amd.com/gpu"}, template={"resources": {"requests": {"amd.com/gpu": 1}}}
        ),
        "spec",
        "GPUs come from parallelism.gpusPerNode",
    ),
    (deployment(placement={"exclusive": True}), "spec.placement", "placement: exclusive needs required"),
    (
        deployment(placement={"required": "Rack", "preferred": "Zone"}),
        "spec.placement",
        "placement: preferred must be narrower than required",
    ),
    (
        deployment(placement={"gang": {"provider": "Kueue"}}),
        "spec.placement.gang",
        "placement.gang: Kueue needs queueName",
    ),
    (
        deployment(accelerator={"mode": "DRA", "resourceName": "amd.com/gpu"}),
        "spec.accelerator",
        "accelerator.resourceName: of mode DevicePlugin",
    ),
    (
        deployment(accelerator={"selectors": ["true"]}),
        "spec.accelerator",
        "accelerator.deviceClassName and accelerator.selectors: of mode DRA",
    ),
    (engine(type="vllm"), "spec.engine", "engine.image: required with engine.type vllm and sglang"),
    (engine(type="vllm", image="v", cacheTokens=1024), "spec.engine", "engine.cacheTokens: vllm takes a share"),
    (engine(type="sglang", image="s", cacheDtype="float32"), "spec.engine", "engine.cacheDtype: vllm and sglang"),
    (engine(type="sglang", image="s", indexCacheDtype="fp8"), "spec.engine", "engine.indexCacheDtype: of the native"),
    (
        deployment(engine={"type": "vllm", "image": "v"}),
        "spec",
        "model.source: tiny and packaged are for the native engine",
    ),
    (
        engine(parallelism={"redundantExperts": 8}, type="vllm", image="v"),
        "spec",
        "parallelism.redundantExperts: of the native engine alone",
    ),
    (
        engine(parallelism={"gpusPerNode": 0}, type="vllm", image="v"),
        "spec",
        "parallelism.gpusPerNode: vllm and sglang need at least 1",
    ),
    (
        deployment(template={"volumes": [{"name": "model", "emptyDir": {}}]}),
        "spec.template",
        "template.volumes: the names config, experts, journal, keys, model, secrets, shm, tenants, tmp belong to the "
        "operator",
    ),
    (
        deployment(engine={"env": [{"name": "M3_NODES", "value": "2"}]}),
        "spec.engine.env",
        "env: the operator itself sets M3_NODE_RANK",
    ),
    (
        deployment(engine={"env": [{"name": "A", "value": "2", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]}),
        "spec.engine.env",
        "env: set at most one of value, valueFrom",
    ),
    (
        deployment(engine={"env": [{"name": "A", "valueFrom": {}}]}),
        "spec.engine.env",
        "valueFrom: set exactly one of secretKeyRef, configMapKeyRef, fieldRef",
    ),
    (
        deployment(model={"name": "M", "release": "MiniMax-M3", "source": {"tiny": {}}}),
        "spec.model",
        "model.release: only with pvc, hostPath, image and huggingFace",
    ),
    (scaled(minReplicas=5), "spec.autoscaling", "autoscaling.minReplicas must be at most autoscaling.maxReplicas"),
    (scaled(minReplicas=0), "spec.autoscaling", "autoscaling.minReplicas 0 needs autoscaling.idleSeconds"),
    (scaled(minReplicas=0, idleSeconds=60, backend="HPA"), "spec.autoscaling", "does not go with backend HPA"),
    (scaled(signals=[]), "spec.autoscaling", "autoscaling.signals must name at least one signal"),
    (scaled(backend="KEDA"), "spec.autoscaling", "autoscaling.backend KEDA needs autoscaling.prometheusUrl"),
    (
        scaled(gpuMetrics={"source": "DCGM"}),
        "spec.autoscaling.gpuMetrics",
        "autoscaling.gpuMetrics.source DCGM needs autoscaling.gpuMetrics.url",
    ),
    (deployment(rollout={"maxSurge": 1}), "spec.rollout", "rollout.maxSurge: only with strategy Surge"),
    (
        deployment(rollout={"strategy": "Recreate", "maxUnavailable": "50%"}),
        "spec.rollout",
        "rollout.maxUnavailable: only with strategy RollingGroups or Surge",
    ),
    (
        deployment(rollout={"maxUnavailable": 0}),
        "spec.rollout",
        "rollout: a rollout needs a group more or a group less",
    ),
    (
        deployment(rollout={"strategy": "Surge", "maxSurge": "0%"}),
        "spec.rollout",
        "rollout: a rollout needs a group more or a group less",
    ),
    (
        deployment(rollout={"progressDeadlineSeconds": 60, "minReadySeconds": 60}),
        "spec.rollout",
        "rollout.progressDeadlineSeconds must be greater than rollout.minReadySeconds",
    ),
    (
        deployment(rollout={"autoRollback": True, "revisionHistoryLimit": 0}),
        "spec.rollout",
        "rollout.autoRollback needs a revisionHistoryLimit of at least 1",
    ),
    (router(auth={"mode": "None"}), "spec.auth", "auth.mode None lets everyone in and needs auth.allowInsecure: true"),
    (router(ledger={"storage": "Claim"}), "spec.ledger", "ledger.claimName is for ledger.storage Claim"),
    (router(ledger={"claimName": "bills"}), "spec.ledger", "ledger.claimName is for ledger.storage Claim"),
    (router(admin={"servicePort": 80}), "spec", "admin.servicePort must differ from service.port"),
    (router(redis={}), "spec.redis", "redis: set exactly one of url, urlSecretRef"),
    (tenant(plan="plus", limits={"tokensPerDay": 1}), "spec", "set at most one of plan, limits"),
    (tenant(keys=[{}]), "spec.keys", "keys: set exactly one of secretRef, sha256"),
    (
        tenant(keys=[{"sha256": "ab" * 32, "secretRef": {"name": "a", "key": "b"}}]),
        "spec.keys",
        "keys: set exactly one of secretRef, sha256",
    ),
]

# What the schema alone refuses: the field is named by both, in words of their own.
BOUNDS = [
    (deployment(replicas=-1), "spec.replicas"),
    (deployment(replicas=1001), "spec.replicas"),
    (deployment(rollout={"strategy": "Surge", "maxSurge": "101%"}), "spec.rollout.maxSurge"),
    (deployment(rollout={"maxUnavailable": -1}), "spec.rollout.maxUnavailable"),
    (deployment(rollout={"strategy": "BlueGreen"}), "spec.rollout.strategy"),
    (deployment(model={"name": "M", "dtype": "float8", "source": {"tiny": {}}}), "spec.model.dtype"),
    (deployment(model={"name": "", "source": {"tiny": {}}}), "spec.model.name"),
    (deployment(model={"name": "M", "servedNames": ["a", "b"], "source": {"tiny": {}}}), "spec.model.servedNames"),
    (deployment(engine={"type": "trtllm", "image": "t"}), "spec.engine.type"),
    (deployment(engine={"port": 80}), "spec.engine.port"),
    (deployment(parallelism={"nodes": 0}), "spec.parallelism.nodes"),
    (deployment(parallelism={"redundantExperts": -1}), "spec.parallelism.redundantExperts"),
    (deployment(accelerator={"memoryGiB": 0}), "spec.accelerator.memoryGiB"),
    (scaled(maxReplicas=1001), "spec.autoscaling.maxReplicas"),
    (scaled(signals=[{"type": "QueueWait", "target": 0}]), "spec.autoscaling.signals"),
    (scaled(down={"windowSeconds": 901}), "spec.autoscaling.down.windowSeconds"),
    (deployment(engine={"cacheDtype": "fp4"}), "spec.engine.cacheDtype"),
    (deployment(drain={"timeoutSeconds": -1}), "spec.drain.timeoutSeconds"),
    (deployment(template={"shmSize": "lots"}), "spec.template.shmSize"),
    (source(hostPath={"path": "models"}), "spec.model.source.hostPath.path"),
    (source(tiny={"headDim": 18}), "spec.model.source.tiny.headDim"),
    (named("a" * 41), "metadata.name"),
    (named("a.b"), "metadata.name"),
    (named("1a"), "metadata.name"),
    (router(deployments=[]), "spec.deployments"),
    (router(lanes={"priorityReservedShare": 1}), "spec.lanes.priorityReservedShare"),
    (router(prices={"priorityFactor": "much"}), "spec.prices.priorityFactor"),
    (
        router(prices={"standard": {"input": "0.0001", "output": "1", "cacheRead": "1"}}),
        "spec.prices.standard.input",
    ),
    (router(limits={"attempts": 0}), "spec.limits.attempts"),
    (router(redis={"url": "http://redis"}), "spec.redis.url"),
    (router(plans=[{"name": "Plus"}]), "spec.plans"),
    (tenant(limits={"budgetUsd": "1,5"}), "spec.limits.budgetUsd"),
    (tenant(serviceTiers=["gold"]), "spec.serviceTiers"),
    (tenant(keys=[{"secretRef": {"name": "a", "key": "../b"}}]), "spec.keys"),
    ({**tenant(), "metadata": {"name": "a" * 64}}, "metadata.name"),
]


def refusal(cluster: Cluster, manifest: dict[str, Any]) -> str:
    with pytest.raises(KubectlError) as caught:
        cluster.kubectl("create", "--dry-run=server", "--filename=-", stdin=json.dumps(manifest))
    return caught.value.stderr


def model_refusal(manifest: dict[str, Any]) -> str:
    parse = PARSE[manifest["kind"]]
    with pytest.raises(SpecError) as caught:
        parse(manifest, strict=True)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("manifest", "field", "sentence"), RULES, ids=[case[2][:60] for case in RULES])
def test_a_broken_rule_is_refused_in_the_same_words_by_server_and_models(
    m3_cluster: Cluster, manifest: dict[str, Any], field: str, sentence: str
) -> None:
    for message in (refusal(m3_cluster, manifest), model_refusal(manifest)):
        assert sentence in message
        assert field in message


@pytest.mark.parametrize(("manifest", "field"), BOUNDS, ids=[case[1] for case in BOUNDS])
def test_a_value_out_of_bounds_is_refused_by_name(m3_cluster: Cluster, manifest: dict[str, Any], field: str) -> None:
    assert field in refusal(m3_cluster, manifest)
    assert field in model_refusal(manifest)


def test_an_unknown_field_is_refused_by_name(m3_cluster: Cluster) -> None:
    manifest = deployment(engine={"maxConcurent": 3})
    assert 'unknown field "spec.engine.maxConcurent"' in refusal(m3_cluster, manifest)
    assert model_refusal(manifest) == "spec.engine.maxConcurent: unknown field"


@pytest.mark.parametrize("manifest", [deployment(), router(), tenant()], ids=["M3Deployment", "M3Router", "M3Tenant"])
def test_the_server_fills_in_the_defaults_that_the_models_have(m3_cluster: Cluster, manifest: dict[str, Any]) -> None:
    created = m3_cluster.kubectl(
        "create", "--dry-run=server", "--filename=-", "--output=json", stdin=json.dumps(manifest)
    )
    parse = PARSE[manifest["kind"]]
    stored = json.loads(created)
    assert parse(stored, strict=True).spec == parse(manifest, strict=True).spec
    written = parse(manifest, strict=True).spec.manifest()
    assert stored["spec"] == _present(written)


def test_the_models_accept_what_the_server_stored_for_a_later_version() -> None:
    later = copy.deepcopy(deployment())
    later["spec"]["engine"] = {"fieldOfALaterVersion": 1}
    assert parse_deployment(later, strict=False).spec == parse_deployment(deployment(), strict=True).spec


def test_explain_reads_like_documentation(m3_cluster: Cluster) -> None:
    assert "The shape of one group" in m3_cluster.kubectl("explain", "m3d.spec.parallelism")
    assert "exactly one of pvc, hostPath, image" in m3_cluster.kubectl("explain", "m3d.spec.model.source")
    assert "Ready, Available, Scheduled and Progressing" in m3_cluster.kubectl("explain", "m3d.status.conditions")


def _present(value: Any) -> Any:
    """Without empty lists and maps, which the API server adds only as the default of what has fields."""
    if not isinstance(value, dict):
        return value
    found = {key: _present(child) for key, child in value.items()}
    return {key: child for key, child in found.items() if child not in ([], {})}
