"""The one door to the operations: checks shapes and dtypes, then picks the implementation by device.

A CPU runs `m3_kernels.cpu`. A CUDA device runs choosing blocks and attention by `m3_kernels.gpu`, for a cache of the
queries' type or in FP8, and experts in bfloat16; whatever else it is asked for, and all that other devices are, is the
torch reference.
What each operation means, and the shapes, are in `reference`; this module adds only the checks, so that a wrong tensor
is refused with its name, what it has and what it should have, instead of being broadcast into a wrong answer.
"""

import torch
from torch import Tensor

from m3_kernels import mxfp8, reference
from m3_kernels.cpu import attention, pointwise, products, selection
from m3_kernels.layout import (
    AttentionNorms,
    BlockCandidates,
    BlockPart,
    ExpertRows,
    LayerPages,
    RaggedBatch,
    RotaryAngles,
)
from m3_kernels.mxfp8 import Weight

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def linear(x: Tensor, weight: Weight) -> Tensor:
    """See `mxfp8.linear`. Raises ValueError if weight is not [N, last dimension of x]."""
    _check_shape("weight", weight, (weight.shape[0], x.shape[-1]))
    if _is_cpu(x):
        return products.linear(x, weight)
    return mxfp8.linear(x, weight)


def gemma_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `reference.gemma_rms_norm`. Raises ValueError if weight is not [last dimension of x]."""
    _check_shape("weight", weight, (x.shape[-1],))
    if _is_cpu(x):
        return pointwise.gemma_rms_norm(x, weight, eps)
    return reference.gemma_rms_norm(x, weight, eps)


def rotary_angles(positions: Tensor, rotary_dim: int, theta: float) -> RotaryAngles:
    """See `reference.rotary_angles`. Raises ValueError if rotary_dim is odd or not positive."""
    if rotary_dim < 2 or rotary_dim % 2:
        raise ValueError(f"rotary_dim is {rotary_dim}: must be a positive even number")
    _check_dtype("positions", positions, (torch.int64,))
    return reference.rotary_angles(positions, rotary_dim, theta)


def qk_norm_rope_insert(
    packed: Tensor, norms: AttentionNorms, angles: RotaryAngles, pages: LayerPages, slots: Tensor
) -> tuple[Tensor, Tensor | None]:
    """See `reference.qk_norm_rope_insert`.

    Raises ValueError on a width of `packed` that the pages do not explain, on index norms without index pages (or the
    other way round), and on more rotated dimensions than a head has.
    """
    (_, _, G, D), tokens = pages.k.shape, packed.shape[0]
    index_dim = 0 if pages.index_k is None else pages.index_k.shape[-1]
    query_width = packed.shape[1] - 2 * G * D - (G + 1) * index_dim if index_dim else packed.shape[1] - 2 * G * D
    if query_width <= 0 or query_width % (G * D):
        raise ValueError(
            f"packed is {packed.shape[1]} wide: with {G} groups of {D} and index dimension {index_dim}, "
            f"{query_width} are left for the queries, which must be a positive multiple of {G * D}"
        )
    if (norms.index_q is None or norms.index_k is None) != (pages.index_k is None):
        raise ValueError("index norms and index pages must come together: one of them is None")
    rotary_dim = 2 * angles.cos.shape[-1]
    if rotary_dim > D or (index_dim and rotary_dim > index_dim):
        raise ValueError(f"{rotary_dim} rotated dimensions do not fit heads of {D} and index heads of {index_dim}")
    _check_shape("slots", slots, (tokens,))
    _check_dtype("slots", slots, (torch.int64,))
    _check_shape("angles", angles.cos, (tokens, rotary_dim // 2))
    _check_shape("pages.v", pages.v, tuple(pages.k.shape))
    if _is_cpu(packed):
        return pointwise.qk_norm_rope_insert(packed, norms, angles, pages, slots)
    return reference.qk_norm_rope_insert(packed, norms, angles, pages, slots)


def choose_blocks(index_q: Tensor, index_k: Tensor, batch: RaggedBatch, k: int = 16) -> Tensor:
    """See `reference.choose_blocks`. Raises ValueError if k is below 1, or queries, keys and batch do not fit."""
    if k < 1:
        raise ValueError(f"k is {k}: at least the query's own block is kept, so k must be 1 or more")
    _check_index(index_q, index_k, batch)
    if _is_cpu(index_q):
        return selection.choose_blocks(index_q, index_k, batch, k)
    if _has_kernels(index_q, index_k):
        from m3_kernels.gpu import selection as on_gpu

        return on_gpu.choose_blocks(index_q, index_k, batch, k)
    return reference.choose_blocks(index_q, index_k, batch, k)


def best_blocks(index_q: Tensor, index_k: Tensor, batch: RaggedBatch, k: int, part: BlockPart) -> BlockCandidates:
    """See `reference.best_blocks`. Raises ValueError if k is below 1, or queries, keys and batch do not fit."""
    if k < 1:
        raise ValueError(f"k is {k}: without a block beside the query's own there is nothing to choose")
    if not 0 <= part.number < part.parts:
        raise ValueError(f"part {part.number} of {part.parts}: parts are numbered from 0 on")
    _check_index(index_q, index_k, batch)
    if _is_cpu(index_q):
        return selection.best_blocks(index_q, index_k, batch, k, part)
    if _has_kernels(index_q, index_k):
        from m3_kernels.gpu import selection as on_gpu

        return on_gpu.best_blocks(index_q, index_k, batch, k, part)
    return reference.best_blocks(index_q, index_k, batch, k, part)


def join_blocks(candidates: BlockCandidates, positions: Tensor, block_tokens: int) -> Tensor:
    """See `reference.join_blocks`. Raises ValueError if scores, ids and positions do not fit each other."""
    _check_shape("ids", candidates.ids, tuple(candidates.scores.shape))
    _check_shape("positions", positions, (candidates.ids.shape[2],))
    if _is_cuda(positions):
        from m3_kernels.gpu import selection as on_gpu

        return on_gpu.join_blocks(candidates, positions, block_tokens)
    return reference.join_blocks(candidates, positions, block_tokens)


def sparse_attention(q: Tensor, pages: LayerPages, blocks: Tensor, batch: RaggedBatch) -> Tensor:
    """See `reference.sparse_attention`. Raises ValueError if queries, pages, blocks and batch do not fit each other."""
    _check_attention(q, pages, batch)
    _check_shape("blocks", blocks, (pages.k.shape[2], batch.tokens, blocks.shape[2]))
    _check_dtype("blocks", blocks, (torch.int32,))
    if _is_cpu(q):
        return attention.sparse_attention(q, pages, blocks, batch)
    if _has_kernels(q, pages.k):
        from m3_kernels.gpu import attention as on_gpu

        return on_gpu.sparse_attention(q, pages, blocks, batch)
    return reference.sparse_attention(q, pages, blocks, batch)


def dense_attention(q: Tensor, pages: LayerPages, batch: RaggedBatch) -> Tensor:
    """See `reference.dense_attention`. Raises ValueError if queries, pages and batch do not fit each other."""
    _check_attention(q, pages, batch)
    if _is_cpu(q):
        return attention.dense_attention(q, pages, batch)
    if _has_kernels(q, pages.k):
        from m3_kernels.gpu import attention as on_gpu

        return on_gpu.dense_attention(q, pages, batch)
    return reference.dense_attention(q, pages, batch)


def swiglu_clamped(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    """See `reference.swiglu_clamped`. Raises ValueError if the last dimension is odd or the limit not positive."""
    if gate_up.shape[-1] % 2:
        raise ValueError(f"gate_up is {gate_up.shape[-1]} wide: gate and up halves must be equal")
    if limit <= 0:
        raise ValueError(f"limit is {limit}: must be positive")
    if _is_cpu(gate_up):
        return pointwise.swiglu_clamped(gate_up, alpha, limit)
    return reference.swiglu_clamped(gate_up, alpha, limit)


def route_experts(logits: Tensor, bias: Tensor, k: int, scaling: float) -> tuple[Tensor, Tensor]:
    """See `reference.route_experts`. Raises ValueError unless logits and bias are fp32 and 1 <= k <= E."""
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k is {k}: must be between 1 and the {logits.shape[-1]} experts")
    _check_dtype("logits", logits, (torch.float32,))
    _check_dtype("bias", bias, (torch.float32,))
    _check_shape("bias", bias, (logits.shape[-1],))
    return reference.route_experts(logits, bias, k, scaling)


def sort_by_expert(experts: Tensor, count: int) -> ExpertRows:
    """See `reference.sort_by_expert`. Raises ValueError unless experts is [T, A] i64."""
    _check_shape("experts", experts, (experts.shape[0], experts.shape[-1]))
    _check_dtype("experts", experts, (torch.int64,))
    return reference.sort_by_expert(experts, count)


def run_experts(x: Tensor, rows: ExpertRows, gate_up: Weight, down: Weight, *, alpha: float, limit: float) -> Tensor:
    """See `reference.run_experts`. Raises ValueError if rows and experts do not fit x."""
    (count, hidden), (held, _, intermediate) = x.shape, down.shape
    _check_shape("rows.order", rows.order, (count,))
    _check_shape("rows.ends", rows.ends, (held,))
    _check_shape("gate_up", gate_up, (held, 2 * intermediate, hidden))
    _check_shape("down", down, (held, hidden, intermediate))
    if _is_cpu(x):
        return products.run_experts(x, rows, gate_up, down, alpha=alpha, limit=limit)
    if _is_cuda(x):
        from m3_kernels.gpu import experts as on_gpu

        if isinstance(gate_up, Tensor) and isinstance(down, Tensor) and on_gpu.fits(x, gate_up, down):
            return on_gpu.run_experts(x, rows, gate_up, down, alpha=alpha, limit=limit)
    return reference.run_experts(x, rows, gate_up, down, alpha=alpha, limit=limit)


def combine_experts(out: Tensor, rows: ExpertRows, weights: Tensor) -> Tensor:
    """See `reference.combine_experts`. Raises ValueError if rows and weights do not fit out."""
    _check_shape("weights", weights, (weights.shape[0], weights.shape[-1]))
    _check_shape("out", out, (weights.numel(), out.shape[-1]))
    _check_shape("rows.order", rows.order, (weights.numel(),))
    return reference.combine_experts(out, rows, weights)


def _is_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _is_cuda(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


def _has_kernels(q: Tensor, cache: Tensor) -> bool:
    """Whether `m3_kernels.gpu` serves them; it is imported where it is, as it brings Triton along."""
    return _is_cuda(q) and cache.dtype in (q.dtype, torch.float8_e4m3fn)


def _check_attention(q: Tensor, pages: LayerPages, batch: RaggedBatch) -> None:
    _, block_tokens, groups, head_dim = pages.k.shape
    _check_batch(batch, block_tokens)
    _check_shape("q", q, (batch.tokens, q.shape[1], head_dim))
    _check_dtype("q", q, _FLOATS)
    if q.shape[1] % groups:
        raise ValueError(f"q has {q.shape[1]} heads: must be a multiple of the {groups} groups")


def _check_index(index_q: Tensor, index_k: Tensor, batch: RaggedBatch) -> None:
    _check_batch(batch, index_k.shape[1])
    _check_shape("index_q", index_q, (batch.tokens, index_q.shape[1], index_k.shape[2]))
    _check_dtype("index_q", index_q, _FLOATS)


def _check_batch(batch: RaggedBatch, block_tokens: int) -> None:
    """Once a step: what is right stays right."""
    if batch.memo.get("checked") == block_tokens:
        return
    if len(batch.query_starts) != batch.sequences + 1:
        raise ValueError(f"query_starts has {len(batch.query_starts)} entries: must be {batch.sequences} sequences + 1")
    for sequence, context in enumerate(batch.context_lengths):
        queries = batch.query_starts[sequence + 1] - batch.query_starts[sequence]
        if not 1 <= queries <= context:
            raise ValueError(
                f"sequence {sequence} has {queries} tokens in the step and a context of {context}: "
                "must have at least one, and no more than its context"
            )
    _check_shape("positions", batch.positions, (batch.tokens,))
    _check_dtype("positions", batch.positions, (torch.int64,))
    _check_dtype("page_table", batch.page_table, (torch.int64,))
    blocks = -(-max(batch.context_lengths) // block_tokens)
    if batch.page_table.shape[0] != batch.sequences or batch.page_table.shape[1] < blocks:
        raise ValueError(
            f"page_table is {list(batch.page_table.shape)}: {batch.sequences} sequences, the longest of "
            f"{max(batch.context_lengths)} tokens, need at least [{batch.sequences}, {blocks}]"
        )
    batch.memo["checked"] = block_tokens


def _check_shape(name: str, tensor: Weight, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} has shape {list(tensor.shape)}: must be {list(expected)}")


def _check_dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in allowed:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise ValueError(f"{name} has dtype {str(tensor.dtype).removeprefix('torch.')}: must be {names}")
