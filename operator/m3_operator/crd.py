"""The CustomResourceDefinitions, generated from the API models.

Owns the way from pydantic's JSON Schema to what the API server calls a structural schema: definitions inlined, absent
values left out instead of nullable, every integer and list bounded, rules and list kinds where the models put them.
`render_all` is what `m3 crd` prints and what manifests/crds/ holds; a test says when that is stale.
"""

from collections.abc import Mapping
from typing import Any, Final

import yaml
from pydantic import BaseModel

from m3_operator import names
from m3_operator.spec.deployment import M3DeploymentSpec
from m3_operator.spec.router import M3RouterSpec
from m3_operator.spec.status import M3DeploymentStatus, M3RouterStatus, M3TenantStatus
from m3_operator.spec.tenant import TENANT_NAME_MAX_LENGTH, M3TenantSpec

PLURALS: Final = {
    names.DEPLOYMENT_KIND: "m3deployments",
    names.ROUTER_KIND: "m3routers",
    names.TENANT_KIND: "m3tenants",
}

_NAME_RULES: Final = [
    {
        "rule": f"self.metadata.name.size() <= {names.NAME_MAX_LENGTH}",
        "message": f"metadata.name must have at most {names.NAME_MAX_LENGTH} characters: "
        "the names of its pods and Services are built from it",
    },
    {
        "rule": f"self.metadata.name.matches('{names.NAME_PATTERN}')",
        "message": "metadata.name must consist of lower-case letters, digits and '-', and start with a letter: "
        "the names of its Services are built from it",
    },
]
_TENANT_NAME_RULES: Final = [
    {
        "rule": f"self.metadata.name.size() <= {TENANT_NAME_MAX_LENGTH}",
        "message": f"metadata.name must have at most {TENANT_NAME_MAX_LENGTH} characters: "
        "routers know the tenant by it",
    }
]
_READY: Final = '.status.conditions[?(@.type=="Ready")]'
_AGE: Final = {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}


def render_all() -> dict[str, str]:
    """The YAML of each CRD, by the name of its file.

    Each begins with `---`, because `helm show crds` puts nothing between files.
    """
    return {
        f"{names.GROUP}_{definition['spec']['names']['plural']}.yaml": yaml.dump(
            definition, Dumper=_NoAliases, sort_keys=False, width=120, explicit_start=True
        )
        for definition in (deployment_crd(), router_crd(), tenant_crd())
    }


def deployment_crd() -> dict[str, Any]:
    """The CRD of M3Deployment."""
    columns = [
        _column("Ready", "string", f"{_READY}.status"),
        _column("Groups", "integer", ".status.readyReplicas", "Groups that serve"),
        _column("Desired", "integer", ".status.desiredReplicas", "Groups that are wanted"),
        _column("GPUs", "integer", ".status.gpus", "GPUs that its pods hold"),
        _column("Balance", "number", ".status.experts.ratio", "Load of the most loaded rank over the mean"),
        _column("Reason", "string", f"{_READY}.reason"),
        _AGE,
        _column("Model", "string", ".spec.model.name", priority=1),
        _column("Revision", "string", ".status.revision", priority=1),
        _column("Endpoint", "string", ".status.endpoint", priority=1),
    ]
    return _definition(names.DEPLOYMENT_KIND, "m3d", M3DeploymentSpec, M3DeploymentStatus, columns)


def router_crd() -> dict[str, Any]:
    """The CRD of M3Router."""
    columns = [
        _column("Ready", "string", f"{_READY}.status"),
        _column("Routers", "integer", ".status.readyReplicas", "Routers that answer"),
        _column("Desired", "integer", ".spec.replicas", "Routers that are wanted"),
        _column("Reason", "string", f"{_READY}.reason"),
        _column("Endpoint", "string", ".status.endpoint"),
        _AGE,
    ]
    return _definition(names.ROUTER_KIND, "m3r", M3RouterSpec, M3RouterStatus, columns)


