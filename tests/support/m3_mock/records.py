"""The mock engine's records of usage, told as our own worker tells them: `GET /internal/usage/{request id}`.

Owns what each attempt has used, for the router and, beyond what is told, for the test that compares.
"""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PATH = "/internal/usage/"


@dataclass
class UsageRecord:
    """One attempt. The counts are those of `m3_worker.usage_records`; the rest is for tests."""

    request_id: str
    attempt: str
    path: str
    input_tokens: int  # of the whole prompt, computed or not
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    is_answered: bool = False  # to the last byte
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def told(self) -> dict[str, Any]:
        return {
            "attempt": self.attempt,
            "state": "ended" if self.ended.is_set() else "running",
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
        }


class UsageRecords:
    """Of one engine. `forgotten`: what a process that was killed since has known."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], UsageRecord] = {}
        self.forgotten: dict[tuple[str, str], UsageRecord] = {}

    def begin(self, request_id: str, attempt: str, path: str, input_tokens: int) -> UsageRecord:
        """A request has come."""
        record = UsageRecord(request_id, attempt, path, input_tokens)
        self.known[request_id, attempt] = record
        return record

    def forget(self) -> None:
        """Like a process that is killed."""
        self.forgotten |= self.known
        self.known = {}

    async def answer(self, target: str) -> tuple[int, dict[str, Any]]:
        """Status and body for the target of a request."""
        parts = urlsplit(target)
        query = parse_qs(parts.query)
        request_id = unquote(parts.path.removeprefix(PATH))
        attempts = query.get("attempt")
        found = [
            record
            for record in self.known.values()
            if record.request_id == request_id and (attempts is None or record.attempt == attempts[0])
        ]
        if not found:
            return 404, {"error": {"message": "unknown", "code": "unknown_request"}}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(float(query.get("wait_seconds", ["0"])[0])):
                for record in found:
                    await record.ended.wait()
        return 200, {"request_id": request_id, "records": [record.told for record in found]}
