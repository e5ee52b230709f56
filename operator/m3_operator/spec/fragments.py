"""The pieces of a pod spec that our resources let their users say, and the base class of all our API models.

Typed where a field is stable and small; Kubernetes' own fragments that we only pass on (affinity, volumes ...) stay
objects, and the API server judges them when a pod is created. Security-critical container fields (privileges,
capabilities, the root file system) are not here: they are ours.

Unknown fields: models ignore them, because an object read from a cluster may have been written for a later version;
`api.parse_*` with `strict=True` refuses them, which is what a file given to `m3 up` gets.
"""

import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel

from m3_operator.names import NAME_MAX_LENGTH, NAME_PATTERN

RESERVED_ENV: Final = ("M3_NODE_RANK", "M3_NODES", "M3_GPUS_PER_NODE", "MASTER_ADDR", "MASTER_PORT")
RESERVED_VOLUMES: Final = ("config", "experts", "journal", "keys", "model", "secrets", "shm", "tenants", "tmp")

PRESERVE: Final = {"x-kubernetes-preserve-unknown-fields": True}
ATOMIC: Final = {"x-kubernetes-list-type": "atomic"}


def list_map(*keys: str) -> dict[str, Any]:
    """The schema marker of a list whose items are identified (and merged) by these fields."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


def cel(*rules: tuple[str, str]) -> dict[str, Any]:
    """Schema extra with CEL rules, each a (expression, sentence that names field and rule) pair."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rules]}


QUANTITY_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
Quantity = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if isinstance(value, int) and not isinstance(value, bool) else value),
    StringConstraints(pattern=QUANTITY_PATTERN, max_length=32),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": QUANTITY_PATTERN,
            "maxLength": 32,
        }
    ),
]


def require(holds: bool, sentence: str) -> None:
    """Refuse a value with a sentence that names field and rule."""
    if not holds:
        raise ValueError(sentence)


DNS_LABEL_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DnsLabel = Annotated[str, StringConstraints(pattern=DNS_LABEL_PATTERN, max_length=63)]
DnsSubdomain = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", max_length=253)
]
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317)]
LabelValue = Annotated[str, StringConstraints(pattern=r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$", max_length=63)]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/", max_length=1024)]
ImageReference = Annotated[str, StringConstraints(pattern=r"^[^\s]+$", min_length=1, max_length=512)]
PullPolicy = Literal["Always", "IfNotPresent", "Never"]
OwnerName = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=NAME_MAX_LENGTH)]
Fragment = Annotated[dict[str, Any], Field(json_schema_extra=PRESERVE)]


class Model(BaseModel):
    """Base of every API model: camelCase on the wire, frozen in memory, documented by attribute docstrings."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Itself, since it is frozen: pydantic copies the defaults of fields, which was a third of reading a spec."""
        return self

    def manifest(self) -> dict[str, Any]:
        """This value as a Kubernetes object writes it: camelCase, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class KeyReference(Model):
    """One key of a Secret or ConfigMap of the same namespace."""

    name: DnsSubdomain
    """Name of the object."""
    key: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    """Key in its data."""
    optional: bool | None = None
    """Whether the pod may start without it."""


class FieldReference(Model):
    """A field of the pod itself."""

    field_path: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """Path of the field, such as status.podIP."""


ONE_SOURCE = "valueFrom: set exactly one of secretKeyRef, configMapKeyRef, fieldRef"


class EnvSource(Model):
    """Where the value of an environment variable comes from."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldRef)].filter(x, x).size() == 1",
                ONE_SOURCE,
            )
        )
    )

    secret_key_ref: KeyReference | None = None
    """A key of a Secret."""
    config_map_key_ref: KeyReference | None = None
    """A key of a ConfigMap."""
    field_ref: FieldReference | None = None
    """A field of the pod."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(ref is not None for ref in (self.secret_key_ref, self.config_map_key_ref, self.field_ref)) != 1:
            raise ValueError(ONE_SOURCE)
        return self


VALUE_OR_SOURCE = "env: set at most one of value, valueFrom"
OWN_ENV = f"env: the operator itself sets {', '.join(RESERVED_ENV)}"


class EnvVar(Model):
    """One environment variable of the engine."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            ("!has(self.value) || !has(self.valueFrom)", VALUE_OR_SOURCE),
            (f"!(self.name in {list(RESERVED_ENV)})", OWN_ENV),
        )
    )

    name: EnvName
    """Name of the variable."""
    value: Annotated[str, StringConstraints(max_length=8192)] | None = None
    """Its value, as text."""
    value_from: EnvSource | None = None
    """Where its value is read from, instead of `value`."""

    @model_validator(mode="after")
    def _has_one_owner_and_one_value(self) -> Self:
        if self.value is not None and self.value_from is not None:
            raise ValueError(VALUE_OR_SOURCE)
        if self.name in RESERVED_ENV:
            raise ValueError(OWN_ENV)
        return self


