"""Attention of chunks, queries outside: a few adjacent queries walk the union of their blocks, once.

Grid: (query tiles, groups, splits). A program holds QUERIES x HEADS rows, all heads of its group, and reads each page
of the union once for all of them; rows whose query did not choose the block pass by. Adjacent queries agree on most
blocks, so that four of them read far fewer than 64 pages (counted in `docs/msa-on-gpu.md`).

Two launches: `unite` makes the lists, per tile and group the pages of the union, ascending by block, and who of the
tile chose each; `attend_tiles` attends. Only the last one or two blocks of a list are a query's own and need a causal
mask. Dense attention is the same walk over all pages of the sequence, without lists. Where tiles are so few that they
do not fill the chip, a walk is split, and `merge` adds the parts.

Per tile, group and block of the union: 2 x B x D elements read, from L2 at best; 4 x QUERIES x HEADS x B x D FLOP.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from m3_kernels.gpu import attention_tiles, softmax
from m3_kernels.gpu.attention_tiles import AttentionTile
from m3_kernels.gpu.compiled import CompileCase
from m3_kernels.gpu.launch import QueryTiles
from m3_kernels.gpu.merge import Parts, merge
from m3_kernels.layout import LayerPages, RaggedBatch

UNITE_WARPS = 4


@dataclass(frozen=True)
class UnionLists:
    """The blocks that the queries of each tile chose, by group and tile, ascending."""

    pages: Tensor
    """[G, N, places] i32"""
    members: Tensor
    """[G, N, places] i32: bit i is set where query i of the tile chose the block."""
    counts: Tensor
    """[G, N, 2] i32: blocks before any query's own, and all."""


def unite(blocks: Tensor, batch: RaggedBatch, tiles: QueryTiles, block_tokens: int) -> UnionLists:
    """blocks: [G, T, K] i32, ascending, each query's own in it, then -1."""
    (G, T, K), N = blocks.shape, len(tiles)
    KP = triton.next_power_of_2(K)
    pages = blocks.new_empty(G, N, tiles.queries * KP)
    lists = UnionLists(pages, torch.empty_like(pages), blocks.new_empty(G, N, 2))
    unite_kernel[(N, G)](
        blocks,
        T,
        batch.positions,
        tiles.table,
        batch.page_table,
        batch.page_table.stride(0),
        lists.pages,
        lists.members,
        lists.counts,
        B=block_tokens,
        K=K,
        KP=KP,
        QUERIES=tiles.queries,
        num_warps=UNITE_WARPS,
    )
    return lists


