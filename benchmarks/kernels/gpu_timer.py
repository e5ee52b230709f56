"""What a chip can do, and how long a call takes on it.

A call is captured in a CUDA graph and replayed, so that the host's launches are not in its time. Its inputs rotate
through copies that together exceed the second-level cache twice, so that none finds its own from the time before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

WARM_UPS, REPLAYS = 5, 20
COPY_BYTES = 4 << 30
MATMUL_SIZE = 8192


@dataclass(frozen=True)
class Chip:
    """Measured on this chip, with torch's own copy and products."""

    name: str
    copy_bytes_per_second: float
    """Bytes read and bytes written together."""
    bf16_flop_per_second: float
    fp8_flop_per_second: float
    cache_bytes: int
    """Of the second-level cache."""

    def floor_seconds(self, moved_bytes: int, flop: int, *, fp8: bool = False) -> float:
        """The least time for so many bytes and operations, whichever takes longer."""
        rate = self.fp8_flop_per_second if fp8 else self.bf16_flop_per_second
        return max(moved_bytes / self.copy_bytes_per_second, flop / rate)


def measure_chip() -> Chip:
    properties = torch.cuda.get_device_properties(0)
    source = torch.empty(COPY_BYTES // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = seconds([lambda: target.copy_(source)])
    a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    bf16 = seconds([lambda: a @ b])
    a8, b8, one = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn), torch.ones((), device="cuda")
    fp8 = seconds([lambda: torch._scaled_mm(a8, b8.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)])
    flop = 2 * MATMUL_SIZE**3
    return Chip(properties.name, COPY_BYTES / copy, flop / bf16, flop / fp8, properties.L2_cache_size)


def copies(input_bytes: int, cache_bytes: int) -> int:
    """How many copies of the inputs exceed the cache twice."""
    return -(-2 * cache_bytes // input_bytes)


def seconds(calls: Sequence[Callable[[], object]]) -> float:
    """Median time of one call. The calls do the same, each with inputs of its own, and take turns."""
    graphs = [_captured(call) for call in calls]
    times = []
    for turn in range(WARM_UPS + REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graphs[turn % len(graphs)].replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return median(times[WARM_UPS:])


def _captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # compiles, and works out what a step keeps
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph
