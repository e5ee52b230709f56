"""Norms, rotations, cache writes and the activation: the compiled loops where they fit, else the definition.

Owns the packing of queries, keys, values and index heads as heads of one width, which are normed and rotated alike.
"""

import torch
from torch import Tensor

from m3_kernels import reference
from m3_kernels.cpu import compiled
from m3_kernels.layout import AttentionNorms, LayerPages, RotaryAngles


def gemma_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `reference.gemma_rms_norm`."""
    if not compiled.fits_rows(x.shape[-1]):
        return reference.gemma_rms_norm(x, weight, eps)
    return compiled.gemma_rms_norm(x, weight, eps).to(x.dtype)


def qk_norm_rope_insert(
    packed: Tensor, norms: AttentionNorms, angles: RotaryAngles, pages: LayerPages, slots: Tensor
) -> tuple[Tensor, Tensor | None]:
    """See `reference.qk_norm_rope_insert`."""
    if not compiled.fits_insertion(pages):
        return reference.qk_norm_rope_insert(packed, norms, angles, pages, slots)
    scales = _scales(norms, packed.shape[1], pages)
    q, index_q = compiled.qk_norm_rope_insert(packed, scales, angles, pages, slots, eps=norms.eps)
    return q.to(packed.dtype), None if index_q is None else index_q.to(packed.dtype)


def swiglu_clamped(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    """See `reference.swiglu_clamped`."""
    if not compiled.fits_rows(gate_up.shape[-1] // 2):
        return reference.swiglu_clamped(gate_up, alpha, limit)
    return compiled.swiglu_clamped(gate_up, alpha, limit).to(gate_up.dtype)


def _scales(norms: AttentionNorms, width: int, pages: LayerPages) -> Tensor:
    """[all heads of a row, D] fp32: what each normed head is multiplied by; 1 for values. Worked out once a model."""
    found: Tensor | None = norms.memo.get("scales")
    if found is None:
        _, _, groups, head_dim = pages.k.shape
        indexed = 0 if pages.index_k is None else groups + 1
        heads = width // head_dim - 2 * groups - indexed
        counts = [(norms.q, heads), (norms.k, groups), (torch.zeros_like(norms.k), groups)]
        if norms.index_q is not None and norms.index_k is not None:
            counts += [(norms.index_q, groups), (norms.index_k, 1)]
        found = torch.cat([(1.0 + weight.float()).expand(count, -1) for weight, count in counts])
        norms.memo["scales"] = found
    return found
