"""The forms in which bills are written: settled, as JSON; while they are open, as MessagePack.

Owns the fields and their order: those of the log's lines, of the journal, of the Redis stream and of `GET /ledger`.
What they mean is said in `bill`, and what writes and reads them is `bill_lines`. Not compiled: the compiler does not
keep the types of the fields, by which msgspec reads.
"""

from typing import Final

import msgspec

from m3_router.config import ContextTier, ServiceTier
from m3_router.money.bill import Outcome


class Line(msgspec.Struct, frozen=True, gc=False):
    """A settled bill."""

    time: float
    request_id: str
    path: str
    tenant: str = ""
    dialect: str = ""
    model: str = ""
    pool: str = ""
    context_tier: ContextTier | None = None
    service_tier: ServiceTier | None = None
    worker: str = ""
    outcome: Outcome | None = None
    status: int = 0
    stream: bool = False
    input_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    cost_nanousd: int = 0
    estimated: bool = False
    queue_ms: float = 0.0
    first_byte_ms: float | None = None
    duration_ms: float = 0.0
    attempts: int = 0
    continuations: int = 0
    preemptions: int = 0
    reason: str = ""
    runner_up: str = ""
    cost_tokens: int = 0
    runner_up_cost_tokens: int = 0
    predicted_cached_tokens: int = 0
    quoted_nanousd: int = 0
    text_bytes: int = 0
    media_items: int = 0
    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str = ""
    number: int = 0
    error: str | None = None


class OpenedBill(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What of a bill is noted at each dispatch: enough to settle it by, should this process be killed.

    Written as a tuple in this order; a field may be added at the end alone.
    """

    time: float
    request_id: str
    path: str
    tenant: str
    dialect: str
    model: str
    pool: str
    service_tier: ServiceTier | None
    worker: str
    stream: bool
    attempts: int
    continuations: int
    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int


decode_line: Final = msgspec.json.Decoder(Line).decode
decode_lines: Final = msgspec.json.Decoder(Line).decode_lines
decode_opened: Final = msgspec.msgpack.Decoder(OpenedBill).decode
