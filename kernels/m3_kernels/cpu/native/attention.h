/* Attention over pages, in place.
 *
 * Query heads stand in the lanes of vectors, up to 64 of them side by side (a panel): an element of a key or a value is
 * broadcast to all, the softmax needs no sum across lanes, and a mask is a comparison by lane. Two orders of the loops:
 *
 *     a panel over all its blocks      queries that see all before them, and single ones that chose
 *     a block over all its panels      many queries that chose: those that chose a block are gathered for it, so that
 *                                      no lane computes what it does not need; their states wait in memory
 */
#ifndef M3_ATTENTION_H
#define M3_ATTENTION_H

#include "panel.h"

#include <stdlib.h>

#define GATHER 4    /* from so many queries of a run on, blocks gather */
#define TOGETHER 4  /* panels that meet a block while it is in the core's cache */

/* Query heads on their way through blocks; [width, lanes] where nothing else is said. */
struct panel {
    float *q, *sums;
    float best[PANEL * LANES], total[PANEL * LANES];
    int32_t last[PANEL * LANES]; /* of the tokens in the block, that a lane sees */
};

/* Scratch of one thread. */
struct room {
    struct panel panels[TOGETHER];
    float *shares;        /* of a panel in a block: [block_tokens, lanes], and a little more */
    float *keys, *values; /* a block as floats, where the cache is none */
    float e4m3[256];
    void *memory;
};

/* One block, as a group sees it: token t's element d is element t * stride + d. */
struct block {
    const float *keys, *values;
    int64_t stride;
    int tokens;
    int is_whole; /* no lane is barred from any token */
};

INLINE void visit(struct panel *panel, float *shares, struct block block, int width, int vectors) {
    const int lanes = vectors * LANES, side = SIDE_BY_SIDE(vectors);
    floats best[PANEL], shrink[PANEL], total[PANEL];
    UNROLLED for (int v = 0; v < vectors; v++) best[v] = load(panel->best + v * LANES);
    for (int token = 0; token < block.tokens; token += side) {
        floats dots[SUMS];
        const float *key[SUMS];
        UNROLLED for (int t = 0; t < side; t++)
            key[t] = block.keys + block.stride * (token + t < block.tokens ? token + t : block.tokens - 1);
        for (int t = 0; vectors == 1 && t < side && token + t < block.tokens; t++) /* by the time they are read, they are here */
            for (int d = 0; d < width; d += LINE) __builtin_prefetch(block.values + block.stride * (token + t) + d);
        multiply(panel->q, key, width, vectors, block.stride * side, dots);
        UNROLLED for (int t = 0; t < side; t++)
            UNROLLED for (int v = 0; v < vectors; v++) {
                floats score = dots[t * vectors + v];
                if (!block.is_whole)
                    score = pick(load_ints(panel->last + v * LANES) >= token + t, score, all(-INFINITY));
                best[v] = larger(best[v], score);
                store(shares + (token + t) * lanes + v * LANES, score);
            }
    }
    UNROLLED for (int v = 0; v < vectors; v++) {
        const floats finite = larger(best[v], all(-1e30f)); /* a lane that has seen nothing yet */
        shrink[v] = exp2_of(load(panel->best + v * LANES) - finite);
        total[v] = load(panel->total + v * LANES) * shrink[v];
        store(panel->best + v * LANES, best[v]);
        best[v] = finite;
    }
    for (int token = 0; token < block.tokens; token++)
        UNROLLED for (int v = 0; v < vectors; v++) {
            const floats share = exp2_of(load(shares + token * lanes + v * LANES) - best[v]);
            total[v] += share;
            store(shares + token * lanes + v * LANES, share);
        }
    UNROLLED for (int v = 0; v < vectors; v++) store(panel->total + v * LANES, total[v]);
    for (int d = 0; d < width; d += side) {
        floats sums[SUMS];
        UNROLLED for (int e = 0; e < side; e++)
            UNROLLED for (int v = 0; v < vectors; v++)
                sums[e * vectors + v] = load(panel->sums + (d + e) * lanes + v * LANES) * shrink[v];
        for (int token = 0; token < block.tokens; token++) {
            const float *value = block.values + token * block.stride + d;
            UNROLLED for (int e = 0; e < side; e++)
                UNROLLED for (int v = 0; v < vectors; v++)
                    sums[e * vectors + v] += load(shares + token * lanes + v * LANES) * value[e];
        }
        UNROLLED for (int e = 0; e < side; e++)
            UNROLLED for (int v = 0; v < vectors; v++) store(panel->sums + (d + e) * lanes + v * LANES, sums[e * vectors + v]);
    }
}