def attend_tiles(
    q: Tensor, pages: LayerPages, batch: RaggedBatch, tiles: QueryTiles, out: Tensor, *, lists: UnionLists | None
) -> None:
    """Attention of the tiles' queries over the blocks of the lists, up to their own position; without lists, over all.

    q: [T, H, D], contiguous. out: [T, H, D], of which the rows of the tiles are written.
    """
    (_, H, D), (_, B, G, _), N = q.shape, pages.k.shape, len(tiles)
    tile = attention_tiles.dense_tile(q.dtype, pages.k.dtype) if lists is None else attention_tiles.union_tile(q.dtype)
    listed = 0 if lists is None else lists.pages.shape[2]
    splits = attention_tiles.splits(N * G, listed or tiles.longest_context // B)
    parts = Parts.empty(N * tiles.queries, splits, q, torch.float32) if splits > 1 else None
    absent = tiles.table  # stands for what is not read
    union_tile_kernel[(N, G, splits)](
        q,
        pages.k,
        pages.v,
        out if parts is None else parts.values,
        absent if parts is None else parts.lse,
        batch.positions,
        tiles.table,
        batch.page_table,
        batch.page_table.stride(0),
        absent if lists is None else lists.pages,
        absent if lists is None else lists.members,
        absent if lists is None else lists.counts,
        softmax.base2_scale(D),
        G=G,
        HEADS=H // G,
        D=D,
        B=B,
        QUERIES=tiles.queries,
        KEYS=tile.keys_of(B),
        LISTED=listed,
        SPLIT=splits > 1,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if parts is not None:
        merge(parts, rows_of_tiles(batch, tiles), G, out)


def rows_of_tiles(batch: RaggedBatch, tiles: QueryTiles) -> Tensor:
    """[N * queries] i32: the row of the step at each place of the tiles, -1 at places beyond a tile's end."""
    key = ("rows_of_tiles", tiles.queries)
    if key not in batch.memo:
        places = tiles.table[:, 1:2] + torch.arange(tiles.queries, dtype=torch.int32, device=tiles.table.device)
        batch.memo[key] = places.masked_fill_(places >= tiles.table[:, 2:3], -1).flatten()
    rows: Tensor = batch.memo[key]
    return rows


@triton.jit(do_not_specialize=["tokens", "table_stride"])
def unite_kernel(  # noqa: PLR0917
    blocks: tl.tensor,  # [G, T, K] i32, ascending, then -1
    tokens: tl.tensor,
    positions: tl.tensor,  # [T] i64
    tiles: tl.tensor,  # [N, 4] i32: sequence, first row, end row, context
    page_table: tl.tensor,  # [S, table_stride] i64
    table_stride: tl.tensor,
    union_pages: tl.tensor,  # out, [G, N, QUERIES * KP] i32
    union_members: tl.tensor,  # out, [G, N, QUERIES * KP] i32: bit i is set where query i chose the block
    union_counts: tl.tensor,  # out, [G, N, 2] i32: blocks before any query's own, and all
    B: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    QUERIES: tl.constexpr,
) -> None:
    tile, group = tl.program_id(0), tl.program_id(1)
    SIZE: tl.constexpr = QUERIES * KP
    sequence, first, end = tl.load(tiles + tile * 4), tl.load(tiles + tile * 4 + 1), tl.load(tiles + tile * 4 + 2)
    entry = tl.arange(0, SIZE)
    query, choice = entry // KP, entry % KP
    place = (group * tokens.to(tl.int64) + first + query) * K + choice
    listed = (first + query < end) & (choice < K)
    block = tl.load(blocks + place, mask=listed, other=-1)
    # Every entry is compared with every other, [SIZE, SIZE]: no sort, and no order of programs or threads in it.
    same = (block[:, None] == block[None, :]) & (block >= 0)[None, :]
    leads = (block >= 0) & (tl.sum((same & (entry[None, :] < entry[:, None])).to(tl.int32), 1) == 0)
    members = tl.sum(tl.where(same, (1 << query)[None, :], 0), 1)  # a query names a block once: adding bits unites them
    rank = tl.sum(((block[None, :] < block[:, None]) & leads[None, :]).to(tl.int32), 1)
    page = tl.load(page_table + sequence.to(tl.int64) * table_stride + block, mask=leads, other=0)
    out = group.to(tl.int64) * tl.num_programs(0) + tile
    tl.store(union_pages + out * SIZE + rank, page.to(tl.int32), mask=leads)
    tl.store(union_members + out * SIZE + rank, members, mask=leads)
    own = tl.load(positions + first) // B
    tl.store(union_counts + out * 2, tl.sum((leads & (block < own)).to(tl.int32), 0))
    tl.store(union_counts + out * 2 + 1, tl.sum(leads.to(tl.int32), 0))


@triton.jit(do_not_specialize=["table_stride"])
def union_tile_kernel(  # noqa: PLR0915, PLR0917
    q: tl.tensor,  # [T, H, D]
    k: tl.tensor,  # [P, B, G, D]
    v: tl.tensor,  # [P, B, G, D]
    out: tl.tensor,  # [T, H, D]; if SPLIT the parts, [N * QUERIES, splits, H, D] fp32
    lse: tl.tensor,  # if SPLIT [N * QUERIES, splits, H] fp32; else not written
    positions: tl.tensor,  # [T] i64
    tiles: tl.tensor,  # [N, 4] i32: sequence, first row, end row, context
    page_table: tl.tensor,  # [S, table_stride] i64; not read where LISTED
    table_stride: tl.tensor,
    union_pages: tl.tensor,  # [G, N, LISTED] i32; this and the next two are not read unless LISTED
    union_members: tl.tensor,  # [G, N, LISTED] i32
    union_counts: tl.tensor,  # [G, N, 2] i32
    scale: tl.tensor,
    G: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    B: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    LISTED: tl.constexpr,  # places in a list; 0: no lists, all blocks
    SPLIT: tl.constexpr,  # whether a walk is split; into how many parts, the grid says
) -> None:
    tile, group = tl.program_id(0), tl.program_id(1)
    ROWS: tl.constexpr = QUERIES * HEADS
    PARTS: tl.constexpr = B // KEYS
    sequence, first, end = tl.load(tiles + tile * 4), tl.load(tiles + tile * 4 + 1), tl.load(tiles + tile * 4 + 2)
    row, d, key = tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, KEYS)
    query = row // HEADS
    token = tl.minimum(first + query, end - 1).to(
        tl.int64
    )  # rows beyond the tile's repeat its last, and are not stored
    head = group * HEADS + row % HEADS
    queries = tl.load(q + (token * (G * HEADS) + head)[:, None] * D + d[None, :])  # [ROWS, D]
    position = tl.load(positions + first)
    own = position // B
    offset = (position - own * B).to(tl.int32)  # of the first query, in its own block

    if LISTED:
        tile_list = group.to(tl.int64) * tl.num_programs(0) + tile
        full, count = tl.load(union_counts + tile_list * 2), tl.load(union_counts + tile_list * 2 + 1)
        pages, members = union_pages + tile_list * LISTED, union_members + tile_list * LISTED
    else:
        full, count = own.to(tl.int32), ((position + end - 1 - first) // B + 1).to(tl.int32)
        pages, members = page_table + sequence.to(tl.int64) * table_stride, union_members
    split, splits = (tl.program_id(2), tl.num_programs(2)) if SPLIT else (0, 1)
    share = tl.cdiv(full, splits)
    begin = tl.minimum(split * share, full)
    stop = tl.minimum(begin + share, full)

    cell = key[:, None] * (G * D) + group * D + d[None, :]  # [KEYS, D]
    acc, peak, total = softmax.start(ROWS, D)
    # A page's number is read one step ahead: where an address waits for a load of the same step, nothing is prefetched.
    page = tl.load(pages + begin).to(tl.int64)
    for step in range(begin * PARTS, stop * PARTS):
        base = (page * B + step % PARTS * KEYS) * (G * D)
        keys = tl.load(k + base + cell).to(queries.dtype)  # [KEYS, D]
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")  # [ROWS, KEYS] fp32
        values = tl.load(v + base + cell).to(queries.dtype)
        chosen = (tl.load(members + step // PARTS) >> query) & 1 == 1 if LISTED else row >= 0
        acc, peak, total = softmax.meet(acc, peak, total, scores, values, scale, chosen)
        page = tl.load(pages + (step + 1) // PARTS).to(tl.int64)

    # The queries' own blocks, which the last split takes: the one or two in which the tile lies.
    parts = tl.where(split == splits - 1, (count - full) * PARTS, 0)
    last = offset + end - 1 - first  # place of the last query, counted from the start of the first one's own block
    for step in range(parts):
        base = (tl.load(pages + full + step // PARTS).to(tl.int64) * B + step % PARTS * KEYS) * (G * D)
        within = step * KEYS + key
        written = (within <= last)[:, None]  # beyond, a page holds anything: 0 x NaN must not happen
        keys = tl.load(k + base + cell, mask=written, other=0.0).to(queries.dtype)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
        scores = tl.where(within[None, :] <= (offset + query)[:, None], scores, float("-inf"))
        values = tl.load(v + base + cell, mask=written, other=0.0).to(queries.dtype)
        chosen = (tl.load(members + full + step // PARTS) >> query) & 1 == 1 if LISTED else row >= 0
        acc, peak, total = softmax.meet(acc, peak, total, scores, values, scale, chosen)

    attended, sums = softmax.finish(acc, peak, total)
    stored = first + query < end
    place = token * (G * HEADS) + head
    if SPLIT:
        place = ((tile.to(tl.int64) * QUERIES + query) * splits + split) * (G * HEADS) + head
        tl.store(lse + place, sums, mask=stored)
    tl.store(out + place[:, None] * D + d[None, :], attended.to(out.dtype.element_ty), mask=stored[:, None])


def configurations() -> list[CompileCase]:
    """Every way in which M3 compiles the two kernels: the lists, and walks along them or over all blocks."""
    union, dense = (
        attention_tiles.union_tile(torch.bfloat16),
        attention_tiles.dense_tile(torch.bfloat16, torch.bfloat16),
    )
    dense_fp8 = attention_tiles.dense_tile(torch.bfloat16, torch.float8_e4m3fn)
    listed = union.queries(_HEADS) * _TOPK
    cases = [
        CompileCase(
            name="union_tile/unite",
            kernel=unite_kernel,
            signature={name: type_ for name, type_ in _TYPES.items() if name in unite_kernel.arg_names},
            constexprs={"B": 128, "K": _TOPK, "KP": _TOPK, "QUERIES": union.queries(_HEADS)},
            num_warps=UNITE_WARPS,
            num_stages=1,
        )
    ]
    for queries, cache, whole in (("bf16", "bf16", dense), ("fp16", "fp16", dense), ("bf16", "fp8e4nv", dense_fp8)):
        for is_split in (False, True):
            cases.append(_case("sparse", queries, cache, union, listed, is_split))
            cases.append(_case("dense", queries, cache, whole, 0, is_split))
    return cases


def _case(kind: str, queries: str, cache: str, tile: AttentionTile, listed: int, is_split: bool) -> CompileCase:  # noqa: PLR0917
    out = "fp32" if is_split else queries
    types = {**_TYPES, "q": f"*{queries}", "k": f"*{cache}", "v": f"*{cache}", "out": f"*{out}"}
    sizes = {"G": 4, "HEADS": _HEADS, "D": 128, "B": 128, "QUERIES": tile.queries(_HEADS), "KEYS": tile.keys_of(128)}
    return CompileCase(
        name=f"union_tile/{kind}{'_split' if is_split else ''}/{cache}",
        kernel=union_tile_kernel,
        signature={name: type_ for name, type_ in types.items() if name in union_tile_kernel.arg_names},
        constexprs={**sizes, "LISTED": listed, "SPLIT": is_split},
        num_warps=tile.warps,
        num_stages=tile.stages,
        instruction="HGMMA",
    )


_HEADS, _TOPK = 16, 16
_TYPES = {
    "blocks": "*i32",
    "tokens": "i32",
    "positions": "*i64",
    "tiles": "*i32",
    "page_table": "*i64",
    "table_stride": "i32",
    "union_pages": "*i32",
    "union_members": "*i32",
    "union_counts": "*i32",
    "lse": "*fp32",
    "scale": "fp32",
}
