"""Scores of blocks as sortable keys, and the best of them.

Order is one of 64-bit keys: the bits of the score, made to rise with it, above the complement of the block's number. No
two keys are equal, the lower number wins where scores are, and one sort carries both.

Sorting costs some twenty steps an element, so most elements are not sorted. Blocks are dealt into groups of MEMBERS,
and each group is stood for by its best key, found while scores are read. The k best blocks lie in the k best groups:
were one elsewhere, k groups would each hold a better one. So the groups' keys are searched for the k best, and then
the members of those k groups. Reading is one pass over the scores (4 bytes a block, query and head), and some again.
"""

import triton
import triton.language as tl


@triton.jit
def pack(score: tl.tensor, block: tl.tensor) -> tl.tensor:
    """A key, u64: larger for a better score, and of equal scores for the lower block. Never 0, which is no key."""
    bits = score.to(tl.int32, bitcast=True)
    rising = bits ^ ((bits >> 31) | -0x80000000)  # as an unsigned number
    return (rising.to(tl.uint32, bitcast=True).to(tl.uint64) << 32) | (~block).to(tl.uint32, bitcast=True).to(tl.uint64)


@triton.jit
def block_of(key: tl.tensor) -> tl.tensor:
    """The block of a key; meaningless for 0."""
    return ~key.to(tl.uint32).to(tl.int32, bitcast=True)


@triton.jit
def score_of(key: tl.tensor) -> tl.tensor:
    """The score of a key; -inf for 0, which no score is."""
    rising = (key >> 32).to(tl.uint32).to(tl.int32, bitcast=True)
    bits = tl.where(rising < 0, rising ^ -0x80000000, ~rising)
    return tl.where(key == 0, float("-inf"), bits.to(tl.float32, bitcast=True))


@triton.jit
def best(  # noqa: PLR0917
    scores: tl.tensor,  # [ROWS] pointers to a row's first block
    counts: tl.tensor,  # [ROWS] blocks of each row
    ONE_STEP: tl.constexpr,  # whether GROUPS * MEMBERS blocks are all that a row may have
    STRIDE: tl.constexpr,  # from one block of a row to the next
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    MEMBERS: tl.constexpr,
    PADDED: tl.constexpr,
) -> tl.tensor:
    """The PADDED best keys of each row, best first, then 0: [ROWS, PADDED] u64; blocks are counted from 0."""
    if ONE_STEP:
        leading = leaders(scores, counts, 0, STRIDE, ROWS, GROUPS, MEMBERS, PADDED)
    else:
        leading = tl.zeros((ROWS, PADDED), tl.uint64)
        for start in range(0, tl.max(counts, 0), GROUPS * MEMBERS):
            more = leaders(scores, counts, start, STRIDE, ROWS, GROUPS, MEMBERS, PADDED)
            leading = tl.topk(tl.reshape(tl.join(leading, more), (ROWS, 2 * PADDED)), PADDED)
    if MEMBERS == 1:
        return leading
    else:  # noqa: RET505 - the compiler wants one type a branch
        # A group's blocks are those that leave the same rest: its best one tells where it begins.
        found = block_of(leading)
        first = (found // (GROUPS * MEMBERS)) * (GROUPS * MEMBERS) + found % GROUPS  # [ROWS, PADDED]
        block = first[:, :, None] + tl.arange(0, MEMBERS)[None, None, :] * GROUPS  # [ROWS, PADDED, MEMBERS]
        exists = (leading > 0)[:, :, None] & (block < counts[:, None, None])
        score = tl.load(scores[:, None, None] + block * STRIDE, mask=exists, other=float("-inf"))
        keys = tl.where(score > float("-inf"), pack(score, block), 0)
        return tl.topk(tl.reshape(keys, (ROWS, PADDED * MEMBERS)), PADDED)


@triton.jit
def leaders(  # noqa: PLR0917
    scores: tl.tensor,  # as in `best`
    counts: tl.tensor,
    start: tl.tensor,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    MEMBERS: tl.constexpr,
    PADDED: tl.constexpr,
) -> tl.tensor:
    """The best keys of the PADDED best groups among the GROUPS * MEMBERS blocks from `start` on: [ROWS, PADDED]."""
    group = tl.arange(0, GROUPS)[None, :]
    best_score = tl.full((ROWS, GROUPS), float("-inf"), tl.float32)
    best_block = tl.full((ROWS, GROUPS), -1, tl.int32)
    for turn in tl.static_range(MEMBERS):
        block = start + turn * GROUPS + group
        score = tl.load(scores[:, None] + block * STRIDE, mask=block < counts[:, None], other=float("-inf"))
        better = score > best_score  # blocks rise with the turns: of equals the first stays
        best_score = tl.where(better, score, best_score)
        best_block = tl.where(better, block, best_block)
    return tl.topk(tl.where(best_block < 0, 0, pack(best_score, best_block)), PADDED)
