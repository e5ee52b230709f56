"""The shape of one group, and how its pods ask for GPUs."""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from m3_operator.spec.fragments import Model, cel, require

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


class AcceleratorSpec(Model):
    """How a pod asks for GPUs."""

    resource_name: Annotated[
        str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9][-A-Za-z0-9_.]*$", max_length=253)
    ] = "nvidia.com/gpu"
    """Extended resource of the device plugin."""
    memory_gib: Annotated[int, Field(ge=1, le=4096)] | None = Field(None, alias="memoryGiB")
    """Memory of one GPU in GiB, as `nvidia-smi` counts it, rounded down; absent: not known, and whether the model fits
    is not checked before a pod starts. Changing it restarts nothing."""
