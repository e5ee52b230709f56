"""A model is downloaded once: the claim, the Job, the groups that wait for it, and what is told meanwhile."""

from datetime import timedelta
from typing import Any

import kubernetes_validate
import pytest

from m3_operator.api import SpecError, parse_deployment
from m3_operator.decide.installation import Installation
from m3_operator.render import worker
from m3_operator.render.cache import cache_claim, claim_of, fetch_job
from m3_operator.signals.values import DeploymentSignals, FetchSignals
from m3_worker.config import FetchSettings
from operator_cache import COMMIT, SHARED, cached, ended, fetch_pod, finish, made, put
from operator_cycles import M3, World, change_deployment, deployment

MODEL_PATH = f"MiniMaxAI--MiniMax-M3/{COMMIT}"
NODE_LOCAL = {"mode": "NodeLocal", "path": "/mnt/nvme"}


def parsed(manifest: dict[str, Any]) -> Any:
    return parse_deployment(manifest, strict=True)


def condition(world: World, name: str) -> dict[str, Any]:
    (found,) = (one for one in world.writer.statuses[-1]["conditions"] if one["type"] == name)
    return dict(found)


async def begun(manifest: dict[str, Any] | None = None) -> tuple[World, dict[str, Any]]:
    """A world in which the claim is made, and the Job of it."""
    world = World(manifest or cached())
    await world.cycle(M3)
    await world.cycle(M3)
    (job,) = made(world, "Job")
    return world, job


async def test_the_claim_comes_first_then_the_job_and_groups_when_it_is_done() -> None:
    world = World(cached())
    assert await world.cycle(M3) == 5  # the Job is made when the claim is seen
    (claim,) = made(world, "PersistentVolumeClaim")
    assert not made(world, "Job")
    assert await world.cycle(M3) is None
    (job,) = made(world, "Job")
    assert (condition(world, "WeightsReady")["status"], world.reason("WeightsReady")) == ("False", "DownloadWaiting")
    assert world.reason() == "DownloadWaiting"
    assert not made(world, "Pod")

    fetch_pod(world, job)
    await world.cycle(M3)
    assert world.reason() == "Downloading"
    assert world.reason("Progressing") == "DownloadingWeights"
    finish(world, job)
    assert M3 in world.woken
    await world.cycle(M3)
    assert condition(world, "WeightsReady")["status"] == "True"
    assert world.reason() == "GroupsNotReady"
    (pod,) = made(world, "Pod")
    volume = {"claimName": claim["metadata"]["name"], "readOnly": True}
    assert {"name": "model", "persistentVolumeClaim": volume} in pod["spec"]["volumes"]
    mounts = pod["spec"]["containers"][0]["volumeMounts"]
    assert {"name": "model", "mountPath": "/model", "readOnly": True, "subPath": MODEL_PATH} in mounts
    assert "initContainers" not in pod["spec"]


async def test_an_unchanged_world_is_not_written_to_while_a_model_is_downloaded() -> None:
    world, job = await begun()
    fetch_pod(world, job)
    await world.cycle(M3)
    before = list(world.writer.written)
    await world.cycle(M3)
    assert world.writer.written == before


