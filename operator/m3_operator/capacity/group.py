"""One group's memory: what each rank holds, what is left for the cache, and how long a context that serves.

Owns the budget of a GPU, in the worker's own order: the runtime takes its part, then the weights; of what they leave a
tenth stays free for activations, and the cache takes the rest in whole pages, never more than `max_concurrent`
sequences of the served context can fill. Rank 0 holds the most, and every rank gets as many pages as it.
What is refused and what to change instead is `remedies`' and `assessment`'s to say.
"""

from dataclasses import dataclass
from typing import Final, Literal

from m3_operator.capacity.shape import ITEM_BYTES, DType, ModelShape
from m3_operator.capacity.weights import RankWeights, head_ranks, rank_weights

GIB: Final = 2**30
RUNTIME_BYTES: Final = 2 * GIB
"""Of a GPU, for driver, CUDA context, kernels and the buffers of collectives: an allowance, not a measurement."""
DEVICE_SHARE: Final = 0.9
"""Of what the weights leave; the rest is for activations and the allocator's fragments. The worker's own figure."""
CPU_CACHE_TOKENS: Final = 65536
"""What a worker on a CPU allocates if nobody says otherwise."""

CacheType = Literal["auto", "float32", "bfloat16", "fp8"]


class ShapeRefusedError(ValueError):
    """Ranks that cannot divide the experts. One line with the numbers, and what would be right."""


