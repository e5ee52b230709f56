"""What each operation of MiniMax-M3 means, in plain torch: the definition that every faster kernel is tested against.

Owns formulas only: no checks (see `ops`), no branch for a device, no state. Whatever is reduced is reduced in fp32 and
returned in the dtype of the input. Sequences of different lengths stand one after another, unpadded (`RaggedBatch`).
Long prefills are cut into runs of queries, so that no intermediate grows with queries x context.

Sources: "the paper" is MiniMax Sparse Attention, arXiv 2606.13392; "the model" is the released MiniMax-M3 (its
config.json and the published implementations that load its weights).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from m3_kernels.layout import (
    AttentionNorms,
    BlockCandidates,
    BlockPart,
    ExpertRows,
    LayerPages,
    RaggedBatch,
    RotaryAngles,
)
from m3_kernels.mxfp8 import Weight, linear

# How large an intermediate of attention and scoring may grow, in elements (8 MiB of fp32): bounded with any context and
# near the size of a cache, and still so large that the loop over runs costs nothing beside the arithmetic.
_RUN_ELEMENTS = 1 << 21

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max


def gemma_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each row to unit mean square, then by 1 + weight.

    x: [..., N]. weight: [N]. Returns [..., N] in x's dtype; computed in fp32.
    Formula: x / sqrt(mean(x^2) + eps) * (1 + w). Source: the model (`use_gemma_norm`); all its norms are of this kind.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * (1.0 + weight.float())).to(x.dtype)


def rotary_angles(positions: Tensor, rotary_dim: int, theta: float) -> RotaryAngles:
    """Angles of the rotary embedding: position * theta^(-2i / R) for i in 0 .. R/2 - 1.

    positions: [T] i64, absolute. Returns cosine and sine, [T, R / 2] fp32.
    Source: the model (base 5e6, no scaling). The product is taken in fp32 as its other implementations do: at positions
    near 2^20 an fp64 product would be more exact, and different from what the weights are served with elsewhere.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=positions.device) / rotary_dim
    angles = positions.float()[:, None] * (1.0 / theta**exponents)
    return RotaryAngles(cos=angles.cos(), sin=angles.sin())


def partial_rope(x: Tensor, angles: RotaryAngles) -> Tensor:
    """Rotate the first R dimensions of each head by its token's angles; the others pass through.

    x: [T, heads, D], D >= R. Returns the same shape and dtype; computed in fp32.
    Layout: dimension i pairs with i + R/2 (halves, not neighbours). Source: the model (`partial_rotary_factor`).
    """
    half = angles.cos.shape[-1]
    cos, sin = angles.cos[:, None], angles.sin[:, None]
    wide = x.float()
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1).to(x.dtype)


