"""Bytes and operations of attention over selected blocks, counted from a selection, by loop order.

Counts what a program asks its memory for, whether the second-level cache or the device's memory answers; and products
and sums of the two matrix products, those on rows that are thrown away included. Nothing here is a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from shapes import Chunk, Heads
from torch import Tensor

LSE_BYTES = 4


@dataclass(frozen=True)
class Cost:
    """Of one layer's sparse attention of one chunk."""

    cache_bytes: int
    """Keys and values."""
    query_bytes: int
    """Queries read and results written."""
    parts_bytes: int
    """Partial results with their log-sum-exps, written and read again."""
    flop: int

    @property
    def bytes(self) -> int:
        return self.cache_bytes + self.query_bytes + self.parts_bytes


def floor(heads: Heads, chunk: Chunk, blocks: Tensor, element_bytes: int = 2) -> Cost:
    """What no order can do without: each chosen page once, each query once, each product once."""
    distinct = sum(group.unique().ge(0).sum().item() for group in blocks)
    return Cost(
        cache_bytes=int(distinct) * _page(heads, element_bytes),
        query_bytes=2 * _rows(heads, chunk.queries * heads.groups, element_bytes),
        parts_bytes=0,
        flop=int((blocks >= 0).sum()) * _flop(heads, 1),
    )


def query_outer(heads: Heads, chunk: Chunk, blocks: Tensor, element_bytes: int = 2) -> Cost:
    """One query at a time, as the plain kernel does."""
    pairs = int((blocks >= 0).sum())
    return Cost(
        pairs * _page(heads, element_bytes),
        2 * _rows(heads, chunk.queries * heads.groups, element_bytes),
        0,
        pairs * _flop(heads, 1),
    )


def union_tile(heads: Heads, chunk: Chunk, blocks: Tensor, queries: int, element_bytes: int = 2) -> Cost:
    """Tiles of so many adjacent queries."""
    visits = sum(unions(blocks, queries))
    return Cost(
        visits * _page(heads, element_bytes),
        2 * _rows(heads, chunk.queries * heads.groups, element_bytes),
        0,
        visits * _flop(heads, queries),
    )


def kv_outer(
    heads: Heads, chunk: Chunk, blocks: Tensor, *, queries: int, run: int, rows: int, element_bytes: int = 2
) -> Cost:
    """Blocks outside: tiles of so many gathered queries, runs of so many, so many rows of the chunk at a time."""
    pairs, visits, tiles = int((blocks >= 0).sum()), 0, 0
    for first in range(0, chunk.queries, rows):
        for length in run_lengths(blocks[:, first : first + rows], run):
            visits += 1
            tiles += -(-length // queries)
    values = 2 * _rows(heads, pairs, element_bytes)
    sums = 2 * pairs * heads.heads * LSE_BYTES
    return Cost(
        cache_bytes=visits * _page(heads, element_bytes),
        query_bytes=_rows(heads, pairs + chunk.queries * heads.groups, element_bytes),
        parts_bytes=values + sums,
        flop=tiles * _flop(heads, queries),
    )


def unions(blocks: Tensor, queries: int) -> Iterator[int]:
    """How many blocks each tile of each group walks."""
    for group in blocks.tolist():
        for first in range(0, len(group), queries):
            yield len({block for row in group[first : first + queries] for block in row} - {-1})


def run_lengths(blocks: Tensor, run: int) -> Iterator[int]:
    """How many queries each run of each block of each group has."""
    for group in blocks:
        for count in group[group >= 0].bincount().tolist():
            yield from (min(run, count - first) for first in range(0, count, run))


def _page(heads: Heads, element_bytes: int) -> int:
    """Keys and values of one block and group."""
    return 2 * heads.block_tokens * heads.head_dim * element_bytes


def _rows(heads: Heads, count: int, element_bytes: int) -> int:
    """So many queries of one group, with all its heads."""
    return count * heads.heads * heads.head_dim * element_bytes


def _flop(heads: Heads, queries: int) -> int:
    """Both products of so many queries with one block."""
    return 4 * queries * heads.heads * heads.block_tokens * heads.head_dim
