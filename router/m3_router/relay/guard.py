"""An answer on its way past the moderation: what the client may have of it, and when.

Owns the answer's end while the last verdict is waited for. A stream passes while it is asked about, its end only after
the last verdict (`moderation` states the rule); a whole answer waits for its verdict.
"""

import asyncio
from collections.abc import Callable

from m3_router.bodies.texts import answer_text
from m3_router.errors import Refusal
from m3_router.relay.moderation import Moderator, StreamModeration


class AnswerGuard:
    """One answer. Exactly one of the two callbacks is called in the end, none after `cancel`."""

    def __init__(
        self,
        moderator: Moderator,
        model: str,
        loop: asyncio.AbstractEventLoop,
        *,
        allowed: Callable[[bytes], None],
        stopped: Callable[[Refusal], None],
    ) -> None:
        """allowed: gets what was held of the answer: the end of a stream, or all of a whole one."""
        self._moderator = moderator
        self._model = model
        self._loop = loop
        self._allowed = allowed
        self._stopped = stopped
        self._stream = StreamModeration(moderator, model, stopped)
        self._held = b""
        self._task: asyncio.Task[None] | None = None

    def feed(self, data: bytes, *, is_at_end: bool) -> bytes:
        """A part of a stream; returns what the client gets of it now. is_at_end: the end has come."""
        self._stream.feed(data)
        if not is_at_end:
            return data
        self._held += data
        return b""

    def finish_stream(self) -> None:
        """All of the stream was fed: `allowed` comes once all of it was allowed."""
        self._stream.finish(self._release)

    def take_whole(self, body: bytes) -> None:
        """A whole answer: `allowed` comes with it once it was allowed."""
        self._held = body
        self._task = self._loop.create_task(self._check_whole())

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._stream.cancel()
        if self._task is not None:
            self._task.cancel()

    def _release(self) -> None:
        held, self._held = self._held, b""
        self._allowed(held)

    async def _check_whole(self) -> None:
        verdict = await self._moderator.check("response", self._model, answer_text(self._held))
        if verdict.is_allowed:
            self._release()
        else:
            self._stopped(verdict.refusal("response"))
