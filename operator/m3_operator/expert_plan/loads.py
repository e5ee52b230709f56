"""What experts are asked to do lately, from counters that only grow.

Owns the moving average (`LoadAverage`) of one series of counters, as a worker's `GET /internal/experts` gives them.
Prefill and decode choose different experts, and a token costs more in one than in the other: whoever can count them
apart keeps an average of each, and `blend` puts them together. Does not own where counters come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from m3_operator.expert_plan.plan import ExpertPlanError, Loads

Counters = Sequence[Sequence[int]]
"""[layers with experts][experts]: tokens that chose each since the worker's start."""


@dataclass(frozen=True)
class LoadAverage:
    """Tokens of each expert, in which those of `half_life_seconds` ago count half.

    A sum and not a rate: a time without requests says nothing about which experts the next ones will choose.
    """

    half_life_seconds: float
    tokens: tuple[tuple[float, ...], ...] = ()
    """[layers][experts]; empty before the first reading."""
    counters: tuple[tuple[int, ...], ...] = ()
    """As last read; empty before the first reading."""
    read_at_seconds: float = 0.0

    def __post_init__(self) -> None:
        if not self.half_life_seconds > 0:
            raise ExpertPlanError(f"half-life is {self.half_life_seconds} s: must be above 0")

    @classmethod
    def over_window(cls, window_seconds: float) -> Self:
        """The average of a window: three quarters of it are what the last window brought."""
        return cls(window_seconds / 2)

    def after(self, counters: Counters, now_seconds: float) -> "LoadAverage":
        """The average once these counters were read, on a clock that never goes back.

        The first reading only says where counting starts. A counter that has become smaller began anew with its worker,
        and so did all others. Raises ExpertPlanError for counters of another shape and for a time before the last.
        """
        read = tuple(map(tuple, counters))
        if not self.counters:
            none = tuple((0.0,) * len(of_layer) for of_layer in read)
            return replace(self, tokens=none, counters=read, read_at_seconds=now_seconds)
        if now_seconds < self.read_at_seconds:
            raise ExpertPlanError(f"counters of {now_seconds} s: the last were of {self.read_at_seconds} s")
        if list(map(len, read)) != list(map(len, self.counters)):
            raise ExpertPlanError("counters of other layers or experts than before: begin a new average")
        was = self.counters
        if any(new < old for pair in zip(read, was, strict=True) for new, old in zip(*pair, strict=True)):
            was = tuple((0,) * len(of_layer) for of_layer in read)
        faded = 0.5 ** ((now_seconds - self.read_at_seconds) / self.half_life_seconds)
        tokens = tuple(
            tuple(faded * before + new - old for before, new, old in zip(*of_layer, strict=True))
            for of_layer in zip(self.tokens, read, was, strict=True)
        )
        return replace(self, tokens=tokens, counters=read, read_at_seconds=now_seconds)


def blend(parts: Sequence[tuple[Loads, float]]) -> Loads:
    """One load for loads of several phases: each (tokens [layers][experts], share of the time that the phase takes).

    In each layer phases count by their shares and not by their tokens, and the tokens of all phases are its total. A
    phase without tokens there is left out. Raises ExpertPlanError for a negative share and for loads of two shapes.
    """
    if any(not share >= 0 for _, share in parts):
        raise ExpertPlanError(f"shares are {[share for _, share in parts]}: must not be negative")
    if len({tuple(map(len, loads)) for loads, _ in parts}) > 1:
        raise ExpertPlanError("loads of different layers or experts: no blend of them means anything")
    of_layers = zip(*(loads for loads, _ in parts), strict=True)
    return tuple(_blend_layer(of_phases, [share for _, share in parts]) for of_phases in of_layers)


def _blend_layer(of_phases: Sequence[Sequence[float]], shares: Sequence[float]) -> tuple[float, ...]:
    """[experts] of each phase -> [experts]."""
    totals = [sum(loads) for loads in of_phases]
    shared = sum(share for share, total in zip(shares, totals, strict=True) if total > 0)
    if shared == 0:
        return (0.0,) * len(of_phases[0])
    every = zip(of_phases, shares, totals, strict=True)
    parts = [(loads, sum(totals) * share / shared / total) for loads, share, total in every if total > 0]
    return tuple(sum(loads[expert] * scale for loads, scale in parts) for expert in range(len(of_phases[0])))
