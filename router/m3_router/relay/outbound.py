"""What a worker is sent: the head, and the fields of the body that its kind of engine wants set.

Owns the differences between engines on the way out. Our own worker reads headers; vLLM and SGLang read `priority` in
the body; an external API gets its key and nothing of ours. Pure.
"""

from typing import Final

import msgspec

from m3_router.bodies.request import RequestView
from m3_router.bodies.splice import with_member
from m3_router.config import ServiceTier
from m3_router.http.messages import Request
from m3_router.money.bill import Bill
from m3_router.placement.pools import Pool
from m3_router.workers.workers import Worker

# The lower goes first, for our worker and for vLLM; SGLang takes the higher first unless it is told otherwise.
PRIORITIES: Final[dict[ServiceTier, int]] = {"priority": 0, "standard": 10, "batch": 20}
_PRIORITY_LINES: Final = {
    "priority": b"x-m3-priority: 0\r\n",
    "standard": b"x-m3-priority: 10\r\n",
    "batch": b"x-m3-priority: 20\r\n",
}


def body_for(pool: Pool, view: RequestView, model: str, tier: ServiceTier) -> bytes:
    """The body as it goes to this pool: the client's own bytes, but for the fields that have to be set.

    model: its name in the configuration, which workers know it by unless `upstreamModel` says another. A priority of
    the client's own is replaced: it is the router that knows what its tenant may ask for. Raises Refusal (400).
    """
    body, engine = view.body, pool.engine
    name = pool.upstream_model or model
    if name != view.model:
        body = with_member(body, "model", msgspec.json.encode(name), msgspec.Raw(msgspec.json.encode(view.model)))
    if engine == "vllm" and not view.dialect.is_free:
        body = with_member(body, "priority", b"%d" % PRIORITIES[tier], view.fields.priority)
    elif engine == "sglang" and not view.dialect.is_free:
        body = with_member(body, "priority", b"%d" % -PRIORITIES[tier], view.fields.priority)
    return body


def head_for(
    pool: Pool,
    worker: Worker,
    request: Request,
    bill: Bill,
    *,
    attempt: str,
    tier: ServiceTier,
    trace_line: bytes,
    body_bytes: int,
) -> bytes:
    """Request line and headers, the blank line included. attempt, trace_line: empty if there is none.

    attempt: the ledger's name of this try, by which our own worker is asked what it used.
    """
    ours = b""
    if pool.engine == "native":
        ours = b"x-m3-tenant: " + bill.tenant.encode() + b"\r\n" + _PRIORITY_LINES[tier]
        if attempt:
            ours += b"x-m3-attempt: " + attempt.encode() + b"\r\n"
    elif pool.engine == "external":
        ours = pool.credentials
    return b"".join(
        (
            request.post_line if not worker.path_prefix else b"POST " + worker.path_prefix + request.post_line[5:],
            worker.host_line,
            b"content-length: ",
            str(body_bytes).encode(),
            b"\r\nx-request-id: ",
            bill.request_id.encode(),
            b"\r\n",
            ours,
            trace_line,
            request.head.forward,
            b"\r\n",
        )
    )