async def test_how_far_the_download_is_shows_in_the_condition_and_in_the_status() -> None:
    world, job = await begun()
    pod = fetch_pod(world, job)
    told = FetchSignals(done_bytes=13_314_398_618, needed_bytes=129_171_141_427, seconds_left=41)
    world.store.put_signals(M3, DeploymentSignals(fetches={pod["metadata"]["uid"]: told}))
    await world.cycle(M3)
    assert condition(world, "WeightsReady")["message"] == (
        "MiniMaxAI/MiniMax-M3@0123456789ab: 12.4 of 120.3 GiB, 41 s left"
    )
    assert world.writer.statuses[-1]["weights"] == {
        "downloadedBytes": 13_314_398_618,
        "totalBytes": 129_171_141_427,
        "secondsLeft": 41,
    }
    finish(world, job)
    await world.cycle(M3)
    assert "weights" not in world.writer.statuses[-1]


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (
            ended("RepositoryForbidden: https://hub answers 403 for a/b: it is gated"),
            "RepositoryForbidden",
            "https://hub answers 403 for a/b: it is gated; see model.source.huggingFace.repo and tokenSecretRef",
        ),
        (ended("RepositoryNotFound: 404"), "RepositoryNotFound", "404; correct model.source.huggingFace"),
        (ended("CacheFull: 9.0 GiB more are needed"), "CacheFull", "9.0 GiB more are needed; enlarge the volume"),
        (ended("CacheNotWritable: /cache: Permission denied"), "CacheNotWritable", "Permission denied"),
        (ended("HubUnreachable: no route"), "HubUnreachable", "no route"),
        (ended("DownloadCorrupt: model-1"), "DownloadCorrupt", "model-1"),
        (ended("Killed"), "DownloadFailed", "Killed; see its log"),
        (
            {
                "phase": "Pending",
                "containerStatuses": [
                    {
                        "name": "fetch",
                        "state": {
                            "waiting": {"reason": "CreateContainerConfigError", "message": 'secret "hub" not found'}
                        },
                    }
                ],
            },
            "SecretNotFound",
            "create Secret hub",
        ),
        (
            {
                "phase": "Pending",
                "containerStatuses": [
                    {"name": "fetch", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
                ],
            },
            "ImagePullFailed",
            "no such image",
        ),
    ],
)
async def test_a_download_that_fails_names_its_cause(status: dict[str, Any], reason: str, words: str) -> None:
    world, job = await begun()
    fetch_pod(world, job, **status)
    assert M3 in world.woken
    await world.cycle(M3)
    assert world.reason("WeightsReady") == reason
    assert world.reason() == reason
    assert words in condition(world, "WeightsReady")["message"]


async def test_what_failed_before_is_told_while_it_is_tried_again() -> None:
    world, job = await begun()
    fetch_pod(world, job, **ended("HubUnreachable: no route", running={}))
    await world.cycle(M3)
    assert world.reason("WeightsReady") == "Downloading"
    assert "it ended before: HubUnreachable: no route" in condition(world, "WeightsReady")["message"]


