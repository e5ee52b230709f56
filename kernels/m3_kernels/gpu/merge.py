"""Attention over parts of the keys, made whole: a sum weighted by the parts' log-sum-exps.

Grid: (rows, groups). Every kernel that splits a row's keys leaves normalised parts [N, parts, H, D] and log-sum-exps
[N, parts, H] in base 2; a part with -inf met nothing and is not read. Bytes: each part once.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from m3_kernels.gpu.compiled import CompileCase

WARPS = 4
LEAST_PARTS = 16
"""Fewer are merged as these are: one kernel for them all."""


@dataclass(frozen=True)
class Parts:
    """What a split attention leaves."""

    values: Tensor
    """[N, parts, H, D]"""
    lse: Tensor
    """[N, parts, H] fp32, base 2; -inf where a part met nothing."""

    @staticmethod
    def empty(rows: int, parts: int, like: Tensor, dtype: torch.dtype) -> "Parts":
        """For so many rows like those of `like`, [T, H, D]; nothing in it is defined."""
        values = like.new_empty(rows, parts, *like.shape[1:], dtype=dtype)
        return Parts(values, like.new_empty(values.shape[:3], dtype=torch.float32))


def merge(parts: Parts, rows: Tensor, groups: int, out: Tensor) -> None:
    """Write what all parts give together. rows: [N] i32, the row of `out` of each; -1 for none. out: [T, H, D]."""
    N, count, H, D = parts.values.shape
    most = triton.next_power_of_2(max(count, LEAST_PARTS))
    merge_kernel[(N, groups)](
        parts.values, parts.lse, rows, out, count, G=groups, HEADS=H // groups, D=D, PARTS=most, num_warps=WARPS
    )


@triton.jit(do_not_specialize=["count"])
def merge_kernel(  # noqa: PLR0917
    parts: tl.tensor,  # [N, count, H, D]
    lse: tl.tensor,  # [N, count, H] fp32
    rows: tl.tensor,  # [N] i32
    out: tl.tensor,  # [T, H, D]
    count: tl.tensor,
    G: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    PARTS: tl.constexpr,  # at least count: unrolled, so that all parts are in flight together
) -> None:
    number, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = tl.load(rows + number).to(tl.int64)
    if row < 0:
        return
    head = group * HEADS + tl.arange(0, HEADS)
    d = tl.arange(0, D)
    first = number * count * (G * HEADS) + head
    parts_of_head = tl.zeros((HEADS,), tl.int32) + count  # a mask must have its pointers' shape
    peak = tl.load(lse + first)  # [HEADS]
    for part in tl.static_range(1, PARTS):
        place = first + part * (G * HEADS)
        peak = tl.maximum(peak, tl.load(lse + place, mask=part < parts_of_head, other=float("-inf")))
    acc, total = tl.zeros((HEADS, D), tl.float32), tl.zeros((HEADS,), tl.float32)
    for part in tl.static_range(PARTS):
        place = first + part * (G * HEADS)
        weight = tl.exp2(tl.load(lse + place, mask=part < parts_of_head, other=float("-inf")) - peak)
        met = (weight > 0)[:, None]  # what was not met was not written
        values = tl.load(parts + place[:, None] * D + d[None, :], mask=met, other=0.0)  # [HEADS, D]
        acc += weight[:, None] * values.to(tl.float32)
        total += weight
    attended = acc / total[:, None]
    tl.store(out + (row * (G * HEADS) + head)[:, None] * D + d[None, :], attended.to(out.dtype.element_ty))


def configurations() -> list[CompileCase]:
    """How M3 merges: the blocks of a chunk, parts in the queries' type; and splits of a walk, up to 16 and up to 32."""
    return [
        CompileCase(
            name=f"merge/{kind}/{out}",
            kernel=merge_kernel,
            signature={"parts": f"*{dtype}", "lse": "*fp32", "rows": "*i32", "out": f"*{out}", "count": "i32"},
            constexprs={"G": 4, "HEADS": 16, "D": 128, "PARTS": most},
            num_warps=WARPS,
            num_stages=1,
        )
        for out in ("bf16", "fp16")
        for kind, most, dtype in (("blocks", 16, out), ("splits_16", 16, "fp32"), ("splits_32", 32, "fp32"))
    ]
