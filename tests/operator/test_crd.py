"""The generated CustomResourceDefinitions: fresh, structural, and bounded everywhere."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from m3_operator import crd

CRDS = Path(__file__).parents[2] / "manifests" / "crds"
DEFINITIONS = {"M3Deployment": crd.deployment_crd(), "M3Router": crd.router_crd(), "M3Tenant": crd.tenant_crd()}
FORBIDDEN = {"$ref", "$defs", "title", "const", "oneOf", "allOf", "not", "nullable", "propertyNames"}


def schema(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = DEFINITIONS[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def nodes(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every schema node with its path."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), Mapping):
            yield from nodes(node[key], f"{path}.{key}")


def of_spec_and_status(kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for part in ("spec", "status"):
        yield from nodes(schema(kind)["properties"][part], part)


def test_the_committed_files_are_fresh() -> None:
    committed = {path.name: path.read_text() for path in CRDS.glob("*.yaml")}
    assert committed == crd.render_all(), "run: m3 crd --output manifests/crds"


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_the_schema_is_structural(kind: str) -> None:
    for path, node in nodes(schema(kind)):
        assert not FORBIDDEN & set(node), f"{path}: {sorted(FORBIDDEN & set(node))}"
        assert node.get("type") or node.get("x-kubernetes-int-or-string"), f"{path}: has no type"
        if "anyOf" in node:
            assert node["anyOf"] == [{"type": "integer"}, {"type": "string"}], path


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_everything_is_bounded(kind: str) -> None:
    for path, node in of_spec_and_status(kind):
        what = node.get("type")
        if what == "string" and "enum" not in node and node.get("format") != "date-time":
            assert "maxLength" in node, f"{path}: no maxLength"
        if what == "array":
            assert "maxItems" in node, f"{path}: no maxItems"
            assert "x-kubernetes-list-type" in node, f"{path}: no list type"
        if "additionalProperties" in node:
            assert "maxProperties" in node, f"{path}: no maxProperties"
        if what in ("integer", "number"):
            assert "minimum" in node, f"{path}: no minimum"
            assert "maximum" in node or path.startswith("status"), f"{path}: no maximum"


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_every_field_explains_itself(kind: str) -> None:
    silent = [
        path
        for path, node in of_spec_and_status(kind)
        if not node.get("description") and not path.endswith((".items", ".additionalProperties"))
    ]
    assert silent == []


def test_only_the_scale_subresource_and_status_are_beside_the_spec() -> None:
    for kind, definition in DEFINITIONS.items():
        (version,) = definition["spec"]["versions"]
        if kind == "M3Tenant":
            assert version["subresources"] == {"status": {}}
            continue
        assert version["subresources"]["scale"] == {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }


def test_lists_with_keys_require_them() -> None:
    for kind in DEFINITIONS:
        for path, node in of_spec_and_status(kind):
            for key in node.get("x-kubernetes-list-map-keys", ()):
                assert key in node["items"].get("required", ()), f"{path}: {key} may be absent"


def test_the_files_are_plain_yaml_without_anchors() -> None:
    for text in crd.render_all().values():
        assert "&id" not in text
        assert yaml.safe_load(text)["kind"] == "CustomResourceDefinition"
