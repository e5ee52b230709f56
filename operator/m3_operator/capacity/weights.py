"""How many bytes of weights a rank holds, by the way the native engine divides a model.

Attention is split by KV heads as far as they go; each rank owns as many expert slots; embedding, norms, routers, dense
MLPs and shared experts are on every rank; the output head and the vision tower are on rank 0 alone.
"""

from dataclasses import dataclass
from math import gcd

from m3_operator.capacity.shape import ITEM_BYTES, DType, Format, ModelShape, VisionShape

_FP32_BYTES = 4
"""Of a number of a router, of its bias, and of the patch embedding: fp32, whatever the rest is in."""


@dataclass(frozen=True, kw_only=True)
class RankWeights:
    """Bytes of weights on one rank, by how they are divided."""

    experts_bytes: int
    """Of the expert slots that the rank owns."""
    attention_bytes: int
    """Of its part of the heads."""
    replicated_bytes: int
    """Of what every rank holds."""
    ends_bytes: int
    """Of the output head and the vision tower; 0 but on rank 0."""

    @property
    def total_bytes(self) -> int:
        """All of them."""
        return self.experts_bytes + self.attention_bytes + self.replicated_bytes + self.ends_bytes


def head_ranks(shape: ModelShape, ranks: int) -> int:
    """Into how many parts attention, and with it the cache, is split."""
    return gcd(ranks, shape.kv_heads)


def rank_weights(shape: ModelShape, dtype: DType, *, ranks: int, slots: int, is_first: bool) -> RankWeights:
    """The weights of one of `ranks` ranks that owns `slots` expert slots in each layer with experts.

    dtype: what the engine holds the matrices in that are not quantised.
    """
    plain, hidden = ITEM_BYTES[dtype], shape.hidden_size
    matrices = shape.precision.matrices
    dense = 3 * shape.dense_intermediate_size * hidden * (shape.layers - shape.moe_layers)
    shared = 3 * shape.shared_intermediate_size * hidden * shape.moe_layers
    routers = (hidden + 1) * shape.experts * shape.moe_layers
    norms = 2 * shape.layers * (hidden + shape.head_dim) + 2 * shape.sparse_layers * shape.index_dim + hidden
    vocabulary = shape.vocab_size * hidden
    ends = vocabulary * plain + _vision_bytes(shape.vision, hidden, plain) if is_first else 0
    expert = 3 * shape.expert_intermediate_size * hidden
    return RankWeights(
        experts_bytes=_matrix_bytes(slots * shape.moe_layers * expert, shape.precision.experts, plain),
        attention_bytes=_matrix_bytes(_attention_elements(shape, ranks), matrices, plain),
        replicated_bytes=(
            _matrix_bytes(dense + shared, matrices, plain) + routers * _FP32_BYTES + (norms + vocabulary) * plain
        ),
        ends_bytes=ends,
    )


def _attention_elements(shape: ModelShape, ranks: int) -> int:
    parts = head_ranks(shape, ranks)
    heads, kv_heads = shape.heads // parts, shape.kv_heads // parts
    projections_and_output = (2 * heads + 2 * kv_heads) * shape.head_dim * shape.hidden_size
    index = (kv_heads + 1) * shape.index_dim * shape.hidden_size  # the index key is not split
    return shape.layers * projections_and_output + shape.sparse_layers * index


def _matrix_bytes(elements: int, stored: Format, plain: int) -> int:
    """MXFP8: a byte each, and one for the scale of 32. NVFP4: half a byte each, and one for the scale of 16."""
    if stored == "mxfp8":
        return elements + elements // 32
    if stored == "nvfp4":
        return elements // 2 + elements // 16
    return elements * plain


def _vision_bytes(vision: VisionShape | None, text_size: int, plain: int) -> int:
    if vision is None:
        return 0
    size, inner = vision.hidden_size, vision.projector_size

    def affine(rows: int, columns: int) -> int:
        return rows * columns + rows

    norm = affine(size, 1)
    layer = 2 * norm + affine(3 * size, size) + affine(size, size)
    layer += affine(vision.intermediate_size, size) + affine(size, vision.intermediate_size)
    projector = affine(inner, size) + affine(text_size, inner)
    merge = affine(inner, text_size * vision.merged_patches) + affine(text_size, inner)
    elements = norm + vision.layers * layer + projector + merge
    return elements * plain + size * vision.patch_elements * _FP32_BYTES
