"""The engines that `bench.py` compares, each in a process of its own: m3-worker's, transformers and mlx-lm.

Owns how each is loaded and driven, and the one measurement they share: some prompts at once, so many tokens of each
(`Peer.run`). Decides neither what is measured nor what is reported. A process of its own gives each engine its own
threads, and makes its peak memory a number of the kernel's.
"""

import asyncio
import contextlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Protocol

STATIC_BATCH = 16
"""Requests that transformers' generate takes at a time; those that are done wait for the longest."""

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Measured:
    """One run. Seconds count from its start; `step_seconds` is the median step with every request decoding."""

    seconds: float
    first_token_seconds: float
    step_seconds: float
    peak_bytes: int
    """Most memory in use, above what the loaded model took before its first run."""


@dataclass(frozen=True)
class Stamps:
    """When tokens came: of the whole run, and of the steps in which all requests took part."""

    first: float
    steps: Sequence[float]


class Peer(Protocol):
    """An engine that is loaded."""

    def run(self, prompts: Prompts, outputs: Sequence[int]) -> Stamps:
        """Generate `outputs[i]` tokens after `prompts[i]`, greedily, all requests submitted at once."""


class M3Worker:
    """The engine of m3-worker, driven as its HTTP API does."""

    def __init__(self, directory: Path, threads: int | None, cache_tokens: int) -> None:
        from m3_worker.config import WorkerSettings
        from m3_worker.loading import load_served_model

        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `m3-worker` does
        settings = WorkerSettings(model=directory, device="cpu", threads=threads, cache_tokens=cache_tokens)
        self._engine = load_served_model(settings, lambda _read, _needed: None).engine
        self._loop = asyncio.new_event_loop()
        self._engine.start(self._loop)
        self._requests = 0

    def run(self, prompts: Prompts, outputs: Sequence[int]) -> Stamps:
        """See Peer."""
        return self._loop.run_until_complete(self._run(prompts, outputs))

    async def _run(self, prompts: Prompts, outputs: Sequence[int]) -> Stamps:
        from m3_worker.scheduling.request import Request, SamplingParameters

        async def one(prompt: Sequence[int], tokens: int) -> list[float]:
            self._requests += 1
            sampling = SamplingParameters(max_tokens=tokens, temperature=0.0)
            request = Request(f"bench-{self._requests}", prompt, sampling, arrival_seconds=time.monotonic())
            stream, stamps = self._engine.submit(request), []
            while len(stamps) < tokens:
                got = await stream.take()
                stamps += [time.perf_counter()] * len(got)
            return stamps

        stamps = await asyncio.gather(*(one(*pair) for pair in zip(prompts, outputs, strict=True)))
        all_decode = max(one[0] for one in stamps)
        longest = max(stamps, key=len)
        return Stamps(min(one[0] for one in stamps), [stamp for stamp in longest if stamp >= all_decode])


class Transformers:
    """`MiniMaxM3SparseForConditionalGeneration.generate`, in static batches padded on the left."""

    def __init__(self, directory: Path, threads: int | None) -> None:
        import torch
        from transformers import MiniMaxM3SparseForConditionalGeneration, MiniMaxM3VLConfig
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        if threads is not None:
            torch.set_num_threads(threads)
        config = MiniMaxM3VLConfig.from_pretrained(directory)
        # The checkpoint has no vision tower, and the library would build the full-size one.
        config.vision_config.update(
            {"hidden_size": 24, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        )
        config.projector_hidden_size = 8
        self._model: Any = MiniMaxM3SparseForConditionalGeneration.from_pretrained(
            directory, config=config, dtype=torch.float32
        ).eval()

    def run(self, prompts: Prompts, outputs: Sequence[int]) -> Stamps:
        """See Peer."""
        parts = range(0, len(prompts), STATIC_BATCH) if len(set(map(len, prompts))) > 1 else [0]
        width = STATIC_BATCH if len(parts) > 1 else len(prompts)
        stamps = [self._generate(prompts[at : at + width], max(outputs[at : at + width])) for at in parts]
        return Stamps(stamps[0][0], stamps[0])

    def _generate(self, prompts: Prompts, tokens: int) -> list[float]:
        import torch

        stamps: list[float] = []

        def stamp(_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            stamps.append(time.perf_counter())
            return scores

        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                eos_token_id=None,
                pad_token_id=0,
                logits_processor=[stamp],
            )
        return stamps


class MlxLm:
    """mlx-lm's model in a greedy loop over one batch; prompts must be of one length."""

    def __init__(self, directory: Path) -> None:
        import mlx.core as mx
        from mlx_lm.utils import load_model

        mx.set_default_device(mx.cpu)
        self._model, _ = load_model(directory, lazy=False, strict=True)
        self._model.set_dtype(mx.float32)

    def run(self, prompts: Prompts, outputs: Sequence[int]) -> Stamps:
        """See Peer."""
        import mlx.core as mx

        cache, fed, stamps = self._model.make_cache(), mx.array([list(prompt) for prompt in prompts]), []
        for _ in range(max(outputs)):
            fed = mx.argmax(self._model(fed, cache=cache)[:, -1:], axis=-1)
            mx.eval(fed)
            stamps.append(time.perf_counter())
        return Stamps(stamps[0], stamps)


class Process:
    """A peer in a process of its own, ended with the block."""

    def __init__(self, peer: type, *arguments: object, **options: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, peer, arguments, options), daemon=True)

    def __enter__(self) -> "Process":
        self._process.start()
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send(None)
        self._process.join(20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def run(self, prompts: Prompts, outputs: Sequence[int]) -> Measured:
        """One measured run. Raises RuntimeError with the other process's traceback."""
        self._pipe.send((prompts, outputs))
        return self._answer()

    def _answer(self) -> Any:  # noqa: ANN401 # None once loaded, then Measured
        while not self._pipe.poll(1):
            if not self._process.is_alive():
                raise RuntimeError(f"the process ended with {self._process.exitcode}: out of memory?")
        answer = self._pipe.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer


def _serve(pipe: Connection, peer: type, arguments: tuple[object, ...], options: dict[str, object]) -> None:
    """The other side of `Process`."""
    try:
        engine: Peer = peer(*arguments, **options)
        engine.run([[1, 2, 3, 4]], [2])
        base = memory()["VmRSS"]
        pipe.send(None)
        for prompts, outputs in iter(pipe.recv, None):
            with peak_memory() as peak:
                began = time.perf_counter()
                stamps = engine.run(prompts, outputs)
                ended = time.perf_counter()
            steps = [after - before for before, after in zip(stamps.steps, stamps.steps[1:], strict=False)]
            step = median(steps) if steps else float("nan")
            pipe.send(Measured(ended - began, stamps.first - began, step, max(peak) - base))
    except EOFError:
        pass
    except BaseException:  # noqa: BLE001 # told to the parent, which raises it
        with contextlib.suppress(OSError):
            pipe.send(traceback.format_exc())
    os._exit(0)  # an engine's thread may be in a step


def memory(process: int | str = "self") -> dict[str, int]:
    """Bytes by name, from the status of a process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}


@contextlib.contextmanager
def peak_memory() -> Iterator[list[int]]:
    """A list that holds, after the block, the most memory that was resident within it."""
    Path("/proc/self/clear_refs").write_text("5")
    peak: list[int] = []
    yield peak
    peak.append(memory()["VmHWM"])
