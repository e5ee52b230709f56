"""The examples of routers and tenants in manifests/examples: read strictly, and taken by the router's own checks."""

from pathlib import Path
from typing import Any

import yaml

from m3_operator.api import M3Router, parse_deployment, parse_router, parse_tenant
from m3_operator.decide.tenant import refusal
from m3_operator.render.router import cluster_config
from m3_operator.render.tenants import tenants_file
from m3_operator.spec.router import M3RouterSpec
from m3_router.config import access_from_yaml

EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"
OWN_BUSINESS = {"image", "imagePullPolicy", "imagePullSecrets", "service", "template"}  # of pods and Services


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((EXAMPLES / name).read_text()))


def front(name: str) -> M3Router:
    return parse_router(next(found for found in documents(name) if found["kind"] == "M3Router"), strict=True)


def test_the_whole_router_says_everything_and_its_configuration_is_good() -> None:
    (document,) = documents("front.yaml")
    assert set(document["spec"]) == {field.alias for field in M3RouterSpec.model_fields.values()} - OWN_BUSINESS
    deployments = [
        parse_deployment(
            {
                "apiVersion": "serving.m3.dev/v1alpha1",
                "kind": "M3Deployment",
                "metadata": {"name": name},
                "spec": {"model": {"name": "MiniMax-M3", "source": {"tiny": {}}}},
            },
            strict=True,
        )
        for name in ("m3", "m3-next")
    ]
    config = cluster_config(front("front.yaml"), deployments)
    assert [pool.name for pool in config.pools] == ["m3", "m3-next", "reviewer"]


def test_the_router_of_the_tenants_has_them_all() -> None:
    router = front("tenants.yaml")
    tenants = [parse_tenant(found, strict=True) for found in documents("tenants.yaml") if found["kind"] == "M3Tenant"]
    assert [refusal(router, tenant) for tenant in tenants] == [None] * 3
    access = access_from_yaml(tenants_file(router, tenants))
    plans = {tenant.name: access.plans[tenant.plan] for tenant in access.tenants}
    assert plans["ada"].max_context_tokens == 100_000
    assert (plans["grace"].tokens_per_day, plans["grace"].service_tiers) == (500_000, ("standard", "priority", "batch"))
    assert (plans["hedy"].budget_period, plans["hedy"].tokens_per_day) == ("month", None)
