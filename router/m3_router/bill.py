"""What one request used and what it cost, from its arrival to its line in the log.

Owns the two records. A `Bill` is filled by the exchange and closed by the ledger; its fields, in this order, are those
of the log's lines and of `GET /ledger`.
"""

from typing import Literal

import msgspec

from m3_router.config import ContextTier, ServiceTier

Outcome = Literal["ok", "client_gone", "worker_error", "rejected"]


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one request, as its worker counted them. `cached_tokens` are part of `input_tokens`."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int


class Bill(msgspec.Struct, gc=False):
    """One request. Token counts of the answer and the cost are what was settled."""

    time: float  # when it came, seconds since the epoch
    request_id: str
    path: str
    tenant: str = ""
    model: str = ""
    context_tier: ContextTier | None = None
    service_tier: ServiceTier | None = None
    worker: str = ""
    outcome: Outcome | None = None  # None until it is settled
    status: int = 0
    stream: bool = False
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_nanousd: int = 0
    estimated: bool = False
    queue_ms: float = 0.0
    first_byte_ms: float | None = None
    duration_ms: float = 0.0
    attempts: int = 0
    error: str | None = None
