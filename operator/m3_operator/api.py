"""The custom resources as typed values: M3Deployment, M3Router and M3Tenant, and how a manifest becomes one.

Owns the three kinds and the parsing of one; what users may say in them is in `spec`, what they read in `spec.status`.
`crd` turns all of it into CustomResourceDefinitions. Later versions only add fields.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from m3_operator.spec.deployment import M3DeploymentSpec
from m3_operator.spec.fragments import Model, OwnerName
from m3_operator.spec.router import M3RouterSpec
from m3_operator.spec.tenant import TENANT_NAME_MAX_LENGTH, TENANT_NAME_PATTERN, M3TenantSpec

__all__ = [
    "M3Deployment",
    "M3DeploymentSpec",
    "M3Router",
    "M3RouterSpec",
    "M3Tenant",
    "M3TenantSpec",
    "SpecError",
    "parse_deployment",
    "parse_router",
    "parse_tenant",
]


class SpecError(ValueError):
    """A manifest that does not say what it must. The message is one line: field, value, rule."""


class ObjectMeta(BaseModel):
    """The part of `metadata` that decisions read."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, extra="ignore")

    name: OwnerName
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    deletion_timestamp: str | None = None


class M3Deployment(Model):
    """Workers that serve MiniMax-M3: groups of pods, scaled, replaced and drained as one."""

    api_version: Literal["serving.m3.dev/v1alpha1"] = "serving.m3.dev/v1alpha1"
    kind: Literal["M3Deployment"] = "M3Deployment"
    metadata: ObjectMeta
    spec: M3DeploymentSpec


class M3Router(Model):
    """A router in front of M3Deployments: prices, lanes, keys and one endpoint."""

    api_version: Literal["serving.m3.dev/v1alpha1"] = "serving.m3.dev/v1alpha1"
    kind: Literal["M3Router"] = "M3Router"
    metadata: ObjectMeta
    spec: M3RouterSpec


class TenantMeta(ObjectMeta):
    """Nothing is named after a tenant: its name only has to be one of the router's tenants."""

    name: Annotated[str, StringConstraints(pattern=TENANT_NAME_PATTERN, max_length=TENANT_NAME_MAX_LENGTH)]


class M3Tenant(Model):
    """A customer of M3Routers: its keys, and what it may use."""

    api_version: Literal["serving.m3.dev/v1alpha1"] = "serving.m3.dev/v1alpha1"
    kind: Literal["M3Tenant"] = "M3Tenant"
    metadata: TenantMeta
    spec: M3TenantSpec


_Kind = TypeVar("_Kind", M3Deployment, M3Router, M3Tenant)
_TOP_LEVEL: Final = frozenset({"apiVersion", "kind", "metadata", "spec", "status"})


def parse_deployment(manifest: Mapping[str, Any], *, strict: bool) -> M3Deployment:
    """The typed form of an M3Deployment's manifest.

    `strict` refuses fields that this version does not know, as a file from a person deserves; without it they are
    ignored, as an object written for a later version deserves. Raises SpecError.
    """
    return _parse(M3Deployment, manifest, strict=strict)


def parse_router(manifest: Mapping[str, Any], *, strict: bool) -> M3Router:
    """The typed form of an M3Router's manifest; see `parse_deployment`. Raises SpecError."""
    return _parse(M3Router, manifest, strict=strict)


def parse_tenant(manifest: Mapping[str, Any], *, strict: bool) -> M3Tenant:
    """The typed form of an M3Tenant's manifest; see `parse_deployment`. Raises SpecError."""
    return _parse(M3Tenant, manifest, strict=strict)


def _parse(kind: type[_Kind], manifest: Mapping[str, Any], *, strict: bool) -> _Kind:
    unknown = sorted(set(manifest) - _TOP_LEVEL)
    if strict and unknown:
        raise SpecError(f"{unknown[0]}: unknown field; a manifest has {', '.join(sorted(_TOP_LEVEL))}")
    metadata = manifest.get("metadata")
    known = {field.alias or name for name, field in ObjectMeta.model_fields.items()}
    if isinstance(metadata, Mapping):  # labels, annotations, managedFields ...: none of our business
        metadata = {key: value for key, value in metadata.items() if key in known}
    taken = {key: value for key, value in manifest.items() if key in ("apiVersion", "kind", "spec")}
    try:
        return kind.model_validate({**taken, "metadata": metadata}, extra="forbid" if strict else "ignore")
    except ValidationError as error:
        raise SpecError(_one_line(error)) from None


def _one_line(error: ValidationError) -> str:
    """The first finding as `field: rule (got value)`; pydantic's own text for the rule."""
    finding = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in finding["loc"])
    if finding["type"] == "value_error":
        return f"{field}: {finding['ctx']['error']}"
    if finding["type"] == "extra_forbidden":
        return f"{field}: unknown field"
    if finding["type"] == "missing":
        return f"{field}: required"
    return f"{field}: {finding['msg']} (got {finding['input']!r})"
