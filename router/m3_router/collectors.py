"""Counts of the parts beside the way of a request, as Prometheus families at the time of a scrape.

Owns the names of these families, and no count: each is its part's own. What is counted of requests is `metrics`'
concern; what is shared through Redis, `shared.collector`'s.
"""

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from m3_router.money.journal import Journal
from m3_router.money.ledger import Ledger
from m3_router.placement.pools import Pools
from m3_router.relay.counting import ExactCounts
from m3_router.relay.moderation import Moderator
from m3_router.relay.settlement import Settlement
from m3_router.telemetry.attainment import Attainment
from m3_router.telemetry.metrics import counter, gauge
from m3_router.telemetry.tracing import SpanSender
from m3_router.tenants.access_file import AccessFile
from m3_router.tenants.quotas import Quotas


class PartsCollector(Collector):
    """The parts of one router; those that are not configured are None, and give no families."""

    def __init__(
        self,
        *,
        pools: Pools,
        ledger: Ledger,
        journal: Journal | None,
        settlement: Settlement,
        counts: ExactCounts,
        moderator: Moderator | None,
        spans: SpanSender | None,
        access_file: AccessFile,
        attainment: Attainment,
        quotas: Quotas,
    ) -> None:
        self._pools = pools
        self._ledger = ledger
        self._journal = journal
        self._settlement = settlement
        self._counts = counts
        self._moderator = moderator
        self._spans = spans
        self._access_file = access_file
        self._attainment = attainment
        self._quotas = quotas

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield from self._placement()
        yield from self._settling()
        yield from self._asking()
        yield from self._limits()

    def _placement(self) -> Iterator[Metric]:
        blocks = gauge("affinity_blocks", "Blocks in both generations of the index.", ("pool",))
        slots = gauge("affinity_slots", "Lives of workers that the index tells apart now.", ("pool",))
        for pool in self._pools:
            if pool.affinity is not None:
                blocks.add_metric((pool.name,), len(pool.affinity))
                slots.add_metric((pool.name,), pool.affinity.slots)
        yield from (blocks, slots)

    def _settling(self) -> Iterator[Metric]:
        pending = gauge("ledger_pending_bills", "Closed bills whose workers are asked what they used.", ())
        pending.add_metric((), self._ledger.pending)
        inquiries = counter("settlement_inquiries", "Workers asked what a cut-off answer used.", ("outcome",))
        inquiries.add_metric(("answered",), self._settlement.answered)
        inquiries.add_metric(("unanswered",), self._settlement.unanswered)
        yield from (pending, inquiries)
        if self._journal is not None:
            lost = counter("journal_lost_records", "Records that the disk had no room for.", ())
            lost.add_metric((), self._journal.lost_records)
            segments = gauge("journal_segments", "Files of the journal.", ())
            segments.add_metric((), self._journal.segments)
            opened = gauge("journal_open_bills", "Bills opened and not settled.", ())
            opened.add_metric((), self._journal.open_bills)
            yield from (lost, segments, opened)

    def _asking(self) -> Iterator[Metric]:
        counts = counter("exact_counts", "Requests whose tokens had to be counted before their price.", ("outcome",))
        for counted, times in self._counts.outcomes.items():
            counts.add_metric((counted,), times)
        yield counts
        if self._moderator is not None:
            asked = counter("moderations", "Texts that the moderation service was asked about.", ("stage", "outcome"))
            for (stage, outcome), times in self._moderator.outcomes.items():
                asked.add_metric((stage, outcome), times)
            seconds = counter("moderation_seconds", "Time that these questions took.", ())
            seconds.add_metric((), self._moderator.asked_seconds)
            yield from (asked, seconds)
        if self._spans is not None:
            traced = counter("traced_requests", "Sampled requests, by what became of their spans.", ("outcome",))
            traced.add_metric(("sent",), self._spans.sent)
            traced.add_metric(("dropped",), self._spans.dropped)
            traced.add_metric(("failed",), self._spans.failed)
            yield traced

    def _limits(self) -> Iterator[Metric]:
        reloads = counter("config_reloads", "Changes of the configuration or the keys file.", ("outcome",))
        reloads.add_metric(("taken",), self._access_file.reloads)
        reloads.add_metric(("failed",), self._access_file.failures)
        unusable = gauge("unusable_keys", "Keys of tenants that open nothing: missing, no key, or another's.", ())
        unusable.add_metric((), self._access_file.unusable_keys)
        refusals = counter("quota_refusals", "Requests refused by a limit of their tenant's plan.", ("limit",))
        for limit, times in self._quotas.refusals.items():
            refusals.add_metric((limit,), times)
        labels = ("service_tier", "context_tier", "in_time")
        first_bytes = counter("first_byte_target_requests", "Requests with a first byte, by its target.", labels)
        for (service_tier, context_tier), lane in self._attainment.lanes.items():
            first_bytes.add_metric((service_tier, context_tier, "true"), lane.in_time)
            first_bytes.add_metric((service_tier, context_tier, "false"), lane.requests - lane.in_time)
        targets = gauge("first_byte_target_seconds", "What these are measured against.", ("service_tier",))
        for service_tier, target_ms in self._attainment.targets_ms.items():
            targets.add_metric((service_tier,), target_ms / 1000)
        yield from (reloads, unusable, refusals, first_bytes, targets)
