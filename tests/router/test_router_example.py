"""The example of a whole configuration can be used, and the plans beside it go with it."""

from pathlib import Path

import yaml
from pydantic.alias_generators import to_camel

from m3_router.config import Access, ExternalUpstream, RouterConfig, access_from_yaml, load

EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"


def test_the_example_is_a_configuration_that_can_be_used() -> None:
    config = load(EXAMPLES / "router.yaml")
    assert [pool.engine for pool in config.pools] == ["native", "vllm", "external"]
    assert isinstance(config.pools[2].workers, ExternalUpstream)
    assert config.prices.rates("long", "priority").input == config.prices.long.input * config.prices.priority_factor


def test_the_example_has_every_section_there_is() -> None:
    written = set(yaml.safe_load((EXAMPLES / "router.yaml").read_text()))
    sections = {to_camel(name) for name in RouterConfig.model_fields}
    assert sections - written == {"adminKeySha256", "allowInsecure"}


def test_the_plans_beside_it_are_what_its_keys_file_may_hold() -> None:
    file = access_from_yaml((EXAMPLES / "plans.yaml").read_text())
    access = Access(plans=file.plans, tenants=file.tenants, keys=file.keys)
    assert {tenant.plan for tenant in access.tenants} == set(access.plans)
