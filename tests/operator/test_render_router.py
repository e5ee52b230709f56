"""Rendered routers: valid to Kubernetes, locked down, and configured by what the router itself checks."""

import base64
import hashlib
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from m3_operator.api import M3Deployment, M3Router, parse_deployment, parse_router
from m3_operator.render import router as render
from m3_operator.render.router_settings import Files
from m3_operator.spec.fragments import Model
from m3_operator.spec.router import M3RouterSpec
from m3_router.config import ConfigError, ExternalUpstream, RouterConfig, ServiceWorkers, access_from_yaml

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
        {"admin": {"servicePort": 9090}, "ledger": {"storage": "Claim", "claimName": "bills"}},
        {"redis": {"url": "redis://r:6379/0", "passwordSecretRef": {"name": "r", "key": "p"}}},
        {"template": {"shmSize": "1Gi", "serviceAccountName": "given"}, "imagePullSecrets": [{"name": "pull"}]},
    ],
    ids=["plain", "open", "own keys", "admin and claim", "secrets", "template"],
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


def test_a_plan_that_lets_nothing_through_is_refused_by_its_name() -> None:
    plans = [{"name": "plus"}, {"name": "none", "budgetUsd": "0.00"}]
    with pytest.raises(ConfigError, match=r"plans\.none: budgetUsd: 0.00 lets nothing through"):
        render.cluster_config(router(plans=plans), [deployment("m3")])


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
            files=Files(),
        )

    assert config("127.0.0.1:8080").auth == "none"
    with pytest.raises(ConfigError, match="allowInsecure"):
        config("0.0.0.0:8080")
    assert config("0.0.0.0:8080", auth={"mode": "None", "allowInsecure": True}).allow_insecure


def test_the_defaults_of_the_api_are_the_defaults_of_the_router() -> None:
    rendered = render.cluster_config(router(), [deployment("m3")])
    own = RouterConfig.from_yaml("auth: none\npools: [{name: m3, models: [M], workers: ['http://127.0.0.1:1']}]")
    for part in ("context_tier", "prices", "model_prices", "lanes", "limits", "affinity", "ledger", "processes"):
        assert getattr(rendered, part) == getattr(own, part), part


RATES = {"input": "1", "output": "2", "cacheRead": "3", "cacheWrite": "4"}
OTHER_RATES = {"input": "5", "output": "6", "cacheRead": "7", "cacheWrite": "8"}
BY_CONTEXT = {"standard": RATES, "long": OTHER_RATES}
# Every setting that is called the same on both sides, each with another value than its default.
CHANGED: dict[str, Any] = {
    "processes": 2,
    "contextTier": {"thresholdTokens": 512, "inclusive": False},
    "lanes": {
        "priorityReservedShare": 0.5,
        "maxWaitSeconds": 7,
        "batchMaxWaitSeconds": 70,
        "preemption": False,
        "longPrefillsPerWorker": 2,
        "standardFirstByteTargetSeconds": 8,
        "priorityFirstByteTargetSeconds": 9,
    },
    "limits": {
        "bodyBytes": 4096,
        "headBytes": 2048,
        "bufferedBytes": 2**21,
        "connections": 99,
        "headSeconds": 99,
        "bodyStallSeconds": 99,
        "keepAliveSeconds": 99,
        "connectSeconds": 99,
        "firstByteSeconds": 99,
        "idleSeconds": 99,
        "drainSeconds": 99,
        "commentSeconds": 99,
        "attempts": 9,
    },
    "affinity": {
        "enabled": False,
        "blockBytes": 512,
        "indexBlocks": 5000,
        "loadFactor": 2,
        "warmupSeconds": 61,
        "warmupShare": 0.5,
        "replaySeconds": 62,
        "sessionSeconds": 63,
    },
    "ledger": {"segmentBytes": 2**20, "retainSegments": 8, "streamEntries": 200},
    "prices": {**BY_CONTEXT, "priorityFactor": "2", "batchFactor": "0.5", "priority": BY_CONTEXT, "batch": BY_CONTEXT},
    "tracing": {"endpoint": "http://collector:4318", "sampleShare": 0.5},
}


