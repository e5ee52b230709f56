"""What m3-worker's engine costs on a CPU, against transformers and mlx-lm with the same weights.

    python benchmarks/engine/bench.py [--repetitions 3] [--rows decode,throughput,...] [--output RESULTS.md]

A random M3 of 6.6 M parameters with the real block geometry (128 tokens x 16 blocks). Each engine runs in a process of
its own (`peers`) and they take turns within each repetition, so that a busy neighbour hurts them alike; a ratio is the
median of the repetitions' ratios, a time the median of times. No two prompts are the same, so that nothing is found in
a cache unless that is what is measured.
"""

import argparse
import datetime
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from random import Random
from statistics import median

from bench_model import write_model
from empty_step import empty_step_lines
from long_prompt import long_line
from peers import M3Worker, Measured, MlxLm, Process, Transformers

HERE = Path(__file__).resolve().parent
OURS, HF, MLX = "m3-worker", "transformers", "mlx-lm"
CACHE_TOKENS = 2**17
BYTE_VALUES = 256

Figure = Callable[[Measured], float]


@dataclass(frozen=True)
class Load:
    """Requests that are submitted at once: (prompt tokens, output tokens) of each."""

    requests: tuple[tuple[int, int], ...]

    def prompts(self, random: Random) -> list[list[int]]:
        return [[random.randrange(BYTE_VALUES) for _ in range(tokens)] for tokens, _ in self.requests]

    @property
    def outputs(self) -> list[int]:
        return [tokens for _, tokens in self.requests]


@dataclass(frozen=True)
class Row:
    """One line of the table: a load, who runs it, and which figures of it count (smaller is better)."""

    group: str
    title: str
    load: Load
    figures: Mapping[str, Figure]
    peers: tuple[str, ...]
    note: str
    repetitions: int | None = None
    """None: as many as asked for."""


def same(requests: int, prompt_tokens: int, output_tokens: int) -> Load:
    """So many requests of one size."""
    return Load(((prompt_tokens, output_tokens),) * requests)


def mixed() -> Load:
    """32 requests with prompts of 100 to 2,000 tokens and outputs of 16 to 256."""
    random = Random(4)
    return Load(tuple((random.randrange(100, 2001), random.randrange(16, 257)) for _ in range(32)))


STEP: Mapping[str, Figure] = {"step": lambda run: run.step_seconds}
WHOLE: Mapping[str, Figure] = {"time": lambda run: run.seconds}
PREFILL: Mapping[str, Figure] = {
    "time": lambda run: run.first_token_seconds,
    "memory": lambda run: float(run.peak_bytes),
}

ROWS = (
    Row("decode", "a decode step, 16 x 300 tokens", same(16, 300, 48), STEP, (OURS, HF, MLX), "decode_short"),
    Row("decode", "a decode step, 16 x 2,000 tokens", same(16, 2000, 24), STEP, (OURS, HF), "decode_long"),
    Row("throughput", "1 request, 200 + 64 tokens", same(1, 200, 64), WHOLE, (OURS, HF, MLX), "one"),
    Row("throughput", "16 requests, 200 + 64 tokens", same(16, 200, 64), WHOLE, (OURS, HF, MLX), "decode_short", 3),
    Row("throughput", "64 requests, 200 + 64 tokens", same(64, 200, 64), WHOLE, (OURS, HF, MLX), "decode_short", 2),
    Row("mixed", "32 requests, 100-2,000 + 16-256 tokens", mixed(), WHOLE, (OURS, HF), "mixed"),
    Row("prefill", "prefill of 2,048 tokens", same(1, 2048, 1), PREFILL, (OURS, HF), "prefill"),
    Row("prefill", "prefill of 4,096 tokens", same(1, 4096, 1), PREFILL, (OURS, HF), "prefill"),
    Row("prefill", "prefill of 8,192 tokens", same(1, 8192, 1), PREFILL, (OURS, HF), "prefill", 3),
    Row("prefill", "prefill of 32,768 tokens", same(1, 32768, 1), PREFILL, (OURS,), "prefill_long", 3),
)
NOTES = {
    "decode_short": (
        "reading 26 MB of weights and 10 MB of keys and values, at 5 to 6 GB/s of the 9 that this machine "
        "gives one thread: three quarters of the step; then some 600 calls of torch"
    ),
    "decode_long": (
        "reading 67 MB of keys and values and 26 MB of weights: 10 ms at the 9 GB/s that this machine gives; "
        "then the calls of the row above"
    ),
    "one": "reading the weights, whole for one row as for 16, and the calls",
    "mixed": "prefill; transformers computes padding and waits for the longest of each batch",
    "prefill": (
        "arithmetic: attention over 16 blocks a query, then the weights; transformers computes all pairs under a mask"
    ),
    "prefill_long": "the dense layer's attention over all keys (half of the last step), then index scoring (a sixth)",
}


