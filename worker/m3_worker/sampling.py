"""The next token of each sequence, from the logits of its last one.

Owns the order of things, which is the field's: what is reported is of the model's own logits; then masks (grammar, stop
tokens that come too early), bias and penalties bend them; then temperature, min-p, top-k, and top-p of what is left.
Each drawn token takes exactly one number from its sequence's own generator, and a row is worked out from nothing but
itself, so that a seed means the same tokens whatever else is in the batch (up to rounding of the logits themselves).
"""

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from m3_worker.grammar import Mask, Matcher, allows_only, masks
from m3_worker.penalties import penalise
from m3_worker.request import SampledToken, SamplingParameters, Sequence

_BANNING_BIAS = 100.0
_BAN = 1e4
"""What a bias of 100 adds: more than any two logits differ by, and finite, so that what a grammar forbids stays so."""


def sample(logits: Tensor, sequences: SequenceOf[Sequence]) -> list[SampledToken]:
    """Choose one token for each row.

    logits: [R, vocabulary] fp32, changed in place; sequences: the R sequences that the rows belong to.
    Effect: advances generators, matchers and counts of sequences that are not plain.
    """
    if not sequences:
        return []
    wishes = [(row, sequence) for row, sequence in enumerate(sequences) if not sequence.request.sampling.is_plain]
    if not wishes:
        return [SampledToken(token) for token in logits.argmax(dim=-1).tolist()]
    reported = _LogProbabilities.of(logits, wishes)
    _mask(logits, wishes)
    _add_bias(logits, wishes)
    penalise(logits, wishes)
    tokens = logits.argmax(dim=-1)
    drawn = [(row, sequence) for row, sequence in wishes if sequence.request.sampling.temperature > 0]
    if drawn:
        rows = torch.tensor([row for row, _ in drawn], device=logits.device)
        parameters = [sequence.request.sampling for _, sequence in drawn]
        tokens[rows] = draw(logits[rows], parameters, [sequence.generator.random() for _, sequence in drawn])
    chosen = tokens.tolist()
    sampled = reported.beside(chosen) if reported else [SampledToken(token) for token in chosen]
    for row, sequence in wishes:
        if sequence.matcher is not None:
            sampled[row] = _accepted(sampled[row], sequence.matcher)
    return sampled


def draw(logits: Tensor, parameters: SequenceOf[SamplingParameters], uniforms: SequenceOf[float]) -> Tensor:
    """Draw one token per row by inverting its cumulative distribution, most likely token first, of equals the lower id.

    logits: [R, vocabulary] fp32; uniforms: R numbers in [0, 1). Temperatures must be above 0. Returns [R] i64.
    min_p keeps tokens at least that share as likely as the most likely one; of top_p, the least set of tokens whose
    probability reaches it is kept: the most likely one always is. What is drawn in a row depends on that row alone.
    """
    vocabulary = logits.shape[-1]
    limits = [min(one.top_k or vocabulary, vocabulary) for one in parameters]
    token_ids = _ranking(logits, max(limits))
    best = logits.gather(-1, token_ids)  # [R, K], descending
    temperatures = _column([one.temperature for one in parameters], best)
    scaled = ((best - best[:, :1]) / temperatures).double()  # at most 0, so that no temperature overflows
    ranks = torch.arange(best.shape[-1], device=logits.device)
    scaled.masked_fill_(ranks >= _column(limits, ranks), -torch.inf)
    weights = scaled.exp_()  # the best one's is 1, so these are ratios of probabilities
    weights.masked_fill_(weights < _column([one.min_p for one in parameters], weights), 0)
    # Sums run along a row from its best token on: zeros behind its own limit, which others need not have, change none.
    cumulative = weights.cumsum(dim=-1)
    before = cumulative - weights
    reached = before >= _column([one.top_p for one in parameters], weights) * cumulative[:, -1:]
    weights.masked_fill_(reached & (ranks > 0), 0)
    cumulative = weights.cumsum(dim=-1)
    targets = _column(uniforms, weights) * cumulative[:, -1:]
    ranks_drawn = torch.searchsorted(cumulative, targets, right=True)
    last_kept = (weights > 0).sum(dim=-1, keepdim=True) - 1  # rounding may carry a target to the very end
    return token_ids.gather(-1, torch.minimum(ranks_drawn, last_kept)).squeeze(-1)


