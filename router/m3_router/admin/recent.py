"""What the bills of the last minutes and of the last hour say, by lane and by worker: sums in slots of ten seconds.

Owns the slots. Fed with settled bills; time comes in as monotonic seconds, and a slot that has become too old is
dropped. Quantiles are read off geometric buckets, a twentieth apart: each is right within five per cent. Memory is
bounded by the slots, the lanes and the workers that took requests in them.
"""

import math
from collections import deque
from collections.abc import Mapping
from typing import Final

from m3_router.admin.document import LaneLatency, RatesNow, WorkerRecent
from m3_router.config import ContextTier, LaneSettings, ServiceTier
from m3_router.money.bill import Bill
from m3_router.telemetry.attainment import came_in_time, targets_ms

SLOT_SECONDS: Final = 10
RECENT_SECONDS: Final = 300
HOUR_SECONDS: Final = 3600
OBJECTIVE: Final = 0.95  # the target is for the 95th percentile
SERVICE_TIERS: Final[tuple[ServiceTier, ...]] = ("priority", "standard", "batch")
CONTEXT_TIERS: Final[tuple[ContextTier, ...]] = ("standard", "long")

_BUCKETS_PER_E: Final = 1 / math.log(1.05)
_NO_PLACE: Final = frozenset({429, 503, 529})  # what a lane answers that has no place

LaneKey = tuple[ServiceTier, ContextTier]


def lane_name(service_tier: ServiceTier, context_tier: ContextTier | None) -> str:
    """What people call a lane: `priority`, or `priority-long` above the threshold."""
    return f"{service_tier}-long" if context_tier == "long" else service_tier


class _LaneSlot:
    __slots__ = ("buckets", "refused", "requests", "within")

    def __init__(self) -> None:
        self.requests = self.within = self.refused = 0
        self.buckets: dict[int, int] = {}


class _WorkerSlot:
    __slots__ = ("cached", "failures", "input", "predicted", "requests")

    def __init__(self) -> None:
        self.requests = self.failures = self.input = self.predicted = self.cached = 0


class _Slot:
    __slots__ = ("cached", "cost_nanousd", "failures", "input", "lanes", "number", "output", "requests", "workers")

    def __init__(self, number: int) -> None:
        self.number = number
        self.lanes: dict[LaneKey, _LaneSlot] = {}
        self.workers: dict[str, _WorkerSlot] = {}
        self.requests = self.failures = self.input = self.cached = self.output = self.cost_nanousd = 0


