"""The one document that shows a router: what `GET /api/state` answers and what the console and `m3 top` read.

Owns its shape and nothing else. Names carry their units; money is integer nano-dollars; a value that this router does
not know is null, never zero. Fields may be added; one that is taken away or changes its meaning raises VERSION.
"""

from typing import Final, Literal

import msgspec

from m3_router.config import ContextTier, ServiceTier
from m3_router.telemetry.decisions import Decision

VERSION: Final = 1
RedisMode = Literal["none", "shared", "local"]
"""none: not configured. shared: replicas share what they know. local: Redis is away, and this replica goes on alone."""


class RouterNow(msgspec.Struct, frozen=True):
    """The process: who it is, since when, and what it holds."""

    name: str
    version: str
    hot_path: str  # compiled or interpreted
    started: float  # seconds since the epoch
    is_draining: bool
    connections: int
    connections_limit: int
    buffered_bytes: int  # of request bodies
    buffered_limit_bytes: int
    redis_mode: RedisMode
    redis_reason: str = ""  # why the mode is `local`
    replicas: int | None = None  # that share this Redis and live; None without Redis


class LaneNow(msgspec.Struct, frozen=True):
    """One lane of one pool. `context_tier` None: the lane takes requests of either."""

    name: str
    service_tier: ServiceTier
    context_tier: ContextTier | None
    in_flight_tokens: int
    waiting: int  # requests
    waiting_tokens: int
    oldest_wait_seconds: float


class WorkerNow(msgspec.Struct, frozen=True):
    """One worker as this replica sees it. `tokens_in_flight` are its own requests', `remote_tokens` other replicas'."""

    name: str
    address: str
    state: Literal["ready", "unready", "draining"]
    reason: str
    requests: int
    tokens_in_flight: int
    prefill_tokens: int | None = None  # of tokens_in_flight: uncached, and no first byte yet
    remote_tokens: int | None = None
    long_prefills: int | None = None
    breaker: Literal["closed", "open", "half_open"] | None = None
    epoch: str | None = None  # changes when the worker has restarted, and its cache is gone
    is_warming_up: bool = False
    is_held: bool = False  # drained by an administrator, who can take it back
    prefix_blocks: int | None = None  # of the affinity index that point here
    recent: "WorkerRecent | None" = None  # None: it has answered nothing of late


class WorkerRecent(msgspec.Struct, frozen=True):
    """What a worker has answered in the last RECENT_SECONDS. Predicted: cached tokens that placement counted on."""

    requests: int
    failures: int
    input_tokens: int
    predicted_cached_tokens: int
    cached_tokens: int


class PoolNow(msgspec.Struct, frozen=True):
    """One pool: the bound of its lanes, its lanes by rank, its workers by name."""

    name: str
    models: tuple[str, ...]
    engine: str
    limit_tokens: int
    standard_share_tokens: int
    drain_tokens_per_second: float
    lanes: list[LaneNow]
    workers: list[WorkerNow]


class LaneLatency(msgspec.Struct, frozen=True):
    """First bytes of one lane, over all pools, against its target.

    Counted are requests that a worker had: one is `within` if its first byte came within the target. Burn is the share
    that was not, over the share that may be (1 - objective): above 1, the objective is missed if it goes on so.
    """

    name: str
    service_tier: ServiceTier
    context_tier: ContextTier
    target_ms: float
    objective: float
    seconds: int  # of p50_ms, p95_ms, requests, within, refused and burn
    requests: int
    within: int
    refused: int  # by a full queue, an expired wait or for want of a worker
    p50_ms: float | None
    p95_ms: float | None
    burn: float | None
    hour_requests: int
    hour_within: int
    hour_burn: float | None


class LimitNow(msgspec.Struct, frozen=True):
    """One limit of a tenant's plan in its current window; `unit` says what is counted."""

    name: str  # as the plan names it: tokens_per_day, requests_per_minute, ...
    unit: Literal["tokens", "requests", "nanousd"]
    used: int
    limit: int
    resets_in_seconds: float | None = None  # None: never


class TenantNow(msgspec.Struct, frozen=True):
    """What one tenant has used since midnight UTC."""

    name: str
    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_nanousd: int
    cost_by_tier_nanousd: dict[str, int]  # `priority-long` and so on
    plan: str | None = None
    limits: list[LimitNow] = []


class RatesNow(msgspec.Struct, frozen=True):
    """What has been settled in the last `seconds`, per second; money per hour."""

    seconds: int
    requests_per_second: float
    failures_per_second: float
    input_tokens_per_second: float
    cached_tokens_per_second: float
    output_tokens_per_second: float
    cost_nanousd_per_hour: int


class LaneSeries(msgspec.Struct, frozen=True):
    """One lane over time; one number for each sample."""

    pool: str
    lane: str
    in_flight_tokens: list[int]
    waiting: list[int]


class Timeline(msgspec.Struct, frozen=True):
    """Samples that are newer than what was asked for, the oldest first.

    `last` is the number of the newest one; given back as `since` it gets those that came after it. `first` is the
    number of the oldest in here. Numbers begin anew when the router does: a `last` below `since` says so.
    """

    step_seconds: float
    first: int
    last: int
    time: float  # of the newest sample
    requests: list[int]  # settled in the step
    series: list[LaneSeries]


class AuditEntry(msgspec.Struct, frozen=True):
    """One administrative act: who did what to what, when, and how it ended."""

    time: float
    audit: str
    who: str
    peer: str
    what: dict[str, str]
    outcome: Literal["done", "refused", "failed"]
    message: str


class State(msgspec.Struct, frozen=True):
    """The document."""

    version: int
    time: float  # seconds since the epoch
    router: RouterNow
    rates: RatesNow
    pools: list[PoolNow]
    latency: list[LaneLatency]
    day: str  # of `tenants`, UTC, such as 2026-11-21
    tenants: list[TenantNow]  # those that cost most, first
    tenants_left_out: int
    decisions: list[Decision]
    audit: list[AuditEntry]
    acts: list[str]  # what POST /api/acts/NAME can do here
    timeline: Timeline
