"""What one request used and what it cost, from its arrival until it is settled.

Owns the two records and what of them is billed. A `Bill` is filled by the exchange, closed by the ledger, and read by
all who count what was settled; how it is written is `bill_records`'. Both are plain classes, since a compiled attribute
costs a tenth of a record's that msgspec makes, and a bill is asked for a hundred of them.

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

from m3_router.config import ContextTier, ServiceTier

Outcome = Literal["ok", "client_gone", "worker_error", "rejected", "router_lost"]
BILLED: Final[frozenset[Outcome]] = frozenset({"ok", "client_gone", "router_lost"})


class Usage:
    """Tokens of one request, as its worker counted them. Not to be changed.

    `cached_tokens` (read from the cache) and `cache_write_tokens` (written to it, where a model's prices tell them
    apart) are parts of `input_tokens`.
    """

    __slots__ = ("cache_write_tokens", "cached_tokens", "input_tokens", "output_tokens")

    def __init__(self, input_tokens: int, cached_tokens: int, cache_write_tokens: int, output_tokens: int) -> None:
        self.input_tokens = input_tokens
        self.cached_tokens = cached_tokens
        self.cache_write_tokens = cache_write_tokens
        self.output_tokens = output_tokens

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Usage) and self._counts() == other._counts()

    def __hash__(self) -> int:
        return hash(self._counts())

    def __repr__(self) -> str:
        return f"Usage{self._counts()}"

    def _counts(self) -> tuple[int, int, int, int]:
        return self.input_tokens, self.cached_tokens, self.cache_write_tokens, self.output_tokens


NOTHING_USED: Final = Usage(0, 0, 0, 0)


class Bill:
    """One request. Token counts of the answer and the cost are what was settled."""

    __slots__ = (
        "attempts",
        "cache_write_tokens",
        "cached_tokens",
        "context_tier",
        "continuations",
        "cost_nanousd",
        "cost_tokens",
        "dialect",
        "duration_ms",
        "error",
        "estimated",
        "first_byte_ms",
        "input_tokens",
        "media_items",
        "model",
        "number",
        "outcome",
        "output_tokens",
        "parent_span_id",
        "path",
        "pool",
        "predicted_cached_tokens",
        "preemptions",
        "queue_ms",
        "quoted_nanousd",
        "reason",
        "request_id",
        "runner_up",
        "runner_up_cost_tokens",
        "service_tier",
        "span_id",
        "status",
        "stream",
        "tenant",
        "text_bytes",
        "time",
        "trace_id",
        "worker",
    )

    def __init__(self, time: float, request_id: str, path: str) -> None:
        self.time = time  # when it came, seconds since the epoch; its prices are those of that moment
        self.request_id = request_id
        self.path = path
        self.tenant = ""
        self.dialect = ""
        self.model = ""
        self.pool = ""
        self.context_tier: ContextTier | None = None
        self.service_tier: ServiceTier | None = None
        self.worker = ""
        self.outcome: Outcome | None = None  # None until it is settled
        self.status = 0
        self.stream = False
        self.input_tokens = 0
        self.cached_tokens = 0
        self.cache_write_tokens = 0
        self.output_tokens = 0
        self.cost_nanousd = 0
        self.estimated = False
        self.queue_ms = 0.0
        self.first_byte_ms: float | None = None
        self.duration_ms = 0.0
        self.attempts = 0
        self.continuations = 0  # workers that went on with the answer of one that died
        self.preemptions = 0  # times it was put back for a priority request, before its first byte
        self.reason = ""  # why this worker was chosen
        self.runner_up = ""  # the worker that would have been next
        self.cost_tokens = 0  # what placement weighed them at
        self.runner_up_cost_tokens = 0
        self.predicted_cached_tokens = 0  # what placement expected the worker to have cached
        self.quoted_nanousd = 0  # the upper bound of the cost that was reserved for it
        self.text_bytes = 0  # of the body, without inline media: what the estimate of its tokens was made from
        self.media_items = 0
        self.trace_id = ""
        self.span_id = ""
        self.parent_span_id = ""
        self.number = 0  # the ledger's own, given at the first dispatch; no other bill of this journal has it
        self.error: str | None = None


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
