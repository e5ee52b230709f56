"""M3Tenants: which routers have them and what those are told, why another has not, and whom a change wakes."""

import json
from typing import Any

import kubernetes_validate
import pytest

from m3_operator.api import M3Router, SpecError, parse_deployment, parse_router, parse_tenant
from m3_operator.decide.tenant import decide_tenant
from m3_operator.observed import Key
from m3_operator.render import router as render
from m3_operator.store import Store
from m3_router.config import access_from_yaml

KUBERNETES = "1.37"
ADA, FRONT = Key("M3Tenant", "ns", "ada"), Key("M3Router", "ns", "front")
OPEN = {"mode": "None", "allowInsecure": True}
PLUS = {"name": "plus", "tokensPerDay": 1000, "serviceTiers": ["standard", "priority"], "maxContextTokens": 500}


def tenant(name: str = "ada", version: int = 1, created: str = "2026-11-20T00:00:00Z", **spec: Any) -> dict[str, Any]:
    metadata = {
        "name": name,
        "namespace": "ns",
        "uid": f"uid-{name}",
        "generation": 1,
        "resourceVersion": str(version),
        "creationTimestamp": created,
    }
    return {"apiVersion": "serving.m3.dev/v1alpha1", "kind": "M3Tenant", "metadata": metadata, "spec": spec}


def router(name: str = "front", version: int = 1, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "ns", "uid": f"uid-{name}", "generation": 1, "resourceVersion": str(version)}
    return {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Router",
        "metadata": metadata,
        "spec": {"deployments": [{"name": "m3"}], **spec},
    }


def in_secret(name: str, key: str = "api-key") -> dict[str, Any]:
    return {"secretRef": {"name": name, "key": key}}


def store(*manifests: dict[str, Any]) -> Store:
    found = Store()
    for manifest in manifests:
        found.put(manifest["kind"], manifest)
    return found


