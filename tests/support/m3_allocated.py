"""What the ranks of a real engine hold in memory once they are loaded, read from the ranks themselves.

    allocated(directory, ranks=2, cache_tokens=4096, cache_dtype="bfloat16")

Each rank is a process that loads as `m3-worker` does (`load_engine_model`), its share of the weights and its cache,
then counts the bytes behind every tensor that Python can reach, fills its cache, and asks the kernel how much it has
grown. Owns that; what ought to be there is the caller's to know.
"""

import gc
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank."""

    weights_bytes: int
    """Of the storages behind the model's weights, each counted once."""
    cache_bytes: int
    """Of the page pools."""
    other_bytes: int
    """Of all other tensors of the process: tables, counters."""
    pages: int
    grown_bytes: int | None
    """By how much its resident memory grew by loading and by filling the cache; None where there is no /proc."""


def allocated(directory: Path, *, ranks: int, **settings: Any) -> list[RankMemory]:
    """Load the checkpoint on so many ranks; `settings` are those of every worker. Raises RuntimeError if one fails."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    with ExitStack() as stack:
        processes = []
        for rank in range(ranks):
            place = {"node_rank": rank, "nodes": ranks, "gpus_per_node": 0, "master_port": port}
            asked = {"settings": {"model": str(directory), "device": "cpu", **settings}, "ranks": place}
            command = [sys.executable, __file__, json.dumps(asked)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)  # closes the pipes, and waits
            stack.callback(process.kill)
            processes.append(process)
        return [_told(rank, process) for rank, process in enumerate(processes)]


def _told(rank: int, process: "subprocess.Popen[str]") -> RankMemory:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"rank {rank} ended with exit code {process.wait(30)} before it was loaded")
    return RankMemory(**json.loads(line))


def main() -> None:
    """Be one rank: load, tell, and stay until whoever asked has seen all, since a group ends with its first loss."""
    import torch

    from m3_worker.config import RankSettings, WorkerSettings
    from m3_worker.engine_model import load_engine_model

    asked = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    torch.zeros(1000, 1000) @ torch.zeros(1000, 1000)  # what the first product takes is not the model's
    before = _resident_bytes()
    settings, ranks = WorkerSettings(**asked["settings"]), RankSettings(**asked["ranks"])
    loaded = load_engine_model(settings, ranks, (), lambda _read, _needed: None)
    pools = [loaded.cache.k, loaded.cache.v, loaded.cache.index_k]
    for pool in pools:
        pool.view(torch.uint8).fill_(1)  # zeroed memory is not there until it is written to
    gc.collect()
    after = _resident_bytes()
    of_weights, of_cache = _storages(_tensors(loaded.model.weights)), _storages(iter(pools))
    known = of_weights | of_cache
    others = {at: size for at, size in _storages(_all_tensors()).items() if at not in known}
    memory = RankMemory(
        weights_bytes=sum(of_weights.values()),
        cache_bytes=sum(of_cache.values()),
        other_bytes=sum(others.values()),
        pages=loaded.cache.pages,
        grown_bytes=None if before is None or after is None else after - before,
    )
    sys.stdout.write(json.dumps(asdict(memory)) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


def _tensors(value: Any) -> Iterator[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dict__"):
        yield from _tensors(tuple(vars(value).values()))


def _all_tensors() -> Iterator[Any]:
    import torch

    return (value for value in gc.get_objects() if issubclass(type(value), torch.Tensor))


def _storages(tensors: Iterator[Any]) -> dict[int, int]:
    """Bytes of the memory behind tensors, by address: views of one storage are one."""
    storages = (tensor.untyped_storage() for tensor in tensors if tensor.device.type != "meta")
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _resident_bytes() -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmRSS:"))


if __name__ == "__main__":
    main()
