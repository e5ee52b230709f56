"""What to change so that a group fits: each line that is named would do, and is tried before it is named."""

from collections.abc import Iterator
from dataclasses import replace

from m3_operator.capacity.group import GIB, GroupCapacity, GroupRequest, ShapeRefusedError, group_capacity
from m3_operator.capacity.shape import ModelShape, Precision
from m3_operator.capacity.units import plural

_GPUS_OF_A_NODE = (2, 4, 8)
_MOST_NODES = 64  # what the spec allows
_MOST_GIB = 4096
_MX_BLOCK = 32  # values of a row that share a scale


def remedies(shape: ModelShape, request: GroupRequest, capacity: GroupCapacity, *, has_releases: bool) -> list[str]:
    """Changes of which any one makes it fit; empty if there is none.

    Where no single change does and the size of the cache is fixed, that is given up first: each line is two changes.
    has_releases: whether there may be a checkpoint of the model in another precision.
    """
    found = [
        *_of_the_cache(shape, request, capacity),
        *_of_the_weights(shape, request, has_releases=has_releases),
        *_of_the_group(shape, request),
        *_of_the_gpu(shape, request, capacity),
    ]
    if found or request.cache_tokens is None:
        return found
    free = replace(request, cache_tokens=None)
    second = remedies(shape, free, group_capacity(shape, free), has_releases=has_releases)
    return [f"remove engine.cacheTokens and {change}" for change in second]


def _of_the_cache(shape: ModelShape, request: GroupRequest, capacity: GroupCapacity) -> Iterator[str]:
    if request.cache_tokens is not None:
        enough = replace(request, cache_tokens=capacity.needed_pages * shape.page_tokens)
        if request.cache_tokens < capacity.needed_pages * shape.page_tokens and _fits(shape, enough):
            yield f"set engine.cacheTokens to at least {enough.cache_tokens:,}"
        elif _fits(shape, replace(request, cache_tokens=None)):
            yield "remove engine.cacheTokens, so that the cache takes what there is"
    room = capacity.longest_context_tokens
    longest = shape.max_context_tokens if room is None else room
    if request.context_tokens is not None and 0 < longest < request.context_tokens:
        shorter = replace(request, context_tokens=longest)
        if _fits(shape, shorter):
            yield f"set engine.maxContextTokens to at most {longest:,}"
    narrow = replace(request, cache_dtype="fp8", index_cache_dtype="auto")
    if narrow != request and request.gpus and _fits(shape, narrow):
        yield "set engine.cacheDtype to fp8"


def _of_the_weights(shape: ModelShape, request: GroupRequest, *, has_releases: bool) -> Iterator[str]:
    if request.redundant_experts and _fits(shape, replace(request, redundant_experts=None)):
        yield "remove parallelism.redundantExperts"
    quantised = Precision(dtype=shape.precision.dtype, experts="mxfp8", matrices="mxfp8")
    can_be_quantised = has_releases and shape.precision.experts == "plain" and shape.hidden_size % _MX_BLOCK == 0
    if can_be_quantised and request.gpus and _fits(replace(shape, precision=quantised), request):
        yield "serve a checkpoint in MXFP8"


def _of_the_group(shape: ModelShape, request: GroupRequest) -> Iterator[str]:
    """The smallest larger group: of more GPUs on a node, else of more nodes."""
    if not request.gpus:
        return
    for gpus in _GPUS_OF_A_NODE:
        if gpus > request.gpus_per_node and _fits(shape, replace(request, gpus_per_node=gpus)):
            yield f"set parallelism.gpusPerNode to {gpus}"
            break
    for nodes in range(request.nodes + 1, _MOST_NODES + 1):
        if _fits(shape, replace(request, nodes=nodes)):
            yield f"set parallelism.nodes to {nodes} ({plural(nodes * request.gpus_per_node, 'GPU')} a group)"
            break


def _of_the_gpu(shape: ModelShape, request: GroupRequest, capacity: GroupCapacity) -> Iterator[str]:
    needed = -(-capacity.least_memory_bytes // GIB)
    if request.memory_bytes is None or needed > _MOST_GIB:
        return
    if _fits(shape, replace(request, memory_bytes=needed * GIB)):
        yield f"use GPUs of at least {needed:,} GiB"


def _fits(shape: ModelShape, request: GroupRequest) -> bool:
    """Whether nothing that is known speaks against it."""
    try:
        return group_capacity(shape, request).fits is not False
    except ShapeRefusedError:
        return False