def told(*manifests: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The reason that `ada` is given, and the routers that have it."""
    snapshot = store(*manifests).tenant_snapshot(ADA)
    assert snapshot is not None
    decision = decide_tenant(snapshot)
    return decision.problem.reason if decision.problem else "Accepted", decision.routers


def objects(found: M3Router, *tenants: dict[str, Any]) -> dict[str, dict[str, Any]]:
    deployment = parse_deployment(
        {
            "apiVersion": "serving.m3.dev/v1alpha1",
            "kind": "M3Deployment",
            "metadata": {"name": "m3", "namespace": "ns"},
            "spec": {"model": {"name": "M", "source": {"tiny": {}}}},
        },
        strict=True,
    )
    config = render.cluster_config(found, [deployment])
    parsed = [parse_tenant(one, strict=False) for one in tenants]
    rendered = render.router_objects(found, config, image="router.test/m3:1", tenants=parsed)
    return {manifest["kind"]: manifest for manifest in rendered}


def tenants_file(found: M3Router, *tenants: dict[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(objects(found, *tenants)["ConfigMap"]["data"]["tenants.json"])
    return loaded


def parsed_router(**spec: Any) -> M3Router:
    return parse_router(router(**spec), strict=False)


def test_a_tenant_that_lists_no_router_is_for_all_of_its_namespace() -> None:
    elsewhere = router("elsewhere")
    elsewhere["metadata"]["namespace"] = "other"
    assert told(tenant(), router(), router("back"), elsewhere) == ("Accepted", ("back", "front"))
    assert told(tenant(routers=["back"]), router(), router("back")) == ("Accepted", ("back",))


@pytest.mark.parametrize(
    ("spec", "routers", "expected"),
    [
        ({}, [], ("RouterNotFound", ())),
        ({"routers": ["front", "ghost"]}, [router()], ("RouterNotFound", ("front",))),
        ({"plan": "plus"}, [router(plans=[PLUS]), router("back")], ("PlanNotFound", ("front",))),
        ({"limits": {"budgetUsd": "0"}}, [router()], ("ConfigRefused", ())),
        ({}, [router(auth=OPEN)], ("RouterIsOpen", ())),
        ({}, [router(auth=OPEN), router("back")], ("Accepted", ("back",))),
        ({"routers": ["front", "back"]}, [router(auth=OPEN), router("back")], ("RouterIsOpen", ("back",))),
        ({"plan": "a", "limits": {}}, [router()], ("InvalidSpec", ())),
        ({}, [router(deployments=[])], ("ConfigRefused", ())),
    ],
)
def test_what_keeps_a_tenant_out_is_said_and_keeps_it_out_of_no_other_router(
    spec: dict[str, Any], routers: list[dict[str, Any]], expected: tuple[str, tuple[str, ...]]
) -> None:
    assert told(tenant(**spec), *routers) == expected


@pytest.mark.parametrize(
    ("reason", "expected"), [("ConfigRefused", "ConfigRefused"), ("DeploymentNotFound", "Accepted")]
)
def test_a_router_without_a_usable_configuration_has_no_tenant(reason: str, expected: str) -> None:
    front = router()
    front["status"] = {"conditions": [{"type": "Configured", "status": "False", "reason": reason, "message": "why"}]}
    assert told(tenant(), front)[0] == expected


def test_the_router_is_told_plans_tenants_and_where_their_keys_are() -> None:
    limits = {"requestsPerMinute": 7, "budgetUsd": "12.50", "budgetPeriod": "day"}
    found = tenants_file(
        parsed_router(plans=[PLUS]),
        tenant(plan="plus", keys=[in_secret("ada"), {"sha256": "ab" * 32}]),
        tenant("grace", plan="plus", serviceTiers=["batch"], weight=2),
        tenant("hedy", limits=limits, maxContextTokens=9),
        tenant("joan"),
    )
    plus = {"tokensPerDay": 1000, "serviceTiers": ["standard", "priority"], "maxContextTokens": 500, "weight": 1.0}
    assert found["plans"] == {
        "plus": plus,
        "tenant.grace": {**plus, "serviceTiers": ["batch"], "weight": 2.0},
        "tenant.hedy": {**limits, "maxContextTokens": 9},
        "tenant.joan": {},
    }
    assert found["tenants"] == [
        {
            "name": "ada",
            "plan": "plus",
            "keyDigests": ["ab" * 32],
            "keyFiles": ["/etc/m3-router/tenants/ada/api-key"],
        },
        {"name": "grace", "plan": "tenant.grace"},
        {"name": "hedy", "plan": "tenant.hedy"},
        {"name": "joan", "plan": "tenant.joan"},
    ]
    read = access_from_yaml(json.dumps(found))
    assert read.plans["tenant.joan"].service_tiers == ("standard",)


def test_secrets_of_tenants_are_mounted_entry_by_entry_and_none_is_waited_for() -> None:
    found = objects(
        parsed_router(),
        tenant(keys=[in_secret("shared", "ada")]),
        tenant("grace", keys=[in_secret("shared", "grace"), in_secret("her-own")]),
    )
    kubernetes_validate.validate(found["Deployment"], KUBERNETES, strict=True)
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (sources,) = (volume["projected"]["sources"] for volume in pod["volumes"] if volume["name"] == "tenants")
    assert [(source["secret"]["name"], source["secret"]["optional"]) for source in sources] == [
        ("her-own", True),
        ("shared", True),
    ]
    assert sources[1]["secret"]["items"] == [
        {"key": "ada", "path": "shared/ada"},
        {"key": "grace", "path": "shared/grace"},
    ]
    assert {"name": "tenants", "mountPath": "/etc/m3-router/tenants", "readOnly": True} in pod["containers"][0][
        "volumeMounts"
    ]


def test_only_an_entry_of_a_secret_that_is_new_to_the_pods_restarts_the_routers() -> None:
    def pods(*tenants: dict[str, Any], **spec: Any) -> Any:
        return objects(parsed_router(**spec), *tenants)["Deployment"]["spec"]["template"]

    ada = tenant(keys=[in_secret("ada")])
    assert pods(ada) != pods()
    assert pods(tenant(keys=[in_secret("ada")], limits={"tokensPerDay": 5}, serviceTiers=["batch"])) == pods(ada)
    assert pods(ada, tenant("grace", keys=[{"sha256": "ab" * 32}])) == pods(ada)
    assert pods(ada, plans=[PLUS]) == pods(ada)
    assert pods(ada, tenant("grace", keys=[in_secret("ada")])) == pods(tenant("grace", keys=[in_secret("ada")]), ada)


def test_a_router_lists_those_it_has_the_oldest_first() -> None:
    found = store(
        router(),
        tenant("young", created="2026-11-20T00:00:01Z"),
        tenant("old"),
        tenant("elsewhere", routers=["back"]),
    )
    snapshot = found.router_snapshot(FRONT)
    assert snapshot is not None
    assert [one["metadata"]["name"] for one in snapshot.tenants] == ["old", "young"]


def test_a_tenant_wakes_the_routers_that_have_it_and_those_that_had_it() -> None:
    found = store(router(), router("back"))
    back = Key("M3Router", "ns", "back")
    assert found.put("M3Tenant", tenant()) == {ADA, FRONT, back}
    assert found.put("M3Tenant", tenant(version=2, routers=["back"])) == {ADA, FRONT, back}
    assert found.put("M3Tenant", tenant(version=3, routers=["back"], plan="plus")) == {ADA, back}
    assert found.remove("M3Tenant", tenant(routers=["back"])) == {ADA, back}


def test_the_status_of_a_tenant_wakes_no_router() -> None:
    found = store(router(), tenant())
    assert found.put("M3Tenant", {**tenant(version=2), "status": {"plan": "unlimited"}}) == {ADA}


def test_a_router_wakes_its_tenants() -> None:
    found = store(tenant(), tenant("elsewhere", routers=["back"]))
    assert ADA in found.put("M3Router", router())
    assert Key("M3Tenant", "ns", "elsewhere") not in found.put("M3Router", router(version=2, replicas=3))
    assert ADA in found.remove("M3Router", router())


def test_nothing_is_kept_of_what_is_deleted() -> None:
    found = store(router(), tenant())
    found.remove("M3Tenant", tenant())
    found.remove("M3Router", router())
    assert not vars(found)["_tenancy"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"keys": [{}]}, "keys: set exactly one of secretRef, sha256"),
        ({"keys": [{**in_secret("a"), "sha256": "ab" * 32}]}, "keys: set exactly one of secretRef, sha256"),
        ({"plan": "a", "limits": {"tokensPerDay": 1}}, "set at most one of plan, limits"),
        ({"keys": [in_secret("a", "../b")]}, "spec.keys.0.secretRef.key"),
        ({"serviceTiers": []}, "spec.serviceTiers"),
        ({"limits": {"budgetUsd": "1,5"}}, "spec.limits.budgetUsd"),
    ],
)
def test_a_tenant_that_makes_no_sense_is_refused_in_words(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        parse_tenant(tenant(**spec), strict=True)


@pytest.mark.parametrize("name", ["Ada", "-ada", "a" * 64, ""])
def test_a_name_that_the_router_would_not_take_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match=r"metadata\.name"):
        parse_tenant(tenant(name), strict=True)
