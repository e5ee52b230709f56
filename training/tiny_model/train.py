"""The schedule of the training, and its loop.

Three steps of four take rows of 256 tokens, which is what a query may see; the fourth takes rows of 512. Attention is
dense at first, while the index branches learn where it goes; later it keeps to the blocks that they choose. The number
of steps is fixed and not the time, so that a seed gives one result on one machine.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tiny_model.muon import Muon
from tiny_model.network import Network
from tiny_model.rows import Batch, Rows

REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class Schedule:
    """Steps, and what one is made of."""

    steps: int = 1000
    sparse_share: float = 0.6
    warm_up_steps: int = 20
    cool_down_share: float = 0.6
    batch_tokens: int = 2048
    short_tokens: int = 256
    long_tokens: int = 512
    long_every: int = 4
    index_every: int = 6
    index_weight: float = 0.3
    muon_rate: float = 0.02
    adam_rate: float = 0.004
    norm_limit: float = 1.0
    bias_step: float = 0.01
    """How far the bias of an expert moves in a step, of scores between 0 and 1."""

    def rate(self, step: int) -> float:
        """Share of the learning rates: up, level, then down to nearly nothing."""
        left = (self.steps - step) / (self.steps * self.cool_down_share)
        return min((step + 1) / self.warm_up_steps, 1.0, left)

    def is_sparse(self, step: int) -> bool:
        return step >= self.steps * (1 - self.sparse_share)

    def row_tokens(self, step: int) -> int:
        return self.short_tokens if step % self.long_every else self.long_tokens


def train(network: Network, rows: Rows, schedule: Schedule, say: Callable[[str], None]) -> None:
    """Run all steps; `say` gets a line every few seconds."""
    optimizers = _optimizers(network, schedule)
    begun = said = time.monotonic()
    spent = time.process_time()
    seen = 0
    for step in range(schedule.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["full_rate"] * schedule.rate(step)
        network.is_sparse = schedule.is_sparse(step)
        network.teaches_index = step % schedule.index_every == 0
        tokens = schedule.row_tokens(step)
        batch = rows.batch(schedule.batch_tokens // tokens, tokens)
        loss, index_loss = _step(network, batch, optimizers, schedule)
        load = network.balance(schedule.bias_step * schedule.rate(step))
        seen += batch.ids.numel()
        if time.monotonic() - said > REPORT_SECONDS or step + 1 == schedule.steps:
            said = time.monotonic()
            say(
                f"step {step + 1}/{schedule.steps}  {said - begun:.0f} s ({time.process_time() - spent:.0f} s CPU)  "
                f"{seen / 1e6:.2f} M tokens  loss {loss:.3f}  index {index_loss:.3f}  highest expert load {load:.2f}"
                f"{'  sparse' if network.is_sparse else ''}"
            )


def _step(
    network: Network, batch: Batch, optimizers: list[torch.optim.Optimizer], schedule: Schedule
) -> tuple[float, float]:
    """One update. Returns the mean loss of what the model has to say, and that of the index branches."""
    hidden = network.hidden(batch.ids, batch.pixels, batch.grids)
    weights = batch.weights[:, 1:]
    counted = weights > 0
    logits = network.model.lm_head(hidden[:, :-1][counted])
    losses = cross_entropy(logits, batch.ids[:, 1:][counted], reduction="none")
    loss = (losses * weights[counted]).sum() / weights.sum()
    index_loss = network.index_loss()
    (loss + schedule.index_weight * index_loss).backward()
    torch.nn.utils.clip_grad_norm_(network.model.parameters(), schedule.norm_limit)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach()), float(index_loss.detach())


def _optimizers(network: Network, schedule: Schedule) -> list[torch.optim.Optimizer]:
    parameters = list(_named(network))
    matrices = [tensor for name, tensor in parameters if _is_inner_matrix(name, tensor)]
    others = [tensor for name, tensor in parameters if not _is_inner_matrix(name, tensor)]
    optimizers = [
        Muon(matrices, lr=schedule.muon_rate),
        torch.optim.AdamW(others, lr=schedule.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["full_rate"] = group["lr"]
    return optimizers


def _named(network: Network) -> Iterator[tuple[str, Tensor]]:
    return iter(network.model.named_parameters())


def _is_inner_matrix(name: str, tensor: Tensor) -> bool:
    """Matrices between hidden states. The router of the experts is none: its rows are scores of single experts."""
    outer = ("embed_tokens", "lm_head", "gate.weight", "patch_embedding", "embeddings.proj")
    return tensor.dim() in (2, 3) and not any(part in name for part in outer)
