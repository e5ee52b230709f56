"""What to say of a group: the reason for programs, and a sentence with the numbers for people.

Owns the wording; the numbers are `group`'s, and what to change is `remedies`'.
"""

from typing import Literal

from m3_operator.capacity.group import GIB, GroupCapacity, GroupRequest, RankBudget
from m3_operator.capacity.shape import ModelShape
from m3_operator.capacity.units import plural, size, tokens

VerdictReason = Literal["Fits", "DoesNotFit", "NotSupported", "MemoryUnknown"]


def verdict(shape: ModelShape, request: GroupRequest, capacity: GroupCapacity) -> tuple[VerdictReason, str]:
    """The reason and one sentence."""
    if "nvfp4" in (shape.precision.experts, shape.precision.matrices):
        return "NotSupported", "the native engine reads checkpoints in bfloat16, float32 and MXFP8, and this is NVFP4"
    if capacity.fits is False:
        return "DoesNotFit", _why_not(request, capacity)
    if capacity.budget is None:
        return "MemoryUnknown", _needs(request, capacity)
    return "Fits", _holds(capacity, capacity.budget)


def _why_not(request: GroupRequest, capacity: GroupCapacity) -> str:
    if capacity.context_tokens > capacity.model_context_tokens:
        return (
            f"engine.maxContextTokens is {capacity.context_tokens:,}: "
            f"the model was made for {tokens(capacity.model_context_tokens)}"
        )
    budget = capacity.budget
    if budget is not None and budget.free_bytes < 0:
        cache = f" and {size(budget.cache_bytes)} for engine.cacheTokens" if request.cache_tokens is not None else ""
        return (
            f"rank 0 of {capacity.ranks} needs {size(budget.weights_bytes)} for weights, "
            f"{size(budget.runtime_bytes)} for the runtime{cache}: {size(-budget.free_bytes)} more than "
            f"{_declared(request)}"
        )
    needed = capacity.needed_pages * capacity.page_tokens * capacity.token_bytes
    room = (capacity.room_pages or 0) * capacity.page_tokens
    told = f"one sequence of {tokens(capacity.context_tokens)} needs {size(needed)} of cache on every rank"
    if request.cache_tokens is not None or budget is None:
        whose = "engine.cacheTokens" if request.cache_tokens is not None else "a CPU's default"
        return f"{told}, and {whose} makes room for {tokens(room)}"
    return (
        f"{told}, and beside {size(budget.weights_bytes)} of weights and {size(budget.reserve_bytes)} of reserve there "
        f"is room for {tokens(room)} ({size(room * capacity.token_bytes)}) in {_declared(request)}"
    )


def _needs(request: GroupRequest, capacity: GroupCapacity) -> str:
    """What is needed, where what there is has not been said."""
    weights = f"rank 0 of {capacity.ranks} needs {size(capacity.first.total_bytes)} for weights"
    cache = f"{capacity.token_bytes:,} bytes for each token of cache"
    if not request.gpus:
        return f"{weights} and {cache}; the memory of nodes is not declared, and not checked"
    needed = -(-capacity.least_memory_bytes // GIB)
    return (
        f"{weights} and {cache}: a GPU of at least {needed:,} GiB; accelerator.memoryGiB does not say how much "
        "memory a GPU has"
    )


def _holds(capacity: GroupCapacity, budget: RankBudget) -> str:
    at_once = plural(capacity.sequences or 0, "sequence")
    return (
        f"rank 0 of {capacity.ranks} holds {size(budget.weights_bytes)} of weights, {size(budget.cache_bytes)} of "
        f"cache and {size(budget.reserve_bytes)} of reserve, {size(budget.free_bytes)} stay free; room for "
        f"{tokens(capacity.cache_tokens or 0)}: {at_once} of {tokens(capacity.context_tokens)} at once"
    )


def _declared(request: GroupRequest) -> str:
    return f"the {(request.memory_bytes or 0) // GIB:,} GiB of accelerator.memoryGiB"
