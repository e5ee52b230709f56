"""What `m3 up` decides to run, from resources and a description of the machine."""

from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from m3_operator.local.documents import parse_documents
from m3_operator.local.processes import (
    Kind,
    LocalPlan,
    PlanError,
    Process,
    Served,
    Site,
    plan,
    serve,
    spare_port_count,
    staging,
)
from m3_router.config import AuthSettings, RouterConfig, access_from_yaml
from m3_worker.config import TinySettings, WorkerSettings

SITE = Site(
    state=Path("/state"),
    router_ports=(8080,),
    spare_ports=(9101, 9102, 9103, 9104),
    keys={"tiny": "m3-secret-of-tiny", "shared": "m3-secret-of-shared"},
    cpus=8,
    gpus=(),
    python="/venv/bin/python",
    scripts=Path("/venv/bin"),
)


EXAMPLES = sorted(Path(str(files("m3_operator.examples"))).glob("*.yaml"))
EXAMPLES_README = Path(__file__).parents[3] / "manifests" / "examples" / "README.md"


def deployment(name: str, spec: str = "", *, model: str = "M", source: str = "tiny: {seed: 1}", gpus: int = 0) -> str:
    return f"""
apiVersion: serving.m3.dev/v1alpha1
kind: M3Deployment
metadata: {{name: {name}}}
spec:
  model: {{name: {model}, source: {{{source}}}}}
  parallelism: {{gpusPerNode: {gpus}}}
  {spec}
"""


def router(name: str, deployments: str, spec: str = "") -> str:
    return f"""
apiVersion: serving.m3.dev/v1alpha1
kind: M3Router
metadata: {{name: {name}}}
spec:
  deployments: [{deployments}]
  {spec}
"""


def served_by(*documents: str) -> tuple[Served, ...]:
    return serve(parse_documents("---".join(documents), source="f.yaml"))


def planned(*documents: str, site: Site = SITE) -> LocalPlan:
    return plan(served_by(*documents), site)


def of_kind(found: LocalPlan, kind: Kind) -> list[Process]:
    return [process for process in found.processes if process.kind is kind]


def test_a_deployment_becomes_a_checkpoint_a_worker_per_replica_and_a_router_of_its_own() -> None:
    found = planned(deployment("tiny", "replicas: 2", model="MiniMax-M3"))

    assert [(process.name, process.kind) for process in found.processes] == [
        ("tiny-checkpoint", Kind.CHECKPOINT),
        ("tiny-g0-r0", Kind.WORKER),
        ("tiny-g1-r0", Kind.WORKER),
        ("tiny-router", Kind.ROUTER),
    ]
    (endpoint,) = found.endpoints
    assert (endpoint.url, endpoint.admin_url) == ("http://127.0.0.1:8080", "http://127.0.0.1:9103")
    assert endpoint.models == ["MiniMax-M3"]
    assert endpoint.key == "m3-secret-of-tiny"


def test_a_workers_command_says_what_the_resource_says() -> None:
    spec = (
        "engine: {maxConcurrent: 3, args: [--max-waiting=7], env: [{name: A, value: b}]}\n  drain: {timeoutSeconds: 9}"
    )

    (worker,) = of_kind(planned(deployment("tiny", spec, model="Named")), Kind.WORKER)

    assert worker.argv[0] == "/venv/bin/m3-worker"
    settings = WorkerSettings.parse_arguments(worker.argv[1:])
    assert settings.served_model_name == "Named"
    assert (settings.host, settings.port, settings.device) == ("127.0.0.1", 9101, "cpu")
    assert (settings.max_concurrent, settings.max_waiting, settings.drain_seconds) == (3, 7, 9)
    assert worker.ready_url == "http://127.0.0.1:9101/health"
    assert worker.stop_seconds == 9
    assert worker.start_seconds == 601  # ten minutes, and a tiny model
    assert worker.env["A"] == "b"
    assert (worker.env["M3_NODES"], worker.env["M3_NODE_RANK"]) == ("1", "0")


