"""The memory that outlives a step, and the tensors of one step.

Owns the layout of the paged cache (`PagedCache`) and of what the model is given to run (`StepTensors`). Which page
belongs to whom is `pages`' business, filling `StepTensors` is `runner`'s: here are shapes only.
Keys, values and index keys of a page live and die together; index keys have a pool of their own, because only sparse
layers have them and because reading them is what long contexts cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from m3_kernels.layout import LayerPages
from m3_worker.model.config import ModelConfig


@dataclass(frozen=True)
class MediaRows:
    """Tokens of a step that stand for a part of an image or a video, and what they are embedded as."""

    rows: Tensor
    """[M] i64: the tokens (0 .. T - 1)."""
    embeddings: Tensor
    """[M, C], of the vision tower."""


@dataclass(frozen=True)
class StepTensors:
    """One step: T new tokens of S sequences, one sequence after another, without padding.

    Sequence s owns the tokens query_starts[s] .. query_starts[s + 1] - 1, which are its newest: positions end at
    context_lengths[s] - 1. All tensors lie on the model's device.
    """

    token_ids: Tensor
    """[T] i64"""
    positions: Tensor
    """[T] i64, absolute: each token's place in its own sequence, from 0."""
    query_starts: Sequence[int]
    """[S + 1], on the host."""
    context_lengths: Sequence[int]
    """[S], on the host: tokens of each sequence after this step."""
    page_table: Tensor
    """[S, longest sequence's pages or more] i64 page ids; what lies beyond a sequence's last page is not read."""
    slot_mapping: Tensor
    """[T] i64: page * page_tokens + offset, where each token's key, value and index key are written."""
    logit_rows: Tensor
    """[R] i64: the tokens (0 .. T - 1) whose logits are wanted."""
    media: tuple[MediaRows, ...] = ()
    """Placeholders among the tokens; no token is in two of them."""


@dataclass(frozen=True)
class PagedCache:
    """Keys and values of all layers, index keys of the sparse ones. Its content changes in every step."""

    k: Tensor
    """[layers, pages, page_tokens, kv_heads, head_dim]"""
    v: Tensor
    """[layers, pages, page_tokens, kv_heads, head_dim]"""
    index_k: Tensor
    """[sparse layers, pages, page_tokens, index_dim]"""
    sparse_layers: tuple[bool, ...]

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        pages: int,
        dtype: torch.dtype,
        device: torch.device | str,
        index_dtype: torch.dtype | None = None,
    ) -> "PagedCache":
        """Room for `pages` pages, zeroed; index keys in `index_dtype`, or as the rest.

        Raises ValueError if pages < 1, torch's error if the device is full.
        """
        if pages < 1:
            raise ValueError(f"pages is {pages}: a cache needs at least one")
        kv_shape = (config.layers, pages, config.page_tokens, config.kv_heads, config.head_dim)
        index_shape = (sum(config.sparse_layers), pages, config.page_tokens, config.index_dim)
        return cls(
            k=torch.zeros(kv_shape, dtype=dtype, device=device),
            v=torch.zeros(kv_shape, dtype=dtype, device=device),
            index_k=torch.zeros(index_shape, dtype=index_dtype or dtype, device=device),
            sparse_layers=config.sparse_layers,
        )

    @staticmethod
    def bytes_per_token(config: ModelConfig, dtype: torch.dtype, index_dtype: torch.dtype | None = None) -> int:
        """Bytes one token takes in all layers: 137,472 for the released M3 in bfloat16, 68,736 in FP8."""
        kv_bytes = 2 * config.layers * config.kv_heads * config.head_dim * dtype.itemsize
        return kv_bytes + sum(config.sparse_layers) * config.index_dim * (index_dtype or dtype).itemsize

    @property
    def pages(self) -> int:
        return self.k.shape[1]

    def layer(self, layer: int) -> LayerPages:
        """Views of one layer's pages; writing to them writes to the cache."""
        if not self.sparse_layers[layer]:
            return LayerPages(self.k[layer], self.v[layer])
        return LayerPages(self.k[layer], self.v[layer], self.index_k[sum(self.sparse_layers[:layer])])
