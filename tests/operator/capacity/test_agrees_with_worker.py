"""The operator's figures are the worker's: weights, bytes of a token, pages, context; on tiny and on released shapes.

The two packages may not import each other, and state the same arithmetic twice; this is what holds them together. The
worker's side is what it allocates: on the meta device, which has shapes and types and no memory.
"""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_configs import of_released_sizes
from m3_kernels.mxfp8 import Mxfp8
from m3_operator.api import parse_deployment
from m3_operator.capacity import group
from m3_operator.capacity.checkpoint_config import shape_of_config
from m3_operator.capacity.group import GIB, RUNTIME_BYTES, GroupRequest, group_capacity
from m3_operator.capacity.releases import PACKAGED, RELEASES, tiny_shape
from m3_operator.capacity.shape import ModelShape
from m3_operator.render.engines.native import tiny_settings
from m3_worker import cache_size
from m3_worker.cache_size import CacheSizeError, choose_cache_size
from m3_worker.config import TinySettings, WorkerSettings
from m3_worker.model.cache import PagedCache
from m3_worker.model.config import ModelConfig
from m3_worker.model.expert_plan import ExpertPlan, PlanError
from m3_worker.model.m3 import ModelWeights, WeightKind
from m3_worker.model.share import RankShare
from m3_worker.tiny import config_json

QUANTISED: tuple[WeightKind, ...] = ("projections", "output", "mlp", "experts", "shared")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


def released(**changes: Any) -> dict[str, Any]:
    """The released MiniMax-M3's config.json, in the fields that are read."""
    return of_released_sizes() | changes


def tiny(**shape: Any) -> dict[str, Any]:
    return config_json(TinySettings(directory=Path("unused"), **shape))


def packaged() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((resources.files("m3_worker") / "data/tiny/config.json").read_text())
    return found


CONFIGS = {
    "M3": released(),
    "M3 in MXFP8": released(quantization_config={"quant_method": "fp8", "weight_block_size": [1, 32]}),
    "packaged": packaged(),
    "tiny": tiny(),
    "tiny in MXFP8": tiny(dtype="mxfp8"),
    "tiny, text, no dense layer": tiny(vision=False, dense_layers=0, experts=12, kv_heads=4, dtype="bfloat16"),
}


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8, 24])
@pytest.mark.parametrize("redundant", [None, 8])
@pytest.mark.parametrize("name", CONFIGS)
def test_weights_and_bytes_of_a_token(name: str, ranks: int, redundant: int | None) -> None:
    config, shape = ModelConfig.from_json(CONFIGS[name]), shape_of_config(CONFIGS[name])
    request = GroupRequest(nodes=1, gpus_per_node=ranks, memory_bytes=None, redundant_experts=redundant)
    try:
        plan = ExpertPlan.default(sum(config.moe_layers), config.experts, ranks, redundant)
    except PlanError:
        with pytest.raises(group.ShapeRefusedError):
            group_capacity(shape, request)
        return
    if ranks == 1 and redundant:  # the worker refuses copies where there is one rank
        with pytest.raises(group.ShapeRefusedError):
            group_capacity(shape, request)
        return
    found = group_capacity(shape, request)
    assert (found.slots_per_rank, found.redundant_experts) == (plan.slots_per_rank, plan.slots - config.experts)
    for rank, told in ((0, found.first), (ranks - 1, found.first if ranks == 1 else found.other)):
        assert told.total_bytes == allocated(config, plan, rank)
    held = config if ranks == 1 else RankShare(config, plan, 0).config
    assert found.token_bytes == PagedCache.bytes_per_token(held, getattr(torch, config.dtype))


@pytest.mark.parametrize("cache", ["float32", "bfloat16", "fp8"])
@pytest.mark.parametrize("index", ["auto", "bfloat16", "fp8"])
def test_bytes_of_a_token_in_every_type_of_cache(cache: Any, index: Any) -> None:
    config = ModelConfig.from_json(released())
    request = GroupRequest(nodes=1, gpus_per_node=1, memory_bytes=None, cache_dtype=cache, index_cache_dtype=index)
    expected = PagedCache.bytes_per_token(config, DTYPES[cache], DTYPES.get(index))
    assert group_capacity(RELEASES["MiniMax-M3"], request).token_bytes == expected


