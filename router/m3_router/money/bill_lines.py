"""From a bill to what is written of it, and back.

Owns the writing; the forms are `bill_records`'. Written for every request and compiled, so field by field: asking an
object for each name in a list costs ten times as much.
"""

from typing import Final

import msgspec

from m3_router.money.bill import Bill
from m3_router.money.bill_records import Line, OpenedBill

_encode: Final = msgspec.json.Encoder().encode
_encode_opened: Final = msgspec.msgpack.Encoder().encode


def line_of(bill: Bill) -> bytes:
    """A bill as it is written, without the end of the line."""
    return _encode(
        Line(
            bill.time,
            bill.request_id,
            bill.path,
            bill.tenant,
            bill.dialect,
            bill.model,
            bill.pool,
            bill.context_tier,
            bill.service_tier,
            bill.worker,
            bill.outcome,
            bill.status,
            bill.stream,
            bill.input_tokens,
            bill.cached_tokens,
            bill.cache_write_tokens,
            bill.output_tokens,
            bill.cost_nanousd,
            bill.estimated,
            bill.queue_ms,
            bill.first_byte_ms,
            bill.duration_ms,
            bill.attempts,
            bill.continuations,
            bill.preemptions,
            bill.reason,
            bill.runner_up,
            bill.cost_tokens,
            bill.runner_up_cost_tokens,
            bill.predicted_cached_tokens,
            bill.quoted_nanousd,
            bill.text_bytes,
            bill.media_items,
            bill.trace_id,
            bill.span_id,
            bill.parent_span_id,
            bill.number,
            bill.error,
        )
    )


def note_of(bill: Bill) -> bytes:
    """What is noted of a bill at a dispatch: an `OpenedBill`."""
    return _encode_opened(
        (
            bill.time,
            bill.request_id,
            bill.path,
            bill.tenant,
            bill.dialect,
            bill.model,
            bill.pool,
            bill.service_tier,
            bill.worker,
            bill.stream,
            bill.attempts,
            bill.continuations,
            bill.input_tokens,
            bill.cached_tokens,
            bill.cache_write_tokens,
            bill.output_tokens,
        )
    )


def bill_from(line: Line) -> Bill:
    """The bill that a line tells of."""
    bill = Bill(line.time, line.request_id, line.path)
    for name in Line.__struct_fields__[3:]:
        setattr(bill, name, getattr(line, name))
    return bill


def reopened(opened: OpenedBill, number: int) -> Bill:
    """A bill as it was at the dispatch of which this is the note."""
    return bill_from(Line(**msgspec.structs.asdict(opened), number=number))
