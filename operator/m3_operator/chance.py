"""Where randomness comes from: pauses that are spread, keys that nobody can guess.

Handed to whoever needs it, so that a simulation of the operator can repeat itself exactly.
"""

import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Chance:
    """The sources of randomness of one operator."""

    between: Callable[[float, float], float] = random.uniform
    """A number of this range: spreads load, guards no secret."""
    token: Callable[[int], str] = secrets.token_urlsafe
    """A secret of this many random bytes, as text."""
