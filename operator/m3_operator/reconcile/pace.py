"""How soon a cycle that failed is tried again."""

import random
from dataclasses import dataclass
from typing import Final

_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 60.0


@dataclass
class Pace:
    """How often an object's cycles failed in a row."""

    failures: int = 0

    def pause_seconds(self) -> float:
        """The next pause: doubling, bounded, and spread so that many objects do not come back at once."""
        self.failures += 1
        pause = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(self.failures - 1, 10), _LONGEST_PAUSE_SECONDS)
        return pause * random.uniform(0.8, 1.2)  # noqa: S311 - spreading load, not a secret
