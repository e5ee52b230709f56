"""Whom to ask for the signals of a deployment: addresses, from what the store has.

A deployment is asked about only while somebody needs the answer, and as often: the built-in autoscaler every 5 s, and
every second at zero groups; those who follow a drain every 5 s; the watch for hanging ranks and failing GPUs, which
asks workers alone, a few times in the time that a rank may stand still; a download of its model every 5 s.
"""

from dataclasses import dataclass
from typing import Any, Final

from m3_operator.observed import DeploymentSnapshot, HelperPod, Manifest, ObservedPod
from m3_operator.signals.values import SCRAPE_SECONDS

ASLEEP_SECONDS: Final = 1.0
"""Time between two looks while a request may wait for the first group."""
_HANG_SECONDS: Final = 15.0
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
    fetchers: tuple[Target, ...] = ()
    """Those that download its model."""
    dcgm: tuple[str, ...] = ()
    """URLs that have DCGM's metrics of its GPUs."""
    ready: int = 0
    """Groups that serve."""
    is_scaled: bool = False
    """Whether the built-in autoscaler decides by what they say."""
    every_seconds: float = SCRAPE_SECONDS


def targets(snapshot: DeploymentSnapshot, routers: list[HelperPod]) -> Targets | None:
    """Whom to ask now; None: nobody needs to know."""
    manifest = snapshot.manifest
    spec = manifest.get("spec", {})
    port = (spec.get("engine") or {}).get("port") or _WORKER_PORT
    is_scaled, fetchers = _is_built_in(spec), _fetchers(snapshot, port)
    paces = [pace for pace in (_pace(snapshot), SCRAPE_SECONDS if fetchers else None) if pace is not None]
    if not paces:
        return None
    serving = [pod for pod in snapshot.pods if pod.rank == 0 and pod.ip and (pod.is_ready or pod.is_terminating)]
    return Targets(
        pool=str(manifest["metadata"]["name"]),
        models=_models(spec),
        workers=tuple(Target(pod.uid, pod.name, f"http://{_host(pod.ip)}:{port}/metrics") for pod in serving),
        routers=tuple(
            Target(pod.uid, pod.name, f"http://{_host(pod.ip)}:{pod.port}/metrics")
            for pod in routers
            if is_scaled and pod.ip and pod.port and pod.is_ready
        ),
        dcgm=_dcgm_urls(spec, serving) if is_scaled else (),
        ready=sum(pod.is_ready and not pod.is_terminating for pod in serving),
        fetchers=fetchers,
        is_scaled=is_scaled,
        every_seconds=min(paces),
    )


def _fetchers(snapshot: DeploymentSnapshot, port: int) -> tuple[Target, ...]:
    """Pods of a Job, and those workers whose first container fills their node's cache."""
    model: Manifest = snapshot.manifest.get("spec", {}).get("model") or {}
    found = [
        Target(pod.uid, pod.name, f"http://{_host(pod.ip)}:{pod.port}/metrics")
        for pod in snapshot.fetchers
        if pod.is_running and pod.ip and pod.port
    ]
    if (model.get("cache") or {}).get("mode") == "NodeLocal":
        found += [
            Target(pod.uid, pod.name, f"http://{_host(pod.ip)}:{port}/metrics")
            for pod in snapshot.pods
            if pod.phase == "Pending" and pod.ip
        ]
    return tuple(found)


def _is_built_in(spec: Manifest) -> bool:
    autoscaling = spec.get("autoscaling")
    return autoscaling is not None and autoscaling.get("backend", "Builtin") == "Builtin"


def _pace(snapshot: DeploymentSnapshot) -> float | None:
    """Seconds between two looks; None: nobody needs any."""
    spec, status = snapshot.manifest.get("spec", {}), snapshot.manifest.get("status", {})
    if _is_built_in(spec) and not spec.get("suspend"):
        is_asleep = (status.get("autoscaling") or {}).get("desired") == 0
        return ASLEEP_SECONDS if is_asleep else SCRAPE_SECONDS
    if any(pod.rank == 0 and pod.is_terminating and not pod.is_finished for pod in snapshot.pods):
        return SCRAPE_SECONDS
    hang_seconds = (spec.get("recovery") or {}).get("hangSeconds")
    if not hang_seconds or not snapshot.pods:
        return None
    return min(max(float(hang_seconds) / 4, SCRAPE_SECONDS), _HANG_SECONDS)


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
