"""Routers as configuration and as Kubernetes objects.

`router_config` is the one place where an M3Router and the M3Deployments it names become the router's own file; the
ConfigMap and `m3 up` both use it. Whether that file makes sense (two deployments with one model, prices finer than a
nano-dollar) is judged by the router's own checks: ConfigError comes from there.

The pods may read the EndpointSlices of their namespace, and nothing else.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

import yaml
from pydantic import ValidationError

from m3_operator import names
from m3_operator.api import M3Deployment, M3Router, M3Tenant
from m3_operator.render import pod
from m3_operator.render.engines import vllm
from m3_operator.render.router_mounts import (
    CONFIG_DIRECTORY,
    CONFIG_ENTRY,
    POD_FILES,
    TENANTS_ENTRY,
    environment,
    volume_mounts,
    volumes,
)
from m3_operator.render.router_settings import Files, external_pool, pool_limits, settings
from m3_operator.render.tenants import check_plans, tenants_file
from m3_operator.spec.upstreams import RoutedDeployment
from m3_router.config import KeySettings, RouterConfig, ServiceWorkers, keys_to_yaml

DATA_PORT: Final = 8080
ADMIN_PORT: Final = 9090
GENERATED_TENANT: Final = "default"


def router_config(
    router: M3Router,
    deployments: Sequence[M3Deployment],
    *,
    listen: str,
    admin: str,
    workers: Mapping[str, ServiceWorkers | list[str]],
    files: Files,
) -> RouterConfig:
    """The router's configuration: one pool per deployment, its workers looked up by the deployment's name.

    Without files of keys, or with auth.mode None, no key is asked for; on an address beyond loopback the router's own
    rule then wants `auth.allowInsecure`. Raises m3_router.config.ConfigError.
    """
    check_plans(router)
    spec = router.spec
    entries = {entry.name: entry for entry in spec.deployments}
    document = {
        "listen": listen,
        "admin": admin,
        **settings(router, files),
        "routes": _routes(router, {found.metadata.name for found in deployments}),
        "pools": [
            *(_pool(found, entries.get(found.metadata.name), workers[found.metadata.name]) for found in deployments),
            *(external_pool(pool, files) for pool in spec.external_pools),
        ],
    }
    try:
        return RouterConfig.model_validate(document)
    except ValidationError:
        # Only now by way of a text, which is slow: it words the refusal as the router itself would.
        return RouterConfig.from_yaml(yaml.safe_dump(document, sort_keys=False))


def cluster_config(router: M3Router, deployments: Sequence[M3Deployment]) -> RouterConfig:
    """`router_config` as the router's pods get it: workers from EndpointSlices, keys from the mounted Secret."""
    any_address = "0.0.0.0"  # noqa: S104 - inside a pod, whose network is its own
    return router_config(
        router,
        deployments,
        listen=f"{any_address}:{DATA_PORT}",
        admin=f"{any_address}:{ADMIN_PORT}",
        workers={
            deployment.metadata.name: ServiceWorkers(
                service=names.workers_service_name(deployment.metadata.name),
                namespace=deployment.metadata.namespace,
                port=names.HTTP_PORT_NAME,
            )
            for deployment in deployments
        },
        files=POD_FILES,
    )


def router_objects(
    router: M3Router, config: RouterConfig, *, image: str, tenants: Sequence[M3Tenant] = ()
) -> list[dict[str, Any]]:
    """Everything one router needs but its keys, in the order of creation: what the pods read comes before them."""
    text = config.to_yaml()
    data = {CONFIG_ENTRY: text}
    if router.spec.auth.mode == "Keys":
        data[TENANTS_ENTRY] = tenants_file(router, tenants)
    objects = [router_object(router, "v1", "ConfigMap", {"data": data})]
    if router.spec.template.service_account_name is None:
        objects.append(router_object(router, "v1", "ServiceAccount", {"automountServiceAccountToken": False}))
    return [*objects, _role(router), _role_binding(router), _service(router), _deployment(router, text, image, tenants)]


def keys_secret(router: M3Router, api_key: str) -> dict[str, Any]:
    """The Secret of a generated key: `api-key` for people, `keys.yaml` for the router, which never sees the key."""
    digest = hashlib.sha256(api_key.encode()).hexdigest()
    entry = KeySettings(tenant=GENERATED_TENANT, sha256=digest, service_tiers=("standard", "priority"))
    data = {names.API_KEY_ENTRY: api_key, names.KEYS_FILE_ENTRY: keys_to_yaml([entry])}
    secret = router_object(router, "v1", "Secret", {"type": "Opaque"})
    secret["metadata"]["name"] = names.keys_secret_name(router.metadata.name)
    secret["data"] = {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}
    return secret


def _routes(router: M3Router, there: Set[str]) -> list[dict[str, Any]]:
    """How models are divided between the pools that are there: who is missing loses its part, not the others theirs."""
    missing = {entry.name for entry in router.spec.deployments} - there
    routes = [route.manifest() for route in router.spec.routes]
    left = [{**route, "pools": [share for share in route["pools"] if share["pool"] not in missing]} for route in routes]
    return [route for route in left if route["pools"]]