@pytest.mark.parametrize("part", [part for part in CHANGED if part not in ("processes", "tracing")])
def test_the_changed_settings_are_all_there_are(part: str) -> None:
    """So that a field that is added to the API is asked for in the test below."""
    only_ours = {"ledger": {"storage", "claimName", "sizeLimit"}}
    assert set(CHANGED[part]) == set(_aliases(M3RouterSpec, part)) - only_ours.get(part, set())


def test_every_setting_of_the_api_reaches_the_router() -> None:
    config = render.cluster_config(router(**CHANGED), [deployment("m3")])
    rendered = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert {part: rendered[part] for part in CHANGED} == CHANGED


def test_prices_of_a_model_from_a_day_on_reach_the_router() -> None:
    entry = {
        "models": ["MiniMax-M3"],
        "effectiveFrom": "2027-01-01T00:00:00Z",
        **BY_CONTEXT,
        "contextTier": {"thresholdTokens": 9},
    }
    (prices,) = render.cluster_config(router(modelPrices=[entry]), [deployment("m3")]).model_prices
    assert prices.effective_from == datetime(2027, 1, 1, tzinfo=UTC)
    assert prices.context_tier is not None
    assert prices.context_tier.threshold_tokens == 9
    assert prices.long.cache_write == Decimal(8)
    with pytest.raises(ConfigError, match=r"modelPrices\.0\.models: no pool serves 'else'"):
        render.cluster_config(router(modelPrices=[{**entry, "models": ["else"]}]), [deployment("m3")])


def test_a_canary_an_alias_and_the_limits_of_a_pool_reach_the_router() -> None:
    one = {
        "name": "a",
        "tokensInFlight": 2_000_000,
        "queueRequests": 5,
        "holdWhenEmptySeconds": 60,
        "continuation": False,
    }
    spec: dict[str, Any] = {
        "deployments": [one, {"name": "b"}],
        "routes": [{"model": "MiniMax-M3", "pools": [{"pool": "a", "weight": 95}, {"pool": "b", "weight": 5}]}],
        "aliases": [{"name": "latest", "model": "MiniMax-M3"}],
    }
    deployments = [deployment("a"), deployment("b")]
    config = render.cluster_config(router(**spec), deployments)
    assert [
        (pool.tokens_in_flight, pool.queue_requests, pool.hold_when_empty_seconds, pool.continuation)
        for pool in config.pools
    ] == [(2_000_000, 5, 60, False), (4_194_304, 1024, 0, True)]
    assert [(share.pool, share.weight) for share in config.routes[0].pools] == [("a", 95), ("b", 5)]
    assert config.aliases == {"latest": "MiniMax-M3"}
    with pytest.raises(ConfigError, match=r"aliases\.latest: no pool serves 'else'"):
        render.cluster_config(router(**{**spec, "aliases": [{"name": "latest", "model": "else"}]}), deployments)


WITH_SECRETS: dict[str, Any] = {
    "externalPools": [
        {
            "name": "reviewer",
            "models": ["reviewer"],
            "url": "https://api.example.com",
            "apiKeySecretRef": {"name": "reviewer", "key": "api-key"},
            "upstreamModel": "theirs",
            "maxContextTokens": 131072,
        }
    ],
    "redis": {"url": "redis://redis:6379/0", "passwordSecretRef": {"name": "redis", "key": "password"}},
    "moderation": {"url": "http://moderation/check", "apiKeySecretRef": {"name": "redis", "key": "moderation"}},
}


