"""What stands in the way of an object."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """What stands in the way: a reason for programs, a sentence for people."""

    reason: str
    message: str
