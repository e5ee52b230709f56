"""Who may use the router, and how much: keys, tenants and their plans. `access_files` reads what lies in files."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator

from m3_router.config.base import (
    ConfigError,
    Digest,
    Money,
    ObjectName,
    ServiceTier,
    Settings,
    TenantName,
    explain,
    not_empty,
    parse_yaml,
    refuse_repeated,
)

Count = Annotated[int, Field(ge=1, le=10**15)]


class PlanSettings(Settings):
    """What a tenant may use. A limit that is absent does not hold."""

    tokens_per_day: Count | None = None  # input and output, by UTC days
    tokens_per_minute: Count | None = None
    requests_per_minute: Count | None = None
    concurrent_requests: Count | None = None
    budget_usd: Money | None = None
    budget_period: Literal["day", "month", "total"] = "month"  # UTC
    service_tiers: Annotated[tuple[ServiceTier, ...], AfterValidator(not_empty)] = ("standard",)
    max_context_tokens: Count | None = None  # the longest input
    weight: float = Field(default=1.0, ge=0.01, le=100, allow_inf_nan=False)  # its share against other tenants

    @model_validator(mode="after")
    def _has_budget(self) -> Self:
        if self.budget_usd is not None and self.budget_usd <= 0:
            raise ValueError(f"budgetUsd: {self.budget_usd} lets nothing through")
        return self


UNLIMITED = PlanSettings(service_tiers=("standard", "priority", "batch"))


class TenantSettings(Settings):
    """One customer and the plan it is on."""

    name: TenantName
    plan: ObjectName
    weight: float | None = Field(default=None, ge=0.01, le=100, allow_inf_nan=False)  # None: the plan's
    # Its keys beside those of `keys`: by digest, or in files that hold one each, or `sha256:` and its digest. What is
    # not there, is no key or was somebody else's before opens nothing.
    key_digests: Annotated[tuple[Digest, ...], Field(max_length=64)] = ()
    key_files: Annotated[tuple[Path, ...], Field(max_length=64)] = ()


class KeySettings(Settings):
    """One API key: whose it is and which service tiers it opens. The key itself is never written down."""

    tenant: TenantName
    sha256: Digest
    # None: those of the tenant's plan; `standard` alone where the tenant has none.
    service_tiers: Annotated[tuple[ServiceTier, ...], AfterValidator(not_empty)] | None = None


class Access(Settings):
    """All of who may do what. A tenant that has a key and no entry here has no plan, and so no limits."""

    plans: Mapping[ObjectName, PlanSettings] = Field(default_factory=dict)
    tenants: tuple[TenantSettings, ...] = ()
    keys: tuple[KeySettings, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse_repeated("tenants", [tenant.name for tenant in self.tenants])
        for tenant in self.tenants:
            if tenant.plan not in self.plans:
                there = ", ".join(sorted(self.plans)) or "none"
                raise ValueError(f"tenants.{tenant.name}.plan: there is no plan {tenant.plan!r}; there are: {there}")
        owners: dict[str, str] = {}
        for key in self.keys:
            if owners.setdefault(key.sha256, key.tenant) != key.tenant:
                raise ValueError(f"keys: one key is given to {owners[key.sha256]!r} and to {key.tenant!r}")
        return self


class AuthSettings(Access):
    """Where the keys are: here, in files, or both. The files are read again when they change."""

    keys_file: Path | None = None  # a list of keys, or a mapping of `plans`, `tenants` and `keys`
    tenants_file: Path | None = None  # the same, written by somebody else; its tenants may be on the other's plans

    @model_validator(mode="after")
    def _has_keys(self) -> Self:
        has_tenants = any(tenant.key_digests or tenant.key_files for tenant in self.tenants)
        if not self.keys and not has_tenants and self.keys_file is None and self.tenants_file is None:
            raise ValueError("needs keys, keysFile, tenantsFile or tenants with keys; else nobody could use it")
        return self


_KEYS = TypeAdapter(tuple[KeySettings, ...])


def access_from_yaml(text: str) -> "FileAccess":
    """What a keys file says: a list of keys, or a mapping of plans, tenants and keys. Raises ConfigError."""
    document = parse_yaml(text) or []
    try:
        if isinstance(document, dict):
            return FileAccess.model_validate(document)
        return FileAccess(keys=_KEYS.validate_python(document))
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def keys_to_yaml(keys: Iterable[KeySettings]) -> str:
    """The text of a keys file, which `access_from_yaml` reads back."""
    documents = [key.model_dump(mode="json", by_alias=True, exclude_none=True) for key in keys]
    return yaml.safe_dump(documents, sort_keys=False)


class FileAccess(Settings):
    """Like Access, but its tenants may be on plans that the configuration has."""

    plans: Mapping[ObjectName, PlanSettings] = Field(default_factory=dict)
    tenants: tuple[TenantSettings, ...] = ()
    keys: tuple[KeySettings, ...] = ()