/* Of a panel that is full, or holds few. */
static void visit_any(struct panel *panel, float *shares, struct block block, int width, int vectors) {
    vectors == 1 ? visit(panel, shares, block, width, 1) : visit(panel, shares, block, width, PANEL);
}

/* Block number `id` of a sequence as a group sees it; `tokens` of it are there. */
static struct block block_of(const struct attention *job, struct room *room, const int64_t *pages, int64_t id,
                             int64_t group, int64_t tokens) {
    const int64_t at = (pages[id] * job->block_tokens * job->groups + group) * job->width;
    const int64_t stride = job->groups * job->width;
    const int count = (int)(tokens < job->block_tokens ? tokens : job->block_tokens), width = (int)job->width;
    if (job->element == FLOAT32)
        return (struct block){(const float *)job->keys + at, (const float *)job->values + at, stride, count, 1};
    for (int token = 0; token < count; token++) {
        widen(job->keys, at + token * stride, width, job->element, room->e4m3, room->keys + token * width);
        widen(job->values, at + token * stride, width, job->element, room->e4m3, room->values + token * width);
    }
    return (struct block){room->keys, room->values, width, count, 1};
}

/* The heads of one group of query `row`, in the lanes from `lane` on; scaled, so that powers of two make the softmax. */
static void put_query(const struct attention *job, struct panel *panel, int64_t row, int64_t group, int lane, int lanes) {
    const int heads = (int)(job->heads / job->groups), width = (int)job->width;
    const float scale = LOG2_E / sqrtf((float)width), *q = job->q + (row * job->heads + group * heads) * width;
    for (int head = 0; head < heads; head++)
        for (int d = 0; d < width; d++) panel->q[d * lanes + lane + head] = q[head * width + d] * scale;
}

static void take_result(const struct attention *job, const struct panel *panel, int64_t row, int64_t group, int lane,
                        int lanes) {
    const int heads = (int)(job->heads / job->groups), width = (int)job->width;
    float *out = job->out + (row * job->heads + group * heads) * width;
    for (int head = 0; head < heads; head++) {
        const float factor = 1.0f / panel->total[lane + head];
        for (int d = 0; d < width; d++) out[head * width + d] = panel->sums[d * lanes + lane + head] * factor;
    }
}

static void begin(struct panel *panel, int lanes, int64_t width) {
    for (int lane = 0; lane < lanes; lane++) panel->best[lane] = -INFINITY, panel->total[lane] = 0, panel->last[lane] = -1;
    memset(panel->sums, 0, sizeof(float) * (size_t)(width * lanes));
}

/* What there is of a sequence for the queries up to `position`. */
INLINE int64_t tokens_in(const struct attention *job, int64_t id, int64_t position) {
    return position + 1 - id * job->block_tokens;
}

/* Consecutive queries of a run, at most TOGETHER panels of them, over all blocks up to their own. */
static void attend_context(const struct attention *job, struct room *room, const int64_t *run, int64_t group,
                           int64_t first, int64_t count) {
    const int heads = (int)(job->heads / job->groups), a_panel = PANEL * LANES / heads;
    const int panels = (int)((count + a_panel - 1) / a_panel);
    const int vectors = count * heads > LANES ? PANEL : 1, lanes = vectors * LANES;
    const int64_t *pages = job->page_table + run[2] * job->page_stride, B = job->block_tokens;
    const int64_t position = run[3] + first, last = position + count - 1;
    for (int number = 0; number < panels; number++) begin(&room->panels[number], lanes, job->width);
    for (int64_t query = 0; query < count; query++)
        put_query(job, &room->panels[query / a_panel], run[0] + first + query, group, (int)(query % a_panel) * heads, lanes);
    for (int64_t id = 0; id * B <= last; id++) {
        struct block block = block_of(job, room, pages, id, group, tokens_in(job, id, last));
        for (int64_t number = 0; number < panels; number++) {
            struct panel *panel = &room->panels[number];
            const int64_t place = position + number * a_panel - id * B; /* of the panel's first query, in the block */
            block.is_whole = place + 1 >= block.tokens;
            for (int lane = 0; !block.is_whole && lane < a_panel * heads; lane++)
                panel->last[lane] = (int32_t)(place + lane / heads);
            visit_any(panel, room->shares, block, (int)job->width, vectors);
        }
    }
    for (int64_t query = 0; query < count; query++)
        take_result(job, &room->panels[query / a_panel], run[0] + first + query, group, (int)(query % a_panel) * heads, lanes);
}

