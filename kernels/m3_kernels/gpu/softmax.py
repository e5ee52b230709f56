"""One step of a softmax that meets its keys tile by tile: what the attention kernels of this room do inside.

Owns the running state of a row (its largest score so far, the sum of its weights, the weighted sum of its values) and
the form in which a part of the keys is handed on: normalised, with the log-sum-exp of its scores. Which keys a program
meets, and where they lie, is the kernels' own affair. Scores are in base 2, as exp2 is one instruction; states and sums
are fp32; weights are rounded to the values' type for the product, as flash attention does.
"""

from math import e, log2, sqrt

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1e30)
"""Where a row's largest score starts: finite, so that what it has not met gets weight 0 and not NaN."""


def base2_scale(head_dim: int) -> float:
    """What a product of query and key is multiplied by: 1 / sqrt(D), and log2(e) for exp2 in place of exp."""
    return log2(e) / sqrt(head_dim)


@triton.jit
def start(ROWS: tl.constexpr, D: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Rows that have met nothing: weighted values [ROWS, D], largest score [ROWS], sum of weights [ROWS]."""
    peak = tl.full((ROWS,), LOWEST, tl.float32)
    return tl.zeros((ROWS, D), tl.float32), peak, tl.zeros((ROWS,), tl.float32)


@triton.jit
def meet(  # noqa: PLR0917
    acc: tl.tensor,
    peak: tl.tensor,
    total: tl.tensor,
    scores: tl.tensor,
    values: tl.tensor,
    scale: tl.tensor,
    members: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The rows meet a tile of keys. Returns the new state.

    scores: [ROWS, N] fp32, products of queries and keys, -inf where hidden. values: [N, D].
    members: [ROWS] bool; the others pass by. They are told apart by a row's offset, +inf, which makes all its weights
    0: one select a row and none a score.
    """
    highest = tl.where(members, tl.maximum(peak, tl.max(scores, 1) * scale), peak)
    weights = tl.exp2(scores * scale - tl.where(members, highest, float("inf"))[:, None])
    shrink = tl.exp2(peak - highest)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision="ieee")
    return acc, highest, total * shrink + tl.sum(weights, 1)


@triton.jit
def finish(acc: tl.tensor, peak: tl.tensor, total: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The attention over what was met, [ROWS, D], and the log-sum-exp (base 2) of its scores, [ROWS].

    A row that met nothing: zeros, and -inf.
    """
    met = total > 0
    divisor = tl.where(met, total, 1.0)
    return acc / divisor[:, None], tl.where(met, peak + tl.log2(divisor), float("-inf"))
