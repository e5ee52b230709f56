"""Penalties for tokens that occurred already: repetition, frequency and presence.

Owns the counts behind them: for each sequence the distinct tokens that occurred, and how often. Only what it gained
since its last step is counted, and only logits of tokens that occurred are touched, so that a step costs what the texts
hold and not what the vocabulary does. Sources: vLLM's SamplingParams (repetition over prompt and output, after arXiv
1909.05858, with negative logits multiplied) and OpenAI's API reference (frequency and presence, over the output).
"""

from array import array
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from m3_worker.scheduling.request import Sequence


class _Occurrences:
    """Distinct tokens of one sequence, as far as its penalties ask, and how often each is in its output."""

    def __init__(self, start: int) -> None:
        """start: number of tokens at the beginning that do not count."""
        self.token_ids = array("q")
        self.times = array("q")
        self._places: dict[int, int] = {}
        self._counted = start

    def catch_up(self, sequence: Sequence) -> "_Occurrences":
        """Count the tokens that are new."""
        prompt_tokens = sequence.prompt_tokens
        for position in range(self._counted, sequence.total_tokens):
            token_id = sequence.token_ids[position]
            place = self._places.setdefault(token_id, len(self.token_ids))
            if place == len(self.token_ids):
                self.token_ids.append(token_id)
                self.times.append(0)
            self.times[place] += position >= prompt_tokens
        self._counted = sequence.total_tokens
        return self


def penalise(logits: Tensor, sequences: Iterable[tuple[int, Sequence]]) -> None:
    """Bend the logits of sequences that ask for penalties, in place.

    logits: [R, vocabulary] fp32; sequences: (row, sequence), any of R. First repetition r, for tokens of prompt and
    output: l / r if l > 0, else l * r. Then frequency f and presence p, for a token n times in the output:
    l - f * n - p * (n > 0).
    """
    bent = [(row, _occurrences(sequence), sequence.sampling) for row, sequence in sequences if _asks(sequence)]
    if not bent:
        return
    lengths = [len(known.token_ids) for _, known, _ in bent]
    entries = np.stack(
        [
            np.repeat([row for row, _, _ in bent], lengths),
            np.repeat(np.arange(len(bent)), lengths),
            np.concatenate([np.frombuffer(known.token_ids, dtype=np.int64) for _, known, _ in bent]),
            np.concatenate([np.frombuffer(known.times, dtype=np.int64) for _, known, _ in bent]),
        ]
    )
    rows, places, token_ids, times = torch.from_numpy(entries).to(logits.device)
    wanted = [(one.repetition_penalty, one.frequency_penalty, one.presence_penalty) for _, _, one in bent]
    repetition, frequency, presence = torch.tensor(wanted, dtype=logits.dtype, device=logits.device)[places].T
    old = logits[rows, token_ids]
    repeated = torch.where(old > 0, old / repetition, old * repetition)
    logits[rows, token_ids] = repeated - frequency * times - presence * (times > 0)


def _asks(sequence: Sequence) -> bool:
    wanted = sequence.sampling
    if wanted.is_plain:
        return False
    return wanted.repetition_penalty != 1 or wanted.frequency_penalty != 0 or wanted.presence_penalty != 0


def _occurrences(sequence: Sequence) -> _Occurrences:
    known = sequence.occurrences
    if not isinstance(known, _Occurrences):
        needs_prompt = sequence.sampling.repetition_penalty != 1
        known = sequence.occurrences = _Occurrences(0 if needs_prompt else sequence.prompt_tokens)
    return known.catch_up(sequence)
