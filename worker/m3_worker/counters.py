"""What the engine counts: plain numbers, written by its thread alone and read by whoever scrapes.

Knows no exposition format (metrics renders it) and no clock. A reader may see a step half counted, and no worse.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

# Upper bounds in seconds. They span a tiny model on a CPU and a million tokens of prompt on a GPU.
STEP_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
TOKEN_BOUNDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
ERROR_BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
FIRST_TOKEN_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)


class Histogram:
    """Counts of observations by upper bound, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """`bounds` ascend; what exceeds the last goes to +Inf."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


@dataclass(slots=True)
class Counters:
    """Totals since the engine started. Seconds are seconds, tokens are tokens."""

    steps: int = 0
    prompt_tokens: int = 0
    """Of requests that have got their first token; what a preemption computes again is not counted again."""
    generation_tokens: int = 0
    aborts: int = 0
    """Requests given up by their client before they were finished."""
    preemptions: int = 0
    step_seconds: Histogram = field(default_factory=lambda: Histogram(STEP_BOUNDS))
    step_prediction_error_ratio: Histogram = field(default_factory=lambda: Histogram(ERROR_BOUNDS))
    """Predicted over measured seconds, less one, without its sign."""
    queue_seconds: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BOUNDS))
    time_to_first_token_seconds: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BOUNDS))
    time_per_output_token_seconds: Histogram = field(default_factory=lambda: Histogram(TOKEN_BOUNDS))