def test_what_the_router_needs_of_secrets_is_mounted_and_named_by_its_file() -> None:
    found = objects(router(**WITH_SECRETS))
    config, pod = yaml_of(found), found["Deployment"]["spec"]["template"]["spec"]
    assert config.redis is not None
    assert config.redis.password_file == Path("/etc/m3-router/secrets/redis/password")
    assert config.moderation is not None
    assert config.moderation.api_key_file == Path("/etc/m3-router/secrets/redis/moderation")
    external = config.pools[1]
    assert (external.engine, external.upstream_model, external.max_context_tokens) == ("external", "theirs", 131072)
    assert external.workers == ExternalUpstream(
        url="https://api.example.com", api_key_file=Path("/etc/m3-router/secrets/reviewer/api-key")
    )
    (sources,) = (volume["projected"]["sources"] for volume in pod["volumes"] if volume["name"] == "secrets")
    redis = [{"key": "moderation", "path": "redis/moderation"}, {"key": "password", "path": "redis/password"}]
    assert sources == [
        {"secret": {"name": "redis", "items": redis}},
        {"secret": {"name": "reviewer", "items": [{"key": "api-key", "path": "reviewer/api-key"}]}},
    ]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["secrets"] == "/etc/m3-router/secrets"


def test_the_url_of_redis_may_be_in_a_secret() -> None:
    found = objects(router(redis={"urlSecretRef": {"name": "redis", "key": "url"}}))
    config = yaml_of(found)
    assert config.redis is not None
    assert (config.redis.url, config.redis.url_file) == (None, Path("/etc/m3-router/secrets/redis/url"))
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (sources,) = (volume["projected"]["sources"] for volume in pod["volumes"] if volume["name"] == "secrets")
    assert sources == [{"secret": {"name": "redis", "items": [{"key": "url", "path": "redis/url"}]}}]


def test_without_a_cluster_what_needs_a_secret_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"redis\.passwordSecretRef: needs a cluster, which has Secret redis"):
        render.router_config(
            router(**WITH_SECRETS),
            [deployment("m3")],
            listen="127.0.0.1:8080",
            admin="127.0.0.1:9090",
            workers={"m3": ["http://127.0.0.1:9101"]},
            files=Files(),
        )


@pytest.mark.parametrize(
    ("ledger", "volume", "mount"),
    [
        ({"storage": "EmptyDir", "sizeLimit": "2Gi"}, {"emptyDir": {"sizeLimit": "2Gi"}}, {}),
        (
            {"storage": "Claim", "claimName": "bills"},
            {"persistentVolumeClaim": {"claimName": "bills"}},
            {"subPathExpr": "$(POD_NAME)"},  # of two routers at a rollout, each has a journal of its own
        ),
    ],
)
def test_the_journal_lies_in_a_volume(ledger: dict[str, Any], volume: dict[str, Any], mount: dict[str, Any]) -> None:
    found = objects(router(ledger=ledger))
    pod = found["Deployment"]["spec"]["template"]["spec"]
    assert {"name": "journal", **volume} in pod["volumes"]
    assert {"name": "journal", "mountPath": "/var/lib/m3-router", **mount} in pod["containers"][0]["volumeMounts"]
    has_name = "POD_NAME" in {variable["name"] for variable in pod["containers"][0]["env"]}
    assert has_name == (ledger["storage"] == "Claim")
    assert yaml_of(found).ledger.directory == Path("/var/lib/m3-router")
    assert yaml_of(objects(router())).ledger.directory is None


def test_the_admin_port_opens_by_a_key_and_is_in_the_service_where_it_is_asked_for() -> None:
    found = objects(router(admin={"keySha256": "ab" * 32, "servicePort": 9090}, logLevel="warning"))
    assert yaml_of(found).admin_key_sha256 == "ab" * 32
    ports = {port["name"]: (port["port"], port["targetPort"]) for port in found["Service"]["spec"]["ports"]}
    assert ports == {"http": (80, "http"), "admin": (9090, "admin")}
    args = found["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[-2:] == ["--log-level", "warning"]
    assert [port["name"] for port in objects(router())["Service"]["spec"]["ports"]] == ["http"]


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
    (model,) = (found.annotation for found in spec.model_fields.values() if found.alias == field)
    assert isinstance(model, type)
    assert issubclass(model, Model)
    return [str(found.alias) for found in model.model_fields.values()]
