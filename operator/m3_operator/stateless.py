"""kopf's three memories, empty: what handlers of changes and daemons would need, and we have no such handlers.

By default kopf copies and digests every object of every event for them, which was half of its time, and keeps a record
of each object for as long as there is one.
"""

from typing import Any

import kopf
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory  # the type of an argument of kopf.operator


class NoDiffBase(kopf.DiffBaseStorage):
    """Remembers no earlier form of any object."""

    def build(self, **_: Any) -> Any:  # noqa: ANN401 - kopf's own
        """Nothing of an object is compared with what it was."""
        return {}

    def fetch(self, **_: Any) -> None:  # noqa: ANN401 - kopf's own
        """There is no earlier form."""

    def store(self, **_: Any) -> None:  # noqa: ANN401 - kopf's own
        """It is not kept."""


class NoProgress(kopf.ProgressStorage):
    """Remembers no progress of any handler."""

    def fetch(self, **_: Any) -> None:  # noqa: ANN401 - kopf's own
        """There is none."""

    def store(self, **_: Any) -> None:  # noqa: ANN401 - kopf's own
        """It is not kept."""

    def purge(self, **_: Any) -> None:  # noqa: ANN401 - kopf's own
        """There is nothing to remove."""

    def touch(self, **_: Any) -> None:  # noqa: ANN401 - kopf's own
        """No object is touched to wake a handler."""

    def clear(self, *, essence: Any) -> Any:  # noqa: ANN401 - kopf's own
        """An essence holds nothing of ours."""
        return essence


class NoMemories(ResourceMemories):
    """Remembers no object between two of its events."""

    async def recall(self, raw_body: Any, **given: Any) -> ResourceMemory:  # noqa: ANN401 - kopf's own
        """A new record, which is not kept."""
        return await super().recall(raw_body, **{**given, "ephemeral": True})
