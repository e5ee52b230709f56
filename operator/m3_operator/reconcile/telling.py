"""Telling people: the status, once and only if it changed; then events, because they tell of what has happened."""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

from m3_operator.errors import ApiError
from m3_operator.events import Happening, event
from m3_operator.observed import Key, Manifest, condition
from m3_operator.reconcile.writer import Writer

logger = logging.getLogger(__name__)

_STUCK: Final = "ProgressDeadlineExceeded"


class Teller:
    """Writes statuses and events."""

    def __init__(self, writer: Writer, clock: Callable[[], datetime]) -> None:
        self._writer = writer
        self._clock = clock

    async def tell(
        self, key: Key, manifest: Manifest, status: dict[str, Any], happenings: Sequence[Happening]
    ) -> dict[str, Any] | None:
        """Write the status if it changed, then say what happened; the object as it was written, if it was.

        Raises GoneError if the object is not there any more.
        """
        written: dict[str, Any] | None = None
        if status != manifest.get("status", {}):
            written = await self._writer.write_status(manifest, status)
            happenings = [*happenings, *_turn_of(manifest, written)]
        for happening in happenings:
            logger.info("%s: %s", key, happening.note)
            try:
                await self._writer.record(event(manifest, happening, self._clock()))
            except ApiError as error:
                # Events are for people to read and are lost without harm; what they tell of has happened.
                logger.warning("%s: event not recorded: %s", key, error)
        return written


def _turn_of(before: Manifest, written: Manifest) -> list[Happening]:
    """What people want to know of a status: that Ready has another reason now, and that a rollout failed."""
    told: list[Happening] = []
    ready = condition(written, "Ready")
    if condition(before, "Ready").get("reason") != ready.get("reason"):
        told.append(Happening(ready["reason"], ready["message"] or ready["reason"], ready["status"] != "True"))
    progressing, was = condition(written, "Progressing"), condition(before, "Progressing")
    if progressing.get("reason") == _STUCK and was.get("reason") != _STUCK:
        told.append(Happening(_STUCK, progressing["message"], is_warning=True))
    rolled_back = condition(written, "RolledBack")
    if rolled_back and rolled_back.get("message") != condition(before, "RolledBack").get("message"):
        told.append(Happening("RolledBack", rolled_back["message"], is_warning=True))
    return told
