"""How a router treats requests: who waits and where they go, and the bounds of sizes and times."""

from typing import Annotated

from pydantic import Field

from m3_operator.spec.fragments import Model

Seconds = Annotated[float, Field(gt=0, le=86400)]


class Lanes(Model):
    """How requests wait."""

    priority_reserved_share: Annotated[float, Field(ge=0, le=0.9)] = 0.25
    """Share of a pool's tokens in flight that only priority requests may use."""
    max_wait_seconds: Annotated[float, Field(gt=0, le=3600)] = 30
    """How long a request may wait before it is refused with 429."""
    batch_max_wait_seconds: Seconds = 3600
    """How long a request of the batch service tier may wait."""
    preemption: bool = True
    """Whether a standard request without a first byte may be put back for a priority one."""
    long_prefills_per_worker: Annotated[int, Field(ge=1, le=64)] = 1
    """Requests above the context threshold that one worker prefills at a time."""
    standard_first_byte_target_seconds: Seconds = 30
    """First byte that standard requests are measured against."""
    priority_first_byte_target_seconds: Seconds = 5
    """First byte that priority requests are measured against."""


class Limits(Model):
    """What one client or one request may take."""

    body_bytes: Annotated[int, Field(ge=1024, le=2**31 - 1)] = 67_108_864
    """Largest request body; at most bufferedBytes."""
    head_bytes: Annotated[int, Field(ge=1024, le=2**20)] = 65_536
    """Largest head of a request."""
    buffered_bytes: Annotated[int, Field(ge=2**20, le=2**40)] = 2_147_483_648
    """All request bodies in memory together."""
    connections: Annotated[int, Field(ge=1, le=1_000_000)] = 8192
    """Clients' connections at the same time."""
    head_seconds: Annotated[float, Field(gt=0, le=3600)] = 10
    """Time for a client to send a request's head."""
    body_stall_seconds: Annotated[float, Field(gt=0, le=3600)] = 30
    """Longest pause inside a request's body."""
    keep_alive_seconds: Seconds = 75
    """How long a connection without a request is kept."""
    connect_seconds: Annotated[float, Field(gt=0, le=3600)] = 5
    """Time to connect to a worker."""
    first_byte_seconds: Seconds = 3600
    """Time for a worker to send the first byte of an answer."""
    idle_seconds: Seconds = 300
    """Longest pause inside an answer."""
    drain_seconds: Seconds = 60
    """Time for answers in flight to finish when a router stops."""
    comment_seconds: Seconds = 15
    """How often a stream that waits for its first event gets a comment, which keeps proxies from closing it."""
    attempts: Annotated[int, Field(ge=1, le=16)] = 3
    """Workers that one request may be sent to, one after the other."""


class PrefixAffinity(Model):
    """Placement by the prefix that a worker has cached."""

    enabled: bool = True
    """Whether cached prefixes count."""
    block_bytes: Annotated[int, Field(ge=64, le=65536)] = 1024
    """Bytes of a prompt that one digest of its chain stands for."""
    index_blocks: Annotated[int, Field(ge=1000, le=100_000_000)] = 1_000_000
    """Digests in each of two generations of the index, of about 90 bytes each."""
    load_factor: Annotated[float, Field(ge=1, le=10)] = 1.25
    """Load of a worker, against the mean, above which its cache no longer counts."""
    warmup_seconds: Seconds = 60
    """How long a worker is new."""
    warmup_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the requests without a cached prefix that a new worker gets."""
    replay_seconds: Seconds = 1800
    """How far back a new router reads what the others know."""
    session_seconds: Seconds = 3600
    """How long a session without requests is remembered."""
