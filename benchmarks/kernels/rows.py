"""The rows of the table: what is run, on which shapes, against which float64 oracle, floor and bar.

Every row runs alike on a GPU at M3's shapes and in the interpreter at toy ones; only the GPU has times. A floor counts
the bytes and operations that no implementation can do without, and takes the chip's measured rates for them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import counting
import query_outer
import torch
from gpu_timer import Chip, copies, seconds
from layer import Layer, attention_error, choice_error, layer, sampled_rows
from shapes import CORRELATED, RANDOM, Chunk, Heads, selection
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from m3_kernels.gpu import attention, attention_tiles, index_score, tiles
from m3_kernels.gpu import selection as choosing
from m3_kernels.gpu.block_index import index_blocks, step_blocks
from m3_kernels.gpu.index_score import Wanted
from m3_kernels.gpu.launch import decode_rows, query_tiles
from m3_kernels.gpu.sparse_prefill import LoopOrder
from m3_kernels.gpu.union_tile import unite
from m3_kernels.layout import BlockPart

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Row:
    """One line of the table. Times are None where there is no GPU."""

    op: str
    variant: str
    shape: str
    error: float | None
    """Of sampled rows against float64, in units of the largest value there; None where a row only has a time."""
    moved_bytes: int
    """That cannot be done without."""
    flop: int
    seconds: float | None
    floor_seconds: float | None
    bar_seconds: float | None
    """What the kernel was asked to reach."""


@dataclass(frozen=True)
class Scale:
    """The same rows at M3's size and at one for the interpreter."""

    heads: Heads
    dtype: torch.dtype
    prefills: Sequence[Chunk]
    dense: Sequence[Chunk]
    decodes: Sequence[tuple[int, int]]
    """(sequences, context of each)"""


@dataclass(frozen=True)
class Bench:
    """Runs rows on one device."""

    scale: Scale
    device: str
    chip: Chip | None

    def layer(self, chunks: Sequence[Chunk], cache: torch.dtype) -> Layer:
        return layer(self.scale.heads, chunks, self.scale.dtype, cache, self.device)

    def rotation(self, first: Layer, read_bytes: int) -> list[Layer]:
        """The layer; on a GPU with so many copies that what a call reads of all of them exceeds its cache twice."""
        count = 1 if self.chip is None else copies(read_bytes, self.chip.cache_bytes)
        return [first, *(first.copy() for _ in range(count - 1))]

    def row(
        self,
        name: tuple[str, str, str],
        calls: Sequence[Callable[[], object]],
        cost: tuple[int, int],
        *,
        error: float | None,
        bar_seconds: float | None = None,
        fp8: bool = False,
    ) -> Row:
        """cost: bytes and FLOP. fp8: products run at the rate of FP8."""
        if self.chip is None:
            return Row(*name, error, *cost, None, None, bar_seconds)
        floor = self.chip.floor_seconds(*cost, fp8=fp8)
        return Row(*name, error, *cost, seconds(calls), floor, bar_seconds)


def sparse_prefills(bench: Bench) -> Iterator[Row]:
    """Every loop order on both kinds of selection; FP8 caches once."""
    for chunk in bench.scale.prefills:
        for kind, kept in (("random", RANDOM), ("correlated", CORRELATED)):
            yield from _sparse_prefill(bench, chunk, kind, kept, bench.scale.dtype)
    yield from _sparse_prefill(bench, bench.scale.prefills[0], "correlated", CORRELATED, FP8)


def _sparse_prefill(bench: Bench, chunk: Chunk, kind: str, kept: float, cache: torch.dtype) -> Iterator[Row]:
    heads, blocks = bench.scale.heads, selection(bench.scale.heads, chunk, kept)
    cost = counting.floor(heads, chunk, blocks, cache.itemsize)
    layers = bench.rotation(bench.layer([chunk], cache), cost.bytes)
    blocks, checked = blocks.to(bench.device), sampled_rows(layers[0])
    orders: dict[str, Callable[[Layer], Tensor]] = {
        order.value: lambda one, order=order: attention.sparse_attention(one.q, one.pages, blocks, one.batch, order)
        for order in LoopOrder
    }
    orders["query_outer"] = lambda one: query_outer.attend(one.q, one.pages, blocks, one.batch)
    for name, attend in orders.items():
        yield bench.row(
            (f"sparse_prefill {name}", f"{kind}, {_cache(cache)}", _prefill(chunk)),
            [partial(attend, one) for one in layers],
            (cost.bytes, cost.flop),
            error=attention_error(layers[0], blocks, attend(layers[0]), checked),
            bar_seconds=1.6e-3 if chunk.queries == 8192 and name != "query_outer" else None,
        )


