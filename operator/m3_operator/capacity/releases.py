"""The models that are known without their files: published releases, our tiny ones.

Owns the table. A release's sizes are those of its published config.json; what the files weigh by them is compared in a
test with what was published. NVFP4 releases are in the table so that their size is known; the native engine reads none.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from m3_operator.capacity.shape import ModelShape, Precision, VisionShape
from m3_operator.spec.model import Release, TinySource

_M3: Final = ModelShape(
    vocab_size=200_064,
    hidden_size=6144,
    heads=64,
    kv_heads=4,
    head_dim=128,
    index_dim=128,
    layers=60,
    sparse_layers=57,
    moe_layers=57,
    experts=128,
    expert_intermediate_size=3072,
    shared_intermediate_size=3072,
    dense_intermediate_size=12_288,
    page_tokens=128,
    max_context_tokens=1_048_576,
    precision=Precision(dtype="bfloat16"),
    vision=VisionShape(
        hidden_size=1280,
        layers=32,
        intermediate_size=5120,
        projector_size=6144,
        patch_elements=3 * 2 * 14 * 14,
        merged_patches=4,
    ),
)

RELEASES: Final[Mapping[Release, ModelShape]] = MappingProxyType(
    {
        "MiniMax-M3": _M3,
        "MiniMax-M3-MXFP8": replace(_M3, precision=Precision(dtype="bfloat16", experts="mxfp8", matrices="mxfp8")),
        "MiniMax-M3-NVFP4": replace(_M3, precision=Precision(dtype="bfloat16", experts="nvfp4")),
        # Sparse attention in every layer, experts in NVFP4 and the other matrices in MXFP8: 250.1 GB, as published.
        "MiniMax-M3.1-Flash": replace(
            _M3, sparse_layers=60, precision=Precision(dtype="bfloat16", experts="nvfp4", matrices="mxfp8")
        ),
    }
)

PACKAGED: Final = ModelShape(
    vocab_size=2048,
    hidden_size=128,
    heads=4,
    kv_heads=2,
    head_dim=32,
    index_dim=32,
    layers=4,
    sparse_layers=3,
    moe_layers=3,
    experts=8,
    expert_intermediate_size=64,
    shared_intermediate_size=64,
    dense_intermediate_size=256,
    page_tokens=32,
    max_context_tokens=8192,
    precision=Precision(dtype="bfloat16"),
    vision=VisionShape(
        hidden_size=48,
        layers=2,
        intermediate_size=96,
        projector_size=128,
        patch_elements=3 * 2 * 14 * 14,
        merged_patches=4,
    ),
)
"""The trained tiny model that is part of the worker."""

_TINY_VOCABULARY: Final = 270
"""256 bytes and the tokens of M3's chat form, of every random tiny model."""


def tiny_shape(source: TinySource) -> ModelShape:
    """The random model that a worker writes for this source."""
    sparse = source.layers - source.dense_layers
    vision = VisionShape(
        hidden_size=40,
        layers=2,
        intermediate_size=80,
        projector_size=source.hidden,
        patch_elements=3 * 2 * 14 * 14,
        merged_patches=4,
    )
    return ModelShape(
        vocab_size=_TINY_VOCABULARY,
        hidden_size=source.hidden,
        heads=source.heads,
        kv_heads=source.kv_heads,
        head_dim=source.head_dim,
        index_dim=source.index_dim,
        layers=source.layers,
        sparse_layers=sparse,
        moe_layers=sparse,
        experts=source.experts,
        expert_intermediate_size=source.intermediate,
        shared_intermediate_size=source.intermediate,
        dense_intermediate_size=2 * source.intermediate,
        page_tokens=source.block,
        max_context_tokens=source.context,
        precision=Precision(dtype=source.dtype),
        vision=vision if source.vision else None,
    )