class Recent:
    """Sums of settled bills over the last hour."""

    def __init__(self, lanes: LaneSettings) -> None:
        self._targets_ms = targets_ms(lanes)
        self._slots: deque[_Slot] = deque()

    def read(self, bills: list[Bill], now: float) -> None:
        """Add what was settled."""
        slot = self._slot(now)
        for bill in bills:
            service_tier = bill.service_tier
            if service_tier is None:
                continue  # refused before it had a lane
            self._add_to_lane(slot, bill, service_tier)
            outcome, worker_name = bill.outcome, bill.worker
            input_tokens, cached_tokens = bill.input_tokens, bill.cached_tokens
            has_failed = outcome == "worker_error"
            slot.requests += 1
            slot.failures += has_failed
            slot.input += input_tokens
            slot.cached += cached_tokens
            slot.output += bill.output_tokens
            slot.cost_nanousd += bill.cost_nanousd
            if worker_name:
                worker = slot.workers.get(worker_name)
                if worker is None:
                    worker = slot.workers[worker_name] = _WorkerSlot()
                worker.requests += 1
                worker.failures += has_failed
                if outcome == "ok":
                    worker.input += input_tokens
                    worker.cached += cached_tokens
                    worker.predicted += bill.predicted_cached_tokens

    def latency(self, now: float) -> list[LaneLatency]:
        """The lanes that have a target and took requests within the hour."""
        recent, hour = self._of_last(now, RECENT_SECONDS), self._of_last(now, HOUR_SECONDS)
        keys = {key for slot in hour for key in slot.lanes}
        return [
            _latency((service, context), target_ms, recent, hour)
            for service in SERVICE_TIERS
            for context in CONTEXT_TIERS
            if (target_ms := self._targets_ms.get(service)) is not None and (service, context) in keys
        ]

    def workers(self, now: float) -> dict[str, WorkerRecent]:
        """By worker, what it has answered in the last RECENT_SECONDS."""
        found: dict[str, _WorkerSlot] = {}
        for slot in self._of_last(now, RECENT_SECONDS):
            for name, part in slot.workers.items():
                total = found.setdefault(name, _WorkerSlot())
                total.requests += part.requests
                total.failures += part.failures
                total.input += part.input
                total.predicted += part.predicted
                total.cached += part.cached
        return {
            name: WorkerRecent(total.requests, total.failures, total.input, total.predicted, total.cached)
            for name, total in found.items()
        }

    def rates(self, now: float) -> RatesNow:
        """Over the slot that runs and the one before it: between ten and twenty seconds."""
        slots = self._of_last(now, 2 * SLOT_SECONDS)
        seconds = SLOT_SECONDS + now % SLOT_SECONDS
        return RatesNow(
            seconds=round(seconds),
            requests_per_second=sum(slot.requests for slot in slots) / seconds,
            failures_per_second=sum(slot.failures for slot in slots) / seconds,
            input_tokens_per_second=sum(slot.input for slot in slots) / seconds,
            cached_tokens_per_second=sum(slot.cached for slot in slots) / seconds,
            output_tokens_per_second=sum(slot.output for slot in slots) / seconds,
            cost_nanousd_per_hour=round(sum(slot.cost_nanousd for slot in slots) / seconds * 3600),
        )

    def _add_to_lane(self, slot: _Slot, bill: Bill, service_tier: ServiceTier) -> None:
        key: LaneKey = (service_tier, bill.context_tier or "standard")
        lane = slot.lanes.get(key)
        if lane is None:
            lane = slot.lanes[key] = _LaneSlot()
        if bill.outcome == "rejected":
            lane.refused += bill.status in _NO_PLACE
            return
        is_in_time = came_in_time(bill, self._targets_ms.get(service_tier, math.inf))
        if is_in_time is None:
            return
        lane.requests += 1
        lane.within += is_in_time
        first_byte_ms = bill.first_byte_ms
        if first_byte_ms is None:
            return
        bucket = math.floor(math.log(max(first_byte_ms, 1e-3)) * _BUCKETS_PER_E + 0.5)
        lane.buckets[bucket] = lane.buckets.get(bucket, 0) + 1

    def _slot(self, now: float) -> _Slot:
        number = int(now // SLOT_SECONDS)
        if not self._slots or self._slots[-1].number < number:
            self._slots.append(_Slot(number))
            while self._slots[0].number <= number - HOUR_SECONDS // SLOT_SECONDS:
                self._slots.popleft()
        return self._slots[-1]

    def _of_last(self, now: float, seconds: int) -> list[_Slot]:
        oldest = int(now // SLOT_SECONDS) - seconds // SLOT_SECONDS
        return [slot for slot in self._slots if slot.number > oldest]


def _latency(key: LaneKey, target_ms: float, recent: list[_Slot], hour: list[_Slot]) -> LaneLatency:
    parts = [slot.lanes[key] for slot in recent if key in slot.lanes]
    hour_parts = [slot.lanes[key] for slot in hour if key in slot.lanes]
    requests, within = sum(part.requests for part in parts), sum(part.within for part in parts)
    hour_requests, hour_within = sum(part.requests for part in hour_parts), sum(part.within for part in hour_parts)
    buckets: dict[int, int] = {}
    for part in parts:
        for bucket, count in part.buckets.items():
            buckets[bucket] = buckets.get(bucket, 0) + count
    return LaneLatency(
        name=lane_name(*key),
        service_tier=key[0],
        context_tier=key[1],
        target_ms=target_ms,
        objective=OBJECTIVE,
        seconds=RECENT_SECONDS,
        requests=requests,
        within=within,
        refused=sum(part.refused for part in parts),
        p50_ms=_quantile(buckets, 0.5),
        p95_ms=_quantile(buckets, 0.95),
        burn=_burn(requests, within),
        hour_requests=hour_requests,
        hour_within=hour_within,
        hour_burn=_burn(hour_requests, hour_within),
    )


def _quantile(buckets: Mapping[int, int], share: float) -> float | None:
    """The smallest value that at least this share of all does not exceed; None of nothing."""
    left = math.ceil(sum(buckets.values()) * share)
    for bucket in sorted(buckets):
        left -= buckets[bucket]
        if left <= 0:
            return round(math.exp(bucket / _BUCKETS_PER_E), 3)
    return None


def _burn(requests: int, within: int) -> float | None:
    return round((requests - within) / requests / (1 - OBJECTIVE), 3) if requests else None
