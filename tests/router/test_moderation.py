"""Moderation, against a service on a real socket whose verdicts a test decides."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from m3_mock.moderation import ModerationService
from m3_router.config import ConfigError, ModerationSettings
from m3_router.errors import Refusal
from m3_router.relay.moderation import OVERLAP_CHARACTERS, WINDOW_CHARACTERS, Moderator, StreamModeration


@pytest.fixture
async def service() -> AsyncIterator[ModerationService]:
    async with ModerationService().running() as one:
        yield one


StartModerator = Callable[..., Moderator]


@pytest.fixture
async def moderator_of(service: ModerationService) -> AsyncIterator[StartModerator]:
    async with AsyncExitStack() as stack:

        def start(**settings: Any) -> Moderator:
            one = Moderator(ModerationSettings.model_validate({"url": service.url, **settings}))
            stack.push_async_callback(one.close)
            return one

        yield start


async def test_a_text_is_shown_with_its_model_and_stage(
    service: ModerationService, moderator_of: StartModerator
) -> None:
    moderator = moderator_of()
    verdict = await moderator.check("request", "m3", "a kind text")
    assert (verdict.is_allowed, verdict.outcome) == (True, "allowed")
    assert service.asked == [{"model": "m3", "stage": "request", "input": "a kind text"}]
    assert moderator.outcomes["request", "allowed"] == 1
    assert moderator.asked_seconds > 0


async def test_a_flagged_text_is_refused_with_the_reason(
    service: ModerationService, moderator_of: StartModerator
) -> None:
    moderator = moderator_of()
    verdict = await moderator.check("request", "m3", "an evil text")
    assert (verdict.is_allowed, verdict.outcome, verdict.reason) == (False, "flagged", "it is evil")
    refusal = verdict.refusal("request")
    assert (refusal.status, refusal.code) == (400, "content_filter")
    assert refusal.message == "The request was stopped by content moderation: it is evil."
    assert moderator.outcomes["request", "flagged"] == 1


async def test_where_there_is_no_text_nobody_is_asked(service: ModerationService, moderator_of: StartModerator) -> None:
    assert (await moderator_of().check("response", "m3", "")).is_allowed
    assert service.asked == []


async def test_only_the_stages_that_are_configured_are_covered(moderator_of: StartModerator) -> None:
    assert [moderator_of().covers(stage) for stage in ("request", "response")] == [True, False]
    assert moderator_of(stages=("request", "response")).covers("response")


async def test_of_a_text_too_long_its_end_is_shown(service: ModerationService, moderator_of: StartModerator) -> None:
    moderator = moderator_of(maxTextBytes=1024)
    await moderator.check("request", "m3", "é" * 600 + "end")  # 1,203 bytes
    await moderator.check("request", "m3", "x" * 1024)
    [cut, whole] = [question["input"] for question in service.asked]
    assert cut == "é" * 510 + "end"  # the 511th would begin in the middle of its two bytes
    assert whole == "x" * 1024


FAILURES: list[tuple[str, dict[str, Any], str]] = [
    ("another status", {"status": 500}, "it answered 500"),
    ("no JSON", {"answer": b"no"}, 'its answer is not {"flagged": bool, "reason": str}'),
    ("no verdict", {"answer": b'{"reason": "x"}'}, 'its answer is not {"flagged": bool, "reason": str}'),
    ("not a bool", {"answer": b'{"flagged": "no"}'}, 'its answer is not {"flagged": bool, "reason": str}'),
    ("endless", {"answer": b" " * 2**17}, "its answer exceeds 65536 bytes"),
    ("late", {}, "no answer within 0.05 s"),
]


@pytest.mark.parametrize(("what", "settings", "reason"), FAILURES, ids=[what for what, _, _ in FAILURES])
async def test_a_service_that_fails_refuses_or_allows_as_configured(
    service: ModerationService,
    moderator_of: StartModerator,
    caplog: pytest.LogCaptureFixture,
    *,
    what: str,
    settings: dict[str, Any],
    reason: str,
) -> None:
    for name, value in settings.items():
        setattr(service, name, value)
    limit = {}
    if what == "late":
        service.gate, limit = asyncio.Event(), {"timeoutSeconds": 0.05}
    with caplog.at_level(logging.WARNING):
        refusing = await moderator_of(**limit).check("request", "m3", "a secret text")
        allowing = await moderator_of(onFailure="allow", **limit).check("response", "m3", "a secret text")
    assert (refusing.is_allowed, refusing.outcome) == (False, "failed")
    assert (allowing.is_allowed, allowing.outcome) == (True, "failed")
    assert reason in refusing.reason
    refusal = refusing.refusal("request")
    assert (refusal.status, refusal.code, refusal.retry_after_seconds) == (503, "moderation_unavailable", 5)
    assert "a request was not moderated and is refused, and others may be: " in caplog.text
    assert "a response was not moderated and is let through, and others may be: " in caplog.text
    assert "secret" not in caplog.text
    assert reason in caplog.text


async def test_a_service_that_is_down_is_logged_once_in_a_while_and_counted_each_time(
    service: ModerationService, moderator_of: StartModerator, caplog: pytest.LogCaptureFixture
) -> None:
    service.status = 500
    moderator = moderator_of()
    with caplog.at_level(logging.WARNING, "m3_router.relay.moderation"):
        for _ in range(5):
            await moderator.check("request", "m3", "text")
    assert len(caplog.records) == 1
    assert moderator.outcomes["request", "failed"] == 5


async def test_a_service_that_is_not_there_has_failed(moderator_of: StartModerator) -> None:
    verdict = await moderator_of(url="http://127.0.0.1:1/").check("request", "m3", "text")
    assert (verdict.is_allowed, verdict.outcome) == (False, "failed")
    assert verdict.reason.startswith("ConnectError")


async def test_a_key_is_sent_and_a_new_one_holds_at_once(
    service: ModerationService, moderator_of: StartModerator, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("one\n")
    moderator = moderator_of(apiKeyFile=key)
    await moderator.check("request", "m3", "text")
    key.write_text("two\n")
    await moderator.check("request", "m3", "text")
    assert service.keys == ["Bearer one", "Bearer two"]
    key.unlink()
    verdict = await moderator.check("request", "m3", "text")
    assert (verdict.outcome, verdict.is_allowed) == ("failed", False)


@pytest.mark.parametrize("content", [None, "", "\n", "two\nlines", "caf\u00e9"])
async def test_a_key_file_that_is_of_no_use_is_refused_at_start(
    service: ModerationService, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "key").write_text(content)
    with pytest.raises(ConfigError, match=r"moderation\.apiKeyFile .*/key: "):
        Moderator(ModerationSettings(url=service.url, api_key_file=tmp_path / "key"))


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


class Watched:
    """A stream under moderation, and what became of it."""

    def __init__(self, moderator: Moderator) -> None:
        self.stopped: asyncio.Future[Refusal] = asyncio.get_running_loop().create_future()
        self.passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stream = StreamModeration(moderator, "m3", self.stopped.set_result)

    def feed(self, text: str) -> None:
        self.stream.feed(event(text))

    def finish(self) -> None:
        self.stream.finish(lambda: self.passed.set_result(None))


@pytest.fixture
async def watched(moderator_of: StartModerator) -> AsyncIterator[Watched]:
    one = Watched(moderator_of(stages=["response"]))
    yield one
    one.stream.cancel()


def inputs(service: ModerationService) -> list[str]:
    return [question["input"] for question in service.asked]


async def test_a_short_stream_is_asked_about_once_at_its_end(service: ModerationService, watched: Watched) -> None:
    watched.feed("kind ")
    watched.feed("words")
    watched.finish()
    assert not watched.passed.done()  # its end waits for the verdict
    await watched.passed
    assert service.asked == [{"model": "m3", "stage": "response", "input": "kind words"}]


async def test_a_stream_without_text_ends_at_once(service: ModerationService, watched: Watched) -> None:
    watched.stream.feed(b": keep-alive\n\n")
    watched.finish()
    assert watched.passed.done()
    assert service.asked == []


async def test_a_long_stream_is_asked_about_on_its_way_one_question_at_a_time(
    service: ModerationService, watched: Watched
) -> None:
    service.gate = asyncio.Event()
    first, second = "a" * WINDOW_CHARACTERS, "b" * WINDOW_CHARACTERS
    watched.feed(first)
    await service.arrived.wait()
    watched.feed(second)
    watched.feed("end")
    watched.finish()
    assert len(service.asked) == 1
    service.gate.set()
    await watched.passed
    assert inputs(service) == [first, "a" * OVERLAP_CHARACTERS + second + "end"]


async def test_a_flagged_stream_is_stopped_in_its_middle(service: ModerationService, watched: Watched) -> None:
    watched.feed("an evil word" + "." * WINDOW_CHARACTERS)
    refusal = await watched.stopped
    assert (refusal.code, refusal.message) == (
        "content_filter",
        "The response was stopped by content moderation: it is evil.",
    )
    watched.feed("." * WINDOW_CHARACTERS)  # what is still on its way changes nothing
    watched.finish()
    assert len(service.asked) == 1
    assert not watched.passed.done()


async def test_what_is_flagged_at_the_end_never_passes(service: ModerationService, watched: Watched) -> None:
    watched.feed("an evil word")
    watched.finish()
    await watched.stopped
    assert not watched.passed.done()


async def test_a_word_that_is_cut_between_two_windows_is_seen_whole(
    service: ModerationService, watched: Watched
) -> None:
    watched.feed("." * WINDOW_CHARACTERS + "ev")
    watched.feed("il")
    watched.finish()
    await watched.stopped
    assert inputs(service)[1].endswith("..evil")


async def test_a_stream_whose_service_fails_is_stopped_unless_failing_allows(
    service: ModerationService, watched: Watched, moderator_of: StartModerator
) -> None:
    service.status = 503
    watched.feed("kind words")
    watched.finish()
    assert (await watched.stopped).code == "moderation_unavailable"
    allowing = Watched(moderator_of(stages=["response"], onFailure="allow"))
    allowing.feed("kind words")
    allowing.finish()
    await allowing.passed


async def test_nobody_is_told_after_the_client_has_left(service: ModerationService, watched: Watched) -> None:
    service.gate = asyncio.Event()
    watched.feed("an evil word" + "." * WINDOW_CHARACTERS)
    await service.arrived.wait()
    watched.stream.cancel()
    service.gate.set()
    watched.feed("evil" * WINDOW_CHARACTERS)
    await asyncio.sleep(0)
    assert not watched.stopped.done()
    assert len(service.asked) == 1
