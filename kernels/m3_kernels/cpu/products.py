"""Matrix products: of few rows by the compiled loops, of many by torch.

Owns that choice. With few rows a product costs what reading its matrix costs, and the loops read it once, with as many
threads as there are; with many it is arithmetic, which a library of matrix products does best. MXFP8 weights are
dequantised a tile at a time (`mxfp8`), and torch's `grouped_mm` wants rows of whole 16 bytes.
"""

from torch import Tensor
from torch.nn.functional import grouped_mm

from m3_kernels import mxfp8, reference
from m3_kernels.cpu import compiled
from m3_kernels.cpu.pointwise import swiglu_clamped
from m3_kernels.layout import ExpertRows
from m3_kernels.mxfp8 import Mxfp8, Weight

_FEW_ROWS = 16
"""One vector of them."""
_FEW_ROWS_PER_EXPERT = 32
_ALIGNMENT_BYTES = 16


def linear(x: Tensor, weight: Weight) -> Tensor:
    """See `mxfp8.linear`."""
    if isinstance(weight, Mxfp8) or x.numel() > _FEW_ROWS * x.shape[-1] or not compiled.fits_product(weight):
        return mxfp8.linear(x, weight)
    return compiled.linear(x, weight).to(x.dtype)


def run_experts(x: Tensor, rows: ExpertRows, gate_up: Weight, down: Weight, *, alpha: float, limit: float) -> Tensor:
    """See `reference.run_experts`."""
    if isinstance(gate_up, Mxfp8) or isinstance(down, Mxfp8):
        return reference.run_experts(x, rows, gate_up, down, alpha=alpha, limit=limit)
    is_few = len(x) <= _FEW_ROWS_PER_EXPERT * len(down)
    if is_few and compiled.fits_product(gate_up) and compiled.fits_product(down) and gate_up.dtype == down.dtype:
        return compiled.run_experts(x, rows, gate_up, down, alpha=alpha, limit=limit).to(x.dtype)
    if any(width * x.element_size() % _ALIGNMENT_BYTES for width in (down.shape[1], down.shape[2])):
        return reference.run_experts(x, rows, gate_up, down, alpha=alpha, limit=limit)
    hidden = swiglu_clamped(grouped_mm(x, gate_up.transpose(1, 2), offs=rows.ends), alpha, limit)
    return grouped_mm(hidden, down.transpose(1, 2), offs=rows.ends)