def say(line: str) -> None:
    """One line of progress."""
    sys.stderr.write(f"bench-engine: {line}\n")


def starters(directory: Path, threads: int | None, peer_threads: int) -> dict[str, Callable[[], Process]]:
    """How each engine is started."""
    return {
        OURS: lambda: Process(M3Worker, directory, threads, CACHE_TOKENS),
        HF: lambda: Process(Transformers, directory, peer_threads),
        MLX: lambda: Process(MlxLm, directory),
    }


@dataclass(frozen=True)
class Result:
    """What a row brought: all runs of each engine, repetition by repetition."""

    row: Row
    runs: Mapping[str, Sequence[Measured]]

    def value(self, peer: str, figure: Figure) -> float:
        """The median of one figure."""
        return median(figure(run) for run in self.runs[peer])

    def ratio(self, peer: str, figure: Figure) -> float:
        """How many times ours another's figure is: the median over the repetitions."""
        pairs = zip(self.runs[peer], self.runs[OURS], strict=True)
        return median(figure(theirs) / figure(ours) for theirs, ours in pairs)


def measure(row: Row, start: Mapping[str, Callable[[], Process]], repetitions: int) -> Result:
    """One row, in fresh processes: peak memory is the row's own."""
    runs: dict[str, list[Measured]] = {peer: [] for peer in row.peers}
    with ExitStack() as stack:
        peers = {peer: stack.enter_context(start[peer]()) for peer in row.peers}
        for repetition in range(row.repetitions or repetitions):
            prompts = row.load.prompts(Random(repetition))
            for name, process in peers.items():
                runs[name].append(process.run(prompts, row.load.outputs))
                shown = ", ".join(f"{what} {show(what, of(runs[name][-1]))}" for what, of in row.figures.items())
                say(f"{row.title}, {repetition + 1}: {name} {shown}")
    return Result(row, runs)


def table(results: Sequence[Result]) -> Iterator[str]:
    """The rows against the peers, ratios first."""
    yield f"| load | against {HF} | against {MLX} | {OURS} | {HF} | {MLX} | bound by |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for result in results:
        for what, figure in result.row.figures.items():
            title = result.row.title + (", memory above the weights" if what == "memory" else "")
            ratios = [ratio_cell(result, peer, what, figure) for peer in (HF, MLX)]
            values = [value_cell(result, peer, what, figure) for peer in (OURS, HF, MLX)]
            yield f"| {title} | {' | '.join(ratios + values)} | {NOTES[result.row.note]} |"


def ratio_cell(result: Result, peer: str, what: str, figure: Figure) -> str:
    if peer not in result.runs:
        return "-"
    ratio = result.ratio(peer, figure)
    return f"**1/{ratio:.1f} of it**" if what == "memory" else f"**{ratio:.1f} x faster**"


def value_cell(result: Result, peer: str, what: str, figure: Figure) -> str:
    if peer not in result.runs:
        return "-"
    value = result.value(peer, figure)
    if result.row.group in ("throughput", "mixed"):
        return f"{sum(result.row.load.outputs) / value:,.0f} tokens/s"
    return show(what, value)


