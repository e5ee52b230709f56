"""Norms, rotations and the activation: few calls over whole tensors.

Owns the packing of queries, keys, values and index heads as heads of one tensor, which are normed and rotated together
where they are of one width.
"""

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from m3_kernels import reference
from m3_kernels.layout import AttentionNorms, LayerPages, RotaryAngles


def gemma_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `reference.gemma_rms_norm`."""
    return rms_norm(x.float(), weight.shape, 1.0 + weight.float(), eps).to(x.dtype)


def qk_norm_rope_insert(
    packed: Tensor, norms: AttentionNorms, angles: RotaryAngles, pages: LayerPages, slots: Tensor
) -> tuple[Tensor, Tensor | None]:
    """See `reference.qk_norm_rope_insert`."""
    T, (_, _, G, D) = len(packed), pages.k.shape
    if pages.index_k is not None and pages.index_k.shape[-1] != D:
        return reference.qk_norm_rope_insert(packed, norms, angles, pages, slots)
    heads = packed.view(T, -1, D)
    indexed = G + 1 if pages.index_k is not None else 0
    H = heads.shape[1] - 2 * G - indexed
    # The values among them are normed and rotated for nothing: that is cheaper than leaving them out.
    done = rms_norm(heads.float(), (D,), None, norms.eps).mul_(_scales(norms, H, G))
    R = 2 * angles.cos.shape[-1]
    turned = done[..., :R]
    cos, signed_sin = angles.both_halves
    swapped = torch.cat((turned[..., R // 2 :], turned[..., : R // 2]), -1)
    turned.mul_(cos).addcmul_(swapped, signed_sin)
    done = done.to(packed.dtype)
    reference.insert(pages.k, slots, done[:, H : H + G])
    reference.insert(pages.v, slots, heads[:, H + G : H + 2 * G])
    if pages.index_k is None:
        return done[:, :H], None
    reference.insert(pages.index_k, slots, done[:, -1])
    return done[:, :H], done[:, H + 2 * G : -1]


def swiglu_clamped(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    """See `reference.swiglu_clamped`."""
    gate, up = gate_up.chunk(2, dim=-1)
    gate = gate.clamp(max=limit)
    gated = torch.sigmoid(alpha * gate).mul_(gate)
    return up.clamp(-limit, limit).add_(1.0).mul_(gated)


def _scales(norms: AttentionNorms, heads: int, groups: int) -> Tensor:
    """[all heads, D] fp32: what each normed head is multiplied by; 1 for values. Worked out once a model."""
    found: Tensor | None = norms.memo.get("scales")
    if found is None:
        counts = [(norms.q, heads), (norms.k, groups), (torch.zeros_like(norms.k), groups)]
        if norms.index_q is not None and norms.index_k is not None:
            counts += [(norms.index_q, groups), (norms.index_k, 1)]
        found = torch.cat([(1.0 + weight.float()).expand(count, -1) for weight, count in counts])
        norms.memo["scales"] = found
    return found
