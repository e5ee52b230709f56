"""The shape of a model, as far as memory depends on it: widths, counts, and the precision of its matrices.

Owns these values and nothing else: `weights` and `group` do the arithmetic; `releases`, `checkpoint_config` and
`assessment` know where a shape comes from. Where its sizes agree with the worker's own, a test holds them together.
"""

from dataclasses import dataclass
from typing import Final, Literal

DType = Literal["float32", "bfloat16", "float16"]
Format = Literal["plain", "mxfp8", "nvfp4"]
"""How a matrix is stored: as plain floats, or in blocks that share a scale."""

ITEM_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """A vision tower with its projector and patch merge."""

    hidden_size: int
    layers: int
    intermediate_size: int
    projector_size: int
    patch_elements: int
    """Numbers of one patch: channels x frames x height x width."""
    merged_patches: int
    """Patches that become one token."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """In what a checkpoint holds its weights."""

    dtype: DType
    """Of everything that is not quantised."""
    experts: Format = "plain"
    """Of the routed experts' matrices."""
    matrices: Format = "plain"
    """Of the other matrices that may be quantised: attention, dense MLPs, shared experts."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """One M3 model. Layers are counted by what they have: sparse attention, and a mixture of experts."""

    vocab_size: int
    hidden_size: int
    heads: int
    kv_heads: int
    """Which is also the number of index heads."""
    head_dim: int
    index_dim: int
    layers: int
    sparse_layers: int
    moe_layers: int
    experts: int
    expert_intermediate_size: int
    shared_intermediate_size: int
    dense_intermediate_size: int
    """0 where no layer has a dense MLP."""
    page_tokens: int
    """Tokens of a page of the cache, which is one block of sparse attention."""
    max_context_tokens: int
    """For which the model was made."""
    precision: Precision
    vision: VisionShape | None = None
