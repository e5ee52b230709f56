"""What HTTP tests of the worker share: server-sent events read back, and a wait with an end."""

import json
import time
from collections.abc import Callable
from typing import Any

import httpx


def sse_events(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON objects of a stream, which must have ended with `[DONE]`."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines), lines
    assert lines[-1] == "data: [DONE]", lines[-1]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> float:
    """Seconds until the condition held. Fails if it does not within `seconds`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come true in time"
        time.sleep(0.001)
    return time.monotonic() - began
