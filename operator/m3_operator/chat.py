"""One chat request to an OpenAI-compatible endpoint, streamed as it is written.

Owns the client side of `m3 chat`: which model is asked when none is named, what of a stream is text, and how each way
of failing reads in one line. It knows nothing of clusters: a URL and a key are all it gets.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from m3_operator.errors import OperatorError

if TYPE_CHECKING:
    import httpx

ERROR_BODY_CHARACTERS = 500
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class ChatError(OperatorError):
    """The request could not be sent or was refused; the message is one line for a person."""


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """One question. `model` None asks the first model that the endpoint lists."""

    url: str
    text: str
    key: str | None = None
    model: str | None = None
    max_tokens: int = 256
    timeout_seconds: float = 120.0


def stream_chat(request: ChatRequest) -> Iterator[str]:
    """Yield the answer's text piece by piece. Raises ChatError, also in mid-stream."""
    import httpx

    headers = {"authorization": f"Bearer {request.key}"} if request.key else {}
    base = request.url.rstrip("/").removesuffix("/v1")
    try:
        with httpx.Client(base_url=base, headers=headers, timeout=request.timeout_seconds) as client:
            model = request.model or first_model(client)
            body = {
                "model": model,
                "messages": [{"role": "user", "content": request.text}],
                "max_tokens": request.max_tokens,
                "stream": True,
            }
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    raise ChatError(refusal(response))
                yield from stream_text(response.iter_lines())
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ChatError(f"no answer from {base}: {error or type(error).__name__}") from error


def for_terminal(text: str) -> str:
    """A model's text without the control characters by which it could steer a terminal; line ends and tabs stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def first_model(client: "httpx.Client") -> str:
    """The first model of `GET /v1/models`."""
    response = client.get("/v1/models")
    if response.status_code != 200:
        raise ChatError(refusal(response))
    try:
        return str(response.json()["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise ChatError(f"{response.url} lists no model; name one with --model") from None


def stream_text(lines: Iterator[str]) -> Iterator[str]:
    """The text in the `data:` lines of a stream of chat completion chunks, up to `[DONE]`.

    Raises ChatError on an error event, and when the stream ends without `[DONE]`: a cut stream is no answer.
    """
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event = _parse(data)
        if "error" in event:
            raise ChatError(f"the stream ended with an error: {_message(event)}")
        for choice in event.get("choices", []):
            if text := choice.get("delta", {}).get("content"):
                yield str(text)
    raise ChatError("the stream ended before the answer was complete")


def refusal(response: "httpx.Response") -> str:
    """One line for an answer that is not 200: the status and the message of an OpenAI error body, if it is one."""
    try:
        reason = _message(response.json())
    except ValueError:
        reason = response.text.strip()[:ERROR_BODY_CHARACTERS]
    hint = "; give --key or set M3_API_KEY" if response.status_code == 401 else ""
    return f"{response.url} answered {response.status_code}: {reason or response.reason_phrase}{hint}"


def _parse(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise ChatError(f"the stream has a line that is not a JSON object: {data[:80]!r}")
    return event


def _message(body: Any) -> str:  # noqa: ANN401 (any JSON value)
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)[:ERROR_BODY_CHARACTERS]
