"""A service of the operator's own that says whether a text may pass: how it is asked, and what follows from its answer.

Owns the question, its time limit, the stated failure mode, and the rule for answers that stream. What is text, is
`texts`' business. The service gets POST {"model", "stage", "input"} and answers {"flagged": bool, "reason": str}.

A request and a whole answer are asked about before they go on. A stream is not held back, or it would be none:

    1. Its text passes at once, and is shown to the service every WINDOW_CHARACTERS, one question at a time; what comes
       meanwhile waits for the next. Each window begins with the end of the one before.
    2. The end of the stream waits for the last verdict. So a client never sees a flagged answer end as a good one, and
       at most WINDOW_CHARACTERS and what comes during one question reach it before a flagged text is cut off.
    3. Flagged, or failed where failing refuses: an error event in the client's dialect takes the place of the rest.

Texts are never logged; of a service that fails its status or the kind of its error is.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from m3_router.bodies.texts import StreamTexts
from m3_router.config import ConfigError, ModerationSettings
from m3_router.errors import Refusal

WINDOW_CHARACTERS: Final = 2000
OVERLAP_CHARACTERS: Final = 500
RETRY_SECONDS: Final = 5
LOG_SECONDS: Final = 10.0  # a service that is down is not worth a line for every request
MAX_CONNECTIONS: Final = 64
_MAX_ANSWER_BYTES: Final = 2**16
_MAX_REASON_CHARACTERS: Final = 200

Stage = Literal["request", "response"]
Outcome = Literal["allowed", "flagged", "failed"]
STAGES: Final[tuple[Stage, ...]] = ("request", "response")
OUTCOMES: Final[tuple[Outcome, ...]] = ("allowed", "flagged", "failed")

_log = logging.getLogger(__name__)


class Verdict(msgspec.Struct, frozen=True):
    """What became of one question. is_allowed: the text may pass; `failed` may or may not, by configuration."""

    is_allowed: bool
    outcome: Outcome
    reason: str = ""

    def refusal(self, stage: Stage) -> Refusal:
        """The answer in place of what may not pass."""
        if self.outcome == "failed":
            return Refusal(
                503,
                f"The {stage} could not be moderated, and is not let through without. Try again in {RETRY_SECONDS} "
                "seconds.",
                kind="server_error",
                code="moderation_unavailable",
                retry_after_seconds=RETRY_SECONDS,
            )
        why = f": {self.reason}" if self.reason else ""
        return Refusal(400, f"The {stage} was stopped by content moderation{why}.", code="content_filter")


ALLOWED: Final = Verdict(True, "allowed")


class _ServiceAnswer(msgspec.Struct):
    flagged: bool
    reason: str | None = None


class _ServiceError(Exception):
    """The service answered, and not with a verdict."""


_decode_answer = msgspec.json.Decoder(_ServiceAnswer).decode


class Moderator:
    """Asks the service. `outcomes`: how often each outcome came about, by stage; `asked_seconds`: spent on it."""

    def __init__(self, settings: ModerationSettings) -> None:
        if settings.api_key_file is not None:
            _read_key(settings.api_key_file)  # refused at start, not with the first request
        self._settings = settings
        import httpx  # heavy, and only for who moderates

        limits = httpx.Limits(max_connections=MAX_CONNECTIONS)
        # No time limits of its own, phase by phase: a question has one for all of them.
        self._client = httpx.AsyncClient(timeout=None, limits=limits, trust_env=False)  # noqa: S113
        self.outcomes: dict[tuple[Stage, Outcome], int] = {
            (stage, outcome): 0 for stage in STAGES for outcome in OUTCOMES
        }
        self.asked_seconds = 0.0
        self._log_next_at = 0.0

    def covers(self, stage: Stage) -> bool:
        """Whether texts of this stage are to be checked."""
        return stage in self._settings.stages

    async def check(self, stage: Stage, model: str, text: str) -> Verdict:
        """Ask about one text. Never raises; takes no longer than the configured time. No text is allowed unasked."""
        if not text:
            return ALLOWED
        loop = asyncio.get_running_loop()
        began = loop.time()
        verdict = await self._ask(stage, model, _end_of(text, self._settings.max_text_bytes))
        self.asked_seconds += loop.time() - began
        self.outcomes[stage, verdict.outcome] += 1
        return verdict

    async def close(self) -> None:
        """Close the connections to the service."""
        await self._client.aclose()

    async def _ask(self, stage: Stage, model: str, text: str) -> Verdict:
        import httpx

        timeout_seconds = self._settings.timeout_seconds
        try:
            async with asyncio.timeout(timeout_seconds):
                answer = await self._post(msgspec.json.encode({"model": model, "stage": stage, "input": text}))
        except TimeoutError:
            return self._failed(stage, f"no answer within {timeout_seconds:g} s")
        except (_ServiceError, ConfigError) as error:
            return self._failed(stage, str(error))
        except httpx.HTTPError as error:
            return self._failed(stage, f"{type(error).__name__} {error}".rstrip())
        if not answer.flagged:
            return ALLOWED
        return Verdict(False, "flagged", (answer.reason or "")[:_MAX_REASON_CHARACTERS])

    async def _post(self, question: bytes) -> _ServiceAnswer:
        """Raises _ServiceError, ConfigError, httpx.HTTPError."""
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if self._settings.api_key_file is not None:
            headers["authorization"] = f"Bearer {_read_key(self._settings.api_key_file)}"
        async with self._client.stream("POST", self._settings.url, content=question, headers=headers) as response:
            if response.status_code != 200:
                raise _ServiceError(f"it answered {response.status_code}")
            body = b""
            async for part in response.aiter_raw():
                body += part
                if len(body) > _MAX_ANSWER_BYTES:
                    raise _ServiceError(f"its answer exceeds {_MAX_ANSWER_BYTES} bytes")
        try:
            return _decode_answer(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise _ServiceError('its answer is not {"flagged": bool, "reason": str}') from None

    def _failed(self, stage: Stage, reason: str) -> Verdict:
        is_allowed = self._settings.on_failure == "allow"
        now = asyncio.get_running_loop().time()
        if now >= self._log_next_at:
            self._log_next_at = now + LOG_SECONDS
            what = "let through" if is_allowed else "refused"
            _log.warning("a %s was not moderated and is %s, and others may be: %s", stage, what, reason)
        return Verdict(is_allowed, "failed", reason)


class StreamModeration:
    """One streamed answer, by the rule above.

    Whoever relays it calls `feed` with what the client gets, `finish` before the stream's end goes out, and `cancel` if
    the exchange ends otherwise.
    stopped: called at most once, with the refusal whose event ends the stream; nothing else is called after it.
    """

    def __init__(self, moderator: Moderator, model: str, stopped: Callable[[Refusal], None]) -> None:
        self._moderator = moderator
        self._model = model
        self._stopped = stopped
        self._texts = StreamTexts(WINDOW_CHARACTERS, OVERLAP_CHARACTERS)
        self._task: asyncio.Task[None] | None = None  # the question on its way
        self._passed: Callable[[], None] | None = None  # set by finish: what happens once all was allowed
        self._is_over = False

    def feed(self, data: bytes) -> None:
        """Note what the client gets, and ask about it if enough has come."""
        if not self._is_over:
            self._texts.feed(data)
            self._next()

    def finish(self, passed: Callable[[], None]) -> None:
        """All of the answer was fed: call `passed` once all of it was allowed. At once, if nothing is left to ask."""
        if not self._is_over:
            self._passed = passed
            self._next()

    def cancel(self) -> None:
        """Nobody waits for a verdict any more."""
        self._is_over = True
        if self._task is not None:
            self._task.cancel()

    def _next(self) -> None:
        """Ask the next question, if there is one and none is on its way."""
        if self._task is not None:
            return
        text = self._texts.window() if self._passed is None else self._texts.rest()
        if text is not None:
            self._task = asyncio.get_running_loop().create_task(self._check(text))
        elif self._passed is not None:
            self._is_over = True
            self._passed()

    async def _check(self, text: str) -> None:
        verdict = await self._moderator.check("response", self._model, text)
        self._task = None
        if verdict.is_allowed:
            self._next()
        else:
            self._is_over = True
            self._stopped(verdict.refusal("response"))


def _end_of(text: str, max_bytes: int) -> str:
    """The text, or as much of its end as fits."""
    if len(text) * 4 <= max_bytes:
        return text
    return text.encode(errors="replace")[-max_bytes:].decode(errors="ignore")


def _read_key(path: Path) -> str:
    """The key in a file; read for every question, so that a new one holds at once. Raises ConfigError."""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"moderation.apiKeyFile {path}: cannot be read: {error}") from error
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(f"moderation.apiKeyFile {path}: does not hold a key of visible ASCII characters")
    return key
