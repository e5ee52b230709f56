"""What `m3 top` draws of a router's document, and what it says where there is none."""

import copy
import io
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from rich.console import Console

from m3_console.scene import Scene, bill
from m3_operator.top import TopError, TopOptions, bar, fetch, render, sparkline, top

M3 = Path(sys.executable).parent / "m3"
DOCUMENT: dict[str, Any] = {
    "version": 1,
    "time": 10_000.0,
    "router": {
        "name": "router-0",
        "version": "1.2.3",
        "hot_path": "compiled",
        "started": 2_800.0,
        "is_draining": False,
        "connections": 4,
        "connections_limit": 8192,
        "buffered_bytes": 0,
        "buffered_limit_bytes": 1,
        "redis_mode": "shared",
        "redis_reason": "",
        "replicas": 3,
    },
    "rates": {
        "seconds": 12,
        "requests_per_second": 14.25,
        "failures_per_second": 0.0,
        "input_tokens_per_second": 281_000.0,
        "cached_tokens_per_second": 140_000.0,
        "output_tokens_per_second": 795.0,
        "cost_nanousd_per_hour": 264_970_000_000,
    },
    "pools": [
        {
            "name": "m3",
            "models": ["MiniMax-M3"],
            "engine": "native",
            "limit_tokens": 100_000,
            "standard_share_tokens": 75_000,
            "drain_tokens_per_second": 1.0,
            "lanes": [
                {
                    "name": "standard",
                    "service_tier": "standard",
                    "context_tier": None,
                    "in_flight_tokens": 30_000,
                    "waiting": 2,
                    "waiting_tokens": 5_000,
                    "oldest_wait_seconds": 7.0,
                }
            ],
            "workers": [
                {
                    "name": "worker-0",
                    "address": "10.0.0.1:8000",
                    "state": "ready",
                    "reason": "",
                    "requests": 4,
                    "tokens_in_flight": 24_000,
                    "prefill_tokens": None,
                    "remote_tokens": None,
                    "long_prefills": None,
                    "breaker": "closed",
                    "epoch": "0123456789abcdef",
                    "is_warming_up": False,
                    "prefix_blocks": None,
                    "recent": {
                        "requests": 9,
                        "failures": 0,
                        "input_tokens": 1000,
                        "predicted_cached_tokens": 700,
                        "cached_tokens": 640,
                    },
                },
                {
                    "name": "worker-1",
                    "address": "10.0.0.2:8000",
                    "state": "unready",
                    "reason": "connection refused",
                    "requests": 0,
                    "tokens_in_flight": 0,
                    "prefill_tokens": None,
                    "remote_tokens": None,
                    "long_prefills": None,
                    "breaker": "open",
                    "epoch": None,
                    "is_warming_up": False,
                    "prefix_blocks": None,
                    "recent": None,
                },
            ],
        }
    ],
    "latency": [
        {
            "name": "standard",
            "service_tier": "standard",
            "context_tier": "standard",
            "target_ms": 2000.0,
            "objective": 0.95,
            "seconds": 300,
            "requests": 100,
            "within": 93,
            "refused": 1,
            "p50_ms": 66.0,
            "p95_ms": 2248.0,
            "burn": 1.4,
            "hour_requests": 100,
            "hour_within": 93,
            "hour_burn": 1.4,
        }
    ],
    "day": "2026-11-21",
    "tenants": [
        {
            "name": "acme",
            "requests": 40,
            "input_tokens": 90_000,
            "cached_tokens": 45_000,
            "output_tokens": 9_000,
            "cost_nanousd": 2_500_000_000,
            "cost_by_tier_nanousd": {"standard": 2_500_000_000},
            "plan": None,
            "limits": [],
        }
    ],
    "tenants_left_out": 0,
    "decisions": [
        {
            "time": 9_999.0,
            "tenant": "acme",
            "service_tier": "priority",
            "context_tier": "long",
            "input_tokens": 600_000,
            "worker": "worker-0",
            "reason": "prefix",
            "runner_up": "worker-1",
            "first_byte_ms": 812.0,
            "duration_ms": 1_900.0,
            "outcome": "ok",
        }
    ],
    "audit": [],
    "acts": [],
    "timeline": {
        "step_seconds": 1.0,
        "first": 1,
        "last": 3,
        "time": 10_000.0,
        "requests": [1, 2, 3],
        "series": [{"pool": "m3", "lane": "standard", "in_flight_tokens": [0, 15_000, 30_000], "waiting": [0, 0, 2]}],
    },
}


