"""Whether the model of each revision is downloaded, what has to be made for it, and what to say until it is.

Pure. A cache in a volume is complete when the Job that fills it is; groups of its revision are not made before. A cache
of nodes is filled by the worker pods themselves, so that nothing waits for it here, and it is only told of.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from m3_operator.api import M3Deployment
from m3_operator.decide.diagnosis import pod_problem
from m3_operator.decide.problem import Problem
from m3_operator.observed import DeploymentSnapshot, HelperPod, Manifest, condition, uid
from m3_operator.render.cache import CLAIM_KIND, JOB_KIND, cache_claim, cached_model, claim_of, fetch_job
from m3_operator.render.revisions import Template
from m3_operator.signals.values import FetchSignals

FAILURES: Final[Mapping[str, str]] = {
    "RepositoryForbidden": "see model.source.huggingFace.repo and tokenSecretRef",
    "RepositoryNotFound": "correct model.source.huggingFace",
    "HubUnreachable": "see that pods reach model.source.huggingFace.endpoint; it is tried again",
    "CacheFull": "enlarge the volume; it is tried again",
    "CacheNotWritable": "let that user write there; it is tried again",
    "DownloadCorrupt": "it is tried again; if that does not help, ask whoever keeps the hub",
}
"""Why a download failed, in the words of the container that tried, and what to do."""
_CAUSE: Final = re.compile(rf"({'|'.join(FAILURES)}): ")
_SOON: Final = timedelta(seconds=5)
_GIB: Final = 2**30


@dataclass(frozen=True)
class Told:
    """What is known of the model of the revision that is asked for."""

    holds: bool | None
    """Whether it is downloaded; None: nobody knows yet."""
    reason: str
    message: str
    progress: FetchSignals | None = None


@dataclass(frozen=True)
class Weights:
    """The downloaded models of one deployment."""

    missing: frozenset[str] = frozenset()
    """Revisions of which no group can be made yet."""
    objects: tuple[Manifest, ...] = ()
    """The claims and Jobs that should exist."""
    told: Told | None = None
    """None: the model is not one that is downloaded."""
    wake_at: datetime | None = None
    """When to look again: a Job is made after the claim that it fills."""


NO_WEIGHTS: Final = Weights()


def decide_weights(
    snapshot: DeploymentSnapshot, templates: Mapping[str, Template], asked: str, now: datetime
) -> Weights:
    """What the models of these revisions need. `asked`: the one to tell of."""
    live = {**snapshot.children, **snapshot.claims}
    objects: dict[tuple[str, str], Manifest] = {}
    missing: set[str] = set()
    told: Told | None = None
    wake_at: datetime | None = None
    for revision, template in templates.items():
        if claim_of(template.deployment) is None:
            told = _told_by_workers(snapshot, template.deployment) if revision == asked else told
            continue
        job: Manifest | None = None
        claim = cache_claim(template.deployment)
        kept = None if claim is None else live.get((CLAIM_KIND, claim["metadata"]["name"]))
        if claim is not None:
            objects[CLAIM_KIND, claim["metadata"]["name"]] = claim
        if claim is None or kept is not None:
            wanted = fetch_job(template.deployment, template.fetch_image or template.image, uid(kept or {}))
            name = wanted["metadata"]["name"]
            objects[JOB_KIND, name] = wanted
            job = live.get((JOB_KIND, name))
        if job is None:
            wake_at = now + _SOON
        if job is None or condition(job, "Complete").get("status") != "True":
            missing.add(revision)
        if revision == asked:
            told = _told_by_job(snapshot, template.deployment, job)
    return Weights(frozenset(missing), tuple(objects.values()), told, wake_at)


def _told_by_job(snapshot: DeploymentSnapshot, deployment: M3Deployment, job: Manifest | None) -> Told:
    what = _what(deployment)
    if job is None:
        return Told(False, "DownloadWaiting", f"{what}: the Job that downloads it is about to be made")
    if condition(job, "Complete").get("status") == "True":
        return Told(True, "Downloaded", f"{what} is in PersistentVolumeClaim {claim_of(deployment)}")
    name = job["metadata"]["name"]
    pods = [pod for pod in snapshot.fetchers if pod.job == name]
    running = next((pod for pod in pods if pod.is_running), None)
    if running is None:
        trouble = next(filter(None, map(_trouble_of, pods)), None)
        if trouble is not None:
            return Told(False, trouble.reason, trouble.message)
        return Told(False, "DownloadWaiting", f"{what}: Job {name} has no pod that runs yet")
    found = snapshot.signals.fetches.get(running.uid)
    before = f" (it ended before: {running.last_words})" if running.last_words else ""
    return Told(False, "Downloading", f"{what}: {_how_far(found)}{before}", found)


def _told_by_workers(snapshot: DeploymentSnapshot, deployment: M3Deployment) -> Told | None:
    found = cached_model(deployment)
    if found is None:
        return None
    what = _what(deployment)
    for pod in snapshot.pods:
        failure = _failure(pod.name, pod.message) if pod.is_finished else None
        if failure is not None:
            return Told(False, failure.reason, failure.message)
    fetches = snapshot.signals.fetches
    filling = [pod for pod in snapshot.pods if pod.phase == "Pending" and pod.uid in fetches]
    if filling:
        last = min(filling, key=lambda pod: fetches[pod.uid].done_bytes)
        others = f"; {len(filling)} nodes download it" if len(filling) > 1 else ""
        message = f"{what}, on {last.node_name}: {_how_far(fetches[last.uid])}{others}"
        return Told(False, "Downloading", message, fetches[last.uid])
    if any(pod.has_started and not pod.is_finished for pod in snapshot.pods):
        return Told(True, "Downloaded", f"{what} is in {found[1].path} of every node that runs it")
    return Told(None, "DownloadWaiting", f"{what}: no worker pod has looked for it on its node yet")


def _trouble_of(pod: HelperPod) -> Problem | None:
    """Why a pod that does not run does not."""
    failure = _failure(pod.name, pod.last_words)
    if failure is not None:
        return failure
    if pod.last_words:
        return Problem("DownloadFailed", f"{pod.name} ended: {pod.last_words}; see its log; it is tried again")
    return pod_problem(pod)


def _failure(pod: str, words: str) -> Problem | None:
    """The cause that the container that downloads gave when it ended."""
    found = _CAUSE.search(words)
    if found is None:
        return None
    return Problem(found[1], f"{pod}: {words[found.end() :]}; {FAILURES[found[1]]}")


def _what(deployment: M3Deployment) -> str:
    source = deployment.spec.model.source.hugging_face
    return "" if source is None else f"{source.repo}@{source.revision[:12]}"


def _how_far(found: FetchSignals | None) -> str:
    if found is None:
        return "it is being downloaded, how far is not known yet"
    words = f"{found.done_bytes / _GIB:.1f} of {found.needed_bytes / _GIB:.1f} GiB"
    return words if found.seconds_left is None else f"{words}, {_duration(found.seconds_left)} left"


def _duration(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
