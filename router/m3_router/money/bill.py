"""What one request used and what it cost, from its arrival to its line in the log.

Owns the two records and what of them is billed. A `Bill` is filled by the exchange and closed by the ledger; its
fields, in this order, are those of the log's lines, of the journal, of the Redis stream and of `GET /ledger`.

What is billed, by outcome; tokens are always the worker's own count where there is one:

- `ok`: the `usage` of the answer; where it has none, what was counted on the way, and the bill says `estimated`.
- `client_gone`: `usage` if it had passed; else what the worker's own record of the request says it used until it was
  aborted (`settlement` asks for it). Where no worker can say: the input, once the worker had begun to answer, and one
  output token for each event that was relayed (`estimated`); nothing before that.
- `router_lost`: this process was killed while the request ran. What the worker's record says; without one nothing is
  known to have been used, and nothing is billed (`estimated`).
- `worker_error`, `rejected`: nothing. We do not charge for what failed. The tokens are noted all the same.

A retry is one bill: only the attempt that answered counts, and `attempts` says how many there were. A continuation is
one bill as well: the prompt once, as the first worker counted it, and as output what the client got: the tokens
delivered before the worker died and those of the worker that went on (`continued`). That the second worker computed the
prompt and the delivered tokens again is our cost, not the client's.
"""

from typing import Final, Literal

import msgspec

from m3_router.config import ContextTier, ServiceTier

Outcome = Literal["ok", "client_gone", "worker_error", "rejected", "router_lost"]
BILLED: Final[frozenset[Outcome]] = frozenset({"ok", "client_gone", "router_lost"})


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one request, as its worker counted them.

    `cached_tokens` (read from the cache) and `cache_write_tokens` (written to it, where a model's prices tell them
    apart) are parts of `input_tokens`.
    """

    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int


NOTHING_USED: Final = Usage(0, 0, 0, 0)


class Bill(msgspec.Struct, gc=False):
    """One request. Token counts of the answer and the cost are what was settled."""

    time: float  # when it came, seconds since the epoch; its prices are those of that moment
    request_id: str
    path: str
    tenant: str = ""
    dialect: str = ""
    model: str = ""
    pool: str = ""
    context_tier: ContextTier | None = None
    service_tier: ServiceTier | None = None
    worker: str = ""
    outcome: Outcome | None = None  # None until it is settled
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
    continuations: int = 0  # workers that went on with the answer of one that died
    preemptions: int = 0  # times it was put back for a priority request, before its first byte
    reason: str = ""  # why this worker was chosen
    runner_up: str = ""  # the worker that would have been next
    cost_tokens: int = 0  # what placement weighed them at
    runner_up_cost_tokens: int = 0
    predicted_cached_tokens: int = 0  # what placement expected the worker to have cached
    quoted_nanousd: int = 0  # the upper bound of the cost that was reserved for it
    text_bytes: int = 0  # of the body, without inline media: what the estimate of its tokens was made from
    media_items: int = 0
    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str = ""
    number: int = 0  # the ledger's own, given at the first dispatch; no other bill of this journal has it
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

    def bill(self, number: int) -> Bill:
        """The bill as it was at that dispatch."""
        return Bill(**msgspec.structs.asdict(self), number=number)


def used_until_now(bill: Bill) -> Usage:
    """The token counts that a bill holds."""
    return Usage(bill.input_tokens, bill.cached_tokens, bill.cache_write_tokens, bill.output_tokens)


def continued(bill: Bill, usage: Usage) -> Usage:
    """The usage of a whole answer, of which the newest worker reports `usage` for its part.

    Before each further dispatch of a continuation, the bill holds what the client had got until then: the input as the
    first worker counted it, the output that was delivered. What of the input was cached only Anthropic's dialect says
    before the end; in the others it is what the newest worker had of it.
    """
    if bill.continuations == 0:
        return usage
    cached, written = bill.cached_tokens, bill.cache_write_tokens
    if not cached and bill.dialect != "messages":
        cached = min(usage.cached_tokens, bill.input_tokens)
    return Usage(bill.input_tokens, cached, written, bill.output_tokens + usage.output_tokens)
