"""How pods get their GPUs: from a device plugin, or claimed from a DRA driver."""

from typing import Any

import kubernetes_validate
import pytest

from m3_operator.api import M3Deployment, SpecError, parse_deployment
from m3_operator.render import worker
from m3_operator.render.accelerator import claim_template

LARGE = "device.capacity['gpu.nvidia.com'].memory.compareTo(quantity('140Gi')) >= 0"


def deployment(**spec: Any) -> M3Deployment:
    manifest = {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": "m3", "namespace": "prod", "uid": "uid-1"},
        "spec": {"model": {"name": "M", "source": {"hostPath": {"path": "/m"}}}, **spec},
    }
    return parse_deployment(manifest, strict=True)


def pod(found: M3Deployment) -> dict[str, Any]:
    return worker.group_pods(found, 0, "rev", image="i")[0]


def test_with_dra_a_pod_claims_its_gpus_and_asks_for_no_extended_resource() -> None:
    found = deployment(
        accelerator={"mode": "DRA", "selectors": [LARGE]}, template={"resources": {"requests": {"cpu": "8"}}}
    )
    template, rendered = claim_template(found), pod(found)
    assert template is not None
    kubernetes_validate.validate(template, "1.37", strict=True)
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"] == {
        "deviceClassName": "gpu.nvidia.com",
        "allocationMode": "ExactCount",
        "count": 8,
        "selectors": [{"cel": {"expression": LARGE}}],
    }
    (claim,) = rendered["spec"]["resourceClaims"]
    assert claim["resourceClaimTemplateName"] == template["metadata"]["name"]
    assert rendered["spec"]["containers"][0]["resources"] == {
        "requests": {"cpu": "8"},
        "claims": [{"name": claim["name"]}],
    }


def test_another_wish_is_another_template_because_one_cannot_be_changed() -> None:
    def name(**accelerator: Any) -> str:
        template = claim_template(deployment(accelerator={"mode": "DRA", **accelerator}))
        assert template is not None
        return str(template["metadata"]["name"])

    assert name() == name()
    assert len({name(), name(selectors=[LARGE]), name(deviceClassName="mig.nvidia.com")}) == 3


@pytest.mark.parametrize("spec", [{}, {"accelerator": {"mode": "DRA"}, "parallelism": {"gpusPerNode": 0}}])
def test_without_dra_or_without_gpus_nothing_is_claimed(spec: dict[str, Any]) -> None:
    assert claim_template(deployment(**spec)) is None
    assert "resourceClaims" not in pod(deployment(**spec))["spec"]


@pytest.mark.parametrize(
    ("accelerator", "sentence"),
    [
        ({"mode": "DRA", "resourceName": "amd.com/gpu"}, "accelerator.resourceName: of mode DevicePlugin"),
        ({"selectors": [LARGE]}, "accelerator.selectors: of mode DRA"),
        ({"deviceClassName": "mig.nvidia.com"}, "accelerator.deviceClassName and accelerator.selectors: of mode DRA"),
    ],
)
def test_fields_of_the_other_mode_are_refused(accelerator: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        deployment(accelerator=accelerator)
