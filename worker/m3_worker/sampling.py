"""The next token of each sequence, from the logits of its last one.

Owns the distribution that is drawn from and what is reported of it. The order is the field's: temperature, then top-k,
then top-p of what is left. Each drawn token takes exactly one number from its sequence's own generator, so that a seed
means the same tokens whatever else is in the batch (up to rounding of the logits themselves).
"""

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from m3_worker.request import SampledToken, SamplingParameters, Sequence


def sample(logits: Tensor, sequences: SequenceOf[Sequence]) -> list[SampledToken]:
    """Choose one token for each row.

    logits: [R, vocabulary] fp32, changed in place; sequences: the R sequences that the rows belong to.
    Effect: advances the generators of sequences that are not greedy.
    """
    if not sequences:
        return []
    reported = _LogProbabilities.of(logits, sequences)
    _forbid_early_stops(logits, sequences)
    tokens = logits.argmax(dim=-1)
    drawn = [row for row, sequence in enumerate(sequences) if sequence.request.sampling.temperature > 0]
    if drawn:
        uniforms = [sequences[row].generator.random() for row in drawn]
        parameters = [sequences[row].request.sampling for row in drawn]
        rows = torch.tensor(drawn, device=logits.device)
        tokens[rows] = draw(logits[rows], parameters, uniforms)
    chosen = tokens.tolist()
    return reported.beside(chosen) if reported else [SampledToken(token) for token in chosen]


def draw(logits: Tensor, parameters: SequenceOf[SamplingParameters], uniforms: SequenceOf[float]) -> Tensor:
    """Draw one token per row by inverting its cumulative distribution, most likely token first.

    logits: [R, vocabulary]; uniforms: R numbers in [0, 1). Temperatures must be above 0. Returns [R] i64.
    The least set of tokens whose probability reaches top_p is kept: the most likely one always is.
    """
    vocabulary = logits.shape[-1]
    limits = [min(one.top_k or vocabulary, vocabulary) for one in parameters]
    best, token_ids = logits.topk(max(limits), dim=-1)  # [R, K], descending
    temperatures = _column([one.temperature for one in parameters], logits)
    scaled = (best - best[:, :1]) / temperatures  # at most 0, so that no temperature overflows
    ranks = torch.arange(best.shape[-1], device=logits.device)
    scaled.masked_fill_(ranks >= _column(limits, ranks), -torch.inf)
    probabilities = scaled.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities *= before < _column([one.top_p for one in parameters], logits)
    cumulative = probabilities.cumsum(dim=-1)
    targets = _column(uniforms, logits) * cumulative[:, -1:]
    ranks_drawn = torch.searchsorted(cumulative, targets, right=True)
    last_kept = (probabilities > 0).sum(dim=-1, keepdim=True) - 1  # rounding may carry a target to the very end
    return token_ids.gather(-1, torch.minimum(ranks_drawn, last_kept)).squeeze(-1)


class _LogProbabilities:
    """Log probabilities of the rows that want them, taken before anything bends the distribution."""

    def __init__(self, logits: Tensor, wanted: dict[int, int]) -> None:
        """wanted: row to number of alternatives."""
        self._rows = {row: place for place, row in enumerate(wanted)}
        self._wanted = wanted
        self._all = logits[torch.tensor(list(wanted), device=logits.device)].log_softmax(dim=-1)
        best, token_ids = self._all.topk(min(max(wanted.values()), logits.shape[-1]), dim=-1)
        self._best: list[list[tuple[int, float]]] = [
            list(zip(ids, values, strict=True)) for ids, values in zip(token_ids.tolist(), best.tolist(), strict=True)
        ]

    @classmethod
    def of(cls, logits: Tensor, sequences: SequenceOf[Sequence]) -> "_LogProbabilities | None":
        """None if nobody wants any."""
        asked = ((row, sequence.request.sampling.logprobs) for row, sequence in enumerate(sequences))
        wanted = {row: count for row, count in asked if count is not None}
        return cls(logits, wanted) if wanted else None

    def beside(self, chosen: list[int]) -> list[SampledToken]:
        """The chosen tokens, each with what its row wants to know."""
        tokens = []
        for row, token in enumerate(chosen):
            place = self._rows.get(row)
            if place is None:
                tokens.append(SampledToken(token))
                continue
            best = tuple(self._best[place][: self._wanted[row]])
            tokens.append(SampledToken(token, self._all[place, token].item(), best))
        return tokens


def _forbid_early_stops(logits: Tensor, sequences: SequenceOf[Sequence]) -> None:
    for row, sequence in enumerate(sequences):
        sampling = sequence.request.sampling
        if sequence.generated_tokens < sampling.min_tokens and sampling.stop_token_ids:
            logits[row, list(sampling.stop_token_ids)] = -torch.inf


def _column(values: SequenceOf[float], like: Tensor) -> Tensor:
    """[R, 1], in the type and on the device of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(-1)
