"""The shape of a random tiny checkpoint: what `m3 tiny` takes."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from m3_worker.config.command_line import CommandLineSettings, without_nul


class TinySettings(CommandLineSettings):
    """What `python -m m3_worker.tiny` takes: the shape of a random tiny checkpoint, with fields as M3 has them.

    There are as many index heads as KV heads, as in M3. With the defaults, attention is sparse beyond block x topk = 64
    tokens.
    """

    program: ClassVar[str] = "m3 tiny"
    summary: ClassVar[str] = "Write a random tiny MiniMax-M3 checkpoint in the official form."
    positional: ClassVar[str | None] = "directory"

    directory: Path = Field(description="where the checkpoint is written")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="seed of every weight")
    layers: int = Field(4, ge=1, le=256, description="layers, dense ones included")
    hidden: int = Field(64, ge=4, le=16384, description="width of the residual stream")
    heads: int = Field(8, ge=1, le=512, description="query heads")
    kv_heads: int = Field(2, ge=1, le=512, description="KV heads, which are the GQA groups")
    head_dim: int = Field(16, ge=4, le=512, multiple_of=4, description="width of a head; half of it is rotated")
    index_dim: int = Field(16, ge=4, le=512, multiple_of=4, description="width of an index key")
    experts: int = Field(8, ge=1, le=1024, description="routed experts of a layer")
    experts_per_token: int = Field(2, ge=1, le=64, description="routed experts that a token takes")
    intermediate: int = Field(64, ge=1, le=65536, description="width inside an expert")
    dense_layers: int = Field(1, ge=0, le=256, description="leading layers with dense attention and a dense MLP")
    block: int = Field(16, ge=1, le=1024, description="tokens of a sparse block")
    topk: int = Field(4, ge=1, le=65536, description="blocks that a query keeps")
    context: int = Field(8192, ge=1, le=2**24, description="max_position_embeddings")
    dtype: Literal["float32", "bfloat16", "mxfp8"] = Field("float32", description="type of the weights")
    vision: bool = Field(True, description="with a vision tower of two layers, for images and video")

    @field_validator("directory")
    @classmethod
    def _directory_is_a_path(cls, value: Path) -> Path:
        return without_nul(value)

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        rules = {
            f"--heads {self.heads}: must be a multiple of --kv-heads {self.kv_heads}": self.heads % self.kv_heads == 0,
            f"--experts-per-token {self.experts_per_token}: must be at most --experts {self.experts}": (
                self.experts_per_token <= self.experts
            ),
            f"--dense-layers {self.dense_layers}: must be at most --layers {self.layers}": self.dense_layers
            <= self.layers,
            f"--index-dim {self.index_dim}: must be at least the {self.head_dim // 2} rotated dimensions of a head": (
                self.index_dim >= self.head_dim // 2
            ),
        }
        if self.dtype == "mxfp8":
            widths = {"--hidden": self.hidden, "--intermediate": self.intermediate}
            widths["--heads x --head-dim"] = self.heads * self.head_dim
            for name, width in widths.items():
                rules[f"{name} {width}: must be a multiple of 32 with --dtype mxfp8"] = width % 32 == 0
        for message, holds in rules.items():
            if not holds:
                raise ValueError(message)
        return self
