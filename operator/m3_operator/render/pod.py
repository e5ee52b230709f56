"""What worker and router pods have in common: how they are locked down, and how `spec.template` is laid over them.

The container's privileges, its read-only root file system and the writable /tmp are ours and no template changes them;
a pod's own securityContext can be overlaid, key by key, and a null takes a default away (as OpenShift wants it for
runAsUser, which it chooses itself).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from m3_operator.names import API_VERSION
from m3_operator.spec.fragments import LocalReference, PodTemplate

# Endpoints take a moment to reach every router and kube-proxy; until then requests still arrive at a pod that is going.
PROPAGATION_SECONDS: Final = 5
# Between the end of a drain and the kill, for the process to close its files and say so.
EXIT_MARGIN_SECONDS: Final = 10
# A number, because kubelet refuses runAsNonRoot for an image whose user is a name; 65532 is the usual "nonroot".
USER_ID: Final = 65532

POD_SECURITY: Final[Mapping[str, Any]] = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Final[Mapping[str, Any]] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}

TMP_VOLUME: Final[Mapping[str, Any]] = {"name": "tmp", "emptyDir": {}}
TMP_MOUNT: Final[Mapping[str, Any]] = {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108 - inside the container
HOME: Final[Mapping[str, str]] = {"name": "HOME", "value": "/tmp"}  # noqa: S108 - caches need a writable home


def owner_reference(kind: str, name: str, uid: str) -> dict[str, Any]:
    """The reference by which Kubernetes' garbage collector deletes a child after its owner.

    blockOwnerDeletion is left out: it would need the right to update the owner's finalizers.
    """
    return {"apiVersion": API_VERSION, "kind": kind, "name": name, "uid": uid, "controller": True}


def termination_seconds(drain_seconds: float) -> int:
    """terminationGracePeriodSeconds that lets a drain of this length end by itself."""
    return PROPAGATION_SECONDS + int(drain_seconds) + EXIT_MARGIN_SECONDS


def drained_lifecycle() -> dict[str, Any]:
    """Keeps a pod serving until everybody knows that it is going; only then SIGTERM starts the drain."""
    return {"preStop": {"sleep": {"seconds": PROPAGATION_SECONDS}}}


def lay_over(
    spec: Mapping[str, Any],
    template: PodTemplate,
    pull_secrets: Sequence[LocalReference],
) -> dict[str, Any]:
    """A pod spec with what users may add. Volume mounts go to every container, resources to the main one."""
    wanted = template.manifest()
    mounts, volumes = wanted["volumeMounts"], list(wanted["volumes"])
    if template.shm_size is not None:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": template.shm_size}})
        mounts = [*mounts, {"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108 - inside the container
    result = dict(spec)
    for field in ("initContainers", "containers"):
        if field in spec:
            result[field] = [
                {**container, "volumeMounts": [*container["volumeMounts"], *mounts]} for container in spec[field]
            ]
    main = result["containers"][0]
    resources = _merged_resources(main.get("resources", {}), wanted["resources"])
    if resources:
        main["resources"] = resources
    result["volumes"] = [*spec["volumes"], *volumes]
    security = {**POD_SECURITY, **wanted.get("securityContext", {})}
    result["securityContext"] = {key: value for key, value in security.items() if value is not None}
    if pull_secrets:
        result["imagePullSecrets"] = [secret.manifest() for secret in pull_secrets]
    passed_on = ("nodeSelector", "tolerations", "affinity", "runtimeClassName", "schedulerName", "priorityClassName")
    for field in (*passed_on, "serviceAccountName", "topologySpreadConstraints"):
        if wanted.get(field):
            result[field] = wanted[field]
    return result


def pod_metadata(template: PodTemplate, labels: Mapping[str, str], annotations: Mapping[str, str]) -> dict[str, Any]:
    """Labels and annotations of a pod: the users', then ours over them."""
    metadata: dict[str, Any] = {"labels": {**template.labels, **labels}}
    if template.annotations or annotations:
        metadata["annotations"] = {**template.annotations, **annotations}
    return metadata


def _merged_resources(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    merged = {kind: {**theirs.get(kind, {}), **ours.get(kind, {})} for kind in ("requests", "limits")}
    return {kind: amounts for kind, amounts in merged.items() if amounts}
