"""What groups need of the cluster beside their pods: who schedules them as wholes, and the objects their pods name.

Decides by what the API server has (`Installation.optional_kinds`). What a spec asks for by name and the cluster lacks
is a problem, with a sentence that says what to do; only `Auto` may settle for less.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from m3_operator.api import M3Deployment
from m3_operator.decide.installation import Installation
from m3_operator.decide.problem import Problem
from m3_operator.groups import Group
from m3_operator.plan.actions import CreatePods, PodAction
from m3_operator.render.accelerator import CLAIM_TEMPLATE_KIND, claim_template
from m3_operator.render.autoscaler import autoscaler
from m3_operator.render.cache import cached_model
from m3_operator.render.extras import MONITOR_KIND, network_policy, pod_monitor
from m3_operator.render.gang import KINDS, VOLCANO_SCHEDULER, Gang, gang_object, needs_gang
from m3_operator.render.revisions import Template


def choose_gang(deployment: M3Deployment, installation: Installation) -> Gang:
    """Who keeps the pods of a group together.

    Auto takes the first that the cluster has and whose scheduler the pods would meet: SchedulerPlugins adds to a
    scheduler of its own, so that it only counts where the template names one. Kueue is never taken unasked, since it
    also decides about quota.
    """
    chosen = deployment.spec.placement.gang.provider
    if chosen != "Auto":
        return chosen
    if not needs_gang(deployment):
        return "None"
    scheduler, has = deployment.spec.template.scheduler_name, installation.optional_kinds
    if KINDS["Native"] in has:
        return "Native"
    if KINDS["Volcano"] in has and scheduler in (None, VOLCANO_SCHEDULER):
        return "Volcano"
    if KINDS["SchedulerPlugins"] in has and scheduler not in (None, VOLCANO_SCHEDULER):
        return "SchedulerPlugins"
    return "Gates"


def lacking(deployment: M3Deployment, installation: Installation) -> Problem | None:
    """What the spec asks for that this cluster does not have, or that the operator may not use."""
    provider, has = deployment.spec.placement.gang.provider, installation.optional_kinds
    if provider in KINDS and KINDS[provider] not in has and needs_gang(deployment):
        return Problem(
            "GangUnavailable",
            f"spec.placement.gang.provider: the API server has no {KINDS[provider]} for {provider}, or the operator "
            "may not list it; install it and restart the operator, or set provider to Auto",
        )
    if cached_model(deployment) and deployment.spec.engine.type != "native" and installation.worker_image is None:
        return Problem(
            "ImageMissing",
            "model.source.huggingFace: our worker's image downloads the model; start the operator with --worker-image",
        )
    if claim_template(deployment) is not None and CLAIM_TEMPLATE_KIND not in has:
        return Problem(
            "DRAUnavailable",
            "spec.accelerator.mode: DRA needs resource.k8s.io/v1 (Kubernetes 1.34 or later), and the API server does "
            "not have it, or the operator may not list it; set mode to DevicePlugin",
        )
    return None


def fetch_image(template: Template, installation: Installation) -> str:
    """What downloads a model: our own worker, whichever engine runs it."""
    is_native = template.deployment.spec.engine.type == "native"
    return template.image if is_native else installation.worker_image or template.image


def extras(deployment: M3Deployment, installation: Installation) -> list[dict[str, Any]]:
    """What the deployment has beside its groups. PodMonitors and autoscalers only where the cluster has any."""
    monitor = pod_monitor(deployment) if MONITOR_KIND in installation.optional_kinds else None
    scaler = autoscaler(deployment)
    if scaler is not None and scaler["kind"] not in installation.optional_kinds:
        scaler = None
    return [made for made in (network_policy(deployment, installation.namespace), monitor, scaler) if made is not None]


def group_objects(
    templates: Mapping[str, tuple[M3Deployment, Gang]], groups: Mapping[int, Group], actions: Iterable[PodAction]
) -> list[dict[str, Any]]:
    """What the pods name that exist or are about to be made. `templates`: by revision, and who schedules its groups.

    Groups of a revision whose template is lost get nothing anew; their pods have been scheduled already.
    """
    in_use = {(index, group.revision or "") for index, group in groups.items()}
    in_use |= {(action.group, action.revision) for action in actions if isinstance(action, CreatePods)}
    objects: dict[tuple[str, str], dict[str, Any]] = {}
    for index, revision in sorted((index, revision) for index, revision in in_use if revision in templates):
        deployment, gang = templates[revision]
        for manifest in (claim_template(deployment), gang_object(deployment, index, revision, gang)):
            if manifest is not None:
                objects[manifest["kind"], manifest["metadata"]["name"]] = manifest
    return list(objects.values())
