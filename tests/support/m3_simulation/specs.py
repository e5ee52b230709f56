"""What people write: specs at random, and changes of them. A new aspect of the spec gets its line in `CHANGES`."""

from collections.abc import Callable
from random import Random
from typing import Any

from m3_operator import names
from m3_simulation.fleet import BAD_IMAGE, CRASHING_IMAGE

Spec = dict[str, Any]
NAMESPACE = "ns"
NAMES = ("m3", "chat", "long")
TENANTS = ("ada", "bob")
GPUS_PER_NODE = 8


def new_deployment(random: Random, name: str) -> dict[str, Any]:
    """An M3Deployment as somebody may write it."""
    spec: Spec = {
        "model": {"name": f"model-{name}", "source": {"tiny": {}}},
        "engine": {"image": image(random)},
        "parallelism": {"nodes": random.choice((1, 1, 2, 3)), "gpusPerNode": GPUS_PER_NODE},
        "replicas": random.choice((1, 2, 2, 3)),
        "drain": {"timeoutSeconds": random.choice((30, 60, 120, 300))},
    }
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": names.API_VERSION, "kind": names.DEPLOYMENT_KIND, "metadata": metadata, "spec": spec}


def image(random: Random) -> str:
    """An image that runs."""
    return f"worker.test/m3:{random.randint(1, 9)}"


def _change_image(spec: Spec, random: Random) -> str:
    spec["engine"] = {**spec["engine"], "image": image(random)}
    return "another image"


def _change_image_badly(spec: Spec, random: Random) -> str:
    spec["engine"] = {**spec["engine"], "image": f"worker.test/{BAD_IMAGE}:{random.randint(1, 9)}"}
    return "an image that cannot be pulled"


def _change_image_to_one_that_crashes(spec: Spec, random: Random) -> str:
    spec["engine"] = {**spec["engine"], "image": f"worker.test/{CRASHING_IMAGE}:{random.randint(1, 9)}"}
    return "an image that crashes"


def _change_replicas(spec: Spec, random: Random) -> str:
    spec["replicas"] = random.choice((0, 1, 2, 3, 4))
    return "another number of groups"


def _suspend(spec: Spec, _: Random) -> str:
    spec["suspend"] = not spec.get("suspend", False)
    return "suspended or not"


def _change_nodes(spec: Spec, random: Random) -> str:
    spec["parallelism"] = {**spec["parallelism"], "nodes": random.choice((1, 2, 3))}
    return "another shape of a group"


def _change_drain(spec: Spec, random: Random) -> str:
    spec["drain"] = {"timeoutSeconds": random.choice((0, 30, 60, 300))}
    return "another drain time"


def _change_rollout(spec: Spec, random: Random) -> str:
    spec["rollout"] = random.choice(
        (
            {"strategy": "RollingGroups", "maxUnavailable": random.choice((1, 2, "50%"))},
            {"strategy": "Surge", "maxSurge": random.choice((1, 2, "25%"))},
            {"strategy": "Surge", "maxSurge": 1, "maxUnavailable": 1},
            {"strategy": "Recreate"},
            {"strategy": "OnDelete"},
            {"partition": 1},
            {"paused": True},
            {"minReadySeconds": 20},
            {"autoRollback": True, "progressDeadlineSeconds": 300},
            {"strategy": "Surge", "autoRollback": True, "progressDeadlineSeconds": 300, "minReadySeconds": 10},
        )
    )
    return f"rollouts by {spec['rollout']}"


def _change_recovery(spec: Spec, random: Random) -> str:
    spec["recovery"] = random.choice(({"policy": "None"}, {"policy": "RecreateGroup"}, {"maxRestarts": 2}))
    return f"recovery by {spec['recovery']}"


def _make_invalid(spec: Spec, _: Random) -> str:
    spec["replicas"] = -1
    return "a spec that makes no sense (let in by an older CRD)"


def _outgrow(spec: Spec, _: Random) -> str:
    spec["model"] = {**spec["model"], "source": {"pvc": {"claimName": "weights"}}, "release": "MiniMax-M3"}
    spec["accelerator"] = {"memoryGiB": 24}
    return "a model that does not fit its GPUs"


def _refer_to_no_router(spec: Spec, _: Random) -> str:
    spec["router"] = {"name": "absent"}
    return "a router that is not there"


CHANGES: tuple[tuple[int, Callable[[Spec, Random], str]], ...] = (
    (6, _change_image),
    (1, _change_image_badly),
    (1, _change_image_to_one_that_crashes),
    (6, _change_replicas),
    (1, _suspend),
    (2, _change_nodes),
    (1, _change_drain),
    (4, _change_rollout),
    (1, _change_recovery),
    (1, _make_invalid),
    (1, _outgrow),
    (1, _refer_to_no_router),
)


def new_tenant(random: Random, name: str) -> dict[str, Any]:
    """An M3Tenant as somebody may write it."""
    metadata = {"name": name, "namespace": NAMESPACE}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.TENANT_KIND,
        "metadata": metadata,
        "spec": tenant_spec(random),
    }


def tenant_spec(random: Random) -> Spec:
    """What a tenant may ask for: any router, one that is there or not, a plan that no router has."""
    asked: Spec = random.choice(({}, {}, {"routers": [NAMES[0]]}, {"routers": list(NAMES[:2])}, {"plan": "gold"}))
    return {**asked, "keys": [{"sha256": f"{random.getrandbits(256):064x}"}]}


def mend(spec: Spec, random: Random) -> None:
    """Take back what makes no sense, as whoever wrote it does in the end."""
    if int(spec.get("replicas", 1)) < 0:
        spec["replicas"] = 1
    if "accelerator" in spec:
        del spec["accelerator"]
        spec["model"] = {"name": spec["model"]["name"], "source": {"tiny": {}}}
    if BAD_IMAGE in spec["engine"]["image"] or CRASHING_IMAGE in spec["engine"]["image"]:
        spec["engine"] = {**spec["engine"], "image": image(random)}
    spec.pop("router", None)
    spec.get("rollout", {}).pop("paused", None)
    spec.get("recovery", {}).pop("policy", None)


def change(spec: Spec, random: Random) -> str:
    """Change a spec at random; what was done."""
    if random.random() < 0.3:
        mend(spec, random)
    changes = [one for _, one in CHANGES]
    return random.choices(changes, [weight for weight, _ in CHANGES])[0](spec, random)
