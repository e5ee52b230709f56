"""One prompt of half a million tokens, over HTTP, to a worker process of its own."""

import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from random import Random

from peers import memory

BYTE_VALUES = 256
_LISTENING = re.compile(r"listening on (http://\S+),")
_DAY = 86400.0


def long_line(tokens: int, threads: int | None) -> str:
    """Serve a tiny model of M3.1-Flash's kind (every layer sparse), ask it once, and say what that took."""
    from m3_worker.config import TinySettings, WorkerSettings
    from m3_worker.model.cache import PagedCache
    from m3_worker.model.config import ModelConfig
    from m3_worker.tiny import write_checkpoint

    with tempfile.TemporaryDirectory(prefix="m3-bench-long-") as name:
        directory = Path(name)
        shape = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 1, "head_dim": 16, "index_dim": 16, "experts": 4}
        geometry = {"intermediate": 64, "dense_layers": 0, "block": 128, "topk": 16, "context": 2**20}
        write_checkpoint(TinySettings(directory=directory, vision=False, **shape, **geometry))
        settings = WorkerSettings(
            model=directory, port=0, device="cpu", threads=threads, cache_tokens=tokens + 256, max_concurrent=1
        )
        command = [Path(sys.executable).with_name("m3-worker"), *settings.arguments()]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as worker:
            try:
                url = _url(worker)
                at_rest = memory(worker.pid)["VmRSS"]
                seconds, status, usage = _ask(url, tokens)
                peak = memory(worker.pid)["VmHWM"] - at_rest
            finally:
                worker.terminate()
                worker.communicate()
        import torch

        cache = tokens * PagedCache.bytes_per_token(ModelConfig.load(directory), torch.float32)
    return (
        f"- A prompt of {usage:,} tokens over HTTP: answered with **{status}** after **{seconds:,.0f} s**; at most "
        f"{peak / 2**20:,.0f} MiB above what the worker has at rest, its cache of {cache / 2**20:,.0f} MiB included in "
        "that. Model: 2 layers, both sparse, hidden 64, 1 KV head."
    )


def _url(worker: subprocess.Popen[str]) -> str:
    """Where it listens, once it is ready."""
    assert worker.stderr is not None  # noqa: S101
    url = ""
    for line in worker.stderr:
        if found := _LISTENING.search(line):
            url = found[1]
        if "ready: serving" in line:
            return url
    raise RuntimeError("the worker ended before it was ready")


def _ask(url: str, tokens: int) -> tuple[float, int, int]:
    """Seconds, status, and prompt tokens of the usage."""
    with urllib.request.urlopen(f"{url}/v1/models") as answer:
        model = json.load(answer)["data"][0]["id"]
    random = Random(0)
    prompt = [random.randrange(BYTE_VALUES) for _ in range(tokens)]
    body = {"model": model, "prompt": prompt, "max_tokens": 2, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode())
    request.add_header("content-type", "application/json")
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=_DAY) as answer:
        usage = json.load(answer)["usage"]["prompt_tokens"]
        return time.perf_counter() - began, answer.status, usage
