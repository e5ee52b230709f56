"""What `m3 up` runs: the settings that the operator renders into pods, as commands for this machine.

Decides, and does nothing: `serve` says which router serves which deployments, `plan` turns that and what the machine
offers (`Site`) into processes, files and endpoints; ports and keys come in as values. `supervisor` runs the result. A
pod has a node to itself; here workers share one machine, so each gets its share of the cores and a GPU of its own.
What only a cluster can give is refused by name.
"""

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from m3_operator import names
from m3_operator.api import M3Deployment, M3Router
from m3_operator.capacity.startup import startup_seconds
from m3_operator.errors import OperatorError
from m3_operator.local.documents import Documents
from m3_operator.render.engines.native import PACKAGED_MODEL, tiny_settings, worker_arguments, worker_settings
from m3_operator.render.router import keys_secret, router_config
from m3_operator.render.router_settings import Files
from m3_router.config import ConfigError, RouterConfig, join_url
from m3_worker.config import RankSettings, WorkerSettings

HOST = "127.0.0.1"


class PlanError(OperatorError):
    """Resources that cannot run on one machine; the message is one line naming the object, the field and the rule."""


class Kind(StrEnum):
    """What a process is for; the order of stopping goes by it."""

    CHECKPOINT = "checkpoint"
    WORKER = "worker"
    ROUTER = "router"