async def test_groups_that_serve_stay_until_the_next_model_is_there() -> None:
    world, job = await begun()
    finish(world, job)
    await world.cycle(M3)
    (old,) = made(world, "Pod")
    ready = {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
    put(world, old, status=ready)
    await world.cycle(M3)
    next_commit = "f" * 40
    change_deployment(world, **cached(source={"revision": next_commit})["spec"])
    await world.cycle(M3)
    world.clock.now += timedelta(seconds=10_000)
    await world.cycle(M3)

    deleted = [name for name in world.writer.written if name.startswith("delete Pod")]
    assert deleted == []
    assert world.reason("Progressing") == "DownloadingWeights"
    assert world.reason("WeightsReady") == "DownloadWaiting"
    (_, second) = made(world, "Job")
    finish(world, second)
    await world.cycle(M3)
    assert f"delete Pod {old['metadata']['name']}" in world.writer.written


async def test_a_claim_that_was_deleted_is_made_and_filled_again() -> None:
    world, job = await begun()
    finish(world, job)
    await world.cycle(M3)
    (claim,) = made(world, "PersistentVolumeClaim")
    world.store.remove("PersistentVolumeClaim", claim)
    await world.cycle(M3)
    assert condition(world, "WeightsReady")["status"] == "False"
    await world.cycle(M3)
    first, second = made(world, "Job")
    assert first["metadata"]["name"] != second["metadata"]["name"]
    assert f"delete Job {first['metadata']['name']}" in world.writer.written


async def test_a_claim_of_the_user_is_filled_and_neither_made_nor_deleted() -> None:
    world = World(cached({"claimName": "theirs"}))
    await world.cycle(M3)
    assert not made(world, "PersistentVolumeClaim")
    (job,) = made(world, "Job")
    volume = {"name": "model", "persistentVolumeClaim": {"claimName": "theirs"}}
    assert volume in job["spec"]["template"]["spec"]["volumes"]


@pytest.mark.parametrize("cache", [SHARED, {**SHARED, "retain": False}, NODE_LOCAL])
def test_everything_that_is_made_is_valid_to_kubernetes(cache: dict[str, Any]) -> None:
    found = parsed(cached(cache, template={"resources": {"limits": {"cpu": "8"}}}))
    claim = cache_claim(found)
    made_of_it = [*worker.group_pods(found, 0, "rev", image="i")]
    if claim is not None:
        made_of_it += [claim, fetch_job(found, "i", "uid")]
    for manifest in made_of_it:
        kubernetes_validate.validate(manifest, "1.37", strict=True)


def test_a_kept_claim_belongs_to_nobody_and_is_shared_by_content_and_storage() -> None:
    one, other = cached(), cached()
    other["metadata"] = {**other["metadata"], "name": "other", "uid": "uid-other"}
    claim = cache_claim(parsed(one))
    assert claim is not None
    assert claim == cache_claim(parsed(other))
    assert "ownerReferences" not in claim["metadata"]
    assert "serving.m3.dev/deployment" not in claim["metadata"]["labels"]
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Ti"}},
        "storageClassName": "fast",
    }
    for different in (
        cached(source={"revision": "f" * 40}),
        cached(source={"endpoint": "https://mirror.test"}),
        cached({**SHARED, "accessModes": ["ReadWriteOnce"]}),
        cached({"size": "1Ti"}),
    ):
        assert claim_of(parsed(different)) != claim["metadata"]["name"]
    assert claim_of(parsed(cached({**SHARED, "size": "2Ti"}))) == claim["metadata"]["name"]


