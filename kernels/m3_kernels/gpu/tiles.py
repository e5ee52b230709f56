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
    """Of the loop over keys."""


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


# Stages count loads and, as the number of a page is loaded before the page itself, twice: 2n + 1 stages have n pages on
# their way while one is computed with.
#
# Scoring a prompt. 128 rows with 8 warps leave room for two programs on a multiprocessor: while one takes the best of
# each block and waits for the next, the other multiplies. 256 rows (154 registers, 161 KiB) would read half as much
# from the second-level cache, but leave room for one, and its tensor cores idle while it takes the best.
_PREFILL_SCORE = {
    torch.bfloat16: Tile(rows=128, warps=8, stages=3),
    torch.float16: Tile(rows=128, warps=8, stages=3),
    torch.float8_e4m3fn: Tile(rows=128, warps=8, stages=5),
    torch.float32: Tile(rows=32, warps=4, stages=3),
}
# About 16 programs, one after another, on each of 2 places of a multiprocessor: the last ones leave few idle.
PREFILL_SCORE_SPLIT = ScoreSplit(least_blocks=16, most_blocks=128, programs=16 * 2 * MULTIPROCESSORS)
# A row holds the heads of one query, padded to what a matrix instruction takes. It waits for memory alone, so what
# counts is bytes in flight: 2 pages in each of 2 programs of a multiprocessor, 4 in FP8, are 128 KiB.
_DECODE_SCORE = {
    torch.bfloat16: Tile(rows=16, warps=4, stages=5),
    torch.float16: Tile(rows=16, warps=4, stages=5),
    torch.float8_e4m3fn: Tile(rows=16, warps=4, stages=5),
    torch.float32: Tile(rows=16, warps=4, stages=3),
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


# Of a prompt: 8 rows are 32 bytes of scores, what memory is read in; as many steps as there are blocks.
SELECT_OF_TILES = SelectTile(rows=8, groups=128, members=8, warps=4)


def select_of_rows(blocks: int) -> SelectTile:
    """Decoding: a row at a time, and all blocks in one step; the less for shorter page tables."""
    if blocks <= 128:
        return SelectTile(rows=1, groups=128, members=1, warps=1)
    if blocks <= 1024:
        return SelectTile(rows=1, groups=128, members=8, warps=1)
    members = 1 << (-(-blocks // 512) - 1).bit_length()
    return SelectTile(rows=1, groups=512, members=max(members, 16), warps=4)


JOIN_ROWS = 1
"""Candidates of several ranks: so many queries a program, of one warp, so that no warp waits for another."""