/* One query over the blocks that it chose. */
static void attend_chosen(const struct attention *job, struct room *room, const int64_t *run, int64_t group, int64_t query) {
    const int vectors = job->heads / job->groups > LANES ? PANEL : 1, lanes = vectors * LANES;
    const int64_t *pages = job->page_table + run[2] * job->page_stride, row = run[0] + query;
    const int32_t *chosen = job->blocks + (group * job->tokens + row) * job->chosen;
    struct panel *panel = room->panels;
    begin(panel, lanes, job->width);
    put_query(job, panel, row, group, 0, lanes);
    for (int64_t number = 0; number < job->chosen; number++) {
        const int64_t id = chosen[number];
        const struct block block = block_of(job, room, pages, id, group, tokens_in(job, id, run[3] + query));
        visit_any(panel, room->shares, block, (int)job->width, vectors);
    }
    take_result(job, panel, row, group, 0, lanes);
}

/* Queries of a run while blocks gather them: what a panel holds of each, [heads] at a time. */
struct states {
    float *q, *sums;     /* [queries, width, heads] */
    float *best, *total; /* [queries, heads] */
    int32_t *order;      /* (query, choice) pairs by block: their queries */
    int32_t *ends;       /* [blocks]: where each block's pairs end */
    void *memory;
};

static int allocate_states(struct states *states, const struct attention *job, int64_t queries, int64_t blocks) {
    const int64_t heads = job->heads / job->groups, rows = queries * heads;
    const int64_t floats_needed = rows * (2 * job->width + 2), whole_numbers = queries * job->chosen + blocks;
    states->memory = malloc(sizeof(float) * (size_t)floats_needed + sizeof(int32_t) * (size_t)whole_numbers);
    if (!states->memory) return 0;
    states->q = states->memory;
    states->sums = states->q + rows * job->width;
    states->best = states->sums + rows * job->width;
    states->total = states->best + rows;
    states->order = (int32_t *)(states->total + rows);
    states->ends = states->order + queries * job->chosen;
    return 1;
}

/* Sort the pairs of a run by block. */
static void sort_pairs(const struct attention *job, struct states *states, const int64_t *run, int64_t group,
                       int64_t blocks) {
    const int32_t *chosen = job->blocks + (group * job->tokens + run[0]) * job->chosen;
    const int64_t pairs = run[1] * job->chosen;
    int32_t *ends = states->ends, before = 0;
    memset(ends, 0, sizeof(int32_t) * (size_t)blocks);
    for (int64_t pair = 0; pair < pairs; pair++) ends[chosen[pair]]++;
    for (int64_t id = 0; id < blocks; id++) {
        const int32_t count = ends[id];
        ends[id] = before; /* where the block's pairs begin, and, once they are placed, end */
        before += count;
    }
    for (int64_t pair = 0; pair < pairs; pair++) states->order[ends[chosen[pair]]++] = (int32_t)(pair / job->chosen);
}

/* Copy the states of gathered queries into a panel: [width, heads] of each to [width, lanes], and so on. */
INLINE void gather(const struct states *states, struct panel *panel, const int32_t *queries, int count, int heads,
                   int width, int lanes) {
    const size_t bytes = sizeof(float) * (size_t)heads;
    for (int i = 0; i < count; i++) {
        const int64_t row = (int64_t)queries[i] * heads;
        const float *q = states->q + row * width, *sums = states->sums + row * width;
        memcpy(panel->best + i * heads, states->best + row, bytes);
        memcpy(panel->total + i * heads, states->total + row, bytes);
        for (int d = 0; d < width; d++) {
            memcpy(panel->q + d * lanes + i * heads, q + d * heads, bytes);
            memcpy(panel->sums + d * lanes + i * heads, sums + d * heads, bytes);
        }
    }
}

/* And back. */
INLINE void scatter(struct states *states, const struct panel *panel, const int32_t *queries, int count, int heads,
                    int width, int lanes) {
    const size_t bytes = sizeof(float) * (size_t)heads;
    for (int i = 0; i < count; i++) {
        const int64_t row = (int64_t)queries[i] * heads;
        float *sums = states->sums + row * width;
        memcpy(states->best + row, panel->best + i * heads, bytes);
        memcpy(states->total + row, panel->total + i * heads, bytes);
        for (int d = 0; d < width; d++) memcpy(sums + d * heads, panel->sums + d * lanes + i * heads, bytes);
    }
}

/* Queries of the panel's order over a block. Groups of as many heads as models have are constants: a copy is a move. */
static void visit_gathered(struct states *states, struct room *room, const int32_t *queries, int count, int heads,
                           struct block block, int width) {
    struct panel *panel = room->panels;
    const int vectors = count * heads > LANES ? PANEL : 1, lanes = vectors * LANES;
    heads == 4    ? gather(states, panel, queries, count, 4, width, lanes)
    : heads == 16 ? gather(states, panel, queries, count, 16, width, lanes)
                  : gather(states, panel, queries, count, heads, width, lanes);
    visit_any(panel, room->shares, block, width, vectors);
    heads == 4    ? scatter(states, panel, queries, count, 4, width, lanes)
    : heads == 16 ? scatter(states, panel, queries, count, 16, width, lanes)
                  : scatter(states, panel, queries, count, heads, width, lanes);
}

