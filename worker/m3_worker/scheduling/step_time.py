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
from collections.abc import Sequence
from operator import mul

_FORGETTING = 0.98
_RIDGE = 1e-6
"""Weight of the present estimate, beside about 50 steps of weight one."""
_OUTLIER_RATIO = 3.0
"""A step that took longer than so many times its prediction was held up by something else; it counts as this much."""
_TRUSTED_STEPS = 8
"""Until then nothing is an outlier and nothing is predicted."""
_SHORT_SECONDS = 5e-3
"""A fit takes some 30 us. What steps shorter than this say is taken into account together,"""
_REFIT_STEPS = 16
"""so many at a time,"""
_FAR = 0.1
"""unless a prediction was off by more than this share."""
_SCALES = (1e-3, 1e-6, 1e-9)
"""Seconds of a step, a token and a pair, roughly: in these units the coefficients are near one."""

_TINY = 1e-30
"""Below rounding: what a pivot is at least."""

Vector = list[float]


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
        self._estimate = [0.0, 0.0, 0.0]
        self._moments = [[_RIDGE * (row == column) for column in range(3)] for row in range(3)]
        self._target = [0.0, 0.0, 0.0]

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
        x = [scale * feature / seconds for scale, feature in zip(_SCALES, (1.0, tokens, pairs), strict=True)]
        leak = (1 - _FORGETTING) * _RIDGE
        for row in range(3):
            for column in range(3):
                self._moments[row][column] = _FORGETTING * self._moments[row][column] + x[row] * x[column]
            self._moments[row][row] += leak
            self._target[row] = _FORGETTING * self._target[row] + x[row] + leak * self._estimate[row]
        is_far = abs(predicted - seconds) > _FAR * seconds
        if seconds >= _SHORT_SECONDS or is_far or self.steps % _REFIT_STEPS == 0:
            self._refit()

    def _refit(self) -> None:
        self._estimate = self._fit()
        coefficients = map(mul, self._estimate, _SCALES)
        self.step_seconds, self.token_seconds, self.pair_seconds = coefficients

    def _fit(self) -> Vector:
        """The coefficients that solve moments . w = target, none of them negative."""
        places = [0, 1, 2]
        while True:
            solution = _solve(self._moments, self._target, places)
            if min(solution) >= 0:
                found = dict(zip(places, solution, strict=True))
                return [found.get(place, 0.0) for place in range(3)]
            # Moments and target have no negative entry, so some coefficient is positive: this ends.
            places = [place for place, value in zip(places, solution, strict=True) if value >= 0]


def chunk_pairs(start: int, tokens: int) -> float:
    """Pairs of a chunk of `tokens` from token `start` on: each of its tokens with all before it."""
    return tokens * (start + tokens / 2)


def _solve(matrix: Sequence[Vector], target: Vector, places: Sequence[int]) -> Vector:
    """The solution of a symmetric positive definite system in some of its unknowns, by Cholesky decomposition."""
    lower: list[Vector] = []
    forward: Vector = []
    for i, place in enumerate(places):
        row: Vector = []
        for j in range(i):
            row.append((matrix[place][places[j]] - sum(map(mul, row, lower[j]))) / lower[j][j])
        row.append(math.sqrt(max(matrix[place][place] - sum(map(mul, row, row)), _TINY)))
        forward.append((target[place] - sum(map(mul, row, forward))) / row[i])
        lower.append(row)
    for i in reversed(range(len(places))):
        for k in range(i + 1, len(places)):
            forward[i] -= lower[k][i] * forward[k]
        forward[i] /= lower[i][i]
    return forward
