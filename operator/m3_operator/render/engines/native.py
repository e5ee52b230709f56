"""Our own worker: flags from its settings, ranks in environment variables.

`worker_settings` and `tiny_settings` are the one place where a spec becomes the flags of a worker; pods and `m3 up`
both start from them, and capacity is worked out from them.
"""

from pathlib import Path
from typing import Final

from m3_operator.api import M3Deployment
from m3_operator.render import experts
from m3_operator.render.engines.launch import (
    ANY_ADDRESS,
    MODEL_DIRECTORY,
    RENDEZVOUS_PORT,
    Launch,
    leader_name,
)
from m3_worker.config import TinySettings, WorkerSettings

_NODES_JOIN_SECONDS: Final = 6 * 3600.0
"""For nodes of which each downloads the model first: some have it already, when others have yet to begin."""
PACKAGED_MODEL: Final = Path("tiny")
"""What `m3-worker --model` calls the model that is part of it."""


def launch(deployment: M3Deployment, group: int, rank: int) -> Launch:
    """How `m3-worker` is started as one rank of a group."""
    spec = deployment.spec
    settings = worker_settings(
        deployment,
        model=PACKAGED_MODEL if spec.model.source.packaged is not None else Path(MODEL_DIRECTORY),
        host=ANY_ADDRESS,
        port=spec.engine.port,
        expert_plan=Path(experts.PLAN_FILE) if experts.has_plan(deployment) else None,
    )
    if spec.model.cache is not None and spec.model.cache.mode == "NodeLocal":
        settings = settings.model_copy(update={"rank_join_seconds": _NODES_JOIN_SECONDS})
    variables = {
        "M3_NODE_RANK": str(rank),
        "M3_NODES": str(spec.parallelism.nodes),
        "M3_GPUS_PER_NODE": str(spec.parallelism.gpus_per_node),
        "MASTER_ADDR": leader_name(deployment, group),
        "MASTER_PORT": str(RENDEZVOUS_PORT),
    }
    return Launch(
        command=("m3-worker",),
        arguments=tuple(settings.arguments()),
        environment=tuple({"name": name, "value": value} for name, value in variables.items()),
    )


def worker_settings(
    deployment: M3Deployment, *, model: Path, host: str, port: int, expert_plan: Path | None = None
) -> WorkerSettings:
    """The settings of rank 0, serving the checkpoint in `model` on `host`:`port`."""
    spec = deployment.spec
    return WorkerSettings(
        model=model,
        served_model_name=spec.model.served_name,
        host=host,
        port=port,
        device="cuda" if spec.parallelism.gpus_per_node else "cpu",
        dtype=spec.model.dtype,
        max_context_tokens=spec.engine.max_context_tokens,
        max_concurrent=spec.engine.max_concurrent,
        step_tokens=spec.engine.step_tokens,
        redundant_experts=spec.parallelism.redundant_experts,
        expert_plan=expert_plan,
        cache_tokens=spec.engine.cache_tokens,
        cache_dtype=spec.engine.cache_dtype,
        index_cache_dtype=spec.engine.index_cache_dtype,
        drain_seconds=float(spec.drain.timeout_seconds),
        step_deadline_seconds=float(spec.recovery.hang_seconds),
    )


def worker_arguments(deployment: M3Deployment, settings: WorkerSettings) -> list[str]:
    """The arguments of `m3-worker`: the settings' flags, then those that the user added."""
    return [*settings.arguments(), *deployment.spec.engine.args]


def tiny_settings(deployment: M3Deployment, directory: Path) -> TinySettings:
    """What writes the deployment's tiny checkpoint into `directory`. Raises ValueError if its source is another."""
    tiny = deployment.spec.model.source.tiny
    if tiny is None:
        raise ValueError(f"{deployment.metadata.name}: model.source is not tiny")
    return TinySettings(directory=directory, **tiny.model_dump(by_alias=False))
