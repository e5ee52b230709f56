"""What is measured: the loads, the figure of each, and the goals that are set for it.

A figure is computed from one run of the load driver. Ratios of two targets are taken within a repetition, in which they
take turns under the same neighbours; of these the median holds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

Run = Mapping[str, Any]
Results = dict[tuple[str, str], list[dict[str, Any]]]
"""(row, target) -> one run for each repetition; a target that was not to be had, or failed, has none."""

DIRECT = "direct"
OURS = "m3-router"


@dataclass(frozen=True)
class Figure:
    """A number of one run, and how it is written."""

    of: Callable[[Run], float]
    text: Callable[[float], str]


def _rate(run: Run) -> float:
    return float(run["requests_per_second"])


def _request_cpu(run: Run) -> float:
    return float(run["cpu_seconds"]) / max(run["requests"], 1) * 1e6


def _event_cpu(run: Run) -> float:
    return float(run["cpu_seconds"]) / max(run["events"], 1) * 1e6


def _p50(run: Run) -> float:
    return float(run["latency_us"]["p50"])


def _delivered(run: Run) -> float:
    return min(run["events"] / max(run["expected_events"], 1), 1.0)


RATE = Figure(_rate, lambda value: f"{value:,.0f} requests/s")
REQUEST_CPU = Figure(_request_cpu, lambda value: f"{value:,.0f} us CPU")
EVENT_CPU = Figure(_event_cpu, lambda value: f"{value:.1f} us CPU per event")
EVENTS = Figure(lambda run: float(run["events_per_second"]), lambda value: f"{value:,.0f} events/s")
DELIVERED = Figure(_delivered, lambda value: f"{value:.2%} delivered")
P50 = Figure(_p50, lambda value: f"p50 {value:,.0f} us")


@dataclass(frozen=True)
class Goal:
    """A bound on a figure of ours, or on its ratio to another target's; `is_added`: both less the direct figure."""

    title: str
    figure: Figure
    bound: float
    is_at_most: bool
    against: str | None = None
    is_added: bool = False

    def value(self, results: Results, row: str) -> float | None:
        """The median over the repetitions; None where something was not measured."""
        names = [OURS, *([self.against] if self.against else []), *([DIRECT] if self.is_added else [])]
        runs = [results.get((row, name), []) for name in names]
        if not all(runs):
            return None
        return median(self._of_repetition(*each) for each in zip(*runs, strict=False))

    def is_met(self, value: float) -> bool:
        """Whether the bound holds."""
        return value <= self.bound if self.is_at_most else value >= self.bound

    def _of_repetition(self, ours: Run, *others: Run) -> float:
        direct = self.figure.of(others[-1]) if self.is_added else 0.0
        value = self.figure.of(ours) - direct
        return value if self.against is None else value / max(self.figure.of(others[0]) - direct, 1e-9)


@dataclass(frozen=True)
class Row:
    """One load. `engines`: at once, or at the pace of a stream; `bytes_per_token` of the prompt, as they count it."""

    name: str
    title: str
    arguments: tuple[str, ...]
    figures: tuple[Figure, ...]
    goals: tuple[Goal, ...] = ()
    bound_by: str = ""
    is_paced: bool = False


ROWS = (
    Row(
        "one",
        "1 KiB prompt, JSON answer, 1 connection",
        ("-c", "1", "-b", "1024"),
        (P50,),
        (Goal("added latency p50, of nginx's", P50, 3.0, is_at_most=True, against="nginx", is_added=True),),
    ),
    Row(
        "many",
        "1 KiB prompt, JSON answer, 32 connections",
        ("-c", "32", "-b", "1024"),
        (RATE, REQUEST_CPU),
        (
            Goal("requests/s, of nginx's", RATE, 0.5, is_at_most=False, against="nginx"),
            Goal("requests/s, of vLLM Router's (round robin)", RATE, 2.0, is_at_most=False, against="vllm-rr"),
            Goal("requests/s, of SMG's (cache-aware)", RATE, 4.0, is_at_most=False, against="smg-cache"),
        ),
        bound_by="of the time of the process (sampled) 28 % is in the kernel, for two reads and two writes as in "
        "nginx, and 5 % in the event loop; of the instructions of the rest (counted) 31 % go into the bill (a line, "
        "two records of the journal, and those who count it), 16 % into reading JSON, 8 % into the prompt's chain; "
        "what is left is spread over sixty functions of at most 3 % each.",
    ),
    Row(
        "long",
        "256 KiB prompt, 4 connections",
        ("-c", "4", "-b", "262144"),
        (RATE, REQUEST_CPU),
        (Goal("CPU, of SMG's (cache-aware)", REQUEST_CPU, 0.5, is_at_most=True, against="smg-cache"),),
    ),
    Row(
        "huge",
        "2 MiB prompt, 2 connections",
        ("-c", "2", "-b", "2097152"),
        (RATE, REQUEST_CPU),
        (Goal("CPU, of SMG's (cache-aware)", REQUEST_CPU, 0.45, is_at_most=True, against="smg-cache"),),
        bound_by="copies (read in pieces, joined, written), one pass of the JSON reader, and a digest for each of "
        "2,000 blocks of the chain.",
    ),
    Row(
        "stream32",
        "32 streams, each 100 events/s",
        ("-c", "32", "-b", "1024", "-S", "-m", "100"),
        (EVENTS, EVENT_CPU),
        is_paced=True,
    ),
    Row(
        "stream512",
        "512 streams, each 100 events/s",
        ("-c", "512", "-b", "1024", "-S", "-m", "200"),
        (EVENTS, EVENT_CPU, DELIVERED),
        (
            Goal("events delivered", DELIVERED, 1.0, is_at_most=False),
            Goal("CPU per event, of nginx's", EVENT_CPU, 1.3, is_at_most=True, against="nginx"),
        ),
        bound_by="a read and a write in the kernel for each event, then the calls between them.",
        is_paced=True,
    ),
)
