"""Rendered workers: valid to Kubernetes, locked down, and the same settings that the worker parses."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_operator.api import M3Deployment, parse_deployment
from m3_operator.render import worker
from m3_operator.spec.model import TinySource
from m3_worker.config import RankSettings, TinySettings, WorkerSettings

KUBERNETES = "1.37"
FULL_TEMPLATE = {
    "labels": {"team": "a", "app.kubernetes.io/name": "mine"},
    "annotations": {"note": "x"},
    "nodeSelector": {"gpu": "h200"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"podAntiAffinity": {}},
    "serviceAccountName": "reader",
    "runtimeClassName": "nvidia",
    "schedulerName": "mine",
    "priorityClassName": "serving",
    "securityContext": {"fsGroup": 5, "runAsUser": None},
    "resources": {"requests": {"cpu": 2, "memory": "4Gi"}, "limits": {"memory": "8Gi"}},
    "volumes": [{"name": "packages", "hostPath": {"path": "/opt/packages"}}],
    "volumeMounts": [{"name": "packages", "mountPath": "/opt/packages", "readOnly": True}],
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
    ],
    "shmSize": "16Gi",
}
SOURCES: dict[str, dict[str, Any]] = {
    "tiny": {"tiny": {"seed": 3}},
    "hostPath": {"hostPath": {"path": "/models/m3"}},
    "pvc": {"pvc": {"claimName": "weights", "path": "m3/fp8"}},
    "image": {"image": {"reference": "models.test/m3:1"}},
    "packaged": {"packaged": {}},
}


def deployment(source: str = "tiny", **spec: Any) -> M3Deployment:
    manifest = {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": "m3", "namespace": "prod", "uid": "uid-1"},
        "spec": {"model": {"name": "MiniMax-M3", "source": SOURCES[source]}, **spec},
    }
    return parse_deployment(manifest, strict=True)


def pods(found: M3Deployment, group: int = 0) -> list[dict[str, Any]]:
    return worker.group_pods(found, group, "rev", image="worker.test/m3:1")


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("template", [{}, FULL_TEMPLATE], ids=["plain", "full template"])
@pytest.mark.parametrize("gpus", [0, 8])
def test_every_object_is_valid_to_kubernetes(source: str, template: dict[str, Any], gpus: int) -> None:
    found = deployment(source, template=template, parallelism={"nodes": 2, "gpusPerNode": gpus})
    for manifest in [*pods(found), worker.group_service(found, 0), worker.workers_service(found)]:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_a_group_is_one_pod_per_node_with_all_gpus_of_it() -> None:
    rendered = pods(deployment(parallelism={"nodes": 3, "gpusPerNode": 8}), group=1)
    assert [pod["metadata"]["name"] for pod in rendered] == ["m3-g1-r0", "m3-g1-r1", "m3-g1-r2"]
    for pod in rendered:
        resources = pod["spec"]["containers"][0]["resources"]
        assert resources == {"requests": {"nvidia.com/gpu": "8"}, "limits": {"nvidia.com/gpu": "8"}}
        assert pod["spec"]["subdomain"] == "m3-g1"
        assert pod["spec"]["hostname"] == pod["metadata"]["name"]


def test_the_worker_reads_its_rank_from_the_rendered_environment() -> None:
    for rank, pod in enumerate(pods(deployment(parallelism={"nodes": 2, "gpusPerNode": 4}))):
        environment = {entry["name"]: entry["value"] for entry in pod["spec"]["containers"][0]["env"]}
        assert RankSettings.from_environment(environment) == RankSettings(
            node_rank=rank, nodes=2, gpus_per_node=4, master_address="m3-g0-r0.m3-g0", master_port=29500
        )


def test_only_rank_0_serves_http() -> None:
    leader, follower = (pod["spec"]["containers"][0] for pod in pods(deployment(parallelism={"nodes": 2})))
    assert {"ports", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle"} <= set(leader)
    assert not {"ports", "startupProbe", "readinessProbe", "livenessProbe"} & set(follower)


def test_the_worker_parses_the_rendered_arguments_to_the_settings_of_the_spec() -> None:
    found = deployment(
        "hostPath",
        engine={
            "maxConcurrent": 7,
            "stepTokens": 512,
            "cacheTokens": 4096,
            "cacheDtype": "fp8",
            "indexCacheDtype": "bfloat16",
            "maxContextTokens": 2048,
            "port": 9000,
        },
        parallelism={"nodes": 2, "gpusPerNode": 0, "redundantExperts": 8},
        drain={"timeoutSeconds": 60},
    )
    (container,) = pods(found)[0]["spec"]["containers"]
    assert container["command"] == ["m3-worker"]
    assert WorkerSettings.parse_arguments(container["args"]) == WorkerSettings(
        model=Path("/model"),
        served_model_name="MiniMax-M3",
        host="0.0.0.0",
        port=9000,
        device="cpu",
        max_concurrent=7,
        step_tokens=512,
        cache_tokens=4096,
        cache_dtype="fp8",
        index_cache_dtype="bfloat16",
        redundant_experts=8,
        expert_plan=Path("/etc/m3-worker/experts/plan.json"),
        max_context_tokens=2048,
        drain_seconds=60,
    )


def test_flags_of_the_user_come_last() -> None:
    (container,) = pods(deployment(engine={"args": ["--log-level=debug"]}))[0]["spec"]["containers"]
    assert container["args"][-1] == "--log-level=debug"


def test_a_tiny_model_is_written_by_an_init_container_and_mounted_read_only() -> None:
    (pod,) = pods(deployment("tiny"))
    (init,) = pod["spec"]["initContainers"]
    assert init["command"] == ["python3", "-m", "m3_worker.tiny"]
    assert TinySettings.parse_arguments(init["args"]) == TinySettings(directory=Path("/model"), seed=3)
    mounts = {mount["name"]: mount for mount in pod["spec"]["containers"][0]["volumeMounts"]}
    assert mounts["model"] == {"name": "model", "mountPath": "/model", "readOnly": True}


def test_the_packaged_model_needs_no_volume_because_it_is_part_of_the_worker() -> None:
    (pod,) = pods(deployment("packaged"))
    (container,) = pod["spec"]["containers"]
    assert WorkerSettings.parse_arguments(container["args"]).model == Path("tiny")
    assert "initContainers" not in pod["spec"]
    assert "model" not in {volume["name"] for volume in pod["spec"]["volumes"]}
    assert "model" not in {mount["name"] for mount in container["volumeMounts"]}


def test_the_tiny_source_has_exactly_the_shape_that_the_worker_takes() -> None:
    """Same fields and defaults, and no value that the API takes and the worker refuses."""
    ours, theirs = TinySource.model_fields, TinySettings.model_fields
    assert {name: field.default for name, field in ours.items()} == {
        name: field.default for name, field in theirs.items() if name != "directory"
    }


TINY = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31 - 1),
        "layers": st.integers(1, 128),
        "hidden": st.integers(8, 8192),
        "heads": st.integers(1, 128),
        "kvHeads": st.integers(1, 128),
        "headDim": st.integers(1, 128).map(lambda quarter: quarter * 4),
        "indexDim": st.integers(1, 128).map(lambda quarter: quarter * 4),
        "experts": st.integers(1, 512),
        "expertsPerToken": st.integers(1, 64),
        "block": st.integers(1, 1024),
        "topk": st.integers(1, 256),
        "context": st.integers(16, 1048576),
    }
)


@settings(deadline=None)
@given(TINY)
def test_what_the_api_accepts_the_worker_accepts(shape: dict[str, int]) -> None:
    try:
        accepted = TinySource.model_validate(shape)
    except ValueError:
        return
    TinySettings(directory=Path("x"), **accepted.model_dump(by_alias=False))


def test_pods_are_locked_down_whatever_the_template_says() -> None:
    for template in ({}, FULL_TEMPLATE):
        (pod,) = pods(deployment("tiny", template=template))
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["restartPolicy"] == "Never"
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*spec["initContainers"], *spec["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]  # noqa: S108 - in the container


def test_the_template_is_laid_over_the_pod() -> None:
    (pod,) = pods(deployment("hostPath", template=FULL_TEMPLATE, parallelism={"gpusPerNode": 1}))
    spec, metadata = pod["spec"], pod["metadata"]
    assert metadata["labels"]["team"] == "a"
    assert metadata["labels"]["app.kubernetes.io/name"] == "m3serve"  # ours win
    assert metadata["annotations"]["note"] == "x"
    assert spec["nodeSelector"] == {"gpu": "h200"}
    assert spec["serviceAccountName"] == "reader"
    assert spec["securityContext"]["fsGroup"] == 5
    assert "runAsUser" not in spec["securityContext"]  # a null takes the default away
    assert spec["containers"][0]["resources"] == {
        "requests": {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "1"},
        "limits": {"memory": "8Gi", "nvidia.com/gpu": "1"},
    }
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}} in spec["volumes"]


def test_a_pod_outlives_its_drain() -> None:
    (pod,) = pods(deployment(drain={"timeoutSeconds": 120}))
    sleep = pod["spec"]["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > sleep + 120


REVISION_KEPT = [
    ("replicas", {"replicas": 5}),
    ("suspend", {"suspend": True}),
    ("router", {"router": {"name": "front"}}),
    ("a default that is written out", {"engine": {"maxConcurrent": 64}}),
    ("memory that is declared", {"accelerator": {"memoryGiB": 140}}),
    ("autoscaling", {"autoscaling": {"maxReplicas": 3, "signals": [{"type": "QueueWait", "target": 1}]}}),
]
REVISION_CHANGED = [
    ("engine", {"engine": {"maxConcurrent": 65}}),
    ("shape", {"parallelism": {"nodes": 2}}),
    ("copies of experts", {"parallelism": {"redundantExperts": 8}}),
    ("the cache's type", {"engine": {"cacheDtype": "fp8"}}),
    ("the resource", {"accelerator": {"memoryGiB": 140, "resourceName": "amd.com/gpu"}}),
    ("drain", {"drain": {"timeoutSeconds": 10}}),
    ("template", {"template": {"nodeSelector": {"a": "b"}}}),
]


@pytest.mark.parametrize("spec", [case[1] for case in REVISION_KEPT], ids=[case[0] for case in REVISION_KEPT])
def test_the_revision_does_not_know_of(spec: dict[str, Any]) -> None:
    assert worker.revision(deployment(**spec), "i") == worker.revision(deployment(), "i")


@pytest.mark.parametrize("spec", [case[1] for case in REVISION_CHANGED], ids=[case[0] for case in REVISION_CHANGED])
def test_the_revision_changes_with(spec: dict[str, Any]) -> None:
    assert worker.revision(deployment(**spec), "i") != worker.revision(deployment(), "i")


def test_the_revision_does_not_know_which_release_the_checkpoint_is() -> None:
    declared = deployment("hostPath")
    model = declared.spec.model.model_copy(update={"release": "MiniMax-M3"})
    declared = declared.model_copy(update={"spec": declared.spec.model_copy(update={"model": model})})
    assert worker.revision(declared, "i") == worker.revision(deployment("hostPath"), "i")


def test_the_revision_changes_with_the_operators_default_image() -> None:
    assert worker.revision(deployment(), "i:1") != worker.revision(deployment(), "i:2")


def test_the_revision_is_stable_across_versions() -> None:
    """Written down: a change here restarts every worker of every user who upgrades the operator."""
    assert worker.revision(deployment("hostPath"), "worker.test/m3:1") == "5caffdc51d"


def test_ranks_that_share_experts_mount_the_plan_that_others_learned_if_there_is_one() -> None:
    (first, second) = pods(deployment("hostPath", parallelism={"nodes": 2, "gpusPerNode": 8}))
    for found in (first, second):
        (volume,) = (one for one in found["spec"]["volumes"] if one["name"] == "experts")
        assert volume["configMap"] == {"name": "m3-experts", "optional": True}
    (alone,) = pods(deployment("hostPath", parallelism={"gpusPerNode": 1}))
    assert "experts" not in [volume["name"] for volume in alone["spec"]["volumes"]]


def test_how_experts_are_balanced_rolls_nothing() -> None:
    before = deployment("hostPath")
    after = deployment("hostPath", expertBalancing={"mode": "Dynamic", "windowSeconds": 60})
    assert worker.revision(before, "w") == worker.revision(after, "w")
