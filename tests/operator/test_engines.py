"""vLLM and SGLang in the place of our worker: their flags for M3, on one node and on several, and what they refuse."""

import json
from typing import Any

import kubernetes_validate
import pytest

from m3_operator.api import M3Deployment, M3Router, SpecError, parse_deployment, parse_router
from m3_operator.capacity.assessment import assess
from m3_operator.local.documents import Documents
from m3_operator.local.processes import PlanError, serve
from m3_operator.render import worker
from m3_operator.render.router import cluster_config

FULL = {
    "port": 9000,
    "maxContextTokens": 524288,
    "maxConcurrent": 60,
    "stepTokens": 8192,
    "cacheDtype": "fp8",
    "args": ["--seed=1"],
}


def deployment(kind: str, engine: dict[str, Any] | None = None, **spec: Any) -> M3Deployment:
    said = {"type": kind, **({} if kind == "native" else {"image": f"{kind}.test/m3:1"}), **(engine or {})}
    manifest = {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": "m3", "namespace": "prod", "uid": "uid-1"},
        "spec": {"model": {"name": "MiniMax-M3", "source": {"hostPath": {"path": "/m"}}}, "engine": said, **spec},
    }
    return parse_deployment(manifest, strict=True)


def containers(found: M3Deployment) -> list[dict[str, Any]]:
    pods = worker.group_pods(found, 1, "rev", image=str(found.spec.engine.image))
    return [pod["spec"]["containers"][0] for pod in pods]


def flags(container: dict[str, Any]) -> dict[str, str]:
    """Flags by name; a switch is empty."""
    words = [word.removeprefix("--").partition("=") for word in container["args"] if word.startswith("--")]
    return {name: value for name, _, value in words}


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
@pytest.mark.parametrize("nodes", [1, 2])
def test_their_pods_are_valid_to_kubernetes_and_as_locked_down_as_ours(kind: str, nodes: int) -> None:
    found = deployment(kind, FULL, parallelism={"nodes": nodes, "tensor": 2})
    ours = worker.group_pods(deployment("native"), 0, "rev", image="i")[0]["spec"]
    for pod in worker.group_pods(found, 0, "rev", image="i"):
        kubernetes_validate.validate(pod, "1.37", strict=True)
        assert pod["spec"]["securityContext"] == ours["securityContext"]
        assert pod["spec"]["containers"][0]["securityContext"] == ours["containers"][0]["securityContext"]


def test_vllm_on_one_node_splits_attention_over_all_gpus() -> None:
    (container,) = containers(deployment("vllm", FULL, parallelism={"tensor": 8}))
    assert container["command"] == ["vllm", "serve"]
    assert container["args"][0] == "/model"
    assert container["args"][-1] == "--seed=1"
    found = flags(container)
    expected = {
        "served-model-name": "MiniMax-M3",
        "port": "9000",
        "tensor-parallel-size": "8",
        "enable-expert-parallel": "",
        "block-size": "128",
        "kv-cache-dtype": "fp8",
        "max-model-len": "524288",
        "max-num-seqs": "60",
        "max-num-batched-tokens": "8192",
        "scheduling-policy": "priority",
        "tool-call-parser": "minimax_m3",
        "reasoning-parser": "minimax_m3",
        "enable-auto-tool-choice": "",
        "enable-prefix-caching": "",
        "shutdown-timeout": "300",
    }
    assert expected.items() <= found.items()
    assert not [name for name in found if name.startswith("data-parallel")]
    assert "headless" not in found


def test_vllm_on_two_nodes_has_a_leader_that_listens_on_its_address_and_headless_others_that_find_it_by_name() -> None:
    leader, follower = map(flags, containers(deployment("vllm", FULL, parallelism={"nodes": 2, "tensor": 2})))
    common = {"data-parallel-size": "8", "data-parallel-size-local": "4", "data-parallel-rpc-port": "29500"}
    assert common.items() <= leader.items()
    assert common.items() <= follower.items()
    assert leader["max-num-seqs"] == "8"  # 60 over 8 data ranks, rounded up
    assert leader["data-parallel-address"] == "$(VLLM_HOST_IP)"
    assert follower["data-parallel-address"] == "m3-g1-r0.m3-g1"
    assert "data-parallel-start-rank" not in leader
    assert follower["data-parallel-start-rank"] == "4"
    assert ("headless" in leader, "headless" in follower) == (False, True)


def test_the_address_that_vllm_listens_on_is_the_pods_own() -> None:
    container = containers(deployment("vllm", parallelism={"nodes": 2}))[0]
    environment = {entry["name"]: entry for entry in container["env"]}
    assert environment["VLLM_HOST_IP"]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}


