"""The experts of a step on a GPU: torch's grouped product, which finds each expert's rows by itself.

Owns which weights it serves. The host never learns how many rows an expert has, so that it waits for nothing and a
captured graph would do for any routing; the reference, which multiplies expert by expert, has to ask.
"""

from torch import Tensor, bfloat16
from torch.nn.functional import grouped_mm

from m3_kernels.layout import ExpertRows
from m3_kernels.reference import swiglu_clamped

_ALIGNMENT = 8
"""Values in the 16 bytes that a row of the grouped product must be a multiple of."""


def fits(x: Tensor, gate_up: Tensor, down: Tensor) -> bool:
    """Whether torch has a grouped product on the device for these: bfloat16, rows of whole 16 bytes."""
    types = {x.dtype, gate_up.dtype, down.dtype}
    return types == {bfloat16} and down.shape[1] % _ALIGNMENT == 0 and down.shape[2] % _ALIGNMENT == 0


def run_experts(x: Tensor, rows: ExpertRows, gate_up: Tensor, down: Tensor, *, alpha: float, limit: float) -> Tensor:
    """See `reference.run_experts`; for what `fits`."""
    if not len(x):
        return x
    hidden = swiglu_clamped(grouped_mm(x, gate_up.transpose(1, 2), offs=rows.ends), alpha, limit)
    return grouped_mm(hidden, down.transpose(1, 2), offs=rows.ends)
