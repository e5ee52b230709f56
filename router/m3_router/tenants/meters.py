"""One limit over one window of time: how much of it this replica may use, and how much it has used.

Owns the count and the turn of the window. Windows are of UTC: minutes, days, months, all time, or `now` (what is held
at this moment: given back instead of turned). Pure; what the other replicas use is told by `shared.leases`.

    0            used          allowance                        limit
    |-------------|----------------|------------------------------|
       this replica   still its own        the other replicas'

A window begins with an equal share for each replica, without anybody asking anybody: with one replica that is all.
"""

import math
from datetime import UTC, datetime
from typing import Final, Literal

Period = Literal["minute", "day", "month", "total", "now"]
TOKENS: Final = 0
REQUESTS: Final = 1
NANOUSD: Final = 2
CLOCK_STEP_SECONDS: Final = 60.0  # a clock that was put back by less than this does not open a past window again
_DAY_SECONDS: Final = 86_400
_FOREVER: Final = math.inf


class Meter:
    """One limit of one tenant on this replica. `used` counts what is reserved, too."""

    __slots__ = (
        "allowance",
        "counts_from",
        "ends_at",
        "gone_used",
        "is_leased",
        "limit",
        "low_water",
        "name",
        "others_used",
        "period",
        "starts_at",
        "unit",
        "used",
        "wanted",
        "wanted_at",
        "window",
    )

    def __init__(self, name: str, unit: int, period: Period, limit: int) -> None:
        self.name = name  # the setting's
        self.unit = unit  # TOKENS, REQUESTS or NANOUSD
        self.period: Period = period
        self.limit = limit
        self.used = 0
        self.allowance = 0
        self.low_water = 0  # when more than this is used, it is time to ask for more
        self.others_used = 0  # as last told
        self.gone_used = 0  # the part of it that replicas had used which are no more
        self.is_leased = False  # whether the other replicas were told of this window
        self.wanted = 0  # what a request that was refused would have needed, above what is used
        self.wanted_at = 0.0  # monotonic
        self.window = 0  # which one: minutes, days or months since the epoch
        self.starts_at = _FOREVER  # seconds since the epoch, as the next two; no window is open yet
        self.ends_at = -_FOREVER
        self.counts_from = _FOREVER  # what was reserved earlier is not part of `used`

    def __repr__(self) -> str:
        return f"<Meter {self.name} window {self.window}: {self.used} used, {self.allowance} of {self.limit} allowed>"

    def is_current(self, wall: float) -> bool:
        """Whether the open window is that of this moment."""
        return self.starts_at - CLOCK_STEP_SECONDS <= wall < self.ends_at

    def turn(self, wall: float) -> None:
        """Open the window of this moment, and allow nothing in it yet."""
        self.window, self.starts_at, self.ends_at = window_of(self.period, wall)
        self.counts_from = max(wall, self.starts_at)
        self.used = self.others_used = self.gone_used = self.wanted = 0
        self.is_leased = False
        self.allow(0)

    def allow(self, allowance: int) -> None:
        """Let this replica use so much of the window, in all."""
        self.allowance = allowance
        headroom = max(0, allowance - self.used)
        # With half of what it has, it asks for more; who has all there is has nobody to ask.
        self.low_water = self.limit if allowance >= self.limit else allowance - (headroom + 1) // 2

    def change_limit(self, limit: int, replicas: int) -> None:
        """Another limit for the open window: an equal share of what is left of it, until the replicas have agreed."""
        self.limit = limit
        self.allow(self.used + self.left // max(1, replicas))

    @property
    def left(self) -> int:
        """What nobody has used, as far as this replica knows."""
        return max(0, self.limit - self.used - self.others_used)

    def check(self) -> None:
        """Raise AssertionError if the count cannot be."""
        if self.used < 0 or self.allowance < 0 or not self.starts_at <= self.counts_from:
            raise AssertionError(repr(self))


def share_of(limit: int, replicas: int, index: int) -> int:
    """The part of a limit that replica `index` of `replicas` begins with; the parts of all make up the whole."""
    if replicas == 0:
        return 0
    return limit // replicas + (1 if index < limit % replicas else 0)


def window_of(period: Period, wall: float) -> tuple[int, float, float]:
    """The window of a moment: its number, its start and its end in seconds since the epoch."""
    if period == "minute":
        minute = int(wall // 60)
        return minute, minute * 60.0, (minute + 1) * 60.0
    if period == "day":
        day = int(wall // _DAY_SECONDS)
        return day, float(day * _DAY_SECONDS), float((day + 1) * _DAY_SECONDS)
    if period == "month":
        moment = datetime.fromtimestamp(wall, UTC)
        month = moment.year * 12 + moment.month - 1
        return month, _start_of_month(month), _start_of_month(month + 1)
    return 0, -_FOREVER, _FOREVER


def _start_of_month(month: int) -> float:
    return datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC).timestamp()
