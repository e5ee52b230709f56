"""A router in the terminal: `m3 top` shows lanes, workers, latency, spend and decisions, as its console does.

Owns how the document of a router's admin port (`GET /api/state`) is fetched and drawn. Drawing is pure: a document
and a size in, something that rich prints out. The router may be of another version than this command: a document that
is not of the known version is refused, and a field that is missing says which.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from m3_operator.errors import OperatorError

if TYPE_CHECKING:
    import httpx

VERSION = 1  # of the document
TIMEOUT_SECONDS = 5.0
BLOCKS = " ▁▂▃▄▅▆▇█"
BAR_WIDTH = 16
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LANE_STYLES = {"priority": "bright_blue", "standard": "cyan", "batch": "yellow"}
_ALWAYS_SHOWN = frozenset({"priority", "standard"})  # of lanes; others only where somebody uses them
_STATE_STYLES = {"ready": "green", "unready": "red", "draining": "yellow"}
_OUTCOME_STYLES = {"ok": "green", "client_gone": "yellow", "rejected": "yellow"}

Document = dict[str, Any]


class TopError(OperatorError):
    """The router cannot be shown; the message is one line for a person."""


@dataclass(frozen=True, kw_only=True)
class TopOptions:
    """Where the router is. `is_once`: draw one picture and end."""

    url: str = "http://127.0.0.1:9090"
    key_file: Path | None = None
    interval_seconds: float = 1.0
    is_once: bool = False


def top(options: TopOptions, console: Console | None = None) -> None:
    """Show a router until Ctrl-C; once, where the output is no terminal. Raises TopError if it cannot be reached.

    A router that goes away later is waited for: the last picture stays, and says how old it is.
    """
    import httpx

    console = console or Console(highlight=False)
    headers = {} if options.key_file is None else {"authorization": f"Bearer {_read_key(options.key_file)}"}
    try:
        client = httpx.Client(base_url=options.url, headers=headers, timeout=TIMEOUT_SECONDS)
    except httpx.InvalidURL as error:
        raise TopError(f"{options.url}: {error}") from error
    with client:
        document = fetch(client)
        if options.is_once or not console.is_terminal:
            console.print(render(document, console.width, None))
        else:
            _follow(client, document, options.interval_seconds, console)


def fetch(client: "httpx.Client") -> Document:
    """The router's document. Raises TopError."""
    import httpx

    try:
        answer = client.get("/api/state")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise TopError(f"no answer from {client.base_url}: {error or type(error).__name__}") from error
    try:
        document = answer.json()
    except ValueError:
        document = None
    if answer.status_code in (401, 403) and isinstance(document, dict):
        hint = "; give its file with --key-file" if answer.status_code == 401 else ""
        raise TopError(f"{client.base_url}: {document.get('error')}{hint}")
    if answer.status_code != 200 or not isinstance(document, dict) or "timeline" not in document:
        raise TopError(f"{client.base_url} is not the admin port of an m3-router (it answered {answer.status_code})")
    if document.get("version") != VERSION:
        raise TopError(f"{client.base_url} speaks version {document.get('version')}; this m3 understands {VERSION}")
    return document


def render(document: Document, width: int, height: int | None, lost: str = "") -> RenderableType:
    """The whole picture for a terminal of this size; height None: as long as it gets. lost: why it is old."""
    try:
        parts = [_head(document, lost), _lanes(document, width), _workers(document, width), _latency(document)]
        if document["tenants"]:
            parts.append(_tenants(document))
        used = sum(_height(part) for part in parts)
        left = None if height is None else height - used - 2
        if document["decisions"] and (left is None or left > 2):
            parts.append(_decisions(document, left))
        return Group(*parts)
    except (KeyError, TypeError) as error:
        raise TopError(f"the router's document lacks {error}: it is of another version than this m3") from error