class Toleration(Model):
    """A taint that the pods accept."""

    key: Annotated[str, StringConstraints(max_length=317)] | None = None
    """Key of the taint; absent with operator Exists: every key."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How the key and value are compared."""
    value: Annotated[str, StringConstraints(max_length=63)] | None = None
    """Value of the taint, for Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; absent: every effect."""
    toleration_seconds: Annotated[int, Field(ge=0, le=86400 * 365)] | None = None
    """How long a NoExecute taint is accepted; absent: for ever."""


class LocalReference(Model):
    """An object of the same namespace, by name."""

    name: DnsSubdomain
    """Name of the object."""


class Resources(Model):
    """CPU, memory and other resources of the main container. GPUs come from `parallelism.gpusPerNode`."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] = {}
    """What the scheduler sets aside."""
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] = {}
    """What the container may use at most."""


def _named(volume: dict[str, Any]) -> dict[str, Any]:
    if not re.fullmatch(DNS_LABEL_PATTERN, str(volume.get("name", ""))):
        raise ValueError(f"volume: name must match {DNS_LABEL_PATTERN}")
    return volume


Volume = Annotated[
    dict[str, Any],
    AfterValidator(_named),
    WithJsonSchema(
        {
            "type": "object",
            "description": "A volume of the pod: a name, and any one volume source of Kubernetes.",
            "required": ["name"],
            "properties": {
                "name": {
                    "type": "string",
                    "description": "Name that volumeMounts refer to.",
                    "pattern": DNS_LABEL_PATTERN,
                    "maxLength": 63,
                }
            },
            **PRESERVE,
        }
    ),
]


class VolumeMount(Model):
    """Where a volume appears in the main container (and in the init container that writes a tiny model)."""

    name: DnsLabel
    """Name of the volume."""
    mount_path: AbsolutePath
    """Absolute path in the container."""
    sub_path: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """Path inside the volume."""
    read_only: bool = False
    """Whether the container may only read it."""
    mount_propagation: Literal["None", "HostToContainer", "Bidirectional"] | None = None
    """How mounts on the host and in the container see each other."""


OWN_VOLUMES = f"template.volumes: the names {', '.join(RESERVED_VOLUMES)} belong to the operator"


class PodTemplate(Model):
    """What users may add to the pods that the operator renders."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (f"!has(self.volumes) || !self.volumes.exists(v, v.name in {list(RESERVED_VOLUMES)})", OWN_VOLUMES)
        )
    )

    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] = {}
    """Labels added to the pods; the operator's own win."""
    annotations: Annotated[
        dict[LabelKey, Annotated[str, StringConstraints(max_length=16384)]], Field(max_length=32)
    ] = {}
    """Annotations added to the pods; the operator's own win."""
    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] = {}
    """Labels that a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32, json_schema_extra=ATOMIC)] = ()
    """Taints that the pods accept."""
    affinity: Fragment | None = None
    """A pod's `affinity`, as in Kubernetes."""
    service_account_name: DnsSubdomain | None = None
    """ServiceAccount of the pods; absent: the namespace's default for workers, an own one for routers.
    Its token is never mounted into workers."""
    runtime_class_name: DnsSubdomain | None = None
    """RuntimeClass of the pods, such as nvidia."""
    scheduler_name: DnsSubdomain | None = None
    """Scheduler of the pods; absent: the cluster's default."""
    priority_class_name: DnsSubdomain | None = None
    """PriorityClass of the pods."""
    security_context: Fragment | None = None
    """A pod's `securityContext`, laid over the operator's (runAsNonRoot, RuntimeDefault seccomp)."""
    resources: Resources = Resources()
    """Resources of the main container, other than GPUs."""
    volumes: Annotated[tuple[Volume, ...], Field(max_length=32, json_schema_extra=list_map("name"))] = ()
    """Volumes added to the pods."""
    volume_mounts: Annotated[
        tuple[VolumeMount, ...], Field(max_length=32, json_schema_extra=list_map("mountPath"))
    ] = ()
    """Where the added volumes appear."""
    topology_spread_constraints: Annotated[tuple[Fragment, ...], Field(max_length=16, json_schema_extra=ATOMIC)] = ()
    """A pod's `topologySpreadConstraints`, as in Kubernetes."""
    shm_size: Quantity | None = None
    """Size of /dev/shm, in memory; absent: what the container runtime gives (often 64Mi)."""

    @model_validator(mode="after")
    def _leaves_our_volumes_alone(self) -> Self:
        if any(volume["name"] in RESERVED_VOLUMES for volume in self.volumes):
            raise ValueError(OWN_VOLUMES)
        return self