@dataclass(frozen=True, kw_only=True)
class GroupRequest:
    """What a spec asks of one group."""

    nodes: int
    gpus_per_node: int
    """0: one rank a node, on its CPU."""
    memory_bytes: int | None
    """Of one GPU; None: not declared."""
    redundant_experts: int | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    cache_dtype: CacheType = "auto"
    index_cache_dtype: CacheType = "auto"
    context_tokens: int | None = None
    """Longest context to be served; None: what the cache holds, at most what the model was made for."""
    max_concurrent: int = 64
    cache_tokens: int | None = None
    """None: what the memory allows."""

    @property
    def ranks(self) -> int:
        """One a GPU, and one a node where there are none."""
        return self.nodes * max(self.gpus_per_node, 1)

    @property
    def gpus(self) -> int:
        """GPUs of the group."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, kw_only=True)
class RankBudget:
    """Where the memory of the fullest rank goes: five parts that add up to the GPU's.

    What does not fit has negative `free_bytes`, or no cache.
    """

    weights_bytes: int
    cache_bytes: int
    runtime_bytes: int
    activations_bytes: int
    free_bytes: int

    @property
    def reserve_bytes(self) -> int:
        """What is kept from the cache."""
        return self.runtime_bytes + self.activations_bytes


@dataclass(frozen=True, kw_only=True)
class GroupCapacity:
    """What one group holds and serves."""

    ranks: int
    redundant_experts: int
    slots_per_rank: int
    """Expert slots of each layer with experts."""
    dtype: DType
    """In which it computes."""
    first: RankWeights
    """Of rank 0, which has the most."""
    other: RankWeights
    """Of every other rank."""
    token_bytes: int
    """Of the cache, per token and rank."""
    page_tokens: int
    room_pages: int | None
    """Pages that there is room for; None where memory is not declared and nobody says how many."""
    context_tokens: int
    """Longest prompt and answer together: as asked for, or what there is room for."""
    model_context_tokens: int
    """For which the model was made."""
    longest_context_tokens: int | None
    """What there is room for, at most what the model was made for; None as for `room_pages`."""
    cache_pages: int | None
    """Pages that are allocated; 0 if one sequence of `context_tokens` has no room."""
    sequences: int | None
    """Of `context_tokens` each, at once."""
    budget: RankBudget | None
    """Of rank 0; None on a CPU and where memory is not declared."""
    least_memory_bytes: int
    """Of a GPU on which one sequence of `context_tokens` (or the cache that was asked for) has room."""

    @property
    def weights_bytes(self) -> int:
        """Of all ranks: what a new group loads."""
        return self.first.total_bytes + (self.ranks - 1) * self.other.total_bytes

    @property
    def cache_tokens(self) -> int | None:
        """Tokens that are allocated."""
        return None if self.cache_pages is None else self.cache_pages * self.page_tokens

    @property
    def needed_pages(self) -> int:
        """Of one sequence of `context_tokens`."""
        return _ceil(max(self.context_tokens, 1), self.page_tokens)

    @property
    def fits(self) -> bool | None:
        """Whether it can serve one such sequence; None where it depends on memory that is not declared."""
        if self.context_tokens > self.model_context_tokens:
            return False
        if self.room_pages is not None and self.room_pages < self.needed_pages:
            return False
        return None if self.budget is None else self.budget.free_bytes >= 0


def group_capacity(shape: ModelShape, request: GroupRequest) -> GroupCapacity:
    """The memory of one group. Raises ShapeRefusedError if its ranks cannot own as many expert slots each."""
    slots, redundant = _slots_per_rank(shape, request)
    dtype = shape.precision.dtype if request.dtype == "auto" else request.dtype
    first = rank_weights(shape, dtype, ranks=request.ranks, slots=slots, is_first=True)
    token_bytes = cache_token_bytes(shape, request, dtype)
    left = None
    if request.gpus and request.memory_bytes is not None:
        left = request.memory_bytes - RUNTIME_BYTES - first.total_bytes
    room = _room_pages(shape, request, token_bytes, left)
    longest = None if room is None else min(shape.max_context_tokens, room * shape.page_tokens)
    context = request.context_tokens
    if context is None:
        context = shape.max_context_tokens if longest is None else longest
    needed = _ceil(max(context, 1), shape.page_tokens)
    pages = None if room is None else min(room, request.max_concurrent * needed) if room >= needed else 0
    page_bytes = shape.page_tokens * token_bytes
    return GroupCapacity(
        ranks=request.ranks,
        redundant_experts=redundant,
        slots_per_rank=slots,
        dtype=dtype,
        first=first,
        other=rank_weights(shape, dtype, ranks=request.ranks, slots=slots, is_first=False),
        token_bytes=token_bytes,
        page_tokens=shape.page_tokens,
        room_pages=room,
        context_tokens=context,
        model_context_tokens=shape.max_context_tokens,
        longest_context_tokens=longest,
        cache_pages=pages,
        sequences=None if pages is None else min(request.max_concurrent, pages // needed),
        budget=None if left is None or pages is None else _budget(first, left, pages * page_bytes, request),
        least_memory_bytes=RUNTIME_BYTES + first.total_bytes + _least_left(shape, request, needed, page_bytes),
    )


def cache_token_bytes(shape: ModelShape, request: GroupRequest, dtype: DType) -> int:
    """Bytes of one token in one rank's cache: 137,472 for the released M3 in bfloat16 on one rank, 45,312 on eight.

    Keys and values of the rank's KV heads in every layer; index keys in the sparse ones, which are not split.
    """
    of_cache = dtype if request.cache_dtype == "auto" else request.cache_dtype
    of_index = of_cache if request.index_cache_dtype == "auto" else request.index_cache_dtype
    heads = shape.kv_heads // head_ranks(shape, request.ranks)
    keys_and_values = 2 * shape.layers * heads * shape.head_dim * ITEM_BYTES[of_cache]
    return keys_and_values + shape.sparse_layers * shape.index_dim * ITEM_BYTES[of_index]


def _slots_per_rank(shape: ModelShape, request: GroupRequest) -> tuple[int, int]:
    """Expert slots of a layer on each rank, and how many of all are redundant. Raises ShapeRefusedError."""
    experts, ranks, asked = shape.experts, request.ranks, request.redundant_experts
    redundant = -experts % ranks if asked is None else asked
    if ranks == 1 and redundant:
        raise ShapeRefusedError(
            f"parallelism.redundantExperts is {redundant}: a group of one rank has no use for copies of experts; "
            "set it to 0"
        )
    over = (experts + redundant) % ranks
    if over:
        near = [count for count in (redundant - over, redundant - over + ranks) if count >= 0]
        would_do = " or ".join(f"{count} ({(experts + count) // ranks} slots a rank)" for count in near)
        raise ShapeRefusedError(
            f"parallelism.redundantExperts is {redundant}: {experts} experts and {redundant} copies are "
            f"{experts + redundant} slots a layer, which {ranks} ranks cannot share evenly; set it to {would_do}"
        )
    return (experts + redundant) // ranks, redundant


def _room_pages(shape: ModelShape, request: GroupRequest, token_bytes: int, left: int | None) -> int | None:
    if request.cache_tokens is not None:
        tokens = request.cache_tokens
    elif left is not None:
        tokens = int(max(left, 0) * DEVICE_SHARE) // token_bytes
    elif request.gpus:
        return None
    else:
        tokens = CPU_CACHE_TOKENS
    return tokens // shape.page_tokens


def _budget(first: RankWeights, left: int, cache_bytes: int, request: GroupRequest) -> RankBudget:
    activations = max(left, 0) - int(max(left, 0) * DEVICE_SHARE)
    if request.cache_tokens is not None:  # the engine takes them at their word, whatever that leaves
        activations = max(0, min(activations, left - cache_bytes))
    return RankBudget(
        weights_bytes=first.total_bytes,
        cache_bytes=cache_bytes,
        runtime_bytes=RUNTIME_BYTES,
        activations_bytes=activations,
        free_bytes=left - activations - cache_bytes,
    )


def _least_left(shape: ModelShape, request: GroupRequest, needed: int, page_bytes: int) -> int:
    """What the weights must leave."""
    if request.cache_tokens is not None:
        pages = min(request.cache_tokens // shape.page_tokens, request.max_concurrent * needed)
        return pages * page_bytes
    pages = needed if request.context_tokens is not None else 1
    return _ceil(pages * page_bytes * 10, 9) + 1  # one more: DEVICE_SHARE is not exactly nine tenths


def _ceil(number: int, unit: int) -> int:
    return -(-number // unit)
