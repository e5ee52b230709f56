"""What was scraped, frozen: one value per process, each with its time. Absent is None, never 0."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

SCRAPE_SECONDS: Final = 5.0
"""Time between two looks at a process; at zero groups, where a request may wait for the first, it is less."""
STALE_AFTER_SECONDS: Final = 3 * SCRAPE_SECONDS
"""Age from which a value says nothing of now."""


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
    """Requests that wait in its lanes, or for a worker where there is none."""
    in_flight: int = 0
    """Requests that it has sent to workers and that are not answered yet."""
    requests: float | None = None
    """Requests that have ended since its start."""
    oldest_wait_seconds: float | None = None
    """How long the first of those that wait has waited; None: none waits."""
    queue_seconds_p90: float | None = None
    first_byte_seconds_p90: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSignals:
    """One download of a model."""

    done_bytes: int
    needed_bytes: int
    seconds_left: int | None = None
    """By the rate since it began; None: nothing has come yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A deployment at one moment, as its autoscaler counts it."""

    at: datetime
    ready: int
    """Groups that served."""
    requests: int
    """Requests that waited or were in flight."""
    values: Mapping[str, float | None] = field(default_factory=dict)
    """By type of signal. None: there was nothing to measure; a type that is absent was not told by anybody."""
    silent: tuple[str, ...] = ()
    """Pods, or the URL of DCGM, that have not answered for too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSignals:
    """All that is known of one deployment, by the uid of the pod that said it."""

    workers: Mapping[str, WorkerSignals] = field(default_factory=dict)
    routers: Mapping[str, RouterSignals] = field(default_factory=dict)
    fetches: Mapping[str, FetchSignals] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    """The last quarter of an hour, oldest first."""
    busy_at: datetime | None = None
    """When it had anything to do for the last time, as far as it was watched; None: it was not."""


NO_SIGNALS = DeploymentSignals()
