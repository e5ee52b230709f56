"""Which rank of a group a process is: read from the environment, where the operator and torchrun put it."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class RankSettings(BaseModel):
    """Which rank of an expert-parallel group this process is, as the operator tells each of its pods."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node_rank: int = Field(0, ge=0)
    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(1, ge=0)
    local_rank: int = Field(0, ge=0)
    """Of the ranks of its node; the first starts the others."""
    master_address: str = "127.0.0.1"
    master_port: int = Field(29500, ge=1, le=65535)

    variables: ClassVar[Mapping[str, str]] = {
        "node_rank": "M3_NODE_RANK",
        "nodes": "M3_NODES",
        "gpus_per_node": "M3_GPUS_PER_NODE",
        "local_rank": "M3_LOCAL_RANK",
        "master_address": "MASTER_ADDR",
        "master_port": "MASTER_PORT",
    }

    @property
    def ranks_per_node(self) -> int:
        """One a GPU, and one where there are none."""
        return max(self.gpus_per_node, 1)

    @property
    def world_size(self) -> int:
        """Ranks of the group."""
        return self.nodes * self.ranks_per_node

    @property
    def rank(self) -> int:
        """This process, among all of the group."""
        return self.node_rank * self.ranks_per_node + self.local_rank

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the variables that are set. Raises ValueError, in one line with variable, value and rule."""
        given: dict[str, Any] = {
            field: environment[name] for field, name in cls.variables.items() if name in environment
        }
        try:
            settings = cls.model_validate(given)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_context=False)[0]
            raise ValueError(f"{cls.variables[str(fault['loc'][0])]}={fault['input']}: {fault['msg']}") from None
        if settings.node_rank >= settings.nodes:
            raise ValueError(f"M3_NODE_RANK={settings.node_rank}: must be below M3_NODES={settings.nodes}")
        if settings.local_rank >= settings.ranks_per_node:
            raise ValueError(
                f"M3_LOCAL_RANK={settings.local_rank}: must be below M3_GPUS_PER_NODE={settings.gpus_per_node}"
            )
        return settings
