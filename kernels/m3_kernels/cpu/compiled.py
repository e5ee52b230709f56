"""The door to the compiled loops (`native/`): what they can be given, and the call itself.

Owns whether there are any: they are built with the package where a C compiler is (setup.py). `fits_*` say which shapes
and types they take; each function here hands tensors over as addresses and must only be called with what fits.
Activations in another type are widened to fp32 on the way in, and narrowed on the way out by the caller.
"""

from types import ModuleType

import torch
from torch import Tensor

from m3_kernels.layout import ExpertRows, LayerPages, RaggedBatch, RotaryAngles


def _load() -> ModuleType | None:
    try:
        from m3_kernels.cpu import _native
    except ImportError:
        return None
    native: ModuleType = _native
    return native


_NATIVE = _load()
_ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float8_e4m3fn: 2}
_LANES = 16
_THREADED_FLOPS = 1 << 23
"""Work that is worth starting threads for: one takes as long to start as a million of these."""
_THREADED_BYTES = 1 << 18
"""As well, of what is read once."""


def level() -> str | None:
    """For which processors the loops in use are compiled: v4 (AVX-512), v3 (AVX2), base; None if there are none."""
    return None if _NATIVE is None else str(_NATIVE.LEVEL)


def fits_attention(q: Tensor, pages: LayerPages) -> bool:
    """Whether `attend` takes queries [T, H, D] over these pages."""
    G, D = pages.k.shape[2:]
    return (
        _NATIVE is not None
        and pages.k.dtype in _ELEMENTS
        and pages.v.dtype == pages.k.dtype
        and q.shape[1] // G <= _NATIVE.MOST_HEADS
        and D % 8 == 0
        and D <= _NATIVE.MOST_WIDTH
        and pages.k.is_contiguous()
        and pages.v.is_contiguous()
    )


def fits_scoring(index_k: Tensor) -> bool:
    """Whether `score_blocks` takes index keys [P, B, I]."""
    return _NATIVE is not None and index_k.dtype in _ELEMENTS and index_k.is_contiguous()


def fits_rows(width: int) -> bool:
    """Whether `gemma_rms_norm` and `swiglu_clamped` take rows of so many elements."""
    return _NATIVE is not None and width % _LANES == 0


def fits_insertion(pages: LayerPages) -> bool:
    """Whether `qk_norm_rope_insert` can write these pages."""
    pools = [pool for pool in (pages.k, pages.v, pages.index_k) if pool is not None]
    D = pages.k.shape[-1]
    return (
        _NATIVE is not None
        and D % _LANES == 0
        and D <= _NATIVE.MOST_WIDTH
        and pages.v.dtype == pages.k.dtype
        and all(pool.shape[-1] == D and pool.dtype in _ELEMENTS and pool.is_contiguous() for pool in pools)
    )


def fits_product(weight: Tensor) -> bool:
    """Whether `linear` and `run_experts` take weights [..., N, K]."""
    return _NATIVE is not None and weight.dtype in (torch.float32, torch.bfloat16) and weight.is_contiguous()


def attend(
    q: Tensor, pages: LayerPages, blocks: Tensor | None, batch: RaggedBatch, *, runs: Tensor, pairs: int
) -> Tensor:
    """Attention of all runs together: q [T, H, D], blocks [G, T, K] i32. Returns [T, H, D] fp32.

    runs: [n, 5] i64: first row, rows, sequence, position of the first row, and whether its queries see only the blocks
    that they chose, all K of them; otherwise all tokens up to their own. pairs: of a query and a key that it sees.
    """
    (T, H, D), (_, B, G, _) = q.shape, pages.k.shape
    q, table = q.float().contiguous(), batch.page_table.contiguous()
    chosen = None if blocks is None else blocks.contiguous()
    out = torch.empty_like(q)
    _native().attend(
        q.data_ptr(), pages.k.data_ptr(), pages.v.data_ptr(), out.data_ptr(), runs.data_ptr(), table.data_ptr(),
        0 if chosen is None else chosen.data_ptr(), len(runs), T, H, G, D, B, table.shape[1],
        0 if chosen is None else chosen.shape[2], _ELEMENTS[pages.k.dtype],
        _threads_for(flops=4 * pairs * H * D),
    )  # fmt: skip
    return out