def qk_norm_rope_insert(
    packed: Tensor, norms: AttentionNorms, angles: RotaryAngles, pages: LayerPages, slots: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Norm and rotate queries, keys, index queries and index keys of one layer; write what is cached to its pages.

    packed: [T, H*D + 2*G*D + G*I + I], one row per token: queries, keys, values, index queries, index key; the last two
    only where `pages.index_k` is not None. slots: [T] i64, page * B + offset of each token. H follows from the width.
    Returns queries [T, H, D] and index queries [T, G, I] (None in a layer of dense attention).
    Effect: writes `pages.k`, `pages.v` and `pages.index_k` at `slots`, and nowhere else.
    Source: the model (`use_qk_norm`, `qk_norm_type: per_head`); the paper for the index branch, which has no value.
    """
    tokens, (_, _, G, D) = packed.shape[0], pages.k.shape
    I = 0 if pages.index_k is None else pages.index_k.shape[-1]  # noqa: E741
    query_width = packed.shape[1] - 2 * G * D - (G + 1) * I
    q, k, v, index_q, index_k = torch.split(packed, [query_width, G * D, G * D, G * I, I], dim=1)
    q = partial_rope(gemma_rms_norm(q.view(tokens, -1, D), norms.q, norms.eps), angles)
    k = partial_rope(gemma_rms_norm(k.view(tokens, G, D), norms.k, norms.eps), angles)
    insert(pages.k, slots, k)
    insert(pages.v, slots, v.view(tokens, G, D))
    if pages.index_k is None or norms.index_q is None or norms.index_k is None:
        return q, None
    index_q = partial_rope(gemma_rms_norm(index_q.view(tokens, G, I), norms.index_q, norms.eps), angles)
    index_k = partial_rope(gemma_rms_norm(index_k.view(tokens, 1, I), norms.index_k, norms.eps), angles)
    insert(pages.index_k, slots, index_k[:, 0])
    return q, index_q


def insert(pool: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Write one row per slot: pool [P, B, ...], slots [T] i64, rows [T, ...] of any float type.

    A cache in FP8 (e4m3) has no scales: keys are normed, and what exceeds the type's range is cut to its ends.
    """
    flat = pool.flatten(0, 1)
    if pool.dtype == torch.float8_e4m3fn:
        rows = rows.float().clamp(-FP8_MAX, FP8_MAX).to(pool.dtype).view(torch.uint8)
        flat = flat.view(torch.uint8)  # torch does not copy FP8 by index
    flat.index_copy_(0, slots, rows.to(flat.dtype))


def index_score(index_q: Tensor, index_k: Tensor, batch: RaggedBatch) -> Tensor:
    """Score every block for every query and group: the largest dot product with a token that the query may see.

    index_q: [T, G, I]. index_k: [P, B, I], the cache, this step's keys included.
    Returns [G, T, NB] fp32: max over tokens j <= position in block b of index_q . index_k[j]; -inf for a block without
    such a token. No scale and no softmax: only the order matters.
    Source: the paper, index branch; the model (`sparse_score_type: max`).
    """
    (T, G, I), B = index_q.shape, index_k.shape[1]  # noqa: E741
    NB = -(-max(batch.context_lengths) // B)
    scores = index_q.new_full((G, T, NB), -torch.inf, dtype=torch.float32)
    for rows, slots in _query_runs(batch, B, heads=G, row_elements=I):
        keys = _rows(index_k.view(-1, I), slots).float()  # [n, m, I]
        dots = index_q[rows].flatten(1, 2).float() @ keys.transpose(1, 2)  # [n, r * G, m]
        (n, r), m = rows.shape, slots.shape[1]
        hidden = torch.arange(m, device=slots.device) > batch.positions[rows][:, :, None, None]  # [n, r, 1, m]
        by_block = dots.view(n, r, G, m).masked_fill_(hidden, -torch.inf).view(n, r, G, m // B, B).amax(-1)
        scores[:, rows, : m // B] = by_block.permute(2, 0, 1, 3)
    return scores


def select_blocks(scores: Tensor, positions: Tensor, k: int = 16, block_tokens: int = 128) -> Tensor:
    """Choose the k best blocks per group and query; the query's own block is always kept, as one of the k.

    scores: [G, T, NB] fp32, -inf for future blocks. positions: [T] i64, absolute.
    Returns [G, T, k] i32: block ids ascending, then -1. Ties: the lower id wins.
    Source: the paper, block selection; the model (`sparse_topk_blocks`, `sparse_local_block: 1`, no initial block).
    """
    G, T, NB = scores.shape
    own = (positions // block_tokens).view(1, T, 1).expand(G, T, 1)
    ranked = scores.scatter(-1, own, torch.inf).sort(dim=-1, descending=True, stable=True)
    absent = ranked.values[..., :k] == -torch.inf
    ids = ranked.indices[..., :k].masked_fill(absent, NB).sort(dim=-1).values  # NB: sorts behind every block
    ids = torch.nn.functional.pad(ids, (0, k - ids.shape[-1]), value=NB)
    return ids.masked_fill(ids == NB, -1).to(torch.int32)


def choose_blocks(index_q: Tensor, index_k: Tensor, batch: RaggedBatch, k: int) -> Tensor:
    """The k blocks per group and query: `index_score`, then `select_blocks`.

    index_q: [T, G, I]. index_k: [P, B, I]. Returns [G, T, k] i32: block ids ascending, then -1.
    """
    return select_blocks(index_score(index_q, index_k, batch), batch.positions, k, index_k.shape[1])


def best_blocks(index_q: Tensor, index_k: Tensor, batch: RaggedBatch, k: int, part: BlockPart) -> BlockCandidates:
    """What one part of the blocks brings to a choice that is made of all parts together, by `join_blocks`.

    index_q: [T, G, I]. index_k: [P, B, I].
    Returns per group and query the k blocks with the highest scores (`index_score`) that are in the part and before
    the query's own. Ties: the lower id wins.
    """
    scores = index_score(index_q, index_k, batch)
    G, T, NB = scores.shape
    B = index_k.shape[1]
    ids = torch.arange(NB, device=scores.device)
    stretches = torch.tensor([part.of(-(-context // B)) for context in batch.context_lengths], device=scores.device)
    first, end = stretches[batch.sequence_of_token].unbind(1)
    end = torch.minimum(end, batch.positions // B)
    elsewhere = (ids < first[:, None]) | (ids >= end[:, None])  # [T, NB]
    ranked = scores.masked_fill(elsewhere, -torch.inf).sort(dim=-1, descending=True, stable=True)
    values = scores.new_full((G, T, k), -torch.inf)
    kept = torch.full((G, T, k), -1, dtype=torch.int32, device=scores.device)
    width = min(k, NB)
    values[..., :width] = ranked.values[..., :width]
    kept[..., :width] = ranked.indices[..., :width].masked_fill(ranked.values[..., :width] == -torch.inf, -1)
    return BlockCandidates(values, kept)


def join_blocks(candidates: BlockCandidates, positions: Tensor, block_tokens: int) -> Tensor:
    """The choice of `choose_blocks` from the candidates of all parts: the best of them, and the query's own block.

    candidates: of all parts stacked, [parts, G, T, k - 1]. positions: [T] i64.
    Returns [G, T, k] i32: block ids ascending, then -1. Ties: the lower id wins.
    """
    parts, G, T, kept = candidates.scores.shape
    scores = candidates.scores.permute(1, 2, 0, 3).reshape(G, T, parts * kept)
    ids, order = candidates.ids.permute(1, 2, 0, 3).reshape(G, T, parts * kept).sort(dim=-1)
    ranked = scores.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    best = ids.gather(-1, ranked.indices[..., :kept])
    own = (positions // block_tokens).to(torch.int32).expand(G, T)[..., None]
    behind = torch.iinfo(torch.int32).max
    best = torch.cat((best.masked_fill(best < 0, behind), own), -1).sort(dim=-1).values
    return best.masked_fill(best == behind, -1)


def sparse_attention(q: Tensor, pages: LayerPages, blocks: Tensor, batch: RaggedBatch) -> Tensor:
    """Softmax attention of each query over the tokens of its group's selected blocks, up to its own position.

    q: [T, H, D]. blocks: [G, T, K] i32 from `select_blocks`. Returns [T, H, D] in q's dtype; scale 1/sqrt(D).
    Source: the paper, main branch. With K * B tokens or fewer in a context this is dense causal attention.
    """
    (T, H, D), (_, B, G, _) = q.shape, pages.k.shape
    K = min(blocks.shape[-1], -(-max(batch.context_lengths) // B))  # the columns beyond are all -1
    groups, offsets = torch.arange(G, device=q.device), torch.arange(B, device=q.device)
    run = max(1, _RUN_ELEMENTS // (G * K * B * max(D, H // G)))
    out = torch.empty_like(q)
    for tokens in torch.split(torch.arange(T, device=q.device), run):
        chosen = blocks[:, tokens, :K].long().transpose(0, 1)  # [r, G, K]
        page_ids = batch.page_table[batch.sequence_of_token[tokens, None, None], chosen.clamp(min=0)]
        key_positions = chosen[..., None] * B + offsets  # [r, G, K, B]
        visible = (chosen[..., None] >= 0) & (key_positions <= batch.positions[tokens, None, None, None])
        # Where nothing is to be seen, the query's own token is read (and masked), never what a page held before.
        slots = torch.where(visible, page_ids[..., None] * B + offsets, batch.slots[tokens, None, None, None])
        heads = slots.flatten(2) * G + groups[:, None]  # [r, G, K * B]
        attended = _attend(q[tokens].view(-1, G, 1, H // G, D), pages, heads, visible.flatten(2)[:, :, None])
        out[tokens] = attended.view(-1, H, D).to(q.dtype)
    return out


def dense_attention(q: Tensor, pages: LayerPages, batch: RaggedBatch) -> Tensor:
    """Softmax attention of each query over all tokens of its sequence up to its own position.

    q: [T, H, D]. Returns [T, H, D] in q's dtype; scale 1/sqrt(D). Source: the model, layers without an index branch.
    """
    (_, H, D), (_, B, G, _) = q.shape, pages.k.shape
    groups = torch.arange(G, device=q.device)
    out = torch.empty_like(q)
    for rows, slots in _query_runs(batch, B, heads=H, row_elements=G * D):
        (n, r), m = rows.shape, slots.shape[1]
        visible = torch.arange(m, device=q.device) <= batch.positions[rows][:, None, :, None]  # [n, 1, r, m]
        heads = slots[:, None] * G + groups[:, None]  # [n, G, m]
        attended = _attend(q[rows].view(n, r, G, H // G, D).transpose(1, 2), pages, heads, visible)
        out[rows] = attended.transpose(1, 2).reshape(n, r, H, D).to(q.dtype)
    return out


def swiglu_clamped(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    """The activation of every MLP: a SwiGLU with clamped inputs and a shifted linear half.

    gate_up: [..., 2F], the gate half first. Returns [..., F] in the same dtype.
    Formula: g = min(gate, limit); u = clamp(up, -limit, limit); g * sigmoid(alpha * g) * (u + 1). The gate has no lower
    clamp. Source: the model (`hidden_act: swigluoai`, `swiglu_alpha`, `swiglu_limit`).
    """
    gate, up = gate_up.chunk(2, dim=-1)
    gate = gate.clamp(max=limit)
    return gate * torch.sigmoid(alpha * gate) * (up.clamp(-limit, limit) + 1.0)


def route_experts(logits: Tensor, bias: Tensor, k: int, scaling: float) -> tuple[Tensor, Tensor]:
    """Choose k experts per token by sigmoid score plus bias; weigh them by the score without the bias.

    logits: [T, E] fp32. bias: [E] fp32. Returns expert ids [T, k] i64 and weights [T, k] fp32, which sum to `scaling`.
    Ties between experts are open.
    Source: the model (`scoring_func: sigmoid`, `use_routing_bias`, `routed_scaling_factor`).
    """
    scores = torch.sigmoid(logits)
    experts = torch.topk(scores + bias, k, dim=-1).indices
    chosen = scores.gather(-1, experts)
    return experts, chosen / chosen.sum(-1, keepdim=True) * scaling


def sort_by_expert(experts: Tensor, count: int) -> ExpertRows:
    """Which rows go to which of `count` experts: experts [T, A] i64, the choices of each token. Stable.

    Nothing here waits for a device, as counting by `bincount` would, which looks for the largest id first.
    """
    in_order, order = experts.flatten().sort(stable=True)
    ends = torch.searchsorted(in_order, torch.arange(count, device=experts.device), right=True, out_int32=True)
    return ExpertRows(order, ends)


def run_experts(x: Tensor, rows: ExpertRows, gate_up: Weight, down: Weight, *, alpha: float, limit: float) -> Tensor:
    """Run each row through its expert's MLP.

    x: [T * A, C], in the order of `rows`. gate_up: [E, 2F, C]. down: [E, C, F]. Returns [T * A, C], in that order.
    """
    counts = rows.ends.diff(prepend=rows.ends.new_zeros(1)).tolist()
    hidden = swiglu_clamped(_matmul_by_expert(x, gate_up, counts), alpha, limit)
    return _matmul_by_expert(hidden, down, counts)


def combine_experts(out: Tensor, rows: ExpertRows, weights: Tensor) -> Tensor:
    """Add up what a token's experts gave, by weight: out [T * A, C], weights [T, A] fp32, to [T, C]; summed in fp32."""
    T, A = weights.shape
    back = torch.empty_like(rows.order).index_copy_(0, rows.order, torch.arange(T * A, device=out.device))
    by_token = out.index_select(0, back).view(T, A, -1)
    return (weights[:, None] @ by_token.float())[:, 0].to(out.dtype)


def _matmul_by_expert(x: Tensor, weights: Weight, counts: list[int]) -> Tensor:
    """Rows of x, sorted by expert, each times its expert's weights: x [sum(counts), N], weights [E, M, N]."""
    parts = torch.split(x, counts)
    return torch.cat([linear(part, weights[expert]) for expert, part in enumerate(parts) if counts[expert]])


def _attend(q: Tensor, pages: LayerPages, heads: Tensor, visible: Tensor) -> Tensor:
    """softmax(q . k / sqrt(D)) v over the visible keys, of r queries that read the same m keys, for many such runs.

    q: [n, G, r, H/G, D]. heads: [n, G, m], the keys as rows of the cache seen as [P * B * G, D]. visible: [n, G, r, m],
    or broadcast to it. Returns fp32, q's shape. Queries and heads of a group fold into the rows of one matmul.
    """
    D = q.shape[-1]
    keys, values = _rows(pages.k.view(-1, D), heads).float(), _rows(pages.v.view(-1, D), heads).float()
    scores = (q.float() * D**-0.5).flatten(2, 3) @ keys.transpose(2, 3)
    scores = scores.view(*q.shape[:4], -1).masked_fill_(~visible[..., None, :], -torch.inf)
    return (torch.softmax(scores, dim=-1).flatten(2, 3) @ values).view(q.shape)


def _rows(pool: Tensor, index: Tensor) -> Tensor:
    """pool[index] for pool [N, D] and an index of any shape: [..., D]. Several times faster than indexing on CPU."""
    return pool.index_select(0, index.flatten()).view(*index.shape, -1)


def _query_runs(
    batch: RaggedBatch, block_tokens: int, *, heads: int, row_elements: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a step into runs of queries, each with the cache slots that it may see.

    Yields rows [n, r], tokens of the step, and slots [n, m]: r queries of each of n sequences, and the first m tokens
    of those (m a multiple of block_tokens). Sequences with as many queries, and contexts of the same power of two, run
    together; where one is shorter than m, its last token stands in: nothing but a sequence's own tokens is ever read.
    Padding is at most twofold, and n * r * heads * m and n * m * row_elements stay near _RUN_ELEMENTS for any context.
    """
    device = batch.slots.device
    offsets = torch.arange(block_tokens, device=device)
    alike: dict[tuple[int, int], list[int]] = {}
    for sequence, context in enumerate(batch.context_lengths):
        queries = batch.query_starts[sequence + 1] - batch.query_starts[sequence]
        alike.setdefault((queries, (context - 1).bit_length()), []).append(sequence)
    for (queries, _), sequences in alike.items():
        longest = max(batch.context_lengths[sequence] for sequence in sequences)
        n = max(1, min(len(sequences), _RUN_ELEMENTS // (longest * row_elements)))
        r = max(1, _RUN_ELEMENTS // (longest * heads * n))
        for together in (sequences[first : first + n] for first in range(0, len(sequences), n)):
            starts = torch.tensor([batch.query_starts[sequence] for sequence in together], device=device)[:, None]
            contexts = torch.tensor([batch.context_lengths[sequence] for sequence in together], device=device)[:, None]
            last_slots = batch.slots[starts + queries - 1]
            for start in range(0, queries, r):
                stop = min(start + r, queries)
                pages = batch.page_table[together, : -(-(longest - queries + stop) // block_tokens)]
                slots = (pages[..., None] * block_tokens + offsets).flatten(1)
                is_own = torch.arange(slots.shape[1], device=device) < contexts
                yield starts + torch.arange(start, stop, device=device), torch.where(is_own, slots, last_slots)
