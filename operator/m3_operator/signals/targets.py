"""Whom to ask for the signals of a deployment: addresses, from what the store has.

A deployment is asked about only while somebody needs the answer: the built-in autoscaler, the watch for hanging ranks,
or the people who follow a drain.
"""

from dataclasses import dataclass
from typing import Any, Final

from m3_operator.observed import DeploymentSnapshot, Manifest, ObservedPod, RouterPod

_WORKER_PORT: Final = 8000


@dataclass(frozen=True, slots=True)
class Target:
    """One process to ask."""

    uid: str
    """Of its pod."""
    name: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """All of one deployment."""

    pool: str
    models: tuple[str, ...]
    workers: tuple[Target, ...] = ()
    routers: tuple[Target, ...] = ()
    dcgm: tuple[str, ...] = ()
    """URLs that have DCGM's metrics of its GPUs."""
    ready: int = 0
    """Groups that serve."""
    wanted: int | None = None
    """Groups that its autoscaler wanted last; None: it has none of ours."""

    @property
    def is_asleep(self) -> bool:
        """Whether no group runs, and a request may wait for the first."""
        return self.wanted == 0


def targets(snapshot: DeploymentSnapshot, routers: list[RouterPod]) -> Targets | None:
    """Whom to ask now; None: nobody needs to know."""
    manifest = snapshot.manifest
    spec = manifest.get("spec", {})
    if spec.get("suspend") or not (_is_built_in(spec) or _watches_for_hangs(spec) or _drains(snapshot)):
        return None
    port = (spec.get("engine") or {}).get("port") or _WORKER_PORT
    serving = [pod for pod in snapshot.pods if pod.rank == 0 and pod.ip and (pod.is_ready or pod.is_terminating)]
    return Targets(
        pool=str(manifest["metadata"]["name"]),
        models=_models(spec),
        workers=tuple(Target(pod.uid, pod.name, f"http://{_host(pod.ip)}:{port}/metrics") for pod in serving),
        routers=tuple(
            Target(pod.uid, pod.name, f"http://{_host(pod.ip)}:{pod.admin_port}/metrics")
            for pod in routers
            if pod.ip and pod.admin_port and pod.is_ready
        ),
        dcgm=_dcgm_urls(spec, serving),
        ready=sum(pod.is_ready and not pod.is_terminating for pod in serving),
        wanted=_wanted(manifest) if _is_built_in(spec) else None,
    )


def _is_built_in(spec: Manifest) -> bool:
    autoscaling = spec.get("autoscaling")
    return autoscaling is not None and autoscaling.get("backend", "Builtin") == "Builtin"


def _watches_for_hangs(spec: Manifest) -> bool:
    return bool((spec.get("recovery") or {}).get("hangSeconds"))


def _drains(snapshot: DeploymentSnapshot) -> bool:
    return any(pod.rank == 0 and pod.is_terminating and not pod.is_finished for pod in snapshot.pods)


def _wanted(manifest: Manifest) -> int | None:
    found: int | None = (manifest.get("status", {}).get("autoscaling") or {}).get("desired")
    return found


def _models(spec: Manifest) -> tuple[str, ...]:
    """The names under which routers may count its requests."""
    model: dict[str, Any] = spec.get("model") or {}
    return tuple(dict.fromkeys(str(name) for name in (*(model.get("servedNames") or ()), model.get("name")) if name))


def _dcgm_urls(spec: Manifest, serving: list[ObservedPod]) -> tuple[str, ...]:
    gpu_metrics = (spec.get("autoscaling") or {}).get("gpuMetrics") or {}
    url = gpu_metrics.get("url")
    if gpu_metrics.get("source") != "DCGM" or not url:
        return ()
    if "{hostIP}" not in url:
        return (str(url),)
    return tuple(dict.fromkeys(url.replace("{hostIP}", _host(pod.host_ip)) for pod in serving if pod.host_ip))


def _host(address: str | None) -> str:
    """An address as URLs write it."""
    return f"[{address}]" if address and ":" in address else str(address)