def drawn(document: dict[str, Any], width: int = 120, height: int | None = None, lost: str = "") -> str:
    console = Console(file=io.StringIO(), width=width, height=height or 50, color_system=None)
    console.print(render(document, width, height, lost))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def lines(text: str, beginning: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.startswith(beginning)]


def test_it_shows_what_the_document_says() -> None:
    text = drawn(DOCUMENT)

    assert "router-0  1.2.3  up 2 h  1 of 2 ready  3 replicas" in text
    assert "14.2 requests/s   281K tokens/s in   795 tokens/s out   $2.50 today   $264.97/h" in text
    lane, latency = lines(text, "standard ")
    assert lane == ["standard", "30K", "2", "7", "s", "▄█"]
    assert latency == ["standard", "93%", "2.0", "s", "66", "ms", "2.2", "s", "1.4", "100", "1"]
    assert lines(text, "worker-0") == [
        ["worker-0", "ready", "█" * 16, "4", "24K", "64%", "70%", "epoch", "01234567"],
    ]
    assert lines(text, "worker-1")[0][-5:] == ["-", "breaker", "open,", "connection", "refused"]
    assert lines(text, "acme") == [["acme", "$2.50", "40", "90K", "50%", "9.0K"]]
    assert text.splitlines()[-1].split()[1:] == [
        "acme",
        "priority-long",
        "600K",
        "worker-0",
        "prefix",
        "worker-1",
        "812",
        "ms",
        "ok",
    ]


def test_the_newest_decisions_fill_what_is_left_of_the_height() -> None:
    document = {**DOCUMENT, "decisions": DOCUMENT["decisions"] * 60}

    for height in (30, 40, 60):
        used = len(drawn(document, height=height).rstrip("\n").splitlines())
        assert height - 3 <= used <= height


def test_on_a_low_terminal_decisions_give_way() -> None:
    assert "runner-up" not in drawn(DOCUMENT, height=18)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(len(line) for line in drawn(DOCUMENT, width=width).splitlines()) <= width


def test_a_router_that_went_away_is_said_above_the_last_picture() -> None:
    text = drawn(DOCUMENT, lost="no answer for 4 s")

    assert "no answer for 4 s" in text
    assert "worker-0" in text


def test_an_empty_router_is_drawn_too() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["pools"][0]["workers"] = document["latency"] = document["tenants"] = document["decisions"] = []
    document["timeline"]["series"] = []

    assert "0 of 0 ready" in drawn(document)


def test_names_from_outside_cannot_steer_the_terminal() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["decisions"][0]["tenant"] = document["router"]["name"] = "a\x1b[2Jb[bold]"
    document["pools"][0]["workers"][0]["name"] = "w\x1b]0;x\x07"

    text = drawn(document, width=200)

    assert "\x1b" not in text
    assert "\x07" not in text
    assert "a\ufffd[2Jb[bold]" in text


def test_a_document_that_lacks_something_says_what() -> None:
    with pytest.raises(TopError, match="lacks 'latency'"):
        render({key: value for key, value in DOCUMENT.items() if key != "latency"}, 80, None)


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [([], 3, "   "), ([0, 0], 2, "  "), ([4, 8], 2, "▄█"), ([1, 1000], 2, "▁█"), ([8, 4, 8], 2, "▄█"), ([8], 3, "  █")],
)
def test_a_sparkline_shows_the_newest_values_against_the_largest(
    values: list[float], width: int, expected: str
) -> None:
    assert sparkline(values, width) == expected


