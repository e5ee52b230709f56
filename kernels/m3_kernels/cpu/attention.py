"""Attention over pages: dense, and over selected blocks.

Owns the order in which queries meet keys. Every product goes through torch's fused attention, which stores no scores;
where a query's keys come in parts, the parts are merged by their log-sum-exps. Three cases:

    all keys up to its own   the context before the chunk in place, the chunk itself with a causal mask; decoding
                             sequences of short contexts together, with a copy of their keys
    few queries (decode)     each with a copy of its 16 blocks
    many queries (prefill)   the loop is over blocks: each is read once, with all queries that chose it; a query's own
                             block, the only one that needs a mask, is computed apart
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from m3_kernels.cpu.pages import group_blocks, page_ids, spans
from m3_kernels.layout import LayerPages, RaggedBatch

FEW_QUERIES = 16
"""Below this, a query copies its blocks; from here on, blocks gather their queries."""
_COPY_ELEMENTS = 1 << 17
"""Elements of keys that the queries of one turn may copy: half a core's cache, but always one query's."""
SHORT_TOKENS = 1024
"""Contexts up to this are copied and attended together when they decode: calls cost more than copies."""
_SHORT_ELEMENTS = 1 << 20
"""Elements of keys that decoding sequences may copy at a time."""
_QUERY_TILE = 2048
"""Queries that gather at blocks together: they bound the partial results, [tile, K, H/G, D]."""

Partial = tuple[Tensor, Tensor]
"""Attention over a part of the keys, normalised, [G, H/G, r, D]; and the log-sum-exp of its scores, [G, H/G, r]."""


@dataclass(frozen=True)
class _Step:
    """What a step's queries read, and where their results go."""

    q: Tensor
    """[T, H, D]"""
    pages: LayerPages
    batch: RaggedBatch
    out: Tensor
    """[T, H, D] fp32"""


@dataclass(frozen=True)
class _Rows:
    """Consecutive queries of one sequence: rows start .. stop - 1 of the step, at positions from `position` on."""

    sequence: int
    start: int
    stop: int
    position: int

    def __len__(self) -> int:
        return self.stop - self.start

    def tiles(self, size: int) -> "list[_Rows]":
        return [
            _Rows(self.sequence, start, min(start + size, self.stop), self.position + start - self.start)
            for start in range(self.start, self.stop, size)
        ]

    def split(self, position: int) -> "tuple[_Rows, _Rows]":
        """Those before a position, and the others."""
        at = min(max(self.start, self.start + position - self.position), self.stop)
        return replace(self, stop=at), replace(self, start=at, position=self.position + at - self.start)


@dataclass(frozen=True)
class _Plan:
    """How the queries of a step are taken: worked out once a step, for all layers of a kind."""

    chunks: list[_Rows]
    """Several queries of a sequence that see all before them."""
    long: list[_Rows]
    """Single queries that do, of long contexts."""
    short: "list[_Turn]"
    """Single queries that do, of short contexts, together."""
    many: list[_Rows]
    """Queries that see their blocks only, enough of a sequence for blocks to gather them."""
    few: list[_Rows]
    """Single ones of these."""


def dense_attention(q: Tensor, pages: LayerPages, batch: RaggedBatch) -> Tensor:
    """See `reference.dense_attention`."""
    step = _Step(q, pages, batch, torch.empty(q.shape, dtype=torch.float32))
    _attend_all(step, _plan(batch, pages.k.shape, None))
    return step.out.to(q.dtype)


def sparse_attention(q: Tensor, pages: LayerPages, blocks: Tensor, batch: RaggedBatch) -> Tensor:
    """See `reference.sparse_attention`. Where a query's blocks are all there are, the list of them is not read."""
    step = _Step(q, pages, batch, torch.empty(q.shape, dtype=torch.float32))
    plan = _plan(batch, pages.k.shape, blocks.shape[-1])
    _attend_all(step, plan)
    for rows in plan.many:
        _attend_by_block(step, rows, blocks[:, rows.start : rows.stop])
    if plan.few:
        _attend_few(step, plan.few, blocks)
    return step.out.to(q.dtype)


def _plan(batch: RaggedBatch, pool_shape: Sequence[int], topk: int | None) -> _Plan:
    """topk: blocks that a query sees at most; None if it sees all."""
    found: _Plan | None = batch.memo.get(("plan", topk))
    if found is not None:
        return found
    _, B, G, D = pool_shape
    plan = _Plan([], [], [], [], [])
    short: list[_Rows] = []
    spans = zip(batch.context_lengths, pairwise(batch.query_starts), strict=True)
    for sequence, (context, (start, stop)) in enumerate(spans):
        rows = _Rows(sequence, start, stop, context - (stop - start))
        seeing_all, choosing = rows.split(context if topk is None else topk * B)
        if len(seeing_all) > 1:
            plan.chunks.append(seeing_all)
        elif len(seeing_all) == 1:
            (short if seeing_all.position < SHORT_TOKENS else plan.long).append(seeing_all)
        if len(choosing) < FEW_QUERIES:
            plan.few.extend(choosing.tiles(1))
        else:
            plan.many.extend(choosing.tiles(_QUERY_TILE))
    plan.short.extend(_turns(batch, short, B, G * D))
    batch.memo["plan", topk] = plan
    return plan


