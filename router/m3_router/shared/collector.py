"""What replicas share, and the way to Redis, as Prometheus families at the time of a scrape.

Owns the names of these families, and no count: each is its part's own. A router without Redis has none of them.
"""

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from m3_router.shared.affinity_log import AffinityLog
from m3_router.shared.ledger_stream import LedgerStream
from m3_router.shared.sharing import Sharing
from m3_router.telemetry.metrics import counter, gauge


class SharingCollector(Collector):
    """Renders one replica's part in what all share."""

    def __init__(self, sharing: Sharing) -> None:
        self._sharing = sharing

    def collect(self) -> Iterator[Metric]:
        """All families."""
        sharing = self._sharing
        yield from self._link()
        replicas = gauge("replicas", "Live replicas, this one among them; the last known while Redis is away.", ())
        replicas.add_metric((), sharing.replicas.count)
        yield replicas
        malformed = counter("shared_malformed", "What other replicas wrote and this one could not read.", ("kind",))
        malformed.add_metric(("report",), sharing.replicas.malformed)
        if sharing.affinity_log is not None:
            malformed.add_metric(("affinity",), sharing.affinity_log.malformed)
            yield from _affinity(sharing.affinity_log)
        if sharing.fleet_spend is not None:
            malformed.add_metric(("ledger",), sharing.fleet_spend.malformed_entries)
        if sharing.ledger_stream is not None:
            yield from _stream(sharing.ledger_stream)
        yield malformed

    def _link(self) -> Iterator[Metric]:
        link = self._sharing.link
        mode = gauge("redis_shared", "1 while Redis takes part, 0 while this replica goes on alone.", ())
        mode.add_metric((), link.mode == "shared")
        changes = counter("redis_mode_changes", "Times that Redis went away or came back.", ())
        changes.add_metric((), link.changes)
        calls = counter("redis_calls", "Calls; skipped ones were not made, since Redis was away.", ("call", "outcome"))
        seconds = counter("redis_call_seconds", "Time until answers.", ("call",))
        for name, counts in link.counts.items():
            calls.add_metric((name, "answered"), counts.answered)
            calls.add_metric((name, "failed"), counts.failed)
            calls.add_metric((name, "skipped"), counts.skipped)
            seconds.add_metric((name,), counts.seconds)
        yield from (mode, changes, calls, seconds)


def _affinity(log: AffinityLog) -> Iterator[Metric]:
    waiting = gauge("affinity_log_waiting_entries", "Entries that Redis has not got yet.", ())
    waiting.add_metric((), log.waiting_entries)
    entries = counter("affinity_log_entries", "Entries of the placements that replicas tell each other.", ("outcome",))
    entries.add_metric(("sent",), log.sent_entries)
    entries.add_metric(("read",), log.read_entries)
    entries.add_metric(("dropped",), log.dropped_entries)
    yield from (waiting, entries)


def _stream(stream: LedgerStream) -> Iterator[Metric]:
    waiting = gauge("ledger_stream_waiting_bills", "Settled bills in memory that Redis does not have.", ())
    waiting.add_metric((), stream.waiting_bills)
    sent = counter("ledger_stream_bills", "Settled bills written to Redis.", ())
    sent.add_metric((), stream.sent_bills)
    yield from (waiting, sent)
