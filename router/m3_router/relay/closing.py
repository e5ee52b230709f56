"""The end of one request: what its bill is settled with, and what its end teaches.

Owns the choice between what a worker has said and what was counted on the way; what is billed in which case is said in
`money.bill`. Called once, by the exchange's only way out.
"""

from m3_router.money.bill import Bill, Outcome, Usage
from m3_router.relay.attempt import Attempt
from m3_router.relay.intake import Intake
from m3_router.relay.reply import Reply
from m3_router.relay.services import Services


def settle(
    services: Services,
    bill: Bill,
    outcome: Outcome,
    usage: Usage | None,
    *,
    is_free: bool,
    intake: Intake,
    reply: Reply | None,
    attempt: Attempt | None,
) -> Usage | None:
    """Settle the bill, now or when the worker has said what was used. Returns the estimate of one settled later.

    usage: what the worker has said; attempt: the one that was running, ended by now.
    """
    estimate: Usage | None = None
    if outcome == "client_gone" and usage is None and attempt is not None and not is_free:
        estimate = reply.estimate() if reply is not None and bill.status == 200 else None
        services.ledger.settle_later(bill, outcome, estimate)
    else:
        if usage is None and outcome == "ok" and not is_free and reply is not None:
            usage = reply.estimate()
        services.ledger.settle(bill, outcome, usage)
    if attempt is None:
        return estimate
    if intake.chain:
        counted = usage.input_tokens if usage is not None and not bill.estimated else None
        services.caches.answered(attempt.worker, bill.request_id, counted)
    if usage is not None and outcome == "ok" and intake.pool is not None:
        intake.pool.workers.note_cached(attempt.worker, bill.predicted_cached_tokens, usage.cached_tokens)
    return estimate


def outcome_of_status(status: int) -> Outcome:
    """What an answer of a worker means for the bill."""
    if status < 400:
        return "ok"
    return "rejected" if status < 500 else "worker_error"