@dataclass(frozen=True, kw_only=True)
class Process:
    """One command.

    With `creates` it is a job: it writes `staging(creates)` and ends. Else it runs until it is stopped, is ready when
    `ready_url` answers 200, is given up when that takes longer than `start_seconds`, and has `stop_seconds` to finish
    what it is doing when it has to go.
    """

    name: str
    kind: Kind
    argv: tuple[str, ...]
    env: Mapping[str, str]
    ready_url: str | None = None
    depends_on: tuple[str, ...] = ()
    creates: Path | None = None
    start_seconds: float = math.inf
    stop_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where one router answers, how it is configured, and the API key it takes (None where it asks for none)."""

    url: str
    admin_url: str
    key: str | None
    config: RouterConfig

    @property
    def models(self) -> list[str]:
        """Names that requests may use as `model`."""
        return [model for pool in self.config.pools for model in pool.models]


@dataclass(frozen=True, kw_only=True)
class Served:
    """A router and the deployments behind it."""

    router: M3Router
    deployments: tuple[M3Deployment, ...]


@dataclass(frozen=True, kw_only=True)
class Site:
    """What this machine gives to the processes.

    `router_ports` has one port per router, `spare_ports` what `spare_port_count` asks for, `keys` an API key for every
    router, `gpus` what CUDA calls each GPU, `scripts` the directory of our console scripts.
    """

    state: Path
    router_ports: tuple[int, ...]
    spare_ports: tuple[int, ...]
    keys: Mapping[str, str]
    cpus: int
    gpus: tuple[str, ...]
    python: str
    scripts: Path


@dataclass(frozen=True, kw_only=True)
class LocalPlan:
    """Everything that `m3 up` starts, the files that have to be there first (path to text), and what to tell."""

    processes: tuple[Process, ...]
    files: Mapping[Path, str]
    endpoints: tuple[Endpoint, ...]
    notices: tuple[str, ...]


def staging(directory: Path) -> Path:
    """Where a job writes what becomes `directory` when it has succeeded."""
    return directory.with_name(f"{directory.name}.partial")


def serve(documents: Documents) -> tuple[Served, ...]:
    """Which router serves which deployments: the file's routers, and an own one for each deployment that names none.

    Raises PlanError where a reference leads nowhere, or a deployment needs more than one machine can give.
    """
    deployments = {found.metadata.name: found for found in documents.deployments}
    routers = {found.metadata.name: found for found in documents.routers}
    for name, deployment in deployments.items():
        _refuse_what_needs_a_cluster(deployment)
        reference = deployment.spec.router
        if reference is None:
            if name not in _listed(routers.setdefault(name, own_router(deployment))):
                raise PlanError(f"M3Router {name}: has that deployment's name and does not serve it; list it there")
        elif reference.name not in routers:
            raise PlanError(f"M3Deployment {name}: spec.router.name: the file has no M3Router {reference.name}")
        elif name not in _listed(routers[reference.name]):
            raise PlanError(f"M3Router {reference.name}: spec.deployments: {name} names this router but is not listed")
    return tuple(Served(router=router, deployments=_behind(router, deployments)) for router in routers.values())


def spare_port_count(served: tuple[Served, ...]) -> int:
    """Ports besides the routers' own: one for each worker, and one for each router's admin endpoints."""
    return sum(deployment.spec.desired_groups for deployment in _distinct(served)) + len(served)


def plan(served: tuple[Served, ...], site: Site) -> LocalPlan:
    """The processes, files and endpoints for `served` on `site`. Raises PlanError."""
    spare, gpus = iter(site.spare_ports), iter(site.gpus)
    deployments = _distinct(served)
    _refuse_too_few_gpus(deployments, site)
    total = sum(deployment.spec.desired_groups for deployment in deployments)
    checkpoints: dict[Path, Process] = {}
    workers: list[Process] = []
    urls: dict[str, list[str]] = {}
    for deployment in deployments:
        model, writer = _checkpoint(deployment, site)
        after = (checkpoints.setdefault(model, writer).name,) if writer else ()
        urls[deployment.metadata.name] = []
        for group in range(deployment.spec.desired_groups):
            settings = worker_settings(deployment, model=model, host=HOST, port=next(spare))
            if settings.device == "cpu":  # torch would take every core for each of them
                settings = settings.model_copy(update={"threads": max(1, site.cpus // total)})
            env = {} if settings.device == "cpu" else {"CUDA_VISIBLE_DEVICES": next(gpus)}
            workers.append(_worker(deployment, group, settings, env=env, after=after, site=site))
            urls[deployment.metadata.name].append(join_url(HOST, settings.port))
    routers = [
        _router(one, urls, listen=port, admin=next(spare), site=site)
        for one, port in zip(served, site.router_ports, strict=True)
    ]
    return LocalPlan(
        processes=(*checkpoints.values(), *workers, *(process for process, _, _ in routers)),
        files={path: text for _, _, files in routers for path, text in files.items()},
        endpoints=tuple(endpoint for _, endpoint, _ in routers),
        notices=tuple(_notices(served)),
    )


def own_router(deployment: M3Deployment) -> M3Router:
    """The router of a deployment that names none: of the same name, everything at its default."""
    metadata = {"name": deployment.metadata.name, "namespace": deployment.metadata.namespace}
    return M3Router.model_validate(
        {"metadata": metadata, "spec": {"deployments": [{"name": deployment.metadata.name}]}}
    )


def _worker(
    deployment: M3Deployment,
    group: int,
    settings: WorkerSettings,
    *,
    env: Mapping[str, str],
    after: tuple[str, ...],
    site: Site,
) -> Process:
    ranks = RankSettings(gpus_per_node=deployment.spec.parallelism.gpus_per_node)
    variables = {name: str(getattr(ranks, field)) for field, name in RankSettings.variables.items()}
    return Process(
        name=names.pod_name(deployment.metadata.name, group, 0),
        kind=Kind.WORKER,
        argv=(str(site.scripts / "m3-worker"), *worker_arguments(deployment, settings)),
        env={**variables, **env, **_engine_env(deployment)},
        ready_url=f"{join_url(HOST, settings.port)}/health",
        depends_on=after,
        start_seconds=startup_seconds(deployment),
        stop_seconds=settings.drain_seconds,
    )


def _checkpoint(deployment: M3Deployment, site: Site) -> tuple[Path, Process | None]:
    """Where the weights are, and the job that writes them if they are a tiny model's."""
    source = deployment.spec.model.source
    if source.host_path is not None:
        return Path(source.host_path.path), None
    if source.packaged is not None:
        return PACKAGED_MODEL, None
    shape = tiny_settings(deployment, Path("model"))
    digest = hashlib.sha256(shape.model_dump_json().encode()).hexdigest()[:16]
    directory = site.state / "checkpoints" / digest
    writing = shape.model_copy(update={"directory": staging(directory)})
    return directory, Process(
        name=f"{deployment.metadata.name}-checkpoint",
        kind=Kind.CHECKPOINT,
        argv=(site.python, "-m", "m3_worker.tiny", *writing.arguments()),
        env=_engine_env(deployment),
        creates=directory,
    )


