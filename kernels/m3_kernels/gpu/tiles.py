"""How large the tiles of each kernel are, with how many warps and stages: a table by family and type.

Owns the choice and no kernel. Nothing is tried out at run time: a step of any shape starts at once, gives the same
result each time, and can be captured in a CUDA graph. What a row costs in registers and shared memory, and how many
programs of it fit a multiprocessor, is in `kernels/compile_table.md`.
"""

from dataclasses import dataclass

import torch

MULTIPROCESSORS = 132
"""Of H100 and H200; on other chips the splits below are a little uneven, and right."""


@dataclass(frozen=True)
class Tile:
    """How one kernel is compiled."""

    rows: int
    """Of the tile of queries (each with each of its heads)."""
    warps: int
    stages: int
    """Loads of keys in flight, the one that is computed with included."""


@dataclass(frozen=True)
class ScoreSplit:
    """How many blocks a program scores: enough programs for the chip, and blocks enough to be worth a start."""

    least_blocks: int
    most_blocks: int
    programs: int
    """To be aimed at."""

    def blocks(self, tiles: int, most_blocks: int) -> int:
        """Blocks of a program, where so many tiles score at most so many blocks each; whole steps of least_blocks."""
        even = -(-tiles * most_blocks // self.programs)
        steps = -(-even // self.least_blocks)
        return min(max(steps * self.least_blocks, self.least_blocks), self.most_blocks)


# Scoring a prompt. 128 rows with 4 warps leave room for two programs on a multiprocessor: while one takes the best of
# each block, which the tensor cores wait for, the other multiplies. 256 rows with 8 warps would read half as much from
# the second-level cache, and leave room for one.
_PREFILL_SCORE = {
    torch.bfloat16: Tile(rows=128, warps=4, stages=3),
    torch.float16: Tile(rows=128, warps=4, stages=3),
    torch.float8_e4m3fn: Tile(rows=128, warps=4, stages=3),
    torch.float32: Tile(rows=32, warps=4, stages=2),
}
# About 16 programs, one after another, on each of 2 places of a multiprocessor: the last ones leave few idle.
PREFILL_SCORE_SPLIT = ScoreSplit(least_blocks=16, most_blocks=128, programs=16 * 2 * MULTIPROCESSORS)
# A row holds the heads of one query, padded to what a matrix instruction takes. It waits for memory alone, so what
# counts is bytes in flight: 2 pages of 32 KiB in each of 2 programs of a multiprocessor.
_DECODE_SCORE = {
    torch.bfloat16: Tile(rows=16, warps=4, stages=3),
    torch.float16: Tile(rows=16, warps=4, stages=3),
    torch.float8_e4m3fn: Tile(rows=16, warps=4, stages=4),
    torch.float32: Tile(rows=16, warps=4, stages=2),
}
DECODE_SCORE_SPLIT = ScoreSplit(least_blocks=4, most_blocks=32, programs=4 * MULTIPROCESSORS)

SCORE_BYTES = 128 << 20
"""Scores of a prompt that exist at a time: 2,048 queries of M3 at 512K tokens."""


def prefill_score(keys: torch.dtype) -> Tile:
    """Of a cache of index keys of that type."""
    return _PREFILL_SCORE[keys]


def decode_score(keys: torch.dtype) -> Tile:
    """Of a cache of index keys of that type."""
    return _DECODE_SCORE[keys]


@dataclass(frozen=True)
class SelectTile:
    """How blocks are chosen: `rows` at a time, `groups` x `members` blocks of each in one step."""

    rows: int
    groups: int
    members: int
    warps: int


# Of a prompt: 8 rows are 32 bytes of scores, what memory is read in.
SELECT_OF_TILES = SelectTile(rows=8, groups=256, members=8, warps=4)
# Decoding: a row at a time, in one step up to 1M tokens; the narrower for shorter page tables.
SELECT_OF_ROWS = (
    SelectTile(rows=1, groups=128, members=1, warps=1),
    SelectTile(rows=1, groups=128, members=8, warps=1),
    SelectTile(rows=1, groups=1024, members=8, warps=4),
)


def select_of_rows(blocks: int) -> SelectTile:
    """The narrowest that takes so many blocks in one step; the widest takes more in several."""
    return next((tile for tile in SELECT_OF_ROWS if tile.groups * tile.members >= blocks), SELECT_OF_ROWS[-1])