def _attend_all(step: _Step, plan: _Plan) -> None:
    """Queries over all tokens of their sequence up to themselves."""
    for rows in plan.chunks:
        _attend_chunk(step, rows)
    for rows in plan.long:
        _attend_one(step, rows)
    for turn in plan.short:
        _attend_short(step, turn)


def _attend_one(step: _Step, rows: _Rows) -> None:
    """A single query, over its context in place: the heads of a group are its rows."""
    pages, (_, B, G, _) = step.pages, step.pages.k.shape
    one = step.q[rows.start].view(1, G, -1, step.q.shape[-1]).float()
    parts = [
        _flash(one, span.read(pages.k)[None], span.read(pages.v)[None])
        for span in spans(step.batch, rows.sequence, (0, rows.position + 1), B)
    ]
    step.out[rows.start].view(one.shape).copy_(_merge(parts))


def _attend_short(step: _Step, turn: "_Turn") -> None:
    """Single queries of short contexts, together, with a copy of their keys and values."""
    (_, _, G, D), pages = step.pages.k.shape, step.pages
    rows, slots, mask = turn
    n = len(rows)
    keys, values = (
        pool.view(-1, G * D).index_select(0, slots).view(n, -1, G, D).transpose(1, 2).float()
        for pool in (pages.k, pages.v)
    )
    q = step.q.index_select(0, rows).view(n, G, -1, D).float()
    attended, _ = _flash(q, keys, values, mask=mask)
    step.out.index_copy_(0, rows, attended.reshape(n, -1, D))


_Turn = tuple[Tensor, Tensor, Tensor | None]
"""Rows [n] of the step; slots [n * m] of the tokens that they see; what is added to their scores, [n, 1, 1, m]."""


