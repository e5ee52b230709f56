"""What was scraped, frozen: one value per process, each with its time. Absent is None, never 0."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSignals:
    """One GPU. Shares are 0 to 1."""

    utilisation: float | None = None
    tensor_activity: float | None = None
    memory_used: float | None = None
    xid: int = 0
    """Last XID error that the driver reported; 0: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSignals:
    """Rank 0 of one group, which speaks for all its ranks."""

    scraped_at: datetime
    running: int = 0
    """Sequences that hold pages of the cache."""
    waiting: int = 0
    """Sequences that wait for a slot or for pages."""
    steps: int | None = None
    """Steps computed since the start."""
    tokens_in_flight: int | None = None
    cache_usage: float | None = None
    """Share of the cache's pages in use, 0 to 1."""
    queue_seconds_p90: float | None = None
    time_to_first_token_seconds_p90: float | None = None
    time_per_output_token_seconds_p90: float | None = None
    """Of the requests since the scrape before; None: there were none."""
    gpus: tuple[GpuSignals, ...] = ()

    @property
    def in_flight(self) -> int:
        """Requests that are not answered yet."""
        return self.running + self.waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSignals:
    """One router's view of one deployment's pool."""

    scraped_at: datetime
    waiting: int = 0
    """Requests that wait in its lanes."""
    in_flight: int = 0
    """Requests that it has sent to workers and that are not answered yet."""
    queue_seconds_p90: float | None = None
    first_byte_seconds_p90: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSignals:
    """All that is known of one deployment, by the uid of the pod that said it."""

    workers: Mapping[str, WorkerSignals] = field(default_factory=dict)
    routers: Mapping[str, RouterSignals] = field(default_factory=dict)


NO_SIGNALS = DeploymentSignals()