def test_the_packaged_model_is_served_by_its_name_and_nothing_is_written() -> None:
    found = planned(deployment("tiny", source="packaged: {}"))

    assert of_kind(found, Kind.CHECKPOINT) == []
    (worker,) = of_kind(found, Kind.WORKER)
    assert WorkerSettings.parse_arguments(worker.argv[1:]).model == Path("tiny")
    assert worker.depends_on == ()


def test_a_tiny_checkpoint_is_written_beside_its_place_before_its_workers_start() -> None:
    found = planned(deployment("tiny", "replicas: 2", source="tiny: {seed: 5, layers: 6}"))

    (job,), workers = of_kind(found, Kind.CHECKPOINT), of_kind(found, Kind.WORKER)
    assert job.creates is not None
    assert job.argv[:3] == ("/venv/bin/python", "-m", "m3_worker.tiny")
    settings = TinySettings.parse_arguments(job.argv[3:])
    assert (settings.seed, settings.layers) == (5, 6)
    assert settings.directory == staging(job.creates)
    for worker in workers:
        assert worker.depends_on == ("tiny-checkpoint",)
        assert WorkerSettings.parse_arguments(worker.argv[1:]).model == job.creates


def test_equal_shapes_share_a_checkpoint_and_different_ones_do_not() -> None:
    documents = (
        deployment("a", "router: {name: shared}", model="A"),
        deployment("b", "router: {name: shared}", model="B"),
        deployment("c", "router: {name: shared}", model="C", source="tiny: {seed: 2}"),
        router("shared", "{name: a}, {name: b}, {name: c}"),
    )

    found = planned(*documents)

    assert [job.name for job in of_kind(found, Kind.CHECKPOINT)] == ["a-checkpoint", "c-checkpoint"]
    assert [worker.depends_on for worker in of_kind(found, Kind.WORKER)] == [
        ("a-checkpoint",),
        ("a-checkpoint",),
        ("c-checkpoint",),
    ]


def test_weights_on_disk_are_read_where_they_are() -> None:
    found = planned(deployment("tiny", source="hostPath: {path: /models/m3}"))

    (worker,) = of_kind(found, Kind.WORKER)
    assert not of_kind(found, Kind.CHECKPOINT)
    assert WorkerSettings.parse_arguments(worker.argv[1:]).model == Path("/models/m3")


@pytest.mark.parametrize(("cpus", "replicas", "threads"), [(8, 2, 4), (8, 3, 2), (2, 3, 1), (1, 1, 1)])
def test_workers_share_the_cores(cpus: int, replicas: int, threads: int) -> None:
    site = Site(**{**vars(SITE), "cpus": cpus})

    found = planned(deployment("tiny", f"replicas: {replicas}"), site=site)

    for worker in of_kind(found, Kind.WORKER):
        assert WorkerSettings.parse_arguments(worker.argv[1:]).threads == threads


def test_each_worker_on_a_gpu_sees_one_of_its_own() -> None:
    site = Site(**{**vars(SITE), "gpus": ("2", "5")})

    workers = of_kind(planned(deployment("tiny", "replicas: 2", gpus=1), site=site), Kind.WORKER)

    assert [worker.env["CUDA_VISIBLE_DEVICES"] for worker in workers] == ["2", "5"]
    assert {WorkerSettings.parse_arguments(worker.argv[1:]).device for worker in workers} == {"cuda"}


def test_one_router_serves_the_models_of_several_deployments() -> None:
    found = planned(
        deployment("blue", "router: {name: shared}", model="M3-blue"),
        deployment("green", "router: {name: shared}\n  replicas: 2", model="M3-green"),
        router("shared", "{name: blue}, {name: green}", "contextTier: {thresholdTokens: 512}"),
    )

    (process,) = of_kind(found, Kind.ROUTER)
    assert process.argv == ("/venv/bin/m3-router", "--config", "/state/routers/shared/router.yaml")
    config = RouterConfig.from_yaml(found.files[Path("/state/routers/shared/router.yaml")])
    assert config == found.endpoints[0].config
    assert config.context_tier.threshold_tokens == 512
    assert [(pool.models, pool.workers) for pool in config.pools] == [
        (("M3-blue",), ("http://127.0.0.1:9101",)),
        (("M3-green",), ("http://127.0.0.1:9102", "http://127.0.0.1:9103")),
    ]


