"""What `m3 plan` says of memory is what a loaded engine holds: real ranks, each a process, asked for their tensors.

`test_agrees_with_worker` compares shapes without memory, for many more models; here nothing is left out that a rank
allocates, whoever allocated it. `benchmarks/engine/memory.py` does it with larger models and looks at the processes.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from m3_allocated import allocated
from m3_operator.capacity.checkpoint_config import shape_of_config
from m3_operator.capacity.group import GroupRequest, group_capacity
from m3_worker.config import TinySettings
from m3_worker.tiny import write_checkpoint

CACHE_TOKENS = 1000
"""No whole number of pages."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("ranks", "model", "asked"),
    [
        pytest.param(1, {"dtype": "bfloat16"}, {"dtype": "float32", "cache_dtype": "bfloat16"}, id="one rank"),
        pytest.param(
            2,
            {"dtype": "mxfp8", "experts": 6, "vision": False},
            {"redundant_experts": 2, "cache_dtype": "fp8", "index_cache_dtype": "bfloat16"},
            id="two ranks with copies of experts",
        ),
    ],
)
def test_ranks_hold_the_weights_and_the_cache_that_were_planned_and_hardly_more(
    tmp_path: Path, ranks: int, model: dict[str, Any], asked: dict[str, Any]
) -> None:
    write_checkpoint(TinySettings(directory=tmp_path, layers=3, hidden=128, intermediate=128, **model))
    shape = shape_of_config(json.loads((tmp_path / "config.json").read_text()))
    request = GroupRequest(nodes=ranks, gpus_per_node=0, memory_bytes=None, cache_tokens=CACHE_TOKENS, **asked)
    planned = group_capacity(shape, request)
    assert planned.cache_pages is not None
    cache_bytes = planned.cache_pages * planned.page_tokens * planned.token_bytes

    held = allocated(tmp_path, ranks=ranks, cache_tokens=CACHE_TOKENS, **asked)

    weights = [planned.first.total_bytes, *[planned.other.total_bytes] * (ranks - 1)]
    assert [rank.weights_bytes for rank in held] == weights
    assert [(rank.pages, rank.cache_bytes) for rank in held] == [(planned.cache_pages, cache_bytes)] * ranks
    for rank, weights_bytes in zip(held, weights, strict=True):
        assert rank.other_bytes < 0.01 * (weights_bytes + cache_bytes)