def _pool(
    deployment: M3Deployment, entry: RoutedDeployment | None, workers: ServiceWorkers | list[str]
) -> dict[str, Any]:
    spec = deployment.spec
    pool: dict[str, Any] = {
        "name": deployment.metadata.name,
        "models": [spec.model.served_name],
        "engine": spec.engine.type,
    }
    if entry is not None:
        pool |= pool_limits(entry)
    if spec.engine.type == "vllm":
        pool["kvEventsPort"] = vllm.kv_events_port(deployment)
    if spec.engine.max_context_tokens is not None:
        pool["maxContextTokens"] = spec.engine.max_context_tokens
    pool |= hold_when_empty(deployment)
    if isinstance(workers, ServiceWorkers):
        return {**pool, "workers": workers.model_dump(mode="json", by_alias=True)}
    return {**pool, "workers": list(workers)}


def hold_when_empty(deployment: M3Deployment) -> dict[str, Any]:
    """How long requests wait for the first group of a deployment that sleeps when it has nothing to do."""
    scaling = deployment.spec.autoscaling
    if scaling is None or scaling.min_replicas:
        return {}
    return {"holdWhenEmptySeconds": scaling.hold_seconds}


def _role(router: M3Router) -> dict[str, Any]:
    rules = [{"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]}]
    return router_object(router, "rbac.authorization.k8s.io/v1", "Role", {"rules": rules})


def _role_binding(router: M3Router) -> dict[str, Any]:
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": names.router_name(router.metadata.name)}
    subject = {"kind": "ServiceAccount", "name": _account(router), "namespace": router.metadata.namespace}
    return router_object(
        router, "rbac.authorization.k8s.io/v1", "RoleBinding", {"roleRef": role, "subjects": [subject]}
    )


def _service(router: M3Router) -> dict[str, Any]:
    port = {
        "name": names.HTTP_PORT_NAME,
        "port": router.spec.service.port,
        "targetPort": names.HTTP_PORT_NAME,
        "protocol": "TCP",
    }
    ports = [port]
    if router.spec.admin.service_port is not None:
        admin = {"name": names.ADMIN_PORT_NAME, "targetPort": names.ADMIN_PORT_NAME}
        ports.append({**port, **admin, "port": router.spec.admin.service_port})
    spec = {
        "type": router.spec.service.type,
        "selector": names.router_selector(router.metadata.name),
        "ports": ports,
    }
    return router_object(router, "v1", "Service", {"spec": spec})


def _deployment(router: M3Router, config: str, image: str, tenants: Sequence[M3Tenant]) -> dict[str, Any]:
    name, template = router.metadata.name, router.spec.template
    annotations = {names.CONFIG_HASH_ANNOTATION: hashlib.sha256(config.encode()).hexdigest()[:16]}
    metadata = pod.pod_metadata(template, names.router_labels(name), annotations)
    pod_spec = {
        "serviceAccountName": _account(router),
        "automountServiceAccountToken": True,  # it follows its workers' EndpointSlices
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": pod.termination_seconds(router.spec.limits.drain_seconds),
        "topologySpreadConstraints": [_spread(name)],
        "containers": [_container(router, image, tenants)],
        "volumes": [pod.TMP_VOLUME, *volumes(router, tenants)],
    }
    spec = {
        "replicas": router.spec.replicas,
        "selector": {"matchLabels": names.router_selector(name)},
        # A new router must answer before an old one goes; there may be only one.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": {
            "metadata": metadata,
            "spec": pod.lay_over(pod_spec, template, router.spec.image_pull_secrets),
        },
    }
    return router_object(router, "apps/v1", "Deployment", {"spec": spec})


def _container(router: M3Router, image: str, tenants: Sequence[M3Tenant]) -> dict[str, Any]:
    def probe(path: str, period_seconds: int, failures: int) -> dict[str, Any]:
        get = {"path": path, "port": names.ADMIN_PORT_NAME}
        return {"httpGet": get, "timeoutSeconds": 5, "periodSeconds": period_seconds, "failureThreshold": failures}

    return {
        "name": "router",
        "image": image,
        "imagePullPolicy": router.spec.image_pull_policy,
        "command": ["m3-router"],
        "args": ["--config", str(CONFIG_DIRECTORY / CONFIG_ENTRY), "--log-level", router.spec.log_level],
        "env": [pod.HOME, *environment(router)],
        "ports": [
            {"name": names.HTTP_PORT_NAME, "containerPort": DATA_PORT, "protocol": "TCP"},
            {"name": names.ADMIN_PORT_NAME, "containerPort": ADMIN_PORT, "protocol": "TCP"},
        ],
        # A crowded node may take long to start it; liveness counts from then on.
        "startupProbe": probe("/healthz", 2, 90),
        "readinessProbe": probe("/readyz", 2, 2),
        "livenessProbe": probe("/healthz", 10, 3),
        "lifecycle": pod.drained_lifecycle(),
        "securityContext": pod.CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",  # why a router ended is told in a condition
        "volumeMounts": [pod.TMP_MOUNT, *volume_mounts(router, tenants)],
    }


def _spread(name: str) -> dict[str, Any]:
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": names.router_selector(name)},
    }


def _account(router: M3Router) -> str:
    return router.spec.template.service_account_name or names.router_name(router.metadata.name)


def router_object(router: M3Router, api_version: str, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """An object of the router's own: its name, labels and owner, and this body."""
    meta = router.metadata
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": names.router_name(meta.name),
            "namespace": meta.namespace,
            "labels": names.router_labels(meta.name),
            "ownerReferences": [pod.owner_reference(names.ROUTER_KIND, meta.name, meta.uid)],
        },
        **body,
    }