def test_sglang_on_two_nodes_counts_all_ranks_and_shares_attention_among_the_tensor_ranks() -> None:
    found = containers(deployment("sglang", {**FULL, "cacheTokens": 65536}, parallelism={"nodes": 2, "tensor": 4}))
    leader, follower = map(flags, found)
    assert found[0]["command"] == ["python3", "-m", "sglang.launch_server"]
    expected = {
        "model-path": "/model",
        "tp-size": "16",
        "ep-size": "16",
        "dp-size": "4",
        "enable-dp-attention": "",
        "nnodes": "2",
        "node-rank": "0",
        "dist-init-addr": "$(SGLANG_HOST_IP):29500",
        "context-length": "524288",
        "max-running-requests": "60",
        "max-total-tokens": "65536",
        "chunked-prefill-size": "8192",
        "kv-cache-dtype": "fp8_e4m3",
        "tool-call-parser": "minimax-m3",
        "reasoning-parser": "minimax-m3",
        "enable-priority-scheduling": "",
        "schedule-low-priority-values-first": "",
    }
    assert expected.items() <= leader.items()
    assert (follower["node-rank"], follower["dist-init-addr"]) == ("1", "m3-g1-r0.m3-g1:29500")


def test_sglang_on_one_node_meets_nobody() -> None:
    (container,) = containers(deployment("sglang", parallelism={"tensor": 8}))
    assert not {"nnodes", "dist-init-addr", "dp-size", "enable-dp-attention"} & set(flags(container))


@pytest.mark.parametrize(("kind", "tensor"), [("vllm", 8), ("vllm", 1), ("sglang", 8), ("native", 8)])
def test_the_router_is_told_which_engine_it_speaks_to(kind: str, tensor: int) -> None:
    found = deployment(kind, parallelism={"tensor": tensor})
    metadata = {"name": "m3", "namespace": "prod", "uid": "uid-r"}
    manifest = {"apiVersion": "serving.m3.dev/v1alpha1", "kind": "M3Router", "metadata": metadata}
    router: M3Router = parse_router({**manifest, "spec": {"deployments": [{"name": "m3"}]}}, strict=True)
    (pool,) = cluster_config(router, [found]).pools
    assert pool.engine == kind
    # Of several data ranks each has a cache of its own, and a router follows one port.
    publishes = kind == "vllm" and tensor == 8
    assert pool.kv_events_port == (5557 if publishes else None)
    if kind == "vllm":
        (container,) = containers(found)
        assert ("kv-events-config" in flags(container)) is publishes
        if publishes:
            assert json.loads(flags(container)["kv-events-config"])["endpoint"] == "tcp://*:5557"
            assert {"name": "kv-events", "containerPort": 5557, "protocol": "TCP"} in container["ports"]


REFUSED = [
    ("vllm", {"image": None}, {}, "engine.image: required with engine.type vllm and sglang"),
    ("vllm", {"cacheTokens": 1024}, {}, "engine.cacheTokens: vllm takes a share of memory"),
    ("vllm", {"cacheDtype": "float32"}, {}, "engine.cacheDtype: vllm and sglang take"),
    ("sglang", {"indexCacheDtype": "fp8"}, {}, "engine.indexCacheDtype: of the native engine alone"),
    ("sglang", {}, {"parallelism": {"redundantExperts": 8}}, "parallelism.redundantExperts: of the native engine"),
    ("vllm", {}, {"parallelism": {"gpusPerNode": 0}}, "parallelism.gpusPerNode: vllm and sglang need at least 1"),
    ("vllm", {}, {"model": {"name": "M", "source": {"tiny": {}}}}, "model.source: tiny and packaged are for"),
    ("trtllm", {}, {}, "spec.engine.type"),
]


@pytest.mark.parametrize(("kind", "engine", "spec", "sentence"), REFUSED, ids=[case[3][:30] for case in REFUSED])
def test_what_an_engine_does_not_have_is_refused_by_name(
    kind: str, engine: dict[str, Any], spec: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SpecError, match=sentence):
        deployment(kind, engine, **spec)


def test_m3_up_refuses_other_engines_by_name() -> None:
    with pytest.raises(PlanError, match=r"spec\.engine\.type: vllm needs a cluster"):
        serve(Documents((deployment("vllm", parallelism={"gpusPerNode": 1}),), ()))


def test_the_memory_of_another_engine_is_not_guessed() -> None:
    found = assess(deployment("sglang", accelerator={"memoryGiB": 1}))
    assert (found.answer, found.reason) == ("unknown", "EngineUnknown")
    assert "of sglang it is not known" in found.message


def test_the_engine_is_part_of_the_revision() -> None:
    assert worker.revision(deployment("vllm"), "i") != worker.revision(deployment("sglang"), "i")
    assert worker.revision(deployment("native"), "i") != worker.revision(deployment("vllm"), "i")
