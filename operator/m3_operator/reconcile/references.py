"""Asking whether Secrets and ConfigMaps exist, without the right to read any.

A dry run of creating one is refused with a conflict if there is one of that name. Asked at most once in 15 seconds of
each object, and only of those that something waits for.
"""

import logging
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Final

from m3_operator.decide.references import Reference
from m3_operator.errors import RefusedError
from m3_operator.reconcile.writer import Writer

logger = logging.getLogger(__name__)

INTERVAL: Final = timedelta(seconds=15)


class ReferenceProbe:
    """Remembers the last answers. Forgetting them costs a request each."""

    def __init__(self, writer: Writer, clock: Callable[[], datetime]) -> None:
        self._writer = writer
        self._clock = clock
        self._answers: dict[tuple[str, str, str], tuple[datetime, bool]] = {}  # kind, namespace, name: when, exists

    async def missing(self, namespace: str, references: Iterable[Reference]) -> list[Reference]:
        """Those that do not exist. Raises UnavailableError."""
        self._forget_old()
        return [found for found in references if not await self._exists(found.kind, namespace, found.name)]

    async def _exists(self, kind: str, namespace: str, name: str) -> bool:
        answer = self._answers.get((kind, namespace, name))
        if answer is not None:
            return answer[1]
        try:
            exists = await self._writer.exists(kind, namespace, name)
        except RefusedError as error:
            # A quota on Secrets, say. Not knowing is no reason to accuse anybody.
            logger.warning("whether there is a %s %s/%s: %s", kind, namespace, name, error)
            exists = True
        self._answers[kind, namespace, name] = (self._clock(), exists)
        return exists

    def _forget_old(self) -> None:
        oldest = self._clock() - INTERVAL
        self._answers = {key: answer for key, answer in self._answers.items() if answer[0] > oldest}