def _follow(client: "httpx.Client", document: Document, interval_seconds: float, console: Console) -> None:
    heard_at, lost = time.monotonic(), ""

    def picture() -> RenderableType:
        age = f"no answer for {time.monotonic() - heard_at:.0f} s, trying again: {lost}" if lost else ""
        return render(document, console.width, console.height, age)

    with Live(picture(), console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(interval_seconds)
                try:
                    document, heard_at, lost = fetch(client), time.monotonic(), ""
                except TopError as error:
                    lost = str(error)
                live.update(picture(), refresh=True)
        except KeyboardInterrupt:
            return


def _read_key(file: Path) -> str:
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TopError(f"{file}: {getattr(error, 'strerror', None) or 'is not text'}") from error
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise TopError(f"{file}: expected one key, on one line")
    return key


def _head(document: Document, lost: str) -> RenderableType:
    router, rates = document["router"], document["rates"]
    workers = [worker for pool in document["pools"] for worker in pool["workers"]]
    ready = sum(worker["state"] == "ready" for worker in workers)
    redis = {"none": "one replica", "shared": f"{router['replicas']} replicas", "local": "Redis away"}
    line = Text.assemble(
        (_plain(router["name"]), "bold"),
        f"  {_plain(router['version'])}  up {_span(document['time'] - router['started'])}  ",
        (f"{ready} of {len(workers)} ready", "green" if ready == len(workers) and ready else "red"),
        f"  {redis.get(router['redis_mode'], router['redis_mode'])}",
        ("  draining", "yellow") if router["is_draining"] else "",
    )
    spent = sum(tenant["cost_nanousd"] for tenant in document["tenants"])
    numbers = Text(
        f"{rates['requests_per_second']:.1f} requests/s   {_count(rates['input_tokens_per_second'])} tokens/s in   "
        f"{_count(rates['output_tokens_per_second'])} tokens/s out   {_usd(spent)} today   "
        f"{_usd(rates['cost_nanousd_per_hour'])}/h"
    )
    return Group(line, Text(_plain(lost), "red") if lost else numbers)


def _lanes(document: Document, width: int) -> Table:
    table = _table("lane", "tokens in flight", "waiting", "oldest", f"tokens, last {_sparkline_width(width)} s")
    series = {(one["pool"], one["lane"]): one["in_flight_tokens"] for one in document["timeline"]["series"]}
    for pool in document["pools"]:
        prefix = f"{_plain(pool['name'])} " if len(document["pools"]) > 1 else ""
        for lane in pool["lanes"]:
            history = series.get((pool["name"], lane["name"]), ())
            is_idle = not (lane["in_flight_tokens"] or lane["waiting"] or any(history))
            if is_idle and lane["name"] not in _ALWAYS_SHOWN:
                continue
            style = _LANE_STYLES.get(lane["service_tier"], "white")
            waiting = lane["waiting"]
            table.add_row(
                Text(f"{prefix}{_plain(lane['name'])}", style),
                _count(lane["in_flight_tokens"]),
                Text(_count(waiting), "yellow" if waiting else "dim"),
                _span(lane["oldest_wait_seconds"]) if waiting else Text("-", "dim"),
                Text(sparkline(history, _sparkline_width(width)), style),
            )
    return table


def _workers(document: Document, width: int) -> Table:
    table = _table("worker", "state", "load", "requests", "tokens", "cache hit", "predicted", "notes")
    workers = [worker for pool in document["pools"] for worker in pool["workers"]]
    most = max((worker["tokens_in_flight"] for worker in workers), default=0)
    for worker in workers:
        recent = worker["recent"] or {}
        notes = [
            f"breaker {worker['breaker']}" if worker["breaker"] not in (None, "closed") else "",
            "warming up" if worker["is_warming_up"] else "",
            f"epoch {worker['epoch'][:8]}" if worker["epoch"] else "",
            worker["reason"] if worker["state"] != "ready" else "",
        ]
        table.add_row(
            Text(_plain(worker["name"]), "bold"),
            Text(worker["state"], _STATE_STYLES.get(worker["state"], "white")),
            Text(bar(worker["tokens_in_flight"] / most if most else 0.0, BAR_WIDTH), "cyan"),
            _count(worker["requests"]),
            _count(worker["tokens_in_flight"]),
            _share(recent.get("cached_tokens"), recent.get("input_tokens")),
            _share(recent.get("predicted_cached_tokens"), recent.get("input_tokens")),
            Text(_plain(", ".join(note for note in notes if note))[: max(width // 3, 20)], "dim"),
        )
    return table


def _latency(document: Document) -> Table:
    table = _table("first byte", "within", "target", "p50", "p95", "burn", "requests", "refused")
    for lane in document["latency"]:
        burn = lane["burn"]
        table.add_row(
            Text(_plain(lane["name"]), _LANE_STYLES.get(lane["service_tier"], "white")),
            _share(lane["within"], lane["requests"]),
            _milliseconds(lane["target_ms"]),
            _milliseconds(lane["p50_ms"]),
            _milliseconds(lane["p95_ms"]),
            Text("-" if burn is None else f"{burn:.1f}", "red" if (burn or 0) > 1 else "green"),
            _count(lane["requests"]),
            _count(lane["refused"]),
        )
    return table


def _tenants(document: Document, shown: int = 5) -> Table:
    table = _table("tenant", "spent today", "requests", "input", "cached", "output")
    for tenant in document["tenants"][:shown]:
        table.add_row(
            Text(_plain(tenant["name"]), "bold"),
            _usd(tenant["cost_nanousd"]),
            _count(tenant["requests"]),
            _count(tenant["input_tokens"]),
            _share(tenant["cached_tokens"], tenant["input_tokens"]),
            _count(tenant["output_tokens"]),
        )
    return table


def _decisions(document: Document, rows: int | None) -> Table:
    table = _table("settled", "tenant", "lane", "input", "worker", "why", "runner-up", "first byte", "outcome")
    decisions = document["decisions"] if rows is None else document["decisions"][: max(rows - 2, 1)]
    for one in decisions:
        lane = one["service_tier"] + ("-long" if one["context_tier"] == "long" else "")
        table.add_row(
            time.strftime("%H:%M:%S", time.localtime(one["time"] + one["duration_ms"] / 1000)),
            _plain(one["tenant"]),
            Text(lane, _LANE_STYLES.get(one["service_tier"], "white")),
            _count(one["input_tokens"]),
            Text(_plain(one["worker"]) or "-", "bold"),
            _plain(one["reason"]) or "-",
            _plain(one["runner_up"]) or "-",
            _milliseconds(one["first_byte_ms"]),
            Text(one["outcome"] or "-", _OUTCOME_STYLES.get(one["outcome"], "red")),
        )
    return table


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values as blocks, against the largest of them; shorter series are padded on the left."""
    newest = list(values)[-width:]
    most = max(newest, default=0)
    top_block = len(BLOCKS) - 1
    blocks = "".join(BLOCKS[max(1, round(value / most * top_block)) if value else 0] for value in newest)
    return blocks.rjust(width)


def bar(share: float, width: int) -> str:
    """A bar of `width` cells filled to a share of 0 to 1."""
    filled = round(min(max(share, 0.0), 1.0) * width)
    return "█" * filled + "░" * (width - filled)


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", title=" ", title_justify="left")
    table.add_column(first, no_wrap=True)
    for column in columns:
        is_number = column in ("tokens in flight", "waiting", "oldest", "requests", "tokens", "input", "output")
        table.add_column(column, no_wrap=True, justify="right" if is_number else "left")
    return table


def _height(part: RenderableType) -> int:
    return part.row_count + 2 if isinstance(part, Table) else 2


def _sparkline_width(width: int) -> int:
    return max(min(width - 60, 60), 10)


def _plain(text: object) -> str:
    """Text from outside, without the control characters by which it could steer the terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text))


def _count(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.0f}{unit}" if value >= 10 * size else f"{value / size:.1f}{unit}"
    return f"{value:.0f}"


def _usd(nanousd: int) -> str:
    value = nanousd / 1e9
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.4f}"


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.1f} s"


def _span(seconds: float) -> str:
    steps: tuple[tuple[float, Callable[[float], str]], ...] = (
        (100, lambda s: f"{s:.0f} s"),
        (6000, lambda s: f"{s / 60:.0f} min"),
        (172_800, lambda s: f"{s / 3600:.0f} h"),
    )
    return next((words(seconds) for bound, words in steps if seconds < bound), f"{seconds / 86_400:.0f} d")


def _share(part: int | None, whole: int | None) -> str:
    return "-" if not whole or part is None else f"{part / whole:.0%}"
