"""How long a step will take, learnt from those before it.

Owns a linear model of a step's seconds and its fit; what follows from a prediction is the scheduler's. Pure: measured
seconds come in as numbers.

    seconds = a + b x tokens + c x pairs,    pairs = sum over new tokens of the tokens that each of them looks back at

a is what a step costs whatever is in it, b a token's projections, experts and selected blocks, c what grows with depth:
in M3 the scoring of index keys. So the time of a chunk of C tokens from token n on is b C + c (n C + C^2 / 2).

Fit: least squares over the steps so far, each counting 1 - 1/50 of the next, of measured / predicted and not of
seconds, so that a decode step of 5 ms counts as much as a chunk of 500 ms. What the recent steps say nothing about
stays as it is (a ridge around the present estimate): hours of equal decode steps do not make it forget what a prefill
costs. A coefficient that would be negative is zero, and the others are fitted without it.
"""

import math
from collections.abc import Sequence as SequenceOf

_FORGETTING = 0.98
_RIDGE = 1e-6
"""Weight of the present estimate, beside about 50 steps of weight one."""
_OUTLIER_RATIO = 3.0
"""A step that took longer than so many times its prediction was held up by something else; it counts as this much."""
_TRUSTED_STEPS = 8
"""Until then nothing is an outlier and nothing is predicted."""
_SHORT_SECONDS = 5e-3
"""What steps shorter than this say is taken into account together,"""
_REFIT_STEPS = 16
"""so many at a time,"""
_FAR = 0.1
"""unless a prediction was off by more than this share."""
_STEP_SCALE, _TOKEN_SCALE, _PAIR_SCALE = 1e-3, 1e-6, 1e-9
"""Seconds of a step, a token and a pair, roughly: in these units the coefficients are near one."""

_TINY = 1e-30
"""Below rounding: what a pivot is at least."""

Vector = tuple[float, float, float]
Moments = tuple[float, float, float, float, float, float]
"""A symmetric matrix of three rows: 00, 01, 02, 11, 12, 22. Written out, since a step learns in microseconds or not."""


class StepTime:
    """The model of one engine's steps."""

    def __init__(self) -> None:
        self.steps = 0
        """Steps that it has learnt from."""
        self.step_seconds = 0.0
        """a: what every step costs."""
        self.token_seconds = 0.0
        """b: what a new token costs."""
        self.pair_seconds = 0.0
        """c: what a pair of a new token and one that it looks back at costs."""
        self._estimate: Vector = (0.0, 0.0, 0.0)
        self._moments: Moments = (_RIDGE, 0.0, 0.0, _RIDGE, 0.0, _RIDGE)
        self._target: Vector = (0.0, 0.0, 0.0)

    @property
    def is_fitted(self) -> bool:
        """Whether it has seen enough to predict by."""
        return self.steps >= _TRUSTED_STEPS

    def predict(self, tokens: int, pairs: float) -> float:
        """Seconds of a step with so many new tokens and pairs."""
        return self.step_seconds + self.token_seconds * tokens + self.pair_seconds * pairs

    def chunk_seconds(self, start: int, tokens: int) -> float:
        """Seconds that `tokens` of one sequence, from its token `start` on, add to a step."""
        return self.token_seconds * tokens + self.pair_seconds * chunk_pairs(start, tokens)

    def tokens_within(self, seconds: float, start: int) -> int:
        """The most tokens of one sequence, from its token `start` on, that add at most `seconds` to a step.

        At least 0; 2^62 if nothing costs anything yet.
        """
        if seconds <= 0:
            return 0
        slope = self.token_seconds + self.pair_seconds * start
        # The positive root of c/2 C^2 + slope C - seconds, in the form that is exact for a small c too.
        denominator = slope + math.sqrt(slope * slope + 2 * self.pair_seconds * seconds)
        return int(min(2 * seconds / denominator, 2**62)) if denominator > 0 else 2**62

    def observe(self, tokens: int, pairs: float, seconds: float) -> None:
        """Learn from a step of so many tokens and pairs, which took `seconds`."""
        predicted = self.predict(tokens, pairs) if self.is_fitted else 0.0
        if self.is_fitted:
            seconds = min(seconds, _OUTLIER_RATIO * predicted)
        if seconds <= 0:
            return
        self.steps += 1
        self._remember(_STEP_SCALE / seconds, _TOKEN_SCALE * tokens / seconds, _PAIR_SCALE * pairs / seconds)
        is_far = abs(predicted - seconds) > _FAR * seconds
        if seconds >= _SHORT_SECONDS or is_far or self.steps % _REFIT_STEPS == 0:
            self._refit()

    def _remember(self, x: float, y: float, z: float) -> None:
        """Forget a share of all steps so far, and lean on the present estimate for it; add one of these features."""
        leak = (1 - _FORGETTING) * _RIDGE
        xx, xy, xz, yy, yz, zz = self._moments
        self._moments = (
            _FORGETTING * xx + x * x + leak,
            _FORGETTING * xy + x * y,
            _FORGETTING * xz + x * z,
            _FORGETTING * yy + y * y + leak,
            _FORGETTING * yz + y * z,
            _FORGETTING * zz + z * z + leak,
        )
        a, b, c = self._estimate
        of_x, of_y, of_z = self._target
        self._target = (
            _FORGETTING * of_x + x + leak * a,
            _FORGETTING * of_y + y + leak * b,
            _FORGETTING * of_z + z + leak * c,
        )

    def _refit(self) -> None:
        a, b, c = self._estimate = _least_squares(self._moments, self._target)
        self.step_seconds, self.token_seconds, self.pair_seconds = a * _STEP_SCALE, b * _TOKEN_SCALE, c * _PAIR_SCALE


def chunk_pairs(start: int, tokens: int) -> float:
    """Pairs of a chunk of `tokens` from token `start` on: each of its tokens with all before it."""
    return tokens * (start + tokens / 2)


def _least_squares(moments: Moments, target: Vector) -> Vector:
    """The coefficients that solve moments . w = target, none of them negative."""
    found = _solve(moments, target)
    while min(found) < 0:
        # Moments and target have no negative entry, so some coefficient is positive: this ends.
        moments, target = _without(moments, target, [value < 0 for value in found])
        found = _solve(moments, target)
    return found


def _without(moments: Moments, target: Vector, is_out: SequenceOf[bool]) -> tuple[Moments, Vector]:
    """The same system, in which some of the unknowns are 0 and independent of the others."""
    xx, xy, xz, yy, yz, zz = moments
    x, y, z = (0.0 if out else 1.0 for out in is_out)
    kept = (xx * x + (1 - x), xy * x * y, xz * x * z, yy * y + (1 - y), yz * y * z, zz * z + (1 - z))
    return kept, (target[0] * x, target[1] * y, target[2] * z)


def _solve(moments: Moments, target: Vector) -> Vector:
    """The solution of a symmetric positive definite system, by Cholesky decomposition."""
    xx, xy, xz, yy, yz, zz = moments
    a = math.sqrt(max(xx, _TINY))
    b, d = xy / a, xz / a
    c = math.sqrt(max(yy - b * b, _TINY))
    e = (yz - d * b) / c
    f = math.sqrt(max(zz - d * d - e * e, _TINY))
    x = target[0] / a
    y = (target[1] - b * x) / c
    z = (target[2] - d * x - e * y) / f / f
    y = (y - e * z) / c
    return (x - b * y - d * z) / a, y, z