def test_the_router_knows_its_key_by_digest_alone() -> None:
    found = planned(deployment("tiny"))

    text = "".join(found.files.values())
    auth = found.endpoints[0].config.auth
    assert isinstance(auth, AuthSettings)
    assert auth.keys_file == Path("/state/routers/tiny/keys.yaml")
    (key,) = access_from_yaml(found.files[auth.keys_file]).keys
    assert key.sha256 == "5d48916167f5899da862c6605db67817cd36fd1ce1532772240889a53be6f819"
    assert "m3-secret-of-tiny" not in text


def test_an_open_router_takes_no_key() -> None:
    found = planned(
        deployment("tiny", "router: {name: shared}"),
        router("shared", "{name: tiny}", "auth: {mode: None, allowInsecure: true}"),
    )

    assert found.endpoints[0].key is None
    assert yaml.safe_load(found.files[Path("/state/routers/shared/router.yaml")])["auth"] == "none"


def test_what_is_done_differently_here_is_told() -> None:
    found = planned(
        deployment("tiny", "router: {name: shared}"),
        router("shared", "{name: tiny}", "auth: {secretName: vault}\n  replicas: 3"),
    )

    assert found.notices == (
        "M3Router shared: there is no Secret vault here; it takes a key made by `m3 up`",
        "M3Router shared: runs once here, not 3 times",
    )


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_packaged_example_runs_here_and_is_listed_among_the_manifests(example: Path) -> None:
    found = planned(example.read_text())

    assert of_kind(found, Kind.WORKER)
    assert f"(../../operator/m3_operator/examples/{example.name})" in EXAMPLES_README.read_text()


def test_every_worker_and_every_admin_port_is_counted() -> None:
    served = served_by(deployment("a", "replicas: 3", model="A"), deployment("b", model="B"))

    assert spare_port_count(served) == 3 + 1 + 2


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (
            [deployment("tiny", source="pvc: {claimName: weights}")],
            "M3Deployment tiny: spec.model.source.pvc needs a cluster; `m3 up` reads hostPath, tiny and packaged",
        ),
        (
            [deployment("tiny", source="image: {reference: weights}")],
            "M3Deployment tiny: spec.model.source.image needs a cluster",
        ),
        (
            [deployment("tiny", gpus=8)],
            "M3Deployment tiny: spec.parallelism: 1 nodes x 8 GPUs are 8 ranks, and `m3 up` runs one",
        ),
        ([deployment("tiny", "replicas: 0")], "M3Deployment tiny: spec: replicas is 0"),
        ([deployment("tiny", "suspend: true")], "M3Deployment tiny: spec: suspend is true"),
        (
            [deployment("tiny", "engine: {env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]}")],
            "M3Deployment tiny: spec.engine.env.A: valueFrom needs a cluster",
        ),
        (
            [deployment("tiny", "router: {name: nowhere}")],
            "M3Deployment tiny: spec.router.name: the file has no M3Router nowhere",
        ),
        (
            [deployment("tiny"), router("shared", "{name: other}")],
            "M3Router shared: spec.deployments: the file has no M3Deployment other",
        ),
        (
            [deployment("a"), deployment("b", "router: {name: shared}"), router("shared", "{name: a}")],
            "M3Router shared: spec.deployments: b names this router but is not listed",
        ),
        (
            [deployment("a"), deployment("b", "router: {name: a}", model="B"), router("a", "{name: b}")],
            "M3Router a: has that deployment's name and does not serve it",
        ),
        ([deployment("tiny", "replicas: 2", gpus=1)], "the deployments need 2 GPUs and this machine has 0"),
        (
            [
                deployment("a", "router: {name: shared}"),
                deployment("b", "router: {name: shared}"),
                router("shared", "{name: a}, {name: b}"),
            ],
            "M3Router shared: pools.models: 'M' is named twice",
        ),
    ],
)
def test_what_one_machine_cannot_do_is_refused_by_name(documents: list[str], message: str) -> None:
    with pytest.raises(PlanError) as refused:
        planned(*documents)

    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
