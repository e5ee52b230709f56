"""How the lanes were over the last minutes: one sample a second, for a chart.

Owns a bounded ring of samples with running numbers. Pure: whoever ticks says what the lanes hold and how much was
settled since. A lane that comes or goes while the ring runs is 0 where it was not.
"""

from collections import deque
from collections.abc import Mapping
from typing import Final

import msgspec

from m3_router.admin.document import LaneSeries, Timeline

SAMPLES: Final = 600
STEP_SECONDS: Final = 1.0

LaneOfPool = tuple[str, str]
"""(pool, lane)"""


class _Sample(msgspec.Struct, frozen=True):
    time: float
    requests: int
    lanes: dict[LaneOfPool, tuple[int, int]]  # tokens in flight, requests waiting


class TimelineRing:
    """The newest SAMPLES samples."""

    def __init__(self, samples: int = SAMPLES) -> None:
        self._ring: deque[_Sample] = deque(maxlen=samples)
        self._last = 0  # number of the newest sample; the first one is 1

    def add(self, time: float, requests: int, lanes: Mapping[LaneOfPool, tuple[int, int]]) -> None:
        """One more step has passed. lanes: tokens in flight and requests waiting of each."""
        self._ring.append(_Sample(time, requests, dict(lanes)))
        self._last += 1

    def since(self, number: int) -> Timeline:
        """What came after a sample; 0, or a number that this ring has not given yet, gets all there is."""
        count = min(self._last - number, len(self._ring)) if 0 <= number <= self._last else len(self._ring)
        samples = list(self._ring)[len(self._ring) - count :]
        lanes = list(dict.fromkeys(lane for sample in samples for lane in sample.lanes))
        nothing = (0, 0)
        return Timeline(
            step_seconds=STEP_SECONDS,
            first=self._last - count + 1,
            last=self._last,
            time=self._ring[-1].time if self._ring else 0.0,
            requests=[sample.requests for sample in samples],
            series=[
                LaneSeries(
                    pool,
                    lane,
                    [sample.lanes.get((pool, lane), nothing)[0] for sample in samples],
                    [sample.lanes.get((pool, lane), nothing)[1] for sample in samples],
                )
                for pool, lane in lanes
            ],
        )