def _turns(batch: RaggedBatch, short: list[_Rows], block_tokens: int, row_elements: int) -> Iterator[_Turn]:
    """Sequences by length, so many that their copies stay bounded. Where one is shorter, its own token stands in."""
    ordered = sorted(short, key=lambda rows: rows.position)
    while ordered:
        longest = ordered[-1].position + 1
        count = max(1, _SHORT_ELEMENTS // (longest * row_elements))
        ordered, together = ordered[:-count], ordered[-count:]
        rows = torch.tensor([one.start for one in together])
        contexts = torch.tensor([one.position + 1 for one in together])[:, None]
        offsets = torch.arange(longest)
        table = batch.page_table[torch.tensor([one.sequence for one in together])]
        slots = table[:, offsets // block_tokens] * block_tokens + offsets % block_tokens
        seen = offsets < contexts
        slots = torch.where(seen, slots, batch.slots[rows, None])
        mask = None
        if together[0].position + 1 < longest:
            mask = torch.zeros(slots.shape).masked_fill_(~seen, -torch.inf)[:, None, None]
        yield rows, slots.flatten(), mask


def _attend_chunk(step: _Step, rows: _Rows) -> None:
    """Several queries of a sequence, over all tokens up to themselves."""
    pages, batch, sequence = step.pages, step.batch, rows.sequence
    B, G = pages.k.shape[1:3]
    q, out = step.q[rows.start : rows.stop], step.out[rows.start : rows.stop]
    queries = _by_group(q, G)
    boundary = rows.position // B * B  # where the block begins in which the queries do
    parts = [
        _flash(queries, _for_heads(span.read(pages.k), queries), _for_heads(span.read(pages.v), queries))
        for span in (spans(batch, sequence, (0, boundary), B) if boundary else ())
    ]
    chunk = spans(batch, sequence, (boundary, rows.position + len(q)), B)
    keys, values = (torch.cat([span.read(pool) for span in chunk], 1) for pool in (pages.k, pages.v))
    parts.append(_causal(queries, keys, values, rows.position - boundary))
    _by_group(out, G).copy_(_merge(parts))


def _attend_few(step: _Step, few: list[_Rows], blocks: Tensor) -> None:
    """Single queries, each with a copy of its blocks, of which only the last, its own, is not full."""
    pages, (_, B, G, D), K = step.pages, step.pages.k.shape, blocks.shape[-1]
    run = max(1, _COPY_ELEMENTS // (G * K * B * D))
    for together in (few[at : at + run] for at in range(0, len(few), run)):
        chosen = blocks.index_select(1, torch.tensor([rows.start for rows in together])).transpose(0, 1).long()
        sequences = torch.tensor([rows.sequence for rows in together])
        ids = step.batch.page_table[sequences[:, None, None], chosen]  # [n, G, K]
        keys, values = group_blocks(pages.k, ids), group_blocks(pages.v, ids)
        for place, rows in enumerate(together):
            seen = (K - 1) * B + rows.position % B + 1
            one = step.q[rows.start].view(1, G, -1, D).float()
            attended, _ = _flash(one, keys[None, place, :, :seen], values[None, place, :, :seen])
            step.out[rows.start].view(1, G, -1, D).copy_(attended)


def _attend_by_block(step: _Step, rows: _Rows, blocks: Tensor) -> None:
    """Queries over their K blocks, by blocks. blocks: [G, r, K], ascending and all there: the last is a query's own."""
    q, out, pages = step.q[rows.start : rows.stop], step.out[rows.start : rows.stop], step.pages
    r, G, D, others = len(q), pages.k.shape[2], q.shape[-1], blocks.shape[-1] - 1
    queries = _by_group(q, G)
    h = queries.shape[1]
    ids = page_ids(step.batch, rows.sequence)
    own, own_lse = _attend_own_block(step, rows, queries)
    for group in range(G):
        pairs = blocks[group, :, :others].flatten()  # (query, choice) pairs of this group
        order = pairs.argsort(stable=True)
        gathered = q.view(r, G, h * D)[:, group].index_select(0, order // max(others, 1)).float()
        partial, lse = torch.empty_like(gathered), torch.empty(len(order), h)
        end = 0
        for block, count in enumerate(torch.bincount(pairs).tolist()):
            if not count:
                continue
            begin, end = end, end + count
            key, value = (_block(pool, int(ids[block]), group) for pool in (pages.k, pages.v))
            attended, sums = _flash(gathered[begin:end].view(1, 1, -1, D), key, value)
            partial[begin:end].view(1, 1, -1, D).copy_(attended)
            lse[begin:end].view(1, 1, -1).copy_(sums)
        back = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order)))
        del gathered
        partial = partial.index_select(0, back).view(r, others, h, D)
        lse = lse.index_select(0, back).view(r, others, h)
        shares = torch.cat((lse, own_lse[group].T[:, None]), 1).softmax(1)[..., None]  # [r, K, h, 1]
        merged = partial.mul_(shares[:, :others]).sum(1).addcmul_(own[group].transpose(0, 1), shares[:, others])
        out.view(r, G, h, D)[:, group] = merged


def _attend_own_block(step: _Step, rows: _Rows, queries: Tensor) -> Partial:
    """Each query over the tokens of its own block, up to itself. queries: those of `rows`, [G, h, r, D]."""
    B, pages = step.pages.block_tokens, step.pages
    ids = page_ids(step.batch, rows.sequence)
    out, lse = torch.empty(queries.shape), torch.empty(queries.shape[:3])
    begin = 0
    while begin < queries.shape[2]:
        block, offset = divmod(rows.position + begin, B)
        end = min(begin + B - offset, queries.shape[2])
        page = int(ids[block])
        keys, values = (pool[page, : offset + end - begin].transpose(0, 1).float() for pool in (pages.k, pages.v))
        out[:, :, begin:end], lse[:, :, begin:end] = _causal(queries[:, :, begin:end], keys, values, offset)
        begin = end
    return out, lse


def _block(pool: Tensor, page: int, group: int) -> Tensor:
    """One group of one page: pool [P, B, G, D] to [1, 1, B, D] fp32."""
    _, B, G, D = pool.shape
    offset = pool.storage_offset() + (page * B * G + group) * D
    return pool.as_strided((1, 1, B, D), (0, 0, G * D, 1), offset).float()


def _causal(queries: Tensor, keys: Tensor, values: Tensor, offset: int) -> Partial:
    """The queries [G, h, r, D] stand at the keys' places from `offset` on: keys, values [G, offset + r, D]."""
    padded = pad(queries, (0, 0, offset, 0)) if offset else queries  # rows for the places before, thrown away
    out, lse = _flash(padded, _for_heads(keys, queries), _for_heads(values, queries), is_causal=True)
    return out[:, :, offset:], lse[:, :, offset:]


def _flash(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False, mask: Tensor | None = None) -> Partial:
    """Fused softmax attention in fp32: q [n, h, r, D], k and v [n, h, m, D] of any strides; a mask is added to scores.

    Not `scaled_dot_product_attention`, which does not return the log-sum-exps that merging parts takes.
    """
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = fused(q, k, v, 0.0, is_causal, attn_mask=mask)
    return out, lse


def _merge(parts: list[Partial]) -> Tensor:
    """Attention over the union of the parts' keys, by their log-sum-exps."""
    if len(parts) == 1:
        return parts[0][0]
    shares = torch.stack([lse for _, lse in parts]).softmax(0)[..., None]
    merged = parts[0][0] * shares[0]
    for (out, _), share in zip(parts[1:], shares[1:], strict=True):
        merged.addcmul_(out, share)
    return merged


def _by_group(q: Tensor, groups: int) -> Tensor:
    """[r, H, D] to [G, H/G, r, D] fp32: a view where q is fp32."""
    r, H, D = q.shape
    return q.view(r, groups, H // groups, D).permute(1, 2, 0, 3).float()


def _for_heads(keys: Tensor, queries: Tensor) -> Tensor:
    """[G, m, D] to [G, h, m, D], each head of a group reading the same keys."""
    return keys[:, None].expand(-1, queries.shape[1], -1, -1)