def _ranking(logits: Tensor, count: int) -> Tensor:
    """[R, count] i64: ids of each row's largest logits, descending, of equals the lower id first.

    `topk` alone leaves the order of equals open, and decides by sizes of the batch: bf16 logits have many equals. So
    each gets a key of its own: an integer that is ordered as its logit is, and its id.
    """
    bits = logits.contiguous().view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    last = logits.shape[-1] - 1
    ids = torch.arange(last, -1, -1, device=logits.device)
    keys = (ordered << 32) | ids
    return last - (keys.topk(count, dim=-1).values & 0xFFFFFFFF)


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
    def of(cls, logits: Tensor, wishes: list[tuple[int, Sequence]]) -> "_LogProbabilities | None":
        """None if nobody wants any."""
        asked = ((row, sequence.request.sampling.logprobs) for row, sequence in wishes)
        wanted = {row: count for row, count in asked if count is not None}
        return cls(logits, wanted) if wanted else None

    def beside(self, chosen: list[int]) -> list[SampledToken]:
        """The chosen tokens, each with what its row wants to know."""
        places = torch.tensor([chosen[row] for row in self._wanted], device=self._all.device)
        values = self._all.gather(-1, places.unsqueeze(-1)).squeeze(-1).tolist()
        tokens = [SampledToken(token) for token in chosen]
        for row, place in self._rows.items():
            tokens[row] = SampledToken(chosen[row], values[place], tuple(self._best[place][: self._wanted[row]]))
        return tokens


def _mask(logits: Tensor, wishes: list[tuple[int, Sequence]]) -> None:
    """Forbid what grammars do not allow, and stop tokens before min_tokens: unless a grammar leaves nothing else."""
    bound: list[tuple[int, Matcher]] = [(row, one.matcher) for row, one in wishes if one.matcher is not None]
    allowed: dict[int, Mask] = {}
    if bound:
        rows = [row for row, _ in bound]
        mask = masks([matcher for _, matcher in bound])
        allowed = dict(zip(rows, mask, strict=True))
        words = torch.from_numpy(mask).to(logits.device).unsqueeze(-1)
        bits = (words >> torch.arange(32, dtype=torch.int32, device=logits.device)) & 1  # [R, words, 32]
        is_forbidden = bits.flatten(1)[:, : logits.shape[-1]] == 0
        logits[rows] = logits[rows].masked_fill(is_forbidden, -torch.inf)
    for row, sequence in wishes:
        sampling = sequence.request.sampling
        if sequence.generated_tokens < sampling.min_tokens and sampling.stop_token_ids:
            must_stop = row in allowed and allows_only(allowed[row], sampling.stop_token_ids)
            if not must_stop:
                logits[row, list(sampling.stop_token_ids)] = -torch.inf


def _add_bias(logits: Tensor, wishes: list[tuple[int, Sequence]]) -> None:
    """Source: OpenAI's `logit_bias`, of which -100 and 100 forbid a token and allow no other."""
    rows, token_ids, values = [], [], []
    for row, sequence in wishes:
        for token_id, value in sequence.request.sampling.logit_bias:
            rows.append(row)
            token_ids.append(token_id)
            values.append(value if abs(value) < _BANNING_BIAS else _BAN * value / _BANNING_BIAS)
    if rows:
        logits.index_put_(
            (torch.tensor(rows, device=logits.device), torch.tensor(token_ids, device=logits.device)),
            torch.tensor(values, dtype=logits.dtype, device=logits.device),
            accumulate=True,
        )


def _accepted(token: SampledToken, matcher: Matcher) -> SampledToken:
    """The token, after its matcher took it; or why there is none."""
    if matcher.failure is None and matcher.accept(token.token_id):
        return token
    return SampledToken(token.token_id, failure=matcher.failure)


def _column(values: SequenceOf[float], like: Tensor) -> Tensor:
    """[R, 1], in the type and on the device of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(-1)