@settings(deadline=None)
@given(
    name=st.sampled_from(["M3", "M3 in MXFP8", "tiny"]),
    gib=st.integers(1, 400),
    context=st.none() | st.integers(16, 2**21),
    max_concurrent=st.integers(1, 4096),
    cache_tokens=st.none() | st.integers(16, 2**22),
    cache_dtype=st.sampled_from(["auto", "bfloat16", "fp8"]),
)
def test_pages_and_context_of_a_gpu(
    *, name: str, gib: int, context: int | None, max_concurrent: int, cache_tokens: int | None, cache_dtype: Any
) -> None:
    """Given what is free once the weights are there, the worker chooses the same cache, or refuses as well."""
    found = group_capacity(
        SHAPES[name],
        GroupRequest(
            nodes=1,
            gpus_per_node=8,
            memory_bytes=gib * GIB,
            context_tokens=context,
            max_concurrent=max_concurrent,
            cache_tokens=cache_tokens,
            cache_dtype=cache_dtype,
        ),
    )
    free = max(0, gib * GIB - RUNTIME_BYTES - found.first.total_bytes)
    asked = WorkerSettings(
        model=Path("m"), max_context_tokens=context, max_concurrent=max_concurrent, cache_tokens=cache_tokens
    )
    try:
        size = choose_cache_size(asked, PARSED[name], found.token_bytes, free)
    except CacheSizeError:
        assert found.fits is False
        return
    assert (found.cache_pages, found.context_tokens) == (size.pages, size.max_context_tokens)
    # What the worker's choice does not look at: whether a cache of a size that somebody set has room.
    page_bytes = found.page_tokens * found.token_bytes
    assert found.fits == (size.pages * page_bytes <= free and gib * GIB >= RUNTIME_BYTES + found.first.total_bytes)


PARSED = {name: ModelConfig.from_json(config) for name, config in CONFIGS.items()}
SHAPES = {name: shape_of_config(config) for name, config in CONFIGS.items()}


def test_pages_and_context_of_a_cpu() -> None:
    asked = WorkerSettings(model=Path("m"), max_concurrent=3)
    size = choose_cache_size(asked, PARSED["tiny"], 1216, None)
    request = GroupRequest(nodes=1, gpus_per_node=0, memory_bytes=None, max_concurrent=3)
    found = group_capacity(SHAPES["tiny"], request)
    assert (found.cache_pages, found.context_tokens) == (size.pages, size.max_context_tokens)
    assert group.CPU_CACHE_TOKENS == cache_size.CPU_CACHE_TOKENS


def test_the_built_in_table_is_what_the_files_say() -> None:
    assert RELEASES["MiniMax-M3"] == SHAPES["M3"]
    assert RELEASES["MiniMax-M3-MXFP8"] == SHAPES["M3 in MXFP8"]
    assert SHAPES["packaged"] == PACKAGED


@pytest.mark.parametrize(
    "source",
    [{}, {"vision": False, "dtype": "bfloat16"}, {"layers": 6, "denseLayers": 0, "experts": 16, "kvHeads": 4}],
)
def test_a_tiny_source_has_the_shape_that_its_worker_writes(source: dict[str, Any]) -> None:
    manifest = {"metadata": {"name": "m3"}, "spec": {"model": {"name": "M", "source": {"tiny": source}}}}
    deployment = parse_deployment(manifest, strict=True)
    tiny_source = deployment.spec.model.source.tiny
    assert tiny_source is not None
    written = shape_of_config(config_json(tiny_settings(deployment, Path("unused"))))
    shape: ModelShape = tiny_shape(tiny_source)
    assert shape == written


def allocated(config: ModelConfig, plan: ExpertPlan, rank: int) -> int:
    """Bytes of all tensors that a rank's worker allocates for its weights."""
    share = None if plan.ranks == 1 else RankShare(config, plan, rank)
    weights = ModelWeights.allocate(
        config if share is None else share.config,
        getattr(torch, config.dtype),
        "meta",
        share,
        quantised=QUANTISED if config.is_mxfp8 else (),
    )
    return sum(_bytes(value) for value in vars(weights).values())


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor | Mxfp8):
        return value.nbytes
    if isinstance(value, tuple):
        return sum(map(_bytes, value))
    return sum(map(_bytes, vars(value).values())) if hasattr(value, "__dict__") else 0
