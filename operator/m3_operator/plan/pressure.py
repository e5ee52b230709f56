"""What samples of a deployment say about its size: pressure, and the groups that it asks for.

Pressure is a signal's value over its target, at most 2, as the mean of 45 s. Each signal asks for a number of groups,
and the largest counts. Above `up` it asks for n + ceil(n (s c / up - 1)), where c is the share of the groups that
serve: those that are still loading will help, and must not be asked for twice. Below `down` it asks for
n - floor(n (1 - s / down)), but for no fewer than would keep the pressure below `up`. Between them it holds. Latencies
rise late and steeply, shares of something early and evenly, so their bands differ.

Pressure belongs to the capacity under which it was measured. To add groups, only samples since the number of serving
groups last changed count; to let them go, older ones do too, scaled to what is left.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from m3_operator.signals.values import SCRAPE_SECONDS, Sample
from m3_operator.spec.autoscaling import SignalSpec, SignalType

MEAN_OVER: Final = timedelta(seconds=45)
HIGHEST_PRESSURE: Final = 2.0
LATENCY_LIKE: Final[frozenset[SignalType]] = frozenset({"QueueWait", "TimeToFirstToken", "TimePerOutputToken"})
_ONE_SCRAPE: Final = timedelta(seconds=1.5 * SCRAPE_SECONDS)
_ROUNDING: Final = 1e-9


@dataclass(frozen=True)
class Bands:
    """Pressures above which groups are added, and below which they go."""

    up: float
    down: float


def bands(signal: SignalType) -> Bands:
    """Those of a type of signal."""
    return Bands(0.55, 0.40) if signal in LATENCY_LIKE else Bands(0.85, 0.60)


@dataclass(frozen=True)
class Demand:
    """Groups that the signals ask for, and which of them asks for the most; None: none has anything to say."""

    groups: int
    signal: SignalType | None = None


def demand_up(
    signals: Sequence[SignalSpec], samples: Sequence[Sample], wanted: int, window_seconds: int, now: datetime
) -> Demand:
    """The least that was asked for throughout the window; `wanted` where it cannot be told."""
    ready = samples[-1].ready if samples else 0
    since = next((i + 1 for i in range(len(samples) - 1, -1, -1) if samples[i].ready != ready), 0)
    usable = samples[since:]
    if not ready or not _covers(usable, window_seconds, now):
        return Demand(wanted)
    credit = min(ready / wanted, 1.0)
    asked = (
        _most(
            (
                (signal.type, _groups_above(pressure * credit, wanted, bands(signal.type)))
                for signal in signals
                if (pressure := mean_pressure(signal, usable[: at + 1])) is not None
            ),
            wanted,
        )
        for at in _within(usable, window_seconds, now)
    )
    return min(asked, key=lambda demand: demand.groups)


def demand_down(
    signals: Sequence[SignalSpec], samples: Sequence[Sample], wanted: int, window_seconds: int, now: datetime
) -> Demand:
    """The most that was asked for at any time of the window; `wanted` where it cannot be told."""
    ready = samples[-1].ready if samples else 0
    if not ready or not _covers(samples, window_seconds, now):
        return Demand(wanted)
    asked = (
        _most(
            (
                (signal.type, _groups_below(pressure, wanted, bands(signal.type)))
                for signal in signals
                if (pressure := mean_pressure(signal, samples[: at + 1], ready=ready)) is not None
            ),
            wanted,
        )
        for at in _within(samples, window_seconds, now)
    )
    return max(asked, key=lambda demand: demand.groups)


def mean_pressure(signal: SignalSpec, samples: Sequence[Sample], *, ready: int | None = None) -> float | None:
    """The mean pressure of the 45 s that end with the last sample; None if nothing was measured.

    `ready`: how many groups shall bear what more of them bore then.
    """
    pressures = []
    for sample in reversed(samples):
        if samples[-1].at - sample.at > MEAN_OVER:
            break
        pressure = _pressure(signal, sample)
        if pressure is not None:
            pressures.append(pressure * (max(sample.ready / ready, 1.0) if ready else 1.0))
    return min(sum(pressures) / len(pressures), HIGHEST_PRESSURE) if pressures else None


def mean_value(signal: SignalSpec, samples: Sequence[Sample]) -> float | None:
    """The mean of what was measured in the 45 s that end with the last sample, in the signal's own unit."""
    values = [
        value
        for sample in samples
        if samples[-1].at - sample.at <= MEAN_OVER and (value := sample.values.get(signal.type)) is not None
    ]
    return sum(values) / len(values) if values else None


def _pressure(signal: SignalSpec, sample: Sample) -> float | None:
    value = sample.values.get(signal.type)
    if value is None:
        # Nobody asked for anything: that is no pressure. With requests under way it is no answer yet.
        return 0.0 if signal.type in LATENCY_LIKE and sample.requests == 0 else None
    return min(max(value, 0.0) / signal.target, HIGHEST_PRESSURE)


def _groups_above(pressure: float, wanted: int, band: Bands) -> int:
    if pressure <= band.up:
        return wanted
    return wanted + math.ceil(wanted * (pressure / band.up - 1) - _ROUNDING)


def _groups_below(pressure: float, wanted: int, band: Bands) -> int:
    if pressure >= band.down:
        return wanted
    fewer = max(wanted - math.floor(wanted * (1 - pressure / band.down) + _ROUNDING), 1)
    while fewer < wanted and pressure * wanted / fewer >= band.up:
        fewer += 1
    return fewer


def _most(asked: Iterator[tuple[SignalType, int]], wanted: int) -> Demand:
    demands = (Demand(groups, signal) for signal, groups in asked)
    return max(demands, key=lambda demand: demand.groups, default=Demand(wanted))


def _covers(samples: Sequence[Sample], window_seconds: int, now: datetime) -> bool:
    return bool(samples) and now - samples[0].at >= timedelta(seconds=window_seconds) - _ONE_SCRAPE


def _within(samples: Sequence[Sample], window_seconds: int, now: datetime) -> list[int]:
    """Indexes of the window's samples; at least the last."""
    start = now - timedelta(seconds=window_seconds)
    return [at for at, sample in enumerate(samples) if sample.at >= start] or [len(samples) - 1]
