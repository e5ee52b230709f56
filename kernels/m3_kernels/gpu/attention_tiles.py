"""How large the tiles of the attention kernels are, and into how many parts a walk over blocks is split: plain tables.

Owns the choice and no kernel; the rules are those of `tiles`. What a row costs in registers and shared memory, and how
many programs of it fit a multiprocessor, is in `kernels/compile_table.md`; none of them was timed yet.
"""

from dataclasses import dataclass

import torch

from m3_kernels.gpu.tiles import MULTIPROCESSORS

MOST_QUERIES = 16
"""Of a tile: membership in a union is a bit of an i32, and lists of all entries are compared in one program."""
LEAST_ROWS = 16
"""Of a matrix instruction."""


@dataclass(frozen=True)
class AttentionTile:
    """How one attention kernel is compiled."""

    rows: int
    """Queries x heads of a group."""
    keys: int
    """Of a step; at most a page's."""
    warps: int
    stages: int
    """Tiles of keys and values in flight, the one that is computed with included."""

    def queries(self, heads: int) -> int:
        """Queries of a tile, each with so many heads. With few heads, MOST_QUERIES, but never under LEAST_ROWS rows."""
        return max(LEAST_ROWS // heads, min(MOST_QUERIES, self.rows // heads), 1)

    def keys_of(self, block_tokens: int) -> int:
        return min(self.keys, block_tokens)


# 64 rows are the fewest that reach Hopper's warpgroup instruction. Half a page a step leaves room for two programs on a
# multiprocessor with three steps in flight: one multiplies while the other takes exponentials. 8 queries would need 8
# warps, and their union is longer.
_UNION = AttentionTile(rows=64, keys=64, warps=4, stages=3)
# All queries of a dense tile share all keys, so that the largest tile that spills nothing reads least. An FP8 cache is
# widened in registers, which leaves too few for whole pages.
_DENSE = AttentionTile(rows=128, keys=128, warps=8, stages=2)
_DENSE_FP8 = AttentionTile(rows=128, keys=64, warps=8, stages=3)
_KV_OUTER = AttentionTile(rows=64, keys=128, warps=4, stages=2)
# Waits for memory alone: what counts is bytes in flight, 32 KiB a step in each of three programs of a multiprocessor.
_DECODE = AttentionTile(rows=16, keys=64, warps=4, stages=3)
# Widened in registers: with 64 keys some of these spill.
_DECODE_FP8 = AttentionTile(rows=16, keys=32, warps=4, stages=4)
# fp32 is for checking: exact products, which the tensor cores do not offer.
_FP32 = AttentionTile(rows=16, keys=32, warps=4, stages=1)

KV_OUTER_RUN = 128
"""Queries of a block that one program takes: many tiles to a load of keys and values, and popular blocks are cut."""
KV_OUTER_ROWS = 4096
"""Queries that gather at blocks together: their parts take 1 GiB in M3's shape."""
SINGLE_WAVE = 3 * MULTIPROCESSORS // 2
"""Programs of single queries that keep the memory busy without being split."""


def union_tile(queries: torch.dtype) -> AttentionTile:
    return _FP32 if queries == torch.float32 else _UNION


def dense_tile(queries: torch.dtype, cache: torch.dtype) -> AttentionTile:
    if queries == torch.float32:
        return _FP32
    return _DENSE_FP8 if cache == torch.float8_e4m3fn else _DENSE


def kv_outer(queries: torch.dtype) -> AttentionTile:
    return _FP32 if queries == torch.float32 else _KV_OUTER


def decode(queries: torch.dtype, cache: torch.dtype) -> AttentionTile:
    if queries == torch.float32:
        return _FP32
    return _DECODE_FP8 if cache == torch.float8_e4m3fn else _DECODE


def splits(programs: int, blocks: int, most: int = 32) -> int:
    """Into how many parts a walk over so many blocks is split where so many programs would walk: a power of two.

    None are split where the programs fill the chip; otherwise until they do, but never to less than a block each.
    """
    wanted = 1 << (-(-SINGLE_WAVE // programs) - 1).bit_length()  # rounded up
    fits = 1 << max(blocks, 1).bit_length() - 1  # rounded down
    return min(wanted, fits, most)
