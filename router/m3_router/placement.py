"""Which worker takes a request. Pure.

Rule: the fewest tokens in flight, ties by name. Intent: with prompts of ten tokens and of a million in one pool, the
number of requests says nothing about load. Inputs: the ready workers in the order of their names, and those that have
already failed this request.
"""

from collections.abc import Collection, Sequence

from m3_router.workers import Worker


def choose(ready: Sequence[Worker], tried: Collection[Worker | None] = ()) -> Worker | None:
    """The worker with the fewest tokens in flight that has not been tried; None if there is none."""
    best = None
    for worker in ready:
        if (best is None or worker.tokens < best.tokens) and worker not in tried:
            best = worker
    return best
