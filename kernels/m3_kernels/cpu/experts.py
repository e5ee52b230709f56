"""Rows sorted by expert through their experts: one call for all of them.

Owns the choice of that call. `grouped_mm` wants plain weights and rows of whole 16 bytes; MXFP8 weights, and other
widths, of test models, go expert by expert.
"""

from torch import Tensor
from torch.nn.functional import grouped_mm

from m3_kernels import reference
from m3_kernels.cpu.pointwise import swiglu_clamped
from m3_kernels.layout import ExpertRows
from m3_kernels.mxfp8 import Mxfp8, Weight

_ALIGNMENT_BYTES = 16


def run_experts(x: Tensor, rows: ExpertRows, gate_up: Weight, down: Weight, *, alpha: float, limit: float) -> Tensor:
    """See `reference.run_experts`."""
    if isinstance(gate_up, Mxfp8) or isinstance(down, Mxfp8):
        return reference.run_experts(x, rows, gate_up, down, alpha=alpha, limit=limit)
    if any(width * x.element_size() % _ALIGNMENT_BYTES for width in (down.shape[1], down.shape[2])):
        return reference.run_experts(x, rows, gate_up, down, alpha=alpha, limit=limit)
    hidden = swiglu_clamped(grouped_mm(x, gate_up.transpose(1, 2), offs=rows.ends), alpha, limit)
    return grouped_mm(hidden, down.transpose(1, 2), offs=rows.ends)
