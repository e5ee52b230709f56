"""Penalties for tokens that occurred already: repetition, frequency and presence.

Owns the counts behind them. They are kept for each sequence on the device, and only what a sequence gained since its
last step is added, so that a long prompt is counted once. Sources: vLLM's SamplingParams (repetition over prompt and
output, after arXiv 1909.05858, with negative logits multiplied) and OpenAI's API reference (frequency and presence,
over the output).
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from m3_worker.request import Sequence


class _Occurrences:
    """How often each token occurred in one sequence, as far as its penalties ask."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.in_output = torch.zeros(vocab_size, dtype=torch.int32, device=device)
        self.anywhere = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self._counted = 0

    def catch_up(self, sequence: Sequence) -> "_Occurrences":
        """Count the tokens that are new."""
        start, self._counted = self._counted, sequence.total_tokens
        new = torch.from_numpy(np.array(sequence.token_ids[start:], dtype=np.int64)).to(self.anywhere.device)
        self.anywhere[new] = True
        output = new[max(sequence.prompt_tokens - start, 0) :]
        self.in_output.index_add_(0, output, torch.ones_like(output, dtype=torch.int32))
        return self


def penalise(logits: Tensor, sequences: Iterable[tuple[int, Sequence]]) -> None:
    """Bend the logits of sequences that ask for penalties, in place.

    logits: [R, vocabulary] fp32; sequences: (row, sequence), any of R. First repetition r, for tokens of prompt and
    output: l / r if l > 0, else l * r. Then frequency f and presence p, for a token n times in the output:
    l - f * n - p * (n > 0).
    """
    repeating, counting = [], []
    for row, sequence in sequences:
        wanted = sequence.request.sampling
        counts = wanted.frequency_penalty != 0 or wanted.presence_penalty != 0
        if counts or wanted.repetition_penalty != 1:
            known = _occurrences(sequence, logits)
            if wanted.repetition_penalty != 1:
                repeating.append((row, known.anywhere, wanted.repetition_penalty))
            if counts:
                counting.append((row, known.in_output, (wanted.frequency_penalty, wanted.presence_penalty)))
    if repeating:
        rows, occurred, factors = zip(*repeating, strict=True)
        old = logits[list(rows)]
        factor = torch.tensor(factors, device=logits.device).unsqueeze(-1)
        logits[list(rows)] = torch.where(torch.stack(occurred), torch.where(old > 0, old / factor, old * factor), old)
    if counting:
        rows, counts_of, costs = zip(*counting, strict=True)
        frequency, presence = torch.tensor(costs, device=logits.device).T.unsqueeze(-1)
        times = torch.stack(counts_of)
        logits[list(rows)] -= frequency * times + presence * (times > 0)


def _occurrences(sequence: Sequence, logits: Tensor) -> _Occurrences:
    known = sequence.occurrences
    if not isinstance(known, _Occurrences):
        known = sequence.occurrences = _Occurrences(logits.shape[-1], logits.device)
    return known.catch_up(sequence)