def test_a_bar_is_filled_to_its_share() -> None:
    assert [bar(share, 4) for share in (-1, 0, 0.5, 1, 7)] == ["░░░░", "░░░░", "██░░", "████", "████"]


def test_it_understands_the_document_that_this_router_writes() -> None:
    scene = Scene()
    scene.settle(bill(worker="worker-1"), bill(outcome="rejected", worker="", status=429, first_byte_ms=None))
    scene.observatory.tick(1.0, 2.0)

    text = drawn(json.loads(msgspec.json.encode(scene.observatory.state(time.monotonic(), time.time()))))

    assert lines(text, "worker-1")[0][:2] == ["worker-1", "ready"]
    assert len(lines(text, "acme")) == 1


# ---- the way to the router


def a_client(status: int, content: object) -> httpx.Client:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return httpx.Client(
        transport=httpx.MockTransport(lambda _: httpx.Response(status, content=body)), base_url="http://m3"
    )


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (401, {"error": "Send the admin key."}, "http://m3: Send the admin key.; give its file with --key-file"),
        (403, {"error": "Only here."}, "http://m3: Only here."),
        (404, {"detail": "Not Found"}, "http://m3 is not the admin port of an m3-router .it answered 404."),
        (200, b"<html>", "http://m3 is not the admin port of an m3-router"),
        (200, {"status": "ok"}, "http://m3 is not the admin port of an m3-router"),
        (200, {"version": 9, "timeline": {}}, "http://m3 speaks version 9; this m3 understands 1"),
    ],
)
def test_what_is_no_document_is_one_line(status: int, content: object, message: str) -> None:
    with a_client(status, content) as client, pytest.raises(TopError, match=message):
        fetch(client)


@pytest.fixture
def unused_url() -> Iterator[str]:
    with socket.socket() as held:  # bound and not listening: connecting is refused
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def test_nobody_at_the_address_is_one_line_and_a_status(unused_url: str) -> None:
    done = subprocess.run([M3, "top", "--url", unused_url], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 1
    assert done.stderr.startswith(f"m3: no answer from {unused_url}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"", "expected one key"), (b"a b", "expected one key"), (b"\xff", "is not text")],
)
def test_a_key_file_that_holds_no_key_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(TopError, match=f"{file}: {message}"):
        top(TopOptions(key_file=file))


def test_without_a_terminal_it_prints_one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=120)
    with a_router(monkeypatch, [DOCUMENT]):
        top(TopOptions(), console)

    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().count("router-0") == 1


def test_in_a_terminal_it_goes_on_when_the_router_is_away_until_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=120, height=40, force_terminal=True, color_system=None)
    later = copy.deepcopy(DOCUMENT)
    later["router"]["name"] = "router-9"
    with a_router(monkeypatch, [DOCUMENT, httpx.ConnectError("refused"), later, KeyboardInterrupt()]):
        top(TopOptions(interval_seconds=0.001), console)

    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert shown.index("router-0") < shown.index("trying again: no answer from") < shown.index("router-9")


@contextmanager
def a_router(monkeypatch: pytest.MonkeyPatch, answers: list[dict[str, Any] | BaseException]) -> Iterator[None]:
    """Every client of this block gets these answers, one after the other."""
    left = iter(answers)

    def answer(_: httpx.Request) -> httpx.Response:
        following = next(left)
        if isinstance(following, BaseException):
            raise following
        return httpx.Response(200, json=following)

    original = httpx.Client
    with monkeypatch.context() as patched:
        patched.setattr(httpx, "Client", lambda **given: original(transport=httpx.MockTransport(answer), **given))
        yield
