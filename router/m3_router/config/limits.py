"""How requests wait, and what a stranger or a broken worker can make the router hold or wait for."""

from typing import Self

from pydantic import Field, model_validator

from m3_router.config.base import Seconds, Settings


class LaneSettings(Settings):
    """How waiting is arranged between the service tiers, and between long and short requests."""

    priority_reserved_share: float = Field(default=0.25, ge=0, le=0.9, allow_inf_nan=False)
    max_wait_seconds: Seconds = 30
    batch_max_wait_seconds: Seconds = 3600
    preemption: bool = True  # a standard request that has no first byte yet may be put back for a priority one
    long_prefills_per_worker: int = Field(default=1, ge=1, le=64)  # of requests above the context threshold
    standard_first_byte_target_seconds: Seconds = 30  # what attainment is measured against
    priority_first_byte_target_seconds: Seconds = 5


class LimitSettings(Settings):
    """Bounds of sizes and times."""

    body_bytes: int = Field(default=64 * 2**20, ge=1024, le=2**31)
    head_bytes: int = Field(default=64 * 2**10, ge=1024, le=2**20)
    buffered_bytes: int = Field(default=2 * 2**30, ge=2**20)  # all request bodies in memory together
    connections: int = Field(default=8192, ge=1)
    head_seconds: Seconds = 10
    body_stall_seconds: Seconds = 30
    keep_alive_seconds: Seconds = 75
    connect_seconds: Seconds = 5
    first_byte_seconds: Seconds = 3600
    idle_seconds: Seconds = 300
    drain_seconds: Seconds = 60
    comment_seconds: Seconds = 15  # a stream that waits for its first event gets a comment this often
    attempts: int = Field(default=3, ge=1, le=16)  # workers that one request may be sent to, one after the other

    @model_validator(mode="after")
    def _one_body_fits(self) -> Self:
        if self.buffered_bytes < self.body_bytes:
            raise ValueError(f"bufferedBytes: {self.buffered_bytes} is below bodyBytes {self.body_bytes}")
        return self
