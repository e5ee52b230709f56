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
from m3_worker.scheduling.request import SampledToken, SamplingParameters, Sequence

_BANNING_BIAS = 100.0
_BAN = 1e4
"""What a bias of 100 adds: more than any two logits differ by, and finite, so that what a grammar forbids stays so."""


def sample(logits: Tensor, sequences: SequenceOf[Sequence]) -> list[SampledToken]:
    """Choose one token for each row.

    logits: [R, vocabulary] fp32, changed in place; sequences: the R sequences that the rows belong to.
    Effect: advances generators, matchers and counts of sequences that are not plain.
    """
    wishes = [(row, sequence) for row, sequence in enumerate(sequences) if not sequence.sampling.is_plain]
    if not wishes:
        return list(map(SampledToken, likeliest(logits)))
    return _sample_as_wished(logits, wishes)


def likeliest(logits: Tensor) -> list[int]:
    """The token of the largest logit in each row of [R, vocabulary] fp32; of equals the lowest."""
    if logits.device.type == "cpu":
        token_ids: list[int] = logits.numpy().argmax(axis=-1).tolist()  # four to ten times as fast as torch's
        return token_ids
    return logits.argmax(dim=-1).tolist()


@torch.inference_mode()
def _sample_as_wished(logits: Tensor, wishes: list[tuple[int, Sequence]]) -> list[SampledToken]:
    """`sample`, where some rows are not plain: `wishes` are these."""
    reported = _LogProbabilities.of(logits, wishes)
    _mask(logits, wishes)
    _add_bias(logits, wishes)
    penalise(logits, wishes)
    chosen = _choose(logits, [(row, one) for row, one in wishes if one.sampling.temperature > 0]).tolist()
    sampled = reported.beside(chosen) if reported else list(map(SampledToken, chosen))
    for row, sequence in wishes:
        if sequence.matcher is not None:
            sampled[row] = _accepted(sampled[row], sequence.matcher)
    return sampled


def _choose(logits: Tensor, drawn: list[tuple[int, Sequence]]) -> Tensor:
    """[R]: a token drawn for some of the rows, the likeliest one for the others."""
    parameters = [sequence.sampling for _, sequence in drawn]
    uniforms = [sequence.generator.random() for _, sequence in drawn]
    if len(drawn) == len(logits):
        return draw(logits, parameters, uniforms)
    tokens = logits.argmax(dim=-1)
    if drawn:
        rows = torch.tensor([row for row, _ in drawn], device=logits.device)
        tokens[rows] = draw(logits[rows], parameters, uniforms)
    return tokens


def draw(logits: Tensor, parameters: SequenceOf[SamplingParameters], uniforms: SequenceOf[float]) -> Tensor:
    """Draw one token per row by inverting its cumulative distribution.

    logits: [R, vocabulary] fp32; uniforms: R numbers in [0, 1). Temperatures must be above 0. Returns [R] i64.
    min_p keeps tokens at least that share as likely as the most likely one; of top_p, the least set of tokens whose
    probability reaches it is kept, of equals those of lower ids: the most likely one always is. What is drawn in a row
    depends on that row alone: tokens stand by likelihood in it if they have to be ranked, else by id.
    """
    ranked = [_ranks(one, logits.shape[-1]) for one in parameters]
    kinds = [(count > 0) + (count == logits.shape[-1]) for count in ranked]  # none, some, all
    if len(set(kinds)) == 1:
        return _draw(logits, parameters, uniforms, max(ranked))
    tokens = torch.empty(len(parameters), dtype=torch.int64, device=logits.device)
    for kind in set(kinds):  # apart, or one row that needs all of its tokens ranked would have all rows pay for it
        chosen = [row for row, one in enumerate(kinds) if one == kind]
        rows = torch.tensor(chosen, device=logits.device)
        part = [parameters[row] for row in chosen], [uniforms[row] for row in chosen]
        tokens[rows] = _draw(logits[rows], *part, max(ranked[row] for row in chosen))
    return tokens


def _ranks(sampling: SamplingParameters, vocab_size: int) -> int:
    """How many of its best tokens have to be put in order; 0 if none."""
    if sampling.top_k:
        return min(sampling.top_k, vocab_size)
    return vocab_size if sampling.top_p < 1 else 0


