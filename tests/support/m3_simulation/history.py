"""What happened in one simulated world, in order; and what it means that a rule was broken."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Entry:
    """One thing that happened."""

    seconds: float
    actor: str
    what: str

    def __str__(self) -> str:
        return f"{self.seconds:10.3f}  {self.actor:<12} {self.what}"


@dataclass
class History:
    """Everything that happened, and counts of it."""

    entries: list[Entry] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    steps: int = 0

    def add(self, seconds: float, actor: str, what: str) -> None:
        """Something happened."""
        self.entries.append(Entry(seconds, actor, what))

    def tail(self, lines: int) -> str:
        """The last entries, as people read them."""
        return "\n".join(str(entry) for entry in self.entries[-lines:])

    def digest(self) -> str:
        """Equal for equal histories."""
        return hashlib.sha256("\n".join(map(str, self.entries)).encode()).hexdigest()


class BrokenRuleError(Exception):
    """The operator did what it must never do, or did not do what it must."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule
