"""One attention layer's tensors for a step, and what it must give, in float64, for some of its rows.

Owns random inputs and the oracle, which shares no code with the kernels or the reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import torch
from shapes import Chunk, Heads
from torch import Tensor

from m3_kernels.layout import LayerPages, RaggedBatch


@dataclass(frozen=True)
class Layer:
    """A step's queries over the caches of one layer, pages in random order."""

    heads: Heads
    batch: RaggedBatch
    pages: LayerPages
    index_k: Tensor
    """[P, B, I]"""
    q: Tensor
    """[T, G * heads, D]"""
    index_q: Tensor
    """[T, G, I]"""

    def copy(self) -> "Layer":
        """The same values elsewhere in memory."""
        index_k = self.index_k.clone()
        pages = LayerPages(self.pages.k.clone(), self.pages.v.clone(), index_k)
        return replace(self, pages=pages, index_k=index_k, q=self.q.clone(), index_q=self.index_q.clone())


def layer(heads: Heads, chunks: Sequence[Chunk], dtype: torch.dtype, cache: torch.dtype, device: str) -> Layer:
    """Fresh random tensors: nobody seeds them, so that no two runs check the same."""
    B = heads.block_tokens
    counts = [-(-chunk.context // B) for chunk in chunks]
    free = torch.randperm(sum(counts), device=device)
    table = torch.zeros(len(chunks), max(counts), dtype=torch.int64, device=device)
    starts, positions, slots = [0], [], []
    for number, (chunk, own) in enumerate(zip(chunks, free.split(counts), strict=True)):
        table[number, : len(own)] = own
        position = torch.arange(chunk.positions.start, chunk.positions.stop, device=device)
        positions.append(position)
        slots.append(own[position // B] * B + position % B)
        starts.append(starts[-1] + chunk.queries)
    contexts = [chunk.context for chunk in chunks]
    batch = RaggedBatch(torch.cat(positions), torch.cat(slots), starts, contexts, table)

    def random(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, dtype=dtype, device=device).to(kind)

    kv = (sum(counts), B, heads.groups, heads.head_dim)
    index_k = random(*kv[:2], heads.index_dim, kind=cache)
    pages = LayerPages(random(*kv, kind=cache), random(*kv, kind=cache), index_k)
    q = random(starts[-1], heads.groups * heads.heads, heads.head_dim)
    # On a CPU index queries are drawn as they are cached: the interpreter's own rounding to FP8 loses carries.
    index_q = random(starts[-1], heads.groups, heads.index_dim, kind=cache if device == "cpu" else dtype).to(dtype)
    return Layer(heads, batch, pages, index_k, q, index_q)


def sampled_rows(layer: Layer, count: int = 16) -> list[int]:
    """The first and last row and some between."""
    T = layer.batch.tokens
    return sorted({0, T - 1, *torch.randint(T, (count,)).tolist()})


def attention_error(layer: Layer, blocks: Tensor | None, out: Tensor, rows: Sequence[int]) -> float:
    """Largest difference from float64, of the rows, in units of the largest value there."""
    worst = 0.0
    for row in rows:
        for group in range(layer.heads.groups):
            listed = None if blocks is None else blocks[group, row]
            expected = _attend(layer, row, group, listed)
            heads = slice(group * layer.heads.heads, (group + 1) * layer.heads.heads)
            difference = (out[row, heads].double() - expected).abs().max() / expected.abs().max()
            worst = max(worst, difference.item())
    return worst


def _attend(layer: Layer, row: int, group: int, listed: Tensor | None) -> Tensor:
    B, D = layer.heads.block_tokens, layer.heads.head_dim
    position = int(layer.batch.positions[row])
    every = torch.arange(position // B + 1, device=layer.q.device)
    blocks = every if listed is None else listed[listed >= 0].long()
    pages = layer.batch.page_table[layer.batch.sequence_of_token[row], blocks]
    keys, values = (_pages(pool, pages)[:, :, group].double().flatten(0, 1) for pool in (layer.pages.k, layer.pages.v))
    tokens = (blocks[:, None] * B + torch.arange(B, device=blocks.device)).flatten()
    heads = slice(group * layer.heads.heads, (group + 1) * layer.heads.heads)
    scores = layer.q[row, heads].double() @ keys.T / D**0.5
    weights = scores.masked_fill(tokens > position, -torch.inf).softmax(-1)
    return weights @ values


def choice_error(layer: Layer, blocks: Tensor, rows: Sequence[int]) -> float:
    """By how much the worst block that was chosen falls short of the best that was not, in units of the best score.

    Infinite where a query has too few blocks or lacks its own.
    """
    worst = 0.0
    for row in rows:
        own = int(layer.batch.positions[row]) // layer.heads.block_tokens
        pages = layer.batch.page_table[layer.batch.sequence_of_token[row], :own]
        keys = _pages(layer.index_k, pages).double()  # [own, B, I]
        for group in range(layer.heads.groups):
            chosen = {block for block in blocks[group, row].tolist() if block >= 0}
            if own not in chosen or len(chosen) != min(layer.heads.topk, own + 1):
                return inf
            if len(chosen) == own + 1:
                continue
            scores = (keys @ _as_cached(layer, layer.index_q[row, group])).amax(-1)
            taken = torch.tensor(sorted(chosen - {own}), device=scores.device)
            others = scores.clone().index_fill_(0, taken, -torch.inf)
            worst = max(worst, ((others.max() - scores[taken].min()) / scores.abs().max()).item())
    return worst


def _as_cached(layer: Layer, index_q: Tensor) -> Tensor:
    """Scores of FP8 keys are defined with queries rounded likewise."""
    return (index_q.to(layer.index_k.dtype) if layer.index_k.dtype == torch.float8_e4m3fn else index_q).double()


def _pages(pool: Tensor, pages: Tensor) -> Tensor:
    """pool[pages], for FP8 too, which torch does not index everywhere."""
    if pool.dtype.itemsize > 1:
        return pool[pages]
    return pool.view(torch.uint8)[pages].view(pool.dtype)
