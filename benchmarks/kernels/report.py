"""The table as Markdown and as JSON. What was not measured says so, and no estimate stands in for it."""

import datetime
import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import counting
from gpu_timer import Chip
from rows import Row
from shapes import M3, Chunk, selection

NOT_MEASURED = "not yet measured"
KEPT = (0.0, 0.5, 0.8, 0.9, 0.95, 1.0)
PACKAGES = ("flash_attn", "flashinfer", "flash_moba", "fla", "vllm", "sglang")


@dataclass(frozen=True)
class Counts:
    """Both loop orders on one selection at M3's size."""

    context: int
    kept: float
    mean_union: float
    floor: counting.Cost
    query_outer: counting.Cost
    union_4: counting.Cost
    union_8: counting.Cost
    kv_outer: counting.Cost


def count(queries: int, contexts: Iterable[int], run: int, rows: int) -> list[Counts]:
    found = []
    for context in contexts:
        for kept in KEPT:
            chunk = Chunk(queries, context)
            blocks = selection(M3, chunk, kept)
            sizes = list(counting.unions(blocks, 4))
            found.append(
                Counts(
                    context,
                    kept,
                    sum(sizes) / len(sizes),
                    counting.floor(M3, chunk, blocks),
                    counting.query_outer(M3, chunk, blocks),
                    counting.union_tile(M3, chunk, blocks, 4),
                    counting.union_tile(M3, chunk, blocks, 8),
                    counting.kv_outer(M3, chunk, blocks, queries=4, run=run, rows=rows),
                )
            )
    return found


def write(path: Path, chip: Chip | None, rows: Sequence[Row], counts: Sequence[Counts], took_seconds: float) -> None:
    """path: of the Markdown; the JSON lies beside it."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(_markdown(chip, rows, counts, took_seconds))
    data = {
        "chip": None if chip is None else asdict(chip),
        **_circumstances(),
        "rows": [asdict(row) for row in rows],
        "counts": [asdict(one) for one in counts],
    }
    path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")


def _markdown(chip: Chip | None, rows: Sequence[Row], counts: Sequence[Counts], took_seconds: float) -> str:
    where = "Triton's interpreter, at toy sizes" if chip is None else chip.name
    lines = [
        f"# The attention kernels on {where}",
        "",
        *(_without_gpu() if chip is None else _of_chip(chip)),
        "",
        "| op | variant | shape | error | bytes | FLOP | time | floor | time / floor | bar |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(_row, rows),
        "",
        "Error: of sampled rows against float64 on fresh inputs, in units of the largest value there; for a choice, by",
        "how much its worst block falls short of the best that was left. Bytes and FLOP: what cannot be done without.",
        "",
        "## Loop orders, counted",
        "",
        "8,192 queries of M3's shape, bf16, one layer. *Kept*: how likely a query keeps a block of the one before it;",
        "at 0 it is random. *Union of 4*: how many blocks four adjacent queries choose together. GB: what programs ask",
        "their memory for, whichever level of it answers. Not estimated: every page of every list is counted.",
        "",
        "| context | kept | union of 4 | one query: GB, TFLOP | union of 4: GB, TFLOP | union of 8: GB, TFLOP "
        "| KV-outer: pages + queries + parts GB, TFLOP | floor: GB, TFLOP | times |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(_count, counts),
        "",
        *(f"- {name}: {value}" for name, value in _circumstances().items()),
        f"- Took: {took_seconds:.0f} s",
    ]
    return "\n".join(lines) + "\n"


def _without_gpu() -> list[str]:
    return [
        "No GPU was at hand: this run shows that every row computes the right thing, on a small head shape, and that",
        "the script runs from end to end. Times and floors are not estimated; `python benchmarks/kernels.py` on a",
        "machine with a GPU measures them.",
    ]


def _of_chip(chip: Chip) -> list[str]:
    bf16, fp8 = chip.bf16_flop_per_second / 1e12, chip.fp8_flop_per_second / 1e12
    return [
        f"Measured here, and what floors are made of: copies {chip.copy_bytes_per_second / 1e12:.2f} TB/s; products",
        f"{bf16:.0f} TFLOP/s in bf16 and {fp8:.0f} in FP8.",
        "Times: replays of a CUDA graph on inputs that rotate past twice the second-level cache, median of 20.",
    ]


def _row(row: Row) -> str:
    ratio = (
        NOT_MEASURED if row.seconds is None or row.floor_seconds is None else f"{row.seconds / row.floor_seconds:.2f}"
    )
    cells = (
        row.op,
        row.variant,
        row.shape,
        "" if row.error is None else f"{row.error:.1e}",
        f"{row.moved_bytes:.2e}",
        f"{row.flop:.2e}",
        _time(row.seconds),
        _time(row.floor_seconds),
        ratio,
        "" if row.bar_seconds is None else _time(row.bar_seconds),
    )
    return f"| {' | '.join(cells)} |"


def _count(one: Counts) -> str:
    kv = one.kv_outer
    cells = (
        f"{one.context:,}",
        f"{one.kept:g}",
        f"{one.mean_union:.1f}",
        _both(one.query_outer),
        _both(one.union_4),
        _both(one.union_8),
        f"{kv.cache_bytes / 1e9:.2f} + {kv.query_bytes / 1e9:.2f} + {kv.parts_bytes / 1e9:.2f}, {kv.flop / 1e12:.2f}",
        _both(one.floor),
        NOT_MEASURED,
    )
    return f"| {' | '.join(cells)} |"


def _both(cost: counting.Cost) -> str:
    return f"{cost.bytes / 1e9:.2f}, {cost.flop / 1e12:.2f}"


def _time(seconds: float | None) -> str:
    return NOT_MEASURED if seconds is None else f"{seconds * 1e6:,.1f} us"


def _circumstances() -> dict[str, str]:
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {_version(name)}" for name in ("torch", "triton"))]
        ),
        "public kernel packages importable": ", ".join(name for name in PACKAGES if find_spec(name)) or "none",
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "of unknown version"