/* A run of queries that chose, block by block. Returns 0 if there is no memory. */
static int attend_gathered(const struct attention *job, struct room *room, const int64_t *run, int64_t group) {
    const int heads = (int)(job->heads / job->groups), width = (int)job->width, most = PANEL * LANES / heads;
    const int64_t *pages = job->page_table + run[2] * job->page_stride, B = job->block_tokens;
    const int64_t blocks = (run[3] + run[1] - 1) / B + 1;
    struct panel *panel = room->panels;
    struct states states;
    if (!allocate_states(&states, job, run[1], blocks)) return 0;
    sort_pairs(job, &states, run, group, blocks);
    for (int64_t query = 0; query < run[1]; query++) {
        memset(states.sums + query * heads * width, 0, sizeof(float) * (size_t)(heads * width));
        put_query(job, panel, run[0] + query, group, 0, heads);
        memcpy(states.q + query * heads * width, panel->q, sizeof(float) * (size_t)(heads * width));
        for (int head = 0; head < heads; head++)
            states.best[query * heads + head] = -INFINITY, states.total[query * heads + head] = 0;
    }
    for (int64_t id = 0, at = 0; id < blocks; id++) {
        if (at == states.ends[id]) continue;
        struct block block = block_of(job, room, pages, id, group, tokens_in(job, id, run[3] + run[1] - 1));
        while (at < states.ends[id]) {
            const int32_t *queries = states.order + at;
            const int count = (int)(states.ends[id] - at < most ? states.ends[id] - at : most);
            /* The pairs of a block are in the order of their queries: the first sees least. */
            block.is_whole = tokens_in(job, id, run[3] + queries[0]) >= block.tokens;
            for (int lane = 0; !block.is_whole && lane < count * heads; lane++) {
                const int64_t seen = tokens_in(job, id, run[3] + queries[lane / heads]);
                panel->last[lane] = (int32_t)(seen < block.tokens ? seen : block.tokens) - 1;
            }
            visit_gathered(&states, room, queries, count, heads, block, width);
            at += count;
        }
    }
    for (int64_t query = 0; query < run[1]; query++) {
        memcpy(panel->sums, states.sums + query * heads * width, sizeof(float) * (size_t)(heads * width));
        memcpy(panel->total, states.total + query * heads, sizeof(float) * (size_t)heads);
        take_result(job, panel, run[0] + query, group, 0, heads);
    }
    free(states.memory);
    return 1;
}

static int allocate_room(struct room *room, const struct attention *job) {
    const size_t lanes = PANEL * LANES, width = (size_t)job->width, B = (size_t)job->block_tokens;
    float *at = malloc(sizeof(float) * (TOGETHER * 2 * width * lanes + (B + SUMS) * lanes + 2 * B * width));
    room->memory = at;
    if (!at) return 0;
    memset(at, 0, sizeof(float) * TOGETHER * 2 * width * lanes); /* lanes without a query compute too */
    for (int number = 0; number < TOGETHER; number++, at += 2 * width * lanes)
        room->panels[number].q = at, room->panels[number].sums = at + width * lanes;
    room->shares = at;
    room->keys = at + (B + SUMS) * lanes;
    room->values = room->keys + B * width;
    fill_e4m3(room->e4m3);
    return 1;
}

struct attending {
    const struct attention *job;
    int has_failed;
};

/* An item is a run as one group sees it. */
static void attend_some(void *argument, struct items *items) {
    struct attending *attending = argument;
    const struct attention *job = attending->job;
    const int64_t most = TOGETHER * (PANEL * LANES / (job->heads / job->groups));
    struct room room;
    if (!allocate_room(&room, job)) {
        attending->has_failed = 1;
        return;
    }
    for (int64_t item; (item = take(items)) >= 0;) {
        const int64_t *run = job->runs + item / job->groups * 5, group = item % job->groups;
        if (!run[4])
            for (int64_t first = 0; first < run[1]; first += most)
                attend_context(job, &room, run, group, first, run[1] - first < most ? run[1] - first : most);
        else if (run[1] < GATHER)
            for (int64_t query = 0; query < run[1]; query++) attend_chosen(job, &room, run, group, query);
        else if (!attend_gathered(job, &room, run, group))
            attending->has_failed = 1;
    }
    free(room.memory);
}

static int attend(const struct attention *job, int threads) {
    struct attending attending = {job, 0};
    share(attend_some, &attending, job->run_count * job->groups, threads);
    return !attending.has_failed;
}

#endif
