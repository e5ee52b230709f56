"""The tokens of one request, on their way from the engine's steps to whoever answers the request."""

import asyncio

from m3_worker.scheduling.request import TokenOutput


class EngineFailedError(Exception):
    """The engine computes no more. The message says why."""


class TokenStream:
    """The tokens of one request as steps bring them; belongs to the event loop, and to one reader on it."""

    __slots__ = ("_failure", "_outputs", "_reader")

    def __init__(self) -> None:
        self._outputs: list[TokenOutput] = []
        self._failure: str | None = None
        self._reader: asyncio.Future[None] | None = None  # while it waits

    def push(self, output: TokenOutput) -> None:
        """Add the output of one step."""
        self._outputs.append(output)
        if self._reader is not None:
            self._wake()

    def fail(self, reason: str) -> None:
        """End the stream with an error."""
        self._failure = reason
        self._wake()

    async def take(self) -> list[TokenOutput]:
        """All outputs since the last call, at least one: waits for it. Raises EngineFailedError."""
        if not self._outputs and self._failure is None:
            self._reader = asyncio.get_running_loop().create_future()  # less work a token than an asyncio.Event
            await self._reader
        if self._failure is not None:
            raise EngineFailedError(self._failure)
        outputs, self._outputs = self._outputs, []
        return outputs

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():  # a reader that was cancelled is done
            reader.set_result(None)