def test_a_claim_that_is_not_kept_is_its_deployment_s_own() -> None:
    claim = cache_claim(parsed(cached({**SHARED, "retain": False})))
    assert claim is not None
    assert claim["metadata"]["name"].startswith("m3-cache-")
    (owner,) = claim["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == ("uid-m3", True)
    other = cached({**SHARED, "retain": False})
    other["metadata"] = {**other["metadata"], "name": "other"}
    others = {claim_of(parsed(other)), claim_of(parsed(cached()))}
    assert claim["metadata"]["name"] not in others


async def test_a_claim_that_is_not_kept_goes_when_nothing_needs_its_model() -> None:
    own = {**SHARED, "retain": False}
    world, job = await begun(cached(own))
    finish(world, job)
    await world.cycle(M3)
    (claim,) = made(world, "PersistentVolumeClaim")
    change_deployment(world, model={"name": "M", "source": {"packaged": {}}})
    await world.cycle(M3)
    assert f"delete PersistentVolumeClaim {claim['metadata']['name']}" in world.writer.written
    assert f"delete Job {job['metadata']['name']}" in world.writer.written


async def test_a_kept_claim_stays_when_nothing_needs_its_model() -> None:
    world, job = await begun()
    finish(world, job)
    change_deployment(world, model={"name": "M", "source": {"packaged": {}}})
    await world.cycle(M3)
    await world.cycle(M3)
    assert not [name for name in world.writer.written if name.startswith("delete PersistentVolumeClaim")]


def test_the_job_says_what_the_worker_parses_and_has_no_right_to_anything() -> None:
    template = {
        "nodeSelector": {"zone": "a"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "resources": {"limits": {"cpu": "64"}},
        "runtimeClassName": "nvidia",
        "schedulerName": "gangs",
    }
    found = parsed(cached(template=template, engine={"port": 9000, "env": [{"name": "HTTPS_PROXY", "value": "p"}]}))
    job = fetch_job(found, "worker.test/m3:1", "uid-claim")
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    settings = FetchSettings.parse_arguments(container["args"])
    assert (settings.repo, settings.revision, settings.port) == ("MiniMaxAI/MiniMax-M3", COMMIT, 9000)
    assert str(settings.cache) == "/cache"
    assert container["command"] == ["python3", "-m", "m3_worker.fetch"]
    assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}} in container["env"]
    assert {"name": "HTTPS_PROXY", "value": "p"} in container["env"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["restartPolicy"] == "OnFailure"
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["fsGroup"] == 65532
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert (spec["nodeSelector"], spec["tolerations"][0]["key"]) == ({"zone": "a"}, "gpu")
    assert not {"runtimeClassName", "schedulerName"} & spec.keys()
    assert "limits" not in container["resources"]
    assert len(job["metadata"]["name"]) <= 63 - len("-xxxxx")


def test_the_longest_name_of_a_deployment_leaves_room_for_what_is_made_for_it() -> None:
    manifest = cached({**SHARED, "retain": False})
    manifest["metadata"] = {**manifest["metadata"], "name": "m" * 40}
    found = parsed(manifest)
    job = fetch_job(found, "i", "uid")
    assert len(job["metadata"]["name"]) <= 63 - len("-xxxxx")
    assert len(claim_of(found) or "") <= 63


def test_a_job_cannot_be_changed_so_that_another_one_has_another_name() -> None:
    def name(image: str = "i", claim: str = "c", **changes: Any) -> str:
        return str(fetch_job(parsed(cached(**changes)), image, claim)["metadata"]["name"])

    others = {name(image="j"), name(claim="d"), name(template={"nodeSelector": {"a": "b"}})}
    assert len(others | {name()}) == 4
    assert name(replicas=5) == name()


def test_on_a_node_each_pod_fills_the_directory_before_its_engine_starts() -> None:
    found = parsed(cached(NODE_LOCAL, parallelism={"nodes": 2, "gpusPerNode": 8}))
    for pod in worker.group_pods(found, 0, "rev", image="worker.test/m3:1"):
        (first,) = pod["spec"]["initContainers"]
        assert first["command"] == ["python3", "-m", "m3_worker.fetch"]
        assert {"name": "model", "mountPath": "/cache"} in first["volumeMounts"]
        assert "nvidia.com/gpu" not in str(first.get("resources"))
        volume = {"name": "model", "hostPath": {"path": "/mnt/nvme", "type": "DirectoryOrCreate"}}
        assert volume in pod["spec"]["volumes"]
        mounts = pod["spec"]["containers"][0]["volumeMounts"]
        assert {"name": "model", "mountPath": "/model", "readOnly": True, "subPath": MODEL_PATH} in mounts
        assert "--rank-join-seconds=21600.0" in pod["spec"]["containers"][0]["args"]


async def test_on_nodes_groups_are_made_at_once_and_the_slowest_node_is_told() -> None:
    world = World(cached(NODE_LOCAL, replicas=2))
    await world.cycle(M3)
    assert not made(world, "Job")
    assert not made(world, "PersistentVolumeClaim")
    assert (condition(world, "WeightsReady")["status"], world.reason("WeightsReady")) == ("Unknown", "DownloadWaiting")
    pods = made(world, "Pod")
    assert len(pods) == 2
    for number, pod in enumerate(pods):
        filling = {"phase": "Pending", "podIP": f"10.0.0.{number}"}
        put(world, pod, status=filling, spec={**pod["spec"], "nodeName": f"node-{number}"})
    fetches = {
        pod["metadata"]["uid"]: FetchSignals(done_bytes=(2 - number) * 2**30, needed_bytes=4 * 2**30)
        for number, pod in enumerate(pods)
    }
    world.store.put_signals(M3, DeploymentSignals(fetches=fetches))
    await world.cycle(M3)
    message = condition(world, "WeightsReady")["message"]
    assert message == "MiniMaxAI/MiniMax-M3@0123456789ab, on node-1: 1.0 of 4.0 GiB; 2 nodes download it"
    assert world.writer.statuses[-1]["weights"]["downloadedBytes"] == 2**30
    for pod in pods:
        put(world, pod, status={"phase": "Running", "podIP": "10.0.0.1"}, spec={**pod["spec"], "nodeName": "n"})
    await world.cycle(M3)
    assert condition(world, "WeightsReady")["status"] == "True"


async def test_on_a_node_a_download_that_fails_names_its_cause() -> None:
    world = World(cached(NODE_LOCAL))
    await world.cycle(M3)
    (pod,) = made(world, "Pod")
    words = "CacheNotWritable: /cache: Permission denied; user 65532 must be able to write there"
    terminated = {"exitCode": 1, "reason": "Error", "message": words, "finishedAt": "2026-11-21T12:00:00Z"}
    status = {"phase": "Failed", "initContainerStatuses": [{"name": "fetch", "state": {"terminated": terminated}}]}
    put(world, pod, status=status, spec={**pod["spec"], "nodeName": "n"})
    world.writer.failures["delete Pod"] = _refusal()
    await world.cycle(M3)
    assert world.reason("WeightsReady") == "CacheNotWritable"


def _refusal() -> Any:
    from m3_operator.errors import RefusedError

    return RefusedError(403, "not now")


def test_another_engine_gets_the_model_from_our_worker_s_image() -> None:
    engine = {"type": "vllm", "image": "vllm.test/vllm:1"}
    manifest = cached(NODE_LOCAL, engine=engine, parallelism={"gpusPerNode": 8})
    (pod,) = worker.group_pods(parsed(manifest), 0, "rev", image="vllm.test/vllm:1", fetch_image="worker.test/m3:1")
    assert pod["spec"]["initContainers"][0]["image"] == "worker.test/m3:1"
    assert pod["spec"]["containers"][0]["image"] == "vllm.test/vllm:1"


async def test_another_engine_without_our_worker_s_image_is_told_what_lacks() -> None:
    engine = {"type": "vllm", "image": "vllm.test/vllm:1"}
    installation = Installation(router_image="router.test/m3:1")
    world = World(cached(engine=engine, parallelism={"gpusPerNode": 8}), installation=installation)
    await world.cycle(M3)
    assert world.reason() == "ImageMissing"
    assert "--worker-image" in condition(world, "Ready")["message"]


async def test_what_cannot_run_is_not_downloaded() -> None:
    too_small = {"accelerator": {"memoryGiB": 1}, "parallelism": {"gpusPerNode": 8}}
    manifest = cached(**too_small)
    manifest["spec"]["model"]["release"] = "MiniMax-M3"
    world = World(manifest)
    await world.cycle(M3)
    assert world.reason() == "DoesNotFit"
    assert not made(world, "PersistentVolumeClaim")
    assert not made(world, "Job")


def test_no_pod_is_replaced_for_a_token_or_a_size_and_every_pod_for_a_commit() -> None:
    def revision(**changes: Any) -> str:
        return worker.revision(parsed(cached(**changes)), "i")

    assert revision(cache={**SHARED, "size": "2Ti"}) == revision()
    assert revision(source={"tokenSecretRef": {"name": "another", "key": "token"}}) == revision()
    assert revision(source={"revision": "f" * 40}) != revision()
    assert revision(cache={**SHARED, "storageClassName": "slow"}) != revision()


@pytest.mark.parametrize("branch", ["main", "v1.0", "0123456789abcdef", COMMIT.upper(), COMMIT + "0"])
def test_a_branch_is_no_commit(branch: str) -> None:
    with pytest.raises(SpecError, match=r"revision"):
        parsed(cached(source={"revision": branch}))


def test_a_source_that_is_mounted_has_no_cache_and_says_nothing_of_weights() -> None:
    with pytest.raises(SpecError, match=r"model\.cache: needed by model\.source\.huggingFace"):
        parsed(deployment(model={"name": "M", "source": {"tiny": {}}, "cache": SHARED}))
    with pytest.raises(SpecError, match=r"model\.cache: needed by model\.source\.huggingFace"):
        parsed(deployment(model={"name": "M", "source": cached()["spec"]["model"]["source"]}))
