"""M3's eyes: patches of an image or a video in, embeddings that take the place of placeholder tokens out.

Owns the weights of the vision tower, the projector and the patch merge, and the way through them. Knows no file
(weights come from `checkpoint`), no request and no image format: patches are made by `media.processor`.

    patches -> patch embedding -> norm -> layers of x += attention(norm(x)); x += mlp(norm(x))
            -> projector, patch by patch -> merge of merge_size x merge_size neighbours into one embedding

Symbols: N patches, t x h x w of them in a segment; C the tower's width, H heads of D dimensions, E the text model's.
Source: reference of the released model (`model_type: minimax_m3_vl`). There is no norm after the last layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from m3_worker.model.vision_config import VisionConfig

# Mean and deviation of the colours in CLIP's training images, which M3's tower expects; of values from 0 to 1.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)

Grid = tuple[int, int, int]
"""Patches in time, height and width."""


@dataclass(frozen=True)
class Affine:
    """A matrix or a norm's scale, with its bias."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class VisionLayer:
    """Weights of one layer of the tower."""

    attention_norm: Affine
    qkv: Affine
    """[3C, C]: queries, keys, values."""
    output: Affine
    mlp_norm: Affine
    mlp_in: Affine
    mlp_out: Affine


@dataclass(frozen=True)
class VisionWeights:
    """All weights between patches and embeddings."""

    patch_embedding: Tensor
    """[C, 3, temporal_patch_size, patch_size, patch_size] fp32, as released."""
    pre_norm: Affine
    layers: tuple[VisionLayer, ...]
    projector: tuple[Affine, Affine]
    """[P, C] and [E, P]"""
    merge: tuple[Affine, Affine]
    """[P, merge_size^2 * E] and [E, P]"""

    @classmethod
    def allocate(
        cls, config: VisionConfig, text_size: int, dtype: torch.dtype, device: torch.device | str
    ) -> "VisionWeights":
        """Uninitialised weights of the right shapes. On the device "meta" they take no memory."""

        def affine(*shape: int) -> Affine:
            return Affine(
                torch.empty(shape, dtype=dtype, device=device), torch.empty(shape[0], dtype=dtype, device=device)
            )

        def layer() -> VisionLayer:
            return VisionLayer(
                attention_norm=affine(size),
                qkv=affine(3 * size, size),
                output=affine(size, size),
                mlp_norm=affine(size),
                mlp_in=affine(config.intermediate_size, size),
                mlp_out=affine(size, config.intermediate_size),
            )

        size, inner = config.hidden_size, config.projector_size
        patch = (size, 3, config.temporal_patch_size, config.patch_size, config.patch_size)
        return cls(
            patch_embedding=torch.empty(patch, dtype=torch.float32, device=device),
            pre_norm=affine(size),
            layers=tuple(layer() for _ in range(config.layers)),
            projector=(affine(inner, size), affine(text_size, inner)),
            merge=(affine(inner, text_size * config.merge_size**2), affine(text_size, inner)),
        )


class VisionTower:
    """Tower, projector and merge on one device."""

    def __init__(self, config: VisionConfig, weights: VisionWeights) -> None:
        self.config = config
        self.weights = weights

    @torch.inference_mode()
    def embed(self, patches: Tensor, grid: Grid) -> Tensor:
        """Embeddings of one image or video, in the order of its placeholder tokens.

        patches: [t * h * w, 3, temporal_patch_size, patch_size, patch_size] u8 on any device: time first, then squares
        of merge_size x merge_size patches by rows, then the patches of a square by rows. Returns [t * h * w /
        merge_size^2, E] in the tower's dtype and on its device.
        A video is seen in segments of up to `segment_patches` temporal patches: its parts in different segments do not
        attend to each other, and time starts at 0 in each.
        """
        time, height, width = grid
        size = self.config.segment_patches
        segments = torch.split(patches.to(self.weights.patch_embedding.device), size * height * width)
        lengths = (min(size, time - start) for start in range(0, time, size))
        return torch.cat(
            [self._segment(part, (length, height, width)) for part, length in zip(segments, lengths, strict=True)]
        )

    def _segment(self, patches: Tensor, grid: Grid) -> Tensor:
        weights = self.weights
        x = linear(normalised(patches).flatten(1), weights.patch_embedding.flatten(1))  # [N, C]
        x = self._norm(x.to(weights.pre_norm.weight.dtype), weights.pre_norm)
        cos, sin = rotary_3d(grid, self.config, x.device)
        for layer in weights.layers:
            x = x + self._attention(self._norm(x, layer.attention_norm), layer, cos, sin)
            x = x + _mlp(self._norm(x, layer.mlp_norm), layer.mlp_in, layer.mlp_out)
        x = _mlp(x, *weights.projector)  # [N, E]
        return _mlp(x.view(x.shape[0] // self.config.merge_size**2, -1), *weights.merge)

    def _attention(self, x: Tensor, layer: VisionLayer, cos: Tensor, sin: Tensor) -> Tensor:
        """Every patch of the segment attends to every other."""
        qkv = linear(x, layer.qkv.weight, layer.qkv.bias)
        q, k, v = qkv.view(x.shape[0], 3, self.config.heads, self.config.head_dim).permute(1, 2, 0, 3)  # [H, N, D]
        attended = scaled_dot_product_attention(_rotate(q, cos, sin)[None], _rotate(k, cos, sin)[None], v[None])[0]
        return linear(attended.transpose(0, 1).flatten(1), layer.output.weight, layer.output.bias)

    def _norm(self, x: Tensor, norm: Affine) -> Tensor:
        return layer_norm(x, norm.bias.shape, norm.weight, norm.bias, self.config.norm_eps)


def normalised(patches: Tensor) -> Tensor:
    """Bytes of colour, [N, 3, ...] u8, as the tower expects them: fp32, each channel of mean 0 and deviation 1."""
    shape = (1, 3) + (1,) * (patches.dim() - 2)
    mean = torch.tensor(_MEAN, device=patches.device).mul_(255).view(shape)
    std = torch.tensor(_STD, device=patches.device).mul_(255).view(shape)
    return (patches.float() - mean) / std


def rotary_3d(grid: Grid, config: VisionConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of a segment's patches, each [N, 3 * axis_dim] fp32, in the order of the patches.

    A third of the rotated dimensions turns with the patch's place in time, a third with its row, a third with its
    column; frequencies are the same for all three. The halves of the rotated part are rotated with each other.
    """
    time, height, width = (torch.arange(size, device=device) for size in grid)
    merge = config.merge_size
    places = torch.stack(torch.meshgrid(time, height, width, indexing="ij"), dim=-1)  # [t, h, w, 3]
    squares = places.view(grid[0], grid[1] // merge, merge, grid[2] // merge, merge, 3).transpose(2, 3)
    exponents = torch.arange(0, config.axis_dim, 2, device=device).float() / config.axis_dim
    angles = squares.reshape(-1, 3, 1).float() / config.rope_theta**exponents  # [N, 3, axis_dim / 2]
    angles = angles.flatten(1).repeat(1, 2)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [H, N, D], of which the first cos.shape[1] dimensions turn."""
    turning, still = torch.split(x, [cos.shape[1], x.shape[2] - cos.shape[1]], dim=-1)
    first, second = turning.chunk(2, dim=-1)
    turned = turning * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned.to(x.dtype), still), dim=-1)


def _mlp(x: Tensor, first: Affine, second: Affine) -> Tensor:
    return linear(gelu(linear(x, first.weight, first.bias)), second.weight, second.bias)
