"""Steps for kernels to compute: ragged batches over shuffled pages in which all that is nobody's token is NaN.

Owns the shapes that every kernel must get right (`SHAPES`) and the tensors of such a step (`step`). Expected values are
the tests' business.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from m3_kernels.layout import LayerPages, RaggedBatch

G, HEADS, D, I, B = 2, 4, 16, 16, 16  # noqa: E741
"""Groups, query heads of a group, dimensions, and tokens of a page."""

SHAPES: dict[str, list[tuple[int, int]]] = {
    # (queries of the step, context after it), in tokens, of each sequence
    "one_token": [(1, 1)],
    "one_token_of_a_new_page": [(1, 8 * B + 1)],
    "exactly_full_pages": [(2 * B, 8 * B), (1, 4 * B)],
    "a_prompt_of_few_blocks": [(B + 3, B + 3)],
    "a_prompt_of_many_blocks": [(9 * B + 5, 9 * B + 5)],
    "a_chunk_after_a_prefix": [(B + 7, 11 * B + 3)],
    "two_tokens_across_a_page": [(2, 7 * B + 1)],
    "decodes_of_different_lengths": [(1, 6 * B), (1, 6 * B + 1), (1, 17 * B + 9), (1, 1), (1, 3 * B + 1)],
    "prefill_chunks_and_decodes": [(11, 11), (1, 9 * B + 7), (B + 5, 10 * B + 10), (5, 12 * B), (1, 4), (3, 3)],
}


@dataclass(frozen=True)
class Step:
    """What one layer's kernels are given."""

    batch: RaggedBatch
    pages: LayerPages
    q: Tensor
    """[T, G * HEADS, D]"""
    index_q: Tensor
    """[T, G, I]"""

    @property
    def index_k(self) -> Tensor:
        assert self.pages.index_k is not None
        return self.pages.index_k

    def without_poison(self) -> "Step":
        """The same with zeros for NaN, for a reference that multiplies what it masks."""
        k, v, index_k = (
            pool.float().nan_to_num(nan=0.0).to(pool.dtype) for pool in (self.pages.k, self.pages.v, self.index_k)
        )
        return replace(self, pages=LayerPages(k, v, index_k))


def step(
    lengths: list[tuple[int, int]],
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
    *,
    groups: int = G,
    seed: int = 0,
) -> Step:
    """Random tensors for sequences of (queries, context); the cache in `cache_dtype`, or the queries' own.

    Pages are dealt out in random order with some left free. The page table is wider than it need be, and points
    outside of the pool where no block is.
    """
    generator = torch.Generator().manual_seed(seed)
    cache_dtype = cache_dtype or dtype
    blocks = [-(-context // B) for _, context in lengths]
    free = torch.randperm(sum(blocks) + 3, generator=generator).tolist()
    pools = [torch.full((len(free), B, *tail), torch.nan) for tail in ((groups, D), (groups, D), (I,))]
    table = torch.full((len(lengths), max(blocks) + 1), 1 << 40)
    starts, positions, slots = [0], [], []
    for sequence, (queries, context) in enumerate(lengths):
        own = [free.pop() for _ in range(blocks[sequence])]
        table[sequence, : len(own)] = torch.tensor(own)
        places = [own[position // B] * B + position % B for position in range(context)]
        for pool in pools:
            flat = pool.flatten(0, 1)
            flat[places] = torch.randn(context, *flat.shape[1:], generator=generator)
        starts.append(starts[-1] + queries)
        positions += range(context - queries, context)
        slots += places[-queries:]
    batch = RaggedBatch(
        torch.tensor(positions), torch.tensor(slots), starts, [context for _, context in lengths], table
    )
    k, v, index_k = (pool.to(cache_dtype) for pool in pools)
    q = torch.randn(starts[-1], groups * HEADS, D, generator=generator).to(dtype)
    index_q = torch.randn(starts[-1], groups, I, generator=generator).to(dtype)
    return Step(batch, LayerPages(k, v, index_k), q, index_q)