def dense(bench: Bench) -> Iterator[Row]:
    """Our dense attention, and torch's on keys that lie in order; the latter without a mask where there is a prefix."""
    heads = bench.scale.heads
    for chunk in bench.scale.dense:
        first = bench.layer([chunk], bench.scale.dtype)
        seen = sum(position + 1 for position in chunk.positions)
        flop = 4 * seen * heads.groups * heads.heads * heads.head_dim
        moved = 2 * chunk.context * heads.groups * heads.head_dim * first.q.itemsize + 2 * first.q.nbytes
        layers = bench.rotation(first, moved)
        ours = [partial(attention.dense_attention, one.q, one.pages, one.batch) for one in layers]
        error = attention_error(layers[0], None, ours[0](), sampled_rows(layers[0], 4))
        shape = _prefill(chunk)
        yield bench.row(("dense_prefill", _cache(bench.scale.dtype), shape), ours, (moved, flop), error=error)
        theirs = [partial(_sdpa, *_in_order(one), causal=chunk.queries == chunk.context) for one in layers]
        yield bench.row(("torch SDPA prefill", _cache(bench.scale.dtype), shape), theirs, (moved, flop), error=None)
    for count, context in bench.scale.decodes:
        first = bench.layer([Chunk(1, context)] * count, bench.scale.dtype)
        moved = first.pages.k.nbytes + first.pages.v.nbytes + 2 * first.q.nbytes
        layers = bench.rotation(first, moved)
        flop = 4 * count * context * heads.groups * heads.heads * heads.head_dim
        ours = [partial(attention.dense_attention, one.q, one.pages, one.batch) for one in layers]
        error = attention_error(layers[0], None, ours[0](), sampled_rows(layers[0], 4))
        shape = _decode(count, context)
        yield bench.row(("dense_decode", _cache(bench.scale.dtype), shape), ours, (moved, flop), error=error)
        theirs = [partial(_sdpa, *_in_order(one), causal=False) for one in layers]
        yield bench.row(("torch SDPA decode", _cache(bench.scale.dtype), shape), theirs, (moved, flop), error=None)


def sparse_decodes(bench: Bench) -> Iterator[Row]:
    heads = bench.scale.heads
    for count, context in bench.scale.decodes:
        for cache in (bench.scale.dtype, FP8):
            chunk = Chunk(1, context)
            first = bench.layer([chunk] * count, cache)
            blocks = torch.cat([selection(heads, chunk, RANDOM, seed) for seed in range(count)], 1).to(bench.device)
            pairs = int((blocks >= 0).sum())
            size = 2 * heads.block_tokens * heads.head_dim * cache.itemsize
            cost = (pairs * size + 2 * first.q.nbytes, 4 * pairs * heads.heads * heads.block_tokens * heads.head_dim)
            layers = bench.rotation(first, cost[0])
            calls = [partial(attention.sparse_attention, one.q, one.pages, blocks, one.batch) for one in layers]
            error = attention_error(layers[0], blocks, calls[0](), sampled_rows(layers[0]))
            bar = None if bench.chip is None else 1.1 * bench.chip.floor_seconds(*cost)
            name = ("sparse_decode", _cache(cache), _decode(count, context))
            yield bench.row(name, calls, cost, error=error, bar_seconds=bar)