def score_blocks(queries: Tensor, index_k: Tensor, pages: Tensor) -> Tensor:
    """The best dot product of each query with each block: queries [n, I], pages [m] i64. Returns [m, n] fp32."""
    (n, I), m, B = queries.shape, len(pages), index_k.shape[1]  # noqa: E741
    queries, pages = queries.float().contiguous(), pages.contiguous()
    scores = torch.empty(m, n)
    addresses = (tensor.data_ptr() for tensor in (queries, index_k, pages, scores))
    _native().score_blocks(*addresses, n, I, B, m, _ELEMENTS[index_k.dtype], _threads_for(flops=2 * n * m * B * I))
    return scores


def gemma_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `reference.gemma_rms_norm`; returns fp32."""
    x, weight = x.float().contiguous(), weight.float()
    out = torch.empty_like(x)
    width = x.shape[-1]
    rows = x.numel() // width
    addresses = (tensor.data_ptr() for tensor in (x, weight, out))
    _native().gemma_rms_norm(*addresses, rows, width, eps, _threads_for(bytes_read=x.nbytes))
    return out


def qk_norm_rope_insert(
    packed: Tensor, scales: Tensor, angles: RotaryAngles, pages: LayerPages, slots: Tensor, *, eps: float
) -> tuple[Tensor, Tensor | None]:
    """See `reference.qk_norm_rope_insert`; scales [all heads of a row, D] fp32. Returns fp32."""
    _, _, G, D = pages.k.shape
    packed = packed.float().contiguous()
    index_k = pages.index_k
    T, H = len(packed), packed.shape[1] // D - 2 * G - (0 if index_k is None else G + 1)
    q = torch.empty(T, H, D)
    index_q = None if index_k is None else torch.empty(T, G, D)
    given = (packed, scales, angles.cos, angles.sin, slots, q, index_q, pages.k, pages.v, index_k)
    _native().qk_norm_rope_insert(
        *(0 if tensor is None else tensor.data_ptr() for tensor in given),
        T, H, G, D, 2 * angles.cos.shape[-1],
        _ELEMENTS[pages.k.dtype], 0 if index_k is None else _ELEMENTS[index_k.dtype], eps,
        _threads_for(bytes_read=packed.nbytes),
    )  # fmt: skip
    return q, index_q


def swiglu_clamped(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    """See `reference.swiglu_clamped`; returns fp32."""
    gate_up = gate_up.float().contiguous()
    width = gate_up.shape[-1] // 2
    out = torch.empty(*gate_up.shape[:-1], width)
    rows = out.numel() // width
    _native().swiglu_clamped(
        gate_up.data_ptr(), out.data_ptr(), rows, width, alpha, limit, _threads_for(bytes_read=gate_up.nbytes)
    )
    return out


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., K] times the transpose of weight [N, K] in fp32 or bfloat16: [..., N] fp32."""
    x = x.float().contiguous()
    outputs, width = weight.shape
    out = torch.empty(*x.shape[:-1], outputs)
    addresses = (tensor.data_ptr() for tensor in (x, weight, out))
    threads = _threads_for(bytes_read=weight.nbytes)
    _native().linear(*addresses, x.numel() // width, width, outputs, _ELEMENTS[weight.dtype], threads)
    return out


def run_experts(x: Tensor, rows: ExpertRows, gate_up: Tensor, down: Tensor, *, alpha: float, limit: float) -> Tensor:
    """See `reference.run_experts`; weights in fp32 or bfloat16, both alike. Returns fp32."""
    x, ends = x.float().contiguous(), rows.ends.contiguous()
    experts, width, hidden = down.shape
    out = torch.empty_like(x)
    addresses = (tensor.data_ptr() for tensor in (x, ends, gate_up, down, out))
    _native().run_experts(
        *addresses, len(x), experts, width, hidden, _ELEMENTS[down.dtype], alpha, limit,
        _threads_for(bytes_read=gate_up.nbytes + down.nbytes),
    )  # fmt: skip
    return out


def _threads_for(*, flops: int = 0, bytes_read: int = 0) -> int:
    return torch.get_num_threads() if flops > _THREADED_FLOPS or bytes_read > _THREADED_BYTES else 1


def _native() -> ModuleType:
    assert _NATIVE is not None, "nothing fits where there are no compiled loops"  # noqa: S101
    return _NATIVE
