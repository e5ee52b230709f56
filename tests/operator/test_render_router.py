"""Rendered routers: valid to Kubernetes, locked down, and configured by what the router itself checks."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from m3_operator.api import M3Deployment, M3Router, parse_deployment, parse_router
from m3_operator.render import router as render
from m3_operator.spec.fragments import Model
from m3_operator.spec.router import M3RouterSpec
from m3_router.config import ConfigError, RouterConfig, ServiceWorkers, access_from_yaml

KUBERNETES = "1.37"


def deployment(name: str, model: str = "MiniMax-M3", **spec: Any) -> M3Deployment:
    manifest = {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": name, "namespace": "prod"},
        "spec": {"model": {"name": model, "source": {"tiny": {}}}, **spec},
    }
    return parse_deployment(manifest, strict=True)


def router(*deployments: str, **spec: Any) -> M3Router:
    manifest = {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Router",
        "metadata": {"name": "front", "namespace": "prod", "uid": "uid-1"},
        "spec": {"deployments": [{"name": name} for name in deployments or ("m3",)], **spec},
    }
    return parse_router(manifest, strict=True)


def objects(found: M3Router) -> dict[str, dict[str, Any]]:
    config = render.cluster_config(found, [deployment("m3")])
    return {manifest["kind"]: manifest for manifest in render.router_objects(found, config, image="router.test/m3:1")}


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"auth": {"mode": "None", "allowInsecure": True}},
        {"auth": {"secretName": "our-keys"}, "service": {"type": "LoadBalancer", "port": 443}},
        {"template": {"shmSize": "1Gi", "serviceAccountName": "given"}, "imagePullSecrets": [{"name": "pull"}]},
    ],
    ids=["plain", "open", "own keys", "template"],
)
def test_every_object_is_valid_to_kubernetes(spec: dict[str, Any]) -> None:
    found = router(**spec)
    for manifest in [*objects(found).values(), render.keys_secret(found, "key")]:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_the_router_may_read_endpoint_slices_and_nothing_else() -> None:
    (rule,) = objects(router())["Role"]["rules"]
    assert rule == {
        "apiGroups": ["discovery.k8s.io"],
        "resources": ["endpointslices"],
        "verbs": ["get", "list", "watch"],
    }
    assert "ClusterRole" not in objects(router())


def test_a_service_account_of_the_user_gets_the_role_and_none_is_made() -> None:
    found = objects(router(template={"serviceAccountName": "given"}))
    assert "ServiceAccount" not in found
    assert found["RoleBinding"]["subjects"] == [{"kind": "ServiceAccount", "name": "given", "namespace": "prod"}]
    assert found["Deployment"]["spec"]["template"]["spec"]["serviceAccountName"] == "given"


def test_the_configuration_is_a_pool_per_deployment_over_its_endpoints() -> None:
    config = render.cluster_config(
        router("m3", "small"), [deployment("m3"), deployment("small", "M3-small", engine={"maxContextTokens": 8192})]
    )
    assert [(pool.name, pool.models) for pool in config.pools] == [("m3", ("MiniMax-M3",)), ("small", ("M3-small",))]
    assert config.pools[0].workers == ServiceWorkers(service="m3-workers", namespace="prod", port="http")
    assert config.pools[1].max_context_tokens == 8192


def test_the_served_name_is_what_the_router_routes_by() -> None:
    found = deployment("m3")
    renamed = parse_deployment(
        {**found.manifest(), "spec": {"model": {"name": "M", "servedNames": ["alias"], "source": {"tiny": {}}}}},
        strict=True,
    )
    assert render.cluster_config(router(), [renamed]).pools[0].models == ("alias",)


def test_two_deployments_with_one_model_are_refused_by_the_routers_own_sentence() -> None:
    with pytest.raises(ConfigError, match=r"pools\.models: 'MiniMax-M3' is named twice"):
        render.cluster_config(router("a", "b"), [deployment("a"), deployment("b")])


def test_a_price_that_the_priority_factor_makes_finer_than_a_nano_dollar_is_refused() -> None:
    rates = {"input": "0.001", "output": "1", "cacheRead": "1"}
    with pytest.raises(ConfigError, match="nano-dollars per token"):
        render.cluster_config(router(prices={"standard": rates}), [deployment("m3")])


def test_without_keys_only_a_loopback_address_is_served_unless_it_is_meant() -> None:
    def config(listen: str, **spec: Any) -> RouterConfig:
        return render.router_config(
            router(**spec),
            [deployment("m3")],
            listen=listen,
            admin="127.0.0.1:9090",
            workers={"m3": ["http://127.0.0.1:9101"]},
            keys_file=None,
        )

    assert config("127.0.0.1:8080").auth == "none"
    with pytest.raises(ConfigError, match="allowInsecure"):
        config("0.0.0.0:8080")
    assert config("0.0.0.0:8080", auth={"mode": "None", "allowInsecure": True}).allow_insecure


def test_the_defaults_of_the_api_are_the_defaults_of_the_router() -> None:
    rendered = render.cluster_config(router(), [deployment("m3")])
    own = RouterConfig.from_yaml("auth: none\npools: [{name: m3, models: [M], workers: ['http://127.0.0.1:1']}]")
    for part in ("context_tier", "prices", "lanes", "limits"):
        assert getattr(rendered, part) == getattr(own, part), part


def test_every_setting_of_the_api_reaches_the_router() -> None:
    changed = {
        "contextTier": {"thresholdTokens": 512, "inclusive": False},
        "lanes": {"priorityReservedShare": 0.5, "maxWaitSeconds": 7},
        "limits": {name: 99 if name != "bodyBytes" else 4096 for name in _aliases(M3RouterSpec, "limits")},
        "prices": {
            "standard": {"input": "1", "output": "2", "cacheRead": "3"},
            "long": {"input": "4", "output": "5", "cacheRead": "6"},
            "priorityFactor": "2",
        },
    }
    config = render.cluster_config(router(**changed), [deployment("m3")])
    rendered = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    for part, values in changed.items():
        assert {name: rendered[part][name] for name in values} == values


def test_a_changed_configuration_restarts_the_routers() -> None:
    def stamp(**spec: Any) -> str:
        template = objects(router(**spec))["Deployment"]["spec"]["template"]
        return str(template["metadata"]["annotations"]["serving.m3.dev/config-hash"])

    assert stamp(contextTier={"thresholdTokens": 512}) != stamp()
    assert stamp(replicas=3) == stamp()


def test_the_generated_secret_has_the_key_for_people_and_its_digest_for_the_router() -> None:
    secret = render.keys_secret(router(), "the-key")
    data = {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}
    assert secret["metadata"]["name"] == "front-keys"
    assert data["api-key"] == "the-key"
    (entry,) = access_from_yaml(data["keys.yaml"]).keys
    assert entry.sha256 == hashlib.sha256(b"the-key").hexdigest()
    assert set(entry.service_tiers) == {"standard", "priority"}
    assert "the-key" not in data["keys.yaml"]


def test_the_router_mounts_the_digests_alone() -> None:
    pod = objects(router())["Deployment"]["spec"]["template"]["spec"]
    (keys,) = (volume["secret"] for volume in pod["volumes"] if volume["name"] == "keys")
    assert keys == {"secretName": "front-keys", "items": [{"key": "keys.yaml", "path": "keys.yaml"}]}
    config = yaml_of(objects(router()))
    assert config.auth != "none"
    assert config.auth.keys_file == Path("/etc/m3-router/keys/keys.yaml")
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["keys"] == "/etc/m3-router/keys"


def yaml_of(found: dict[str, dict[str, Any]]) -> RouterConfig:
    return RouterConfig.from_yaml(found["ConfigMap"]["data"]["router.yaml"])


def _aliases(spec: type[Model], field: str) -> list[str]:
    model = spec.model_fields[field].annotation
    assert isinstance(model, type)
    assert issubclass(model, Model)
    return [str(found.alias) for found in model.model_fields.values()]


def test_the_quick_writer_of_the_configuration_writes_what_the_slow_one_does() -> None:
    """Another text would be another hash, and an upgrade would roll every router."""
    config = render.cluster_config(router("m3"), [deployment("m3", "MiniMax-M3-" + "long" * 12)])
    document = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert config.to_yaml() == yaml.safe_dump(document, sort_keys=False)
