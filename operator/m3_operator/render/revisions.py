"""Revisions as ControllerRevisions: what the pods of one revision are rendered from, kept while it may be asked for.

A revision is the part of the spec that pods carry, and the image. Its object is written once and never changed. Read
back, it takes everything else (replicas, the rollout's rules) from the object as it is now, because no pod carries it.
"""

from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from m3_operator import names
from m3_operator.api import M3Deployment, M3DeploymentSpec
from m3_operator.observed import Manifest
from m3_operator.render.gang import Gang
from m3_operator.render.pod import owner_reference
from m3_operator.render.worker import NOT_IN_REVISION, revision_spec
from m3_operator.resources import RESOURCES

_SPEC: Final = "spec"
_IMAGE: Final = "image"


@dataclass(frozen=True)
class Template:
    """What the pods of one revision are rendered from."""

    deployment: M3Deployment
    image: str
    gang: Gang = "None"
    fetch_image: str | None = None
    """What downloads a model; None: `image` does."""


def controller_revision(template: Template, revision: str, number: int) -> dict[str, Any]:
    """The object that keeps a revision; `number` counts the revisions of its deployment, from 1."""
    meta = template.deployment.metadata
    return {
        "apiVersion": RESOURCES[names.REVISION_KIND].api_version,
        "kind": names.REVISION_KIND,
        "metadata": {
            "name": names.revision_name(meta.name, revision),
            "namespace": meta.namespace,
            "labels": {**names.worker_labels(meta.name), names.REVISION_LABEL: revision},
            "ownerReferences": [owner_reference(names.DEPLOYMENT_KIND, meta.name, meta.uid)],
        },
        "revision": number,
        "data": {_SPEC: revision_spec(template.deployment.spec), _IMAGE: template.image},
    }


def read_template(manifest: Manifest, now: M3Deployment) -> Template | None:
    """What a kept revision of `now` is rendered from; None if this version of the operator cannot read it."""
    data = manifest.get("data") or {}
    spec, image = data.get(_SPEC), data.get(_IMAGE)
    if not isinstance(spec, dict) or not isinstance(image, str):
        return None
    live = now.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=set(NOT_IN_REVISION))
    try:
        found = M3DeploymentSpec.model_validate({**spec, **live})
    except ValidationError:
        return None
    return Template(now.model_copy(update={"spec": found}), image)


def number_of(manifest: Manifest) -> int:
    """How many revisions its deployment had when it was made."""
    return int(manifest.get("revision", 0))


def revision_of(manifest: Manifest) -> str:
    """The revision that an object keeps."""
    return str((manifest["metadata"].get("labels") or {}).get(names.REVISION_LABEL, ""))


def revision_data(manifest: Manifest) -> tuple[dict[str, Any], str]:
    """The spec and the image of a kept revision, as they were written."""
    data = manifest.get("data") or {}
    return dict(data.get(_SPEC) or {}), str(data.get(_IMAGE, ""))
