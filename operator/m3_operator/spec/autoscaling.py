"""How many groups run, when somebody other than `spec.replicas` says so: bounds, signals, pace.

Nothing here changes what a group is: none of it is part of a revision.
"""

from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from m3_operator.spec.fragments import Model, cel, list_map, require

Backend = Literal["Builtin", "HPA", "KEDA", "External"]
SignalType = Literal[
    "QueueWait",
    "TokensInFlight",
    "CacheUsage",
    "TimeToFirstToken",
    "TimePerOutputToken",
    "GPUUtilization",
    "TensorActivity",
    "GPUMemory",
]

BOUNDS: Final = "autoscaling.minReplicas must be at most autoscaling.maxReplicas"
ZERO: Final = "autoscaling.minReplicas 0 needs autoscaling.idleSeconds: when to let the last group go"
HPA_ZERO: Final = "autoscaling.minReplicas 0 does not go with backend HPA, which never wakes from zero"
SIGNALS: Final = "autoscaling.signals must name at least one signal, unless backend is External"
UNIQUE: Final = "autoscaling.signals must name no type twice"
KEDA_SERVER: Final = "autoscaling.backend KEDA needs autoscaling.prometheusUrl: the server that its queries go to"
DCGM_URL: Final = "autoscaling.gpuMetrics.source DCGM needs autoscaling.gpuMetrics.url"

Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$", max_length=1024)]
_Period = Annotated[int, Field(ge=1, le=1800)]
_Window = Annotated[int, Field(ge=0, le=900)]


class SignalSpec(Model):
    """One signal, and the value at which a group has as much to do as it should."""

    type: SignalType
    """QueueWait (seconds that requests wait before they are computed), TokensInFlight (tokens of unfinished requests in
    one group), CacheUsage (share of the cache's pages in use), TimeToFirstToken and TimePerOutputToken (seconds, 90th
    percentile), GPUUtilization, TensorActivity and GPUMemory (shares from 0 to 1)."""
    target: Annotated[float, Field(gt=0, le=1e9)]
    """Seconds, tokens or a share, by type: what the signal should stay below."""


class ScaleUpSpec(Model):
    """How fast groups are added."""

    max_groups: Annotated[int, Field(ge=1, le=1000)] = 4
    """Groups that may be added in one period, if maxPercent allows no more."""
    max_percent: Annotated[int, Field(ge=0, le=1000)] = 100
    """Groups that may be added in one period, in percent of those at its start, if maxGroups allows no more."""
    period_seconds: _Period = 60
    """Length of a period."""
    window_seconds: _Window = 30
    """How long the signals must have asked for more: the least that they asked for counts."""


class ScaleDownSpec(Model):
    """How fast groups are let go."""

    max_groups: Annotated[int, Field(ge=1, le=1000)] = 1
    """Groups that may go in one period."""
    period_seconds: _Period = 120
    """Length of a period."""
    window_seconds: _Window = 180
    """How long the signals must have asked for fewer: the most that they asked for counts."""


class GpuMetricsSpec(Model):
    """Who tells of the GPUs."""

    model_config = ConfigDict(json_schema_extra=cel(("self.source != 'DCGM' || has(self.url)", DCGM_URL)))

    source: Literal["Worker", "DCGM"] = "Worker"
    """Worker: the worker's own metrics, of the GPUs of its node. DCGM: a DCGM exporter, or a Prometheus that has what
    it said."""
    url: Url | None = None
    """Where DCGM's metrics are; {hostIP} stands for the address of the node of each rank 0."""

    @model_validator(mode="after")
    def _has_url(self) -> Self:
        require(self.source != "DCGM" or self.url is not None, DCGM_URL)
        return self


class AutoscalingSpec(Model):
    """Groups by demand instead of `replicas`."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            ("self.minReplicas <= self.maxReplicas", BOUNDS),
            ("self.minReplicas > 0 || has(self.idleSeconds)", ZERO),
            ("self.minReplicas > 0 || self.backend != 'HPA'", HPA_ZERO),
            ("self.backend == 'External' || (has(self.signals) && self.signals.size() > 0)", SIGNALS),
            ("self.backend != 'KEDA' || has(self.prometheusUrl)", KEDA_SERVER),
        )
    )

    min_replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Fewest groups. 0 lets the last one go after idleSeconds without requests, and wakes one for the next."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """Most groups."""
    backend: Backend = "Builtin"
    """Who decides: the operator (Builtin), a HorizontalPodAutoscaler (HPA) or a ScaledObject (KEDA) that the operator
    makes, or anybody who writes spec.replicas (External). The operator itself never writes spec.replicas."""
    signals: Annotated[tuple[SignalSpec, ...], Field(max_length=8, json_schema_extra=list_map("type"))] = ()
    """What counts; the one that asks for the most groups decides."""
    idle_seconds: Annotated[int, Field(ge=30, le=86400)] | None = None
    """How long without a request until the last group goes; only with minReplicas 0."""
    hold_seconds: Annotated[int, Field(ge=1, le=3600)] = 600
    """How long routers hold a request that finds no group while one is woken; only with minReplicas 0."""
    up: ScaleUpSpec = ScaleUpSpec()
    """How fast groups are added."""
    down: ScaleDownSpec = ScaleDownSpec()
    """How fast groups are let go."""
    gpu_metrics: GpuMetricsSpec = GpuMetricsSpec()
    """Who tells of the GPUs."""
    prometheus_url: Url | None = None
    """The Prometheus that KEDA's queries go to."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        require(self.min_replicas <= self.max_replicas, BOUNDS)
        require(self.min_replicas > 0 or self.idle_seconds is not None, ZERO)
        require(self.min_replicas > 0 or self.backend != "HPA", HPA_ZERO)
        require(self.backend == "External" or bool(self.signals), SIGNALS)
        require(len({signal.type for signal in self.signals}) == len(self.signals), UNIQUE)
        require(self.backend != "KEDA" or self.prometheus_url is not None, KEDA_SERVER)
        return self

    @property
    def awake_replicas(self) -> int:
        """The fewest groups while there is anything to do."""
        return max(1, self.min_replicas)

    def clamp(self, groups: int) -> int:
        """The number of groups within the bounds that is nearest to this one."""
        return min(max(groups, self.min_replicas), self.max_replicas)
