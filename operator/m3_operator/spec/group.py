"""The shape of one group, and how its pods ask for GPUs."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from m3_operator.spec.fragments import ATOMIC, DnsSubdomain, Model, cel, require

TENSOR = "parallelism.tensor must divide parallelism.gpusPerNode, and be 1 when gpusPerNode is 0"


class ParallelismSpec(Model):
    """The shape of one group: one world of nodes x gpusPerNode ranks that is scheduled and replaced as a whole."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            ("self.gpusPerNode == 0 ? self.tensor == 1 : self.gpusPerNode % self.tensor == 0", TENSOR)
        )
    )

    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Nodes of one group; each runs one pod."""
    gpus_per_node: Annotated[int, Field(ge=0, le=64)] = 8
    """GPUs that each pod of a group gets; 0 runs on CPU."""
    tensor: Annotated[int, Field(ge=1, le=64)] = 1
    """Ranks that share one copy of the attention weights; must divide gpusPerNode."""
    redundant_experts: Annotated[int, Field(ge=0, le=4096)] | None = None
    """Expert slots of a layer beyond one for each expert, over all ranks of a group, for copies of experts that many
    tokens choose; absent: as few as let every rank own as many slots."""

    @model_validator(mode="after")
    def _tensor_divides(self) -> Self:
        gpus = self.gpus_per_node
        require(self.tensor == 1 if gpus == 0 else gpus % self.tensor == 0, TENSOR)
        return self


DEVICE_PLUGIN_RESOURCE = "nvidia.com/gpu"
DRA_CLASS = "gpu.nvidia.com"
ONE_RESOURCE = "accelerator.resourceName: of mode DevicePlugin; leave it out with mode DRA"
ONE_CLASS = "accelerator.deviceClassName and accelerator.selectors: of mode DRA; leave them out with mode DevicePlugin"


class AcceleratorSpec(Model):
    """How a pod asks for GPUs."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (f"self.mode == 'DevicePlugin' || self.resourceName == '{DEVICE_PLUGIN_RESOURCE}'", ONE_RESOURCE),
            (
                f"self.mode == 'DRA' || (self.deviceClassName == '{DRA_CLASS}' && "
                "(!has(self.selectors) || size(self.selectors) == 0))",
                ONE_CLASS,
            ),
        )
    )

    mode: Literal["DevicePlugin", "DRA"] = "DevicePlugin"
    """Whether GPUs are a device plugin's extended resource, or claimed from a DRA driver (Kubernetes 1.34 or later)."""
    resource_name: Annotated[
        str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9][-A-Za-z0-9_.]*$", max_length=253)
    ] = DEVICE_PLUGIN_RESOURCE
    """Extended resource of the device plugin."""
    device_class_name: DnsSubdomain = DRA_CLASS
    """DeviceClass that the claims of mode DRA ask for."""
    selectors: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=1024)], ...],
        Field(max_length=8, json_schema_extra=ATOMIC),
    ] = ()
    """CEL expressions over `device`, of mode DRA: a GPU must meet all of them, such as
    `device.capacity['gpu.nvidia.com'].memory.compareTo(quantity('140Gi')) >= 0`."""
    memory_gib: Annotated[int, Field(ge=1, le=4096)] | None = Field(None, alias="memoryGiB")
    """Memory of one GPU in GiB, as `nvidia-smi` counts it, rounded down; absent: not known, and whether the model fits
    is not checked before a pod starts. Changing it restarts nothing."""

    @model_validator(mode="after")
    def _speaks_of_one_mode(self) -> Self:
        require(self.mode == "DevicePlugin" or self.resource_name == DEVICE_PLUGIN_RESOURCE, ONE_RESOURCE)
        require(self.mode == "DRA" or (self.device_class_name == DRA_CLASS and not self.selectors), ONE_CLASS)
        return self
