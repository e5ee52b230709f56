"""Every name that crosses the wire: the API group, labels, annotations, and the names of children.

Child names are computed from the owner's name and an index alone, so that creating an object twice is harmless and a
restarted operator finds what its predecessor made. An owner's name is at most 40 characters (the CRDs refuse more):
the longest child, `NAME-gG-rR` with G < 10,000 and R < 1000, stays within a DNS label's 63.
"""

from collections.abc import Mapping

GROUP = "serving.m3.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
DEPLOYMENT_KIND = "M3Deployment"
ROUTER_KIND = "M3Router"
REVISION_KIND = "ControllerRevision"
TENANT_KIND = "M3Tenant"

FIELD_MANAGER = "m3-operator"
CLI_FIELD_MANAGER = "m3-cli"
NAME_MAX_LENGTH = 40
NAME_PATTERN = "^[a-z]([-a-z0-9]*[a-z0-9])?$"

DEPLOYMENT_LABEL = f"{GROUP}/deployment"
ROUTER_LABEL = f"{GROUP}/router"
GROUP_LABEL = f"{GROUP}/group"
RANK_LABEL = f"{GROUP}/rank"
REVISION_LABEL = f"{GROUP}/revision"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
COMPONENT_LABEL = "app.kubernetes.io/component"

APPLIED_HASH_ANNOTATION = f"{GROUP}/applied-hash"
CONFIG_HASH_ANNOTATION = f"{GROUP}/config-hash"
# How many pods the group of a pod has: a group outlives a change of spec.parallelism until it is replaced.
NODES_ANNOTATION = f"{GROUP}/nodes"
# Which nodes a pod was kept away from when it was created.
AVOIDS_ANNOTATION = f"{GROUP}/avoids"

# What a claim of ours keeps, for people: REPOSITORY@COMMIT.
CACHED_ANNOTATION = f"{GROUP}/cached"
# When the pods of a group were let to the scheduler; it only says whose turn is over.
OPENED_ANNOTATION = f"{GROUP}/opened-at"
# What holds the pods of a group back from the scheduler until its turn.
GROUP_GATE = f"{GROUP}/group"

OPERATOR_SELECTOR = {COMPONENT_LABEL: "operator"}  # picks the operator's own pods, in its namespace
# On the pods of a deployment that `m3 rollout restart` was asked for, and when: it makes a revision of its own.
RESTARTED_ANNOTATION = f"{GROUP}/restarted-at"

WORKER_COMPONENT = "worker"
ROUTER_COMPONENT = "router"
CACHE_COMPONENT = "model-cache"
JOB_LABEL = "batch.kubernetes.io/job-name"  # of Kubernetes' own, on the pods of a Job

HTTP_PORT_NAME = "http"
ADMIN_PORT_NAME = "admin"
API_KEY_ENTRY = "api-key"
KEYS_FILE_ENTRY = "keys.yaml"


def group_name(deployment: str, group: int) -> str:
    """The headless Service of one group, and the stem of its pods: `NAME-gG`."""
    return f"{deployment}-g{group}"


def pod_name(deployment: str, group: int, rank: int) -> str:
    """The pod of one node of a group: `NAME-gG-rR`. `rank` counts nodes, not GPUs."""
    return f"{group_name(deployment, group)}-r{rank}"


def gang_name(deployment: str, group: int, revision: str) -> str:
    """The PodGroup of one group at one revision: `NAME-gG-REVISION`."""
    return f"{group_name(deployment, group)}-{revision}"


def revision_name(deployment: str, revision: str) -> str:
    """The ControllerRevision that keeps one revision: `NAME-REVISION`."""
    return f"{deployment}-{revision}"


def workers_service_name(deployment: str) -> str:
    """The Service over every group's rank 0, which routers and people talk to."""
    return f"{deployment}-workers"


def experts_name(deployment: str) -> str:
    """The ConfigMap with the plan of experts that its groups begin with."""
    return f"{deployment}-experts"


def shared_claim_name(digest: str) -> str:
    """The PersistentVolumeClaim that keeps one model for all deployments of a namespace."""
    return f"m3-cache-{digest}"


def claim_name(deployment: str, digest: str) -> str:
    """The PersistentVolumeClaim that keeps one model for this deployment alone."""
    return f"{deployment}-cache-{digest}"


def fetch_job_name(deployment: str, digest: str) -> str:
    """The Job that fills a cache; a Job cannot be changed, so that its name tells what it does."""
    return f"{deployment}-fetch-{digest}"


def router_name(router: str) -> str:
    """Deployment, Service, ConfigMap, ServiceAccount, Role and RoleBinding of one M3Router."""
    return f"{router}-router"


def keys_secret_name(router: str) -> str:
    """The Secret with the key that is generated for a router without a `secretName` of its own."""
    return f"{router}-keys"


def common_labels(instance: str, component: str) -> dict[str, str]:
    """The recommended labels that every child carries; `managed-by` is what watches select on."""
    return {
        "app.kubernetes.io/name": "m3serve",
        "app.kubernetes.io/instance": instance,
        COMPONENT_LABEL: component,
        "app.kubernetes.io/part-of": "m3serve",
        MANAGED_BY_LABEL: FIELD_MANAGER,
    }


def worker_labels(deployment: str) -> dict[str, str]:
    """Labels of everything that belongs to the workers of one M3Deployment."""
    return {**common_labels(deployment, WORKER_COMPONENT), DEPLOYMENT_LABEL: deployment}


def cache_labels(deployment: str) -> dict[str, str]:
    """Labels of what downloads and keeps the model of one M3Deployment."""
    return {**common_labels(deployment, CACHE_COMPONENT), DEPLOYMENT_LABEL: deployment}


def router_labels(router: str) -> dict[str, str]:
    """Labels of everything that belongs to one M3Router."""
    return {**common_labels(router, ROUTER_COMPONENT), ROUTER_LABEL: router}


def group_selector(deployment: str, group: int) -> dict[str, str]:
    """Picks every pod of one group."""
    return {DEPLOYMENT_LABEL: deployment, GROUP_LABEL: str(group)}


def rank0_selector(deployment: str) -> dict[str, str]:
    """Picks the pods that serve HTTP: rank 0 of every group. Services and the scale subresource use it."""
    return {DEPLOYMENT_LABEL: deployment, RANK_LABEL: "0"}


def router_selector(router: str) -> dict[str, str]:
    """Picks the pods of one router."""
    return {ROUTER_LABEL: router, COMPONENT_LABEL: ROUTER_COMPONENT}


def selector_text(selector: Mapping[str, str]) -> str:
    """A selector in the form that the scale subresource and `kubectl -l` read: `a=b,c=d`."""
    return ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