def tenant_crd() -> dict[str, Any]:
    """The CRD of M3Tenant."""
    columns = [
        _column("Ready", "string", f"{_READY}.status"),
        _column("Plan", "string", ".status.plan"),
        _column("Routers", "string", ".status.routers", "Routers that have it"),
        _column("Reason", "string", f"{_READY}.reason"),
        _AGE,
        _column("Message", "string", f"{_READY}.message", priority=1),
    ]
    definition = _definition(names.TENANT_KIND, "m3t", M3TenantSpec, M3TenantStatus, columns)
    (version,) = definition["spec"]["versions"]
    version["subresources"] = {"status": {}}  # nothing to scale
    version["schema"]["openAPIV3Schema"]["x-kubernetes-validations"] = _TENANT_NAME_RULES
    return definition


def _definition(
    kind: str, short: str, spec: type[BaseModel], status: type[BaseModel], columns: list[dict[str, Any]]
) -> dict[str, Any]:
    schema = {
        "type": "object",
        "description": structural_schema(spec)["description"],
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural_schema(spec),
            "status": structural_schema(status),
        },
        "x-kubernetes-validations": _NAME_RULES,
    }
    version = {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": columns,
    }
    plural = PLURALS[kind]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{names.GROUP}", "labels": {"app.kubernetes.io/name": "m3serve"}},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["all", "m3"],
            },
            "versions": [version],
        },
    }


def structural_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The structural schema of a model."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    converted: dict[str, Any] = _convert(schema, schema.get("$defs", {}))
    return converted


def _convert(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """One schema node, its references inlined. What stands beside a reference (a default, words) wins over it."""
    node = _without_null(node)
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[-1]]
        beside = {key: value for key, value in node.items() if key != "$ref"}
        if "default" in beside:
            # Written out where a rule must hold for it: the API server checks a default before it fills in others.
            is_checked = target.get("required") or "x-kubernetes-validations" in target
            beside["default"] = _present(beside["default"]) if is_checked else {}
        return _convert({**target, **beside}, definitions)
    dropped = ("title", "$defs", "additionalProperties", "properties", "items", "const", "propertyNames")
    result = {key: value for key, value in node.items() if key not in dropped}
    result.pop("exclusiveMinimum", None)
    result.pop("exclusiveMaximum", None)
    if "exclusiveMinimum" in node:
        result |= {"minimum": node["exclusiveMinimum"], "exclusiveMinimum": True}
    if "description" in result:
        result["description"] = " ".join(result["description"].split())
    if "const" in node:
        result["enum"] = [node["const"]]
    if result.get("type") == "integer":
        result["format"] = "int64" if node.get("maximum", 2**31) >= 2**31 else "int32"
    if "properties" in node:
        result["properties"] = {name: _convert(child, definitions) for name, child in node["properties"].items()}
    if isinstance(node.get("additionalProperties"), Mapping):
        result["additionalProperties"] = _convert(node["additionalProperties"], definitions)
    if "items" in node:
        result["items"] = _convert(node["items"], definitions)
    fills_in = any("default" in child for child in result.get("properties", {}).values())
    if result.get("default", ...) in ([], {}, None) and not fills_in:
        result.pop("default", None)  # an absent list or map means the same and reads better
    return result


def _without_null(node: Mapping[str, Any]) -> dict[str, Any]:
    """`X | None` as plain X: an absent value is how Kubernetes says None."""
    options = [option for option in node.get("anyOf", ()) if option != {"type": "null"}]
    if "anyOf" not in node or len(options) == len(node["anyOf"]):
        return dict(node)
    (only,) = options
    beside = {key: value for key, value in node.items() if key != "anyOf" and (key, value) != ("default", None)}
    return {**only, **beside}


def _present(value: Any) -> Any:  # noqa: ANN401 - JSON
    """A JSON value without what Kubernetes leaves out: nulls and empty lists and maps."""
    if not isinstance(value, Mapping):
        return value
    present = {key: _present(child) for key, child in value.items()}
    return {key: child for key, child in present.items() if child not in (None, [], {})}


def _column(name: str, kind: str, path: str, description: str = "", priority: int = 0) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path}
    if description:
        column["description"] = description
    return {**column, "priority": priority} if priority else column


class _NoAliases(yaml.SafeDumper):
    """YAML without anchors, which no reader of a CRD expects."""

    def ignore_aliases(self, data: object) -> bool:
        return True