def show(what: str, value: float) -> str:
    if what == "memory":
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def own_lines(results: Sequence[Result], directory: Path, threads: int | None, repetitions: int) -> Iterator[str]:
    """What is measured against ourselves: growth with the context, a prefix hit, a step of an empty model."""
    time = PREFILL["time"]
    by_tokens = {result.row.load.requests[0][0]: result for result in results if result.row.group == "prefill"}
    if 4096 in by_tokens and 32768 in by_tokens:
        growth = by_tokens[32768].value(OURS, time) / by_tokens[4096].value(OURS, time) / 8
        yield f"- A token of a 32K prefill costs **{growth:.2f} x** one of a 4K prefill."
    with Process(M3Worker, directory, threads, CACHE_TOKENS) as worker:
        ratios = []
        for seed in range(repetitions):
            prompts = same(1, 8192, 1).prompts(Random(100 + seed))
            cold, hit = (worker.run(prompts, [1]).first_token_seconds for _ in range(2))
            ratios.append(hit / cold)
        yield f"- Time to first token of an 8K prompt that was seen before: **{median(ratios):.3f} of cold**."
    yield from empty_step_lines(directory, (1, 16, 64), repetitions)


def report(lines: Sequence[str], weight_bytes: int, load: float, arguments: argparse.Namespace) -> str:
    """The whole page as Markdown."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "mlx-lm"))
    return "\n".join(
        [
            "# m3-worker's engine on a CPU, against transformers and mlx-lm",
            "",
            "Question: what do a decode step, a batch and a prompt cost, compared with two other implementations of",
            "the same model? Same random weights in fp32, same prompts, same machine, in turns.",
            "",
            *lines,
            "",
            f"- Date: {datetime.datetime.now(tz=datetime.UTC).date()}. Command: `make bench-engine`, "
            f"{arguments.repetitions} repetitions.",
            f"- Machine: {os.cpu_count()} CPUs ({cpu_model()}), Linux {platform.release()}; "
            f"load average {load:.1f} before the run.",
            f"- Versions: Python {platform.python_version()}, {libraries}.",
            f"- Model: 4 layers (1 dense), hidden 256, 8 heads, 2 KV heads, 8 experts, {weight_bytes / 4e6:.1f} M",
            "  parameters; blocks of 128 tokens, 16 of them a query. transformers: SDPA attention, "
            f"{arguments.peer_threads} threads, static",
            "  batches of 16. mlx-lm: a greedy loop over one batch of equal lengths. m3-worker: "
            f"{arguments.threads or 'its own choice of'} threads.",
            "- What it does not show: GPUs, real weights, other machines. Ratios carry over better than times.",
            "",
        ]
    )


def cpu_model() -> str:
    """What the processor calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    """Measure and write the table."""
    groups = tuple(dict.fromkeys(row.group for row in ROWS))
    parser = argparse.ArgumentParser(description="Measure m3-worker's engine against transformers and mlx-lm.")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument(
        "--rows", default=",".join((*groups, "own", "long")), help=f"which of {', '.join(groups)}, own, long"
    )
    parser.add_argument("--threads", type=int, help="threads of m3-worker (default: its own choice)")
    parser.add_argument("--peer-threads", type=int, default=os.cpu_count() or 1, help="threads of transformers")
    parser.add_argument("--long-tokens", type=int, default=2**19, help="length of the long prompt")
    parser.add_argument("--output", default=str(HERE / "RESULTS.md"), help="file to write; - is standard output")
    arguments = parser.parse_args()
    names, load = arguments.rows.split(","), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="m3-bench-engine-") as name:
        directory = Path(name)
        weight_bytes = write_model(directory, 2**20)
        start = starters(directory, arguments.threads, arguments.peer_threads)
        results = [measure(row, start, arguments.repetitions) for row in ROWS if row.group in names]
        lines = list(table(results)) if results else []
        if "own" in names:
            lines += ["", *own_lines(results, directory, arguments.threads, arguments.repetitions)]
        if "long" in names:
            lines += ["", long_line(arguments.long_tokens, arguments.threads)]
    text = report(lines, weight_bytes, load, arguments)
    if arguments.output == "-":
        sys.stdout.write(text)
    else:
        Path(arguments.output).write_text(text)
        say(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
