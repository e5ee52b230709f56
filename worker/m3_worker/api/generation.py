"""One request's way through the engine: prompt in, text and tokens out, ended by whatever ends it first.

Owns the text of an answer as it grows (detokenising, stop strings), its finish reason and its usage; the dialects only
write these down. A stop string is found here and not in the engine: the engine is told to stop, and what it computed
meanwhile is dropped, so that text, token ids and usage do not depend on timing.
"""

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from m3_worker.api.errors import ApiError
from m3_worker.engine import Engine, EngineFullError, Prefilled
from m3_worker.scheduling.request import FinishReason, MediaSpan, Request, SampledToken, SamplingParameters, TokenOutput
from m3_worker.serving import ServedModel
from m3_worker.stop_strings import StopStrings
from m3_worker.token_stream import EngineFailedError, TokenStream
from m3_worker.tokenizer import Detokenizer
from m3_worker.usage_records import MAX_NAME_CHARACTERS, UsageRecord


@dataclass(slots=True)
class Delta:
    """What came since the last one. `text` may lag behind `tokens` while it could become a stop string."""

    text: str = ""
    tokens: list[SampledToken] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def extend(self, other: "Delta") -> None:
        """Append the next one."""
        self.text += other.text
        self.tokens += other.tokens
        self.finish_reason = other.finish_reason


class Generation:
    """One answer while it is made. Must be closed, finished or not."""

    def __init__(
        self,
        model: ServedModel,
        prompt_token_ids: list[int],
        sampling: SamplingParameters,
        stops: tuple[str, ...],
        priority: int,
        *,
        cache_salt: bytes = b"",
        media: tuple[MediaSpan, ...] = (),
        usage_record: UsageRecord | None = None,
    ) -> None:
        """Hand the request to the engine. Raises ApiError 429 if its queue is full, 503 if it failed."""
        self.prompt_token_ids = prompt_token_ids
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.prefilled_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.model = model
        self._min_tokens = sampling.min_tokens
        self._detokenizer = Detokenizer(model.tokenizer)
        self._stop_strings = StopStrings(stops)
        self._id = uuid.uuid4().hex
        now = time.monotonic()
        request = Request(
            self._id,
            prompt_token_ids,
            sampling,
            priority,
            now,
            cache_salt=cache_salt,
            media=media,
            client_id=_client_id(usage_record),
        )
        self._stream = submit(model.engine, request)
        self._usage_record = usage_record
        if usage_record is not None:
            usage_record.add(self)

    @property
    def is_finished(self) -> bool:
        """Whether the last delta was given."""
        return self.finish_reason is not None

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the answer, if one did."""
        return self._stop_strings.found

    async def next(self) -> Delta:
        """Wait for the next tokens. Raises EngineFailedError, and ApiError 400 if the answer outgrew its grammar."""
        delta = Delta()
        for output in await self._stream.take():
            self._add(output, delta)
            if self.finish_reason is not None:
                self.model.engine.abort(self._id, by_client=False)
                break
        return delta

    async def collect(self) -> Delta:
        """Wait for the whole answer. Raises ApiError 500 if the engine fails."""
        whole = Delta()
        try:
            while self.finish_reason is None:
                whole.extend(await self.next())
        except EngineFailedError as error:
            raise engine_failed(error) from None
        return whole

    def close(self) -> None:
        """Give the request up if it is unfinished: its client is gone."""
        record = self._usage_record
        if record is None or self.completion_tokens:
            self.model.engine.abort(self._id)
        elif self.model.engine.abort(self._id, told=self._note_prefilled):
            record.hold()

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object, for what was generated so far."""
        prompt_tokens = len(self.prompt_token_ids)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def headers(self) -> dict[str, str]:
        """What is known before the first byte."""
        return {"x-m3-input-tokens": str(len(self.prompt_token_ids))}

    def _add(self, output: TokenOutput, delta: Delta) -> None:
        if output.token.failure is not None:
            raise ApiError(400, f"the answer outgrew its grammar: {output.token.failure}", code="grammar_too_complex")
        self.cached_tokens = output.cached_tokens
        self.prefilled_tokens = len(self.prompt_token_ids)
        self.completion_tokens += 1
        delta.tokens.append(output.token)
        reason = output.finish_reason
        if reason is not FinishReason.STOP:  # a token that stops is not part of the text
            delta.text += self._passed_on(self._detokenizer.push(output.token.token_id))
        if reason is not None and not self._stop_strings.stopped:
            delta.text += self._stop_strings.push(self._detokenizer.finish())
            delta.text += self._stop_strings.finish()
        self.finish_reason = FinishReason.STOP if self._stop_strings.stopped else reason
        delta.finish_reason = self.finish_reason

    def _note_prefilled(self, prefilled: Prefilled | None) -> None:
        """How far the prompt had come when this was closed; None: the answer was there, and nobody has read it."""
        self.prefilled_tokens, self.cached_tokens = prefilled or Prefilled(len(self.prompt_token_ids), 0)
        if self._usage_record is not None:
            self._usage_record.release()

    def _passed_on(self, text: str) -> str:
        return text if self.completion_tokens <= self._min_tokens else self._stop_strings.push(text)


def _client_id(record: UsageRecord | None) -> str | None:
    """What followers of the KV events know the request by; none if it is too long to be kept with every page."""
    return record.request_id if record is not None and len(record.request_id) <= MAX_NAME_CHARACTERS else None


def submit(engine: Engine, request: Request) -> TokenStream:
    """Hand a request to the engine. Raises ApiError 429 if its queue is full, 503 if it failed."""
    try:
        return engine.submit(request)
    except EngineFullError as error:
        raise ApiError(429, f"the engine's queue is full: {error}", code="queue_full", retry_after_seconds=1) from None
    except EngineFailedError as error:
        raise ApiError(503, f"the engine failed: {error}", code="worker_failed", retry_after_seconds=30) from None


def engine_failed(error: EngineFailedError) -> ApiError:
    """The answer of a request that the engine could not finish."""
    return ApiError(500, f"the engine failed: {error}", code="engine_failed")