def _router(
    served: Served, urls: Mapping[str, list[str]], *, listen: int, admin: int, site: Site
) -> tuple[Process, Endpoint, dict[Path, str]]:
    name = served.router.metadata.name
    directory = site.state / "routers" / name
    config_file, keys_file = directory / "router.yaml", directory / names.KEYS_FILE_ENTRY
    key = site.keys[name] if served.router.spec.auth.mode == "Keys" else None
    try:
        config = router_config(
            served.router,
            served.deployments,
            listen=f"{HOST}:{listen}",
            admin=f"{HOST}:{admin}",
            workers=urls,
            files=Files(keys=keys_file, journal=directory / "journal"),
        )
    except ConfigError as error:
        raise PlanError(f"M3Router {name}: {'; '.join(str(error).splitlines())}") from None
    files = {config_file: config.to_yaml()}
    if key is not None:
        secret = keys_secret(served.router, key)
        files[keys_file] = base64.b64decode(secret["data"][names.KEYS_FILE_ENTRY]).decode()
    process = Process(
        name=names.router_name(name),
        kind=Kind.ROUTER,
        argv=(str(site.scripts / "m3-router"), "--config", str(config_file)),
        env={},
        ready_url=f"{join_url(HOST, admin)}/readyz",
        stop_seconds=config.limits.drain_seconds,
    )
    endpoint = Endpoint(url=join_url(HOST, listen), admin_url=join_url(HOST, admin), key=key, config=config)
    return process, endpoint, files


def _refuse_what_needs_a_cluster(deployment: M3Deployment) -> None:
    where, spec = f"M3Deployment {deployment.metadata.name}: spec", deployment.spec
    if spec.engine.type != "native":
        raise PlanError(f"{where}.engine.type: {spec.engine.type} needs a cluster; `m3 up` runs the native engine")
    source = spec.model.source
    kind = next((name for name in ("pvc", "image", "huggingFace") if name in source.manifest()), None)
    if kind is not None:
        raise PlanError(f"{where}.model.source.{kind} needs a cluster; `m3 up` reads hostPath, tiny and packaged")
    ranks = spec.parallelism.nodes * max(1, spec.parallelism.gpus_per_node)
    if ranks > 1:
        raise PlanError(
            f"{where}.parallelism: {spec.parallelism.nodes} nodes x {spec.parallelism.gpus_per_node} GPUs "
            f"are {ranks} ranks, and `m3 up` runs one: set nodes to 1, and gpusPerNode to 0 (CPU) or 1"
        )
    if spec.desired_groups == 0:
        why = "suspend is true" if spec.suspend else "replicas is 0"
        raise PlanError(f"{where}: {why}, so that nothing would answer; `m3 up` needs at least one replica")
    for variable in spec.engine.env:
        if variable.value_from is not None:
            raise PlanError(f"{where}.engine.env.{variable.name}: valueFrom needs a cluster; give it a value")


def _refuse_too_few_gpus(deployments: tuple[M3Deployment, ...], site: Site) -> None:
    needed = sum(found.spec.desired_groups * found.spec.parallelism.gpus_per_node for found in deployments)
    if needed > len(site.gpus):
        raise PlanError(
            f"the deployments need {needed} GPUs and this machine has {len(site.gpus)}; "
            "lower spec.replicas, or set spec.parallelism.gpusPerNode to 0 (CPU)"
        )


def _engine_env(deployment: M3Deployment) -> dict[str, str]:
    return {variable.name: variable.value or "" for variable in deployment.spec.engine.env}


def _behind(router: M3Router, deployments: Mapping[str, M3Deployment]) -> tuple[M3Deployment, ...]:
    for name in _listed(router):
        if name not in deployments:
            raise PlanError(f"M3Router {router.metadata.name}: spec.deployments: the file has no M3Deployment {name}")
    return tuple(deployments[name] for name in _listed(router))


def _listed(router: M3Router) -> list[str]:
    return [served.name for served in router.spec.deployments]


def _distinct(served: tuple[Served, ...]) -> tuple[M3Deployment, ...]:
    """Every deployment once, in order: two routers may share one."""
    found = {deployment.metadata.name: deployment for one in served for deployment in one.deployments}
    return tuple(found.values())


def _notices(served: tuple[Served, ...]) -> list[str]:
    """What the file asks for and this machine does differently."""
    notices = []
    for one in served:
        where, spec = f"M3Router {one.router.metadata.name}", one.router.spec
        if spec.auth.mode == "Keys" and spec.auth.secret_name is not None:
            notices.append(f"{where}: there is no Secret {spec.auth.secret_name} here; it takes a key made by `m3 up`")
        if spec.replicas != 1:
            notices.append(f"{where}: runs once here, not {spec.replicas} times")
    return notices
