"""Muon, for the matrices inside of layers; embeddings, head, norms and biases are left to AdamW.

Muon replaces a matrix's momentum by the nearest orthogonal one, so that every direction learns equally fast; on models
of this size it needs about half of AdamW's steps. Source: K. Jordan et al., "Muon", 2024 (Newton-Schulz coefficients).
Matrices of one shape are taken together, as stacked experts are: one product of a batch costs less than many products.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised. Parameters are [M, N] or [E, M, N]; all of them need gradients."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape[-2:]].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                updates = orthogonal(torch.cat([self._direction(one, group["momentum"]) for one in parameters]))
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                counts = [one.numel() // (rows * columns) for one in parameters]
                for one, update in zip(parameters, updates.split(counts), strict=True):
                    one.add_(update.view_as(one), alpha=-rate)

    def _direction(self, parameter: Tensor, momentum: float) -> Tensor:
        """[E, M, N]: the gradient led by its momentum, which is updated."""
        if parameter.grad is None:
            raise ValueError("a parameter without a gradient has no direction")
        average = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        average.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(average, momentum).reshape(-1, *parameter.shape[-2:])


def orthogonal(matrices: Tensor) -> Tensor:
    """[E, M, N] to about the nearest matrices whose singular values are all one."""
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
