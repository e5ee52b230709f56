/* Many queries that chose their blocks, block by block: those that chose a block are gathered for it, so that no lane
 * computes what it does not need. What the softmax knows of each waits in memory.
 */
#ifndef M3_GATHERED_H
#define M3_GATHERED_H

#include "room.h"

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
INLINE void gather(const struct states *states, struct queries *panel, const int32_t *queries, int count, int heads,
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
INLINE void scatter(struct states *states, const struct queries *panel, const int32_t *queries, int count, int heads,
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
    struct queries *panel = room->panels;
    const int vectors = vectors_for(count * heads), lanes = vectors * LANES;
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
    struct queries *panel = room->panels;
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

#endif
