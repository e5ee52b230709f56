"""How soon a cycle that failed is tried again."""

from dataclasses import dataclass
from typing import Final

from m3_operator.chance import Chance

_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 60.0


@dataclass
class Pace:
    """How often an object's cycles failed in a row."""

    failures: int = 0

    def pause_seconds(self, chance: Chance) -> float:
        """The next pause: doubling, bounded, and spread so that many objects do not come back at once."""
        self.failures += 1
        pause = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(self.failures - 1, 10), _LONGEST_PAUSE_SECONDS)
        return pause * chance.between(0.8, 1.2)