def _draw(
    logits: Tensor, parameters: SequenceOf[SamplingParameters], uniforms: SequenceOf[float], ranks: int
) -> Tensor:
    """`draw` of rows of one kind: the `ranks` best tokens are put in order, or none if it is 0."""
    values, token_ids = _ranking(logits, ranks) if ranks else (logits, None)
    best = values[:, :1] if ranks else values.amax(dim=-1, keepdim=True)
    wanted = [(one.temperature, one.top_k or ranks, one.top_p, one.min_p) for one in parameters]
    columns = torch.tensor(wanted, dtype=torch.float64, device=logits.device).unsqueeze(-1)
    temperature, top_k, top_p, min_p = columns.unbind(dim=1)  # [R, 1] each
    # At most 0, so that no temperature overflows; the best one's weight is 1, so these are ratios of probabilities.
    weights = ((values - best).double() / temperature).exp_()
    weights.masked_fill_(weights < min_p, 0)
    if ranks:
        rank = torch.arange(ranks, device=logits.device)
        weights.masked_fill_(rank >= top_k, 0)
        cumulative = weights.cumsum(dim=-1)  # zeros behind a row's own top_k, which others need not have, change none
        reached = cumulative - weights >= top_p * cumulative[:, -1:]
        weights.masked_fill_(reached & (rank > 0), 0)
    cumulative = weights.cumsum(dim=-1)
    targets = torch.tensor(uniforms, dtype=torch.float64, device=logits.device).unsqueeze(-1) * cumulative[:, -1:]
    # The first token whose sum is above the target; rounding may carry a target to the very end, to what is last kept.
    below = torch.nextafter(cumulative[:, -1:], torch.zeros_like(targets))
    drawn = torch.searchsorted(cumulative, torch.minimum(targets, below), right=True)
    return (drawn if token_ids is None else token_ids.gather(-1, drawn)).squeeze(-1)


def _ranking(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest logits of each row, [R, count], descending, and their ids; of equals the lower ids, and those first.

    `topk` leaves open which of equals it takes and in what order, and decides by the sizes of the batch: and logits
    computed in bf16 have many equals.
    """
    vocab_size = logits.shape[-1]
    if count == vocab_size:
        values, token_ids = logits.sort(dim=-1, descending=True, stable=True)
        return values, token_ids
    values, token_ids = logits.topk(count, dim=-1)
    is_tied = logits == values[:, -1:]
    has_equals = (values[:, 1:] == values[:, :-1]).any() | (is_tied.sum(dim=-1) > 1).any()
    if not has_equals:
        return values, token_ids
    is_last = values == values[:, -1:]
    open_rows = (is_tied.sum(dim=-1) > is_last.sum(dim=-1)).nonzero().squeeze(-1)
    if len(open_rows):  # more tokens are equal to the last one than there is room for
        keys = torch.arange(vocab_size, 0, -1, dtype=torch.float32, device=logits.device)
        lowest = (keys * is_tied[open_rows]).topk(count, dim=-1).indices
        first = count - is_last[open_rows].sum(dim=-1, keepdim=True)  # the rank from which on they are equal
        places = torch.arange(count, device=logits.device) - first
        token_ids[open_rows] = torch.where(places >= 0, lowest.gather(-1, places.clamp_min(0)), token_ids[open_rows])
    token_ids, order = token_ids.sort(dim=-1)
    values, order = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return values, token_ids.gather(-1, order)


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
        asked = ((row, sequence.sampling.logprobs) for row, sequence in wishes)
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
        sampling = sequence.sampling
        if sequence.generated_tokens < sampling.min_tokens and sampling.stop_token_ids:
            must_stop = row in allowed and allows_only(allowed[row], sampling.stop_token_ids)
            if not must_stop:
                logits[row, list(sampling.stop_token_ids)] = -torch.inf


def _add_bias(logits: Tensor, wishes: list[tuple[int, Sequence]]) -> None:
    """Source: OpenAI's `logit_bias`, of which -100 and 100 forbid a token and allow no other."""
    rows, token_ids, values = [], [], []
    for row, sequence in wishes:
        for token_id, value in sequence.sampling.logit_bias:
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
