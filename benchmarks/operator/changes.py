"""How long from the change of a spec to the status that answers it, at a steady rate of changes.

The clock starts when the change is sent and stops when a watch shows a status of that generation, so it holds the API
server's own time, and this process's.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import urllib3
from crowd import Api

_PATIENCE_SECONDS = 120


@dataclass
class Answers:
    """When which generation of which object was first answered by its status."""

    seen: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def note(self, name: str, generation: int, at: float) -> None:
        """A status was seen."""
        self.seen.setdefault(name, []).append((generation, at))

    def answered_at(self, name: str, generation: int) -> float | None:
        """When a status of this generation, or a later one, was seen."""
        return next((at for seen, at in self.seen.get(name, ()) if seen >= generation), None)


def change_latencies(
    api: Api, path: str, count: int, per_second: float, change: Callable[[int], tuple[str, int]]
) -> list[float]:
    """Seconds of each of `count` changes, sorted; `change` makes the n-th and returns name and generation.

    Raises TimeoutError when one is never answered.
    """
    answers = Answers()
    seconds = int(count / per_second + _PATIENCE_SECONDS)
    version = api.call("GET", f"{path}?limit=1")["metadata"]["resourceVersion"]
    watching = threading.Thread(target=_watch, args=(api, path, version, seconds, answers), daemon=True)
    watching.start()
    begin = time.monotonic() + 0.5
    sent: list[tuple[str, int, float]] = []

    def one(number: int) -> None:
        time.sleep(max(begin + number / per_second - time.monotonic(), 0))
        started = time.monotonic()
        name, generation = change(number)
        sent.append((name, generation, started))

    with ThreadPoolExecutor(32) as threads:
        list(threads.map(one, range(count)))
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while _unanswered(answers, sent):
        if time.monotonic() > deadline:
            left = _unanswered(answers, sent)
            raise TimeoutError(f"{left} of {count} changes were not answered after {_PATIENCE_SECONDS} s")
        time.sleep(0.5)
    return sorted(
        at - started for name, generation, started in sent if (at := answers.answered_at(name, generation)) is not None
    )


def _unanswered(answers: Answers, sent: list[tuple[str, int, float]]) -> int:
    return sum(answers.answered_at(name, generation) is None for name, generation, _ in sent)


def percentile(ordered: list[float], share: float) -> float:
    """The smallest value that this share of all does not exceed."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def _watch(api: Api, path: str, version: str, seconds: int, answers: Answers) -> None:
    with contextlib.suppress(urllib3.exceptions.HTTPError):  # the API server ends; what it did not tell is missed above
        for event in api.watch(path, version, seconds):
            manifest = event["object"]
            observed = manifest.get("status", {}).get("observedGeneration")
            if observed is not None:
                answers.note(manifest["metadata"]["name"], int(observed), time.monotonic())
