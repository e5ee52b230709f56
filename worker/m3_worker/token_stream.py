"""The tokens of one request, on their way from the engine's steps to whoever answers the request."""

import asyncio

from m3_worker.scheduling.request import TokenOutput


class EngineFailedError(Exception):
    """The engine computes no more. The message says why."""


class TokenStream:
    """The tokens of one request as steps bring them; belongs to the event loop."""

    def __init__(self) -> None:
        self._outputs: list[TokenOutput] = []
        self._failure: str | None = None
        self._changed = asyncio.Event()

    def push(self, output: TokenOutput) -> None:
        """Add the output of one step."""
        self._outputs.append(output)
        self._changed.set()

    def fail(self, reason: str) -> None:
        """End the stream with an error."""
        self._failure = reason
        self._changed.set()

    async def take(self) -> list[TokenOutput]:
        """All outputs since the last call, at least one: waits for it. Raises EngineFailedError."""
        await self._changed.wait()
        self._changed.clear()
        if self._failure is not None:
            raise EngineFailedError(self._failure)
        outputs, self._outputs = self._outputs, []
        return outputs
