"""Weights in MXFP8: e4m3 values with one power of two for every 32 of them along a row.

Owns the format, as the released checkpoint stores it, and its arithmetic: `dequantised` is what a weight means. Weights
stay in this form in memory; whoever multiplies by them dequantises what it needs, a tile at a time, and drops it. That
is 33 bits for 4 values, against 64 in bfloat16. The products are exact in the weights: activations are not
quantised, as they are where the hardware multiplies FP8.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import linear as plain_linear

BLOCK = 32
"""Values that share a scale."""
_BIAS = 127
_TILE_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Mxfp8:
    """A matrix, or a stack of them, of shape [..., N, K]."""

    values: Tensor
    """[..., N, K] float8_e4m3fn"""
    scales: Tensor
    """[..., N, K / 32] u8: s stands for 2^(s - 127)."""

    @classmethod
    def empty(cls, shape: Sequence[int], device: torch.device | str) -> "Mxfp8":
        """Uninitialised. Raises ValueError unless the last dimension is a multiple of 32."""
        if shape[-1] % BLOCK:
            raise ValueError(f"a row of {shape[-1]} values has no whole blocks of {BLOCK}")
        return cls(
            torch.empty(shape, dtype=torch.float8_e4m3fn, device=device),
            torch.empty((*shape[:-1], shape[-1] // BLOCK), dtype=torch.uint8, device=device),
        )

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int | slice) -> "Mxfp8":
        """Of the first dimension."""
        return Mxfp8(self.values[index], self.scales[index])

    def __iter__(self) -> Iterator["Mxfp8"]:
        return (self[index] for index in range(len(self)))

    def split(self, rows: Sequence[int]) -> list["Mxfp8"]:
        """Parts of the first dimension, of so many rows each."""
        ends = list(accumulate(rows))
        return [self[end - count : end] for count, end in zip(rows, ends, strict=True)]

    def copy_(self, other: "Mxfp8") -> "Mxfp8":
        """Take over the bytes of another of the same shape."""
        self.values.view(torch.uint8).copy_(other.values.view(torch.uint8))
        self.scales.copy_(other.scales.view(torch.uint8))
        return self

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[..., N, K] in `dtype`; exact in fp32, and in bfloat16 within its range."""
        blocks = self.values.to(torch.float32).view(*self.scales.shape, BLOCK)
        powers = self.scales.view(torch.float8_e8m0fnu).to(torch.float32)
        return blocks.mul_(powers[..., None]).view(self.shape).to(dtype)


Weight = Tensor | Mxfp8


def parts(weight: Weight) -> tuple[Tensor, ...]:
    """The tensors that a weight lies in, each with the weight's first dimensions: for moving it as it is."""
    return (weight,) if isinstance(weight, Tensor) else (weight.values, weight.scales)


def quantise(weight: Tensor) -> Mxfp8:
    """The nearest values, with the scale of each block the power of two that brings its largest value into range.

    weight: [..., N, K] of any float type. Source of the rule: the OCP MX specification 1.0, section 6.3.
    """
    blocks = weight.float().reshape(*weight.shape[:-1], -1, BLOCK)
    largest = blocks.abs().amax(-1)
    exponents = torch.floor(torch.log2(largest.clamp(min=2.0**-_BIAS))) - 8  # 2^8 is the largest power in e4m3
    exponents = exponents.clamp(-_BIAS, _BIAS)
    scaled = blocks * torch.exp2(-exponents)[..., None]
    values = scaled.clamp(-448.0, 448.0).view(weight.shape).to(torch.float8_e4m3fn)
    return Mxfp8(values, (exponents + _BIAS).to(torch.uint8))


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [..., K] times the transpose of weight [N, K], to [..., N] in x's dtype; a tile of its rows at a time."""
    if isinstance(weight, Tensor):
        return plain_linear(x, weight)
    rows, width = weight.shape
    step = max(1, _TILE_ELEMENTS // width)
    tiles = (weight[row : row + step].dequantised(x.dtype) for row in range(0, rows, step))
    return torch.cat([plain_linear(x, tile) for tile in tiles], -1)