def choices(bench: Bench) -> Iterator[Row]:
    """Scoring alone, and scoring with choosing, whose choice is checked."""
    bars = {(8192, 524288, False): 9e-3, (8192, 524288, True): 5.5e-3, (512, 1048576, False): 1.5e-3}
    for chunk in bench.scale.prefills:
        for cache in (bench.scale.dtype, FP8):
            yield from _choice(bench, [chunk], cache, bars.get((chunk.queries, chunk.context, cache == FP8)))
    for count, context in bench.scale.decodes:
        for cache in (bench.scale.dtype, FP8):
            yield from _choice(bench, [Chunk(1, context)] * count, cache, None)


def _choice(bench: Bench, chunks: Sequence[Chunk], cache: torch.dtype, bar: float | None) -> Iterator[Row]:
    heads, first = bench.scale.heads, bench.layer(chunks, cache)
    seen = sum(position + 1 for chunk in chunks for position in chunk.positions)
    cost = (first.index_k.nbytes + first.index_q.nbytes, 2 * seen * heads.groups * heads.index_dim)
    layers = bench.rotation(first, cost[0])
    is_decode = chunks[0].queries == 1
    phase = "decode" if is_decode else "prefill"
    shape = _decode(len(chunks), chunks[0].context) if is_decode else _prefill(chunks[0])
    name = (f"index_score {phase}", _cache(cache), shape)
    yield bench.row(name, [partial(_score, one) for one in layers], cost, error=None, bar_seconds=bar, fp8=cache == FP8)
    calls = [partial(choosing.choose_blocks, one.index_q, one.index_k, one.batch, heads.topk) for one in layers]
    error = choice_error(layers[0], calls[0](), sampled_rows(layers[0]))
    name = (f"choose_blocks {phase}", _cache(cache), shape)
    yield bench.row(name, calls, cost, error=error, fp8=cache == FP8)


def _score(one: Layer) -> Tensor:
    """As `choose_blocks` scores, but for the tiles that it scores at a time."""
    wanted = Wanted(BlockPart(0, 1), one.heads.topk)
    rows = decode_rows(one.batch)
    if rows is not None:
        return index_score.score_rows(one.index_q, one.index_k, one.batch, rows, wanted)
    prompts = query_tiles(one.batch, tiles.prefill_score(one.index_k.dtype).rows // one.heads.groups)
    if prompts is None:
        raise ValueError("the step has no rows")
    return index_score.score_tiles(one.index_q, one.index_k, one.batch, prompts, wanted)


def _in_order(one: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [S, H, r, D], keys and values [S, G, n, D] of a step whose sequences are alike, without pages."""
    S = one.batch.sequences
    heads, context = one.heads, one.batch.context_lengths[0]
    table = one.batch.page_table[:, : -(-context // heads.block_tokens)]
    k, v = (pool[table].flatten(1, 2)[:, :context].transpose(1, 2).contiguous() for pool in (one.pages.k, one.pages.v))
    return one.q.view(S, -1, heads.groups * heads.heads, heads.head_dim).transpose(1, 2).contiguous(), k, v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)


def check_counts(heads: Heads, chunk: Chunk, kept: float) -> None:
    """That `counting` counts what the kernels' own lists hold. Raises ValueError if it does not."""
    one = layer(heads, [chunk], torch.float16, torch.float16, "cpu")
    blocks, batch = selection(heads, chunk, kept), one.batch
    prompts = query_tiles(batch, 4)
    if prompts is None:
        raise ValueError("the step has no tiles")
    walked = int(unite(blocks, batch, prompts, heads.block_tokens).counts[..., 1].sum())
    counted = sum(counting.unions(blocks, 4))
    run = attention_tiles.KV_OUTER_RUN
    index = index_blocks(blocks, step_blocks(batch, heads.block_tokens), range(chunk.queries), run)
    runs, counted_runs = int(index.run_starts[:, -1].sum()), sum(1 for _ in counting.run_lengths(blocks, run))
    if (walked, runs) != (counted, counted_runs):
        raise ValueError(f"the kernels walk {walked} blocks in {runs} runs; counted were {counted} and {counted_runs}")


def _cache(cache: torch.dtype) -> str:
    return f"{str(cache).removeprefix('torch.')} cache"


def _prefill(chunk: Chunk) -> str:
    return f"{chunk.queries:,} queries, context {chunk.context:,}"


def _decode(count: int, context: int) -> str:
    return f"{count} x 1 query, context {context:,}"
