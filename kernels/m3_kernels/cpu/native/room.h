/* What one thread needs to attend: scratch, and the ways of queries, blocks and results in and out of it. */
#ifndef M3_ROOM_H
#define M3_ROOM_H

#include "few_heads.h"
#include "queries.h"

#include <stdlib.h>

#define TOGETHER 4 /* panels that meet a block while it is in the core's cache */

/* Scratch of one thread. */
struct room {
    struct queries panels[TOGETHER];
    struct few_heads few;
    float *shares;        /* of a panel in a block: [block_tokens, lanes], and a little more */
    float *keys, *values; /* a block as floats, where the cache is none */
    float e4m3[256];
    void *memory;
};

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
    room->few = (struct few_heads){.q = room->panels[0].q, .sums = room->panels[0].sums};
    fill_e4m3(room->e4m3);
    return 1;
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

/* The heads of one group of query `row`, in the lanes from `lane` on; scaled so that the softmax is of powers of 2. */
static void put_query(const struct attention *job, struct queries *panel, int64_t row, int64_t group, int lane,
                      int lanes) {
    const int heads = (int)(job->heads / job->groups), width = (int)job->width;
    const float scale = LOG2_E / sqrtf((float)width), *q = job->q + (row * job->heads + group * heads) * width;
    for (int head = 0; head < heads; head++)
        for (int d = 0; d < width; d++) panel->q[d * lanes + lane + head] = q[head * width + d] * scale;
}

static void take_result(const struct attention *job, const struct queries *panel, int64_t row, int64_t group, int lane,
                        int lanes) {
    const int heads = (int)(job->heads / job->groups), width = (int)job->width;
    float *out = job->out + (row * job->heads + group * heads) * width;
    for (int head = 0; head < heads; head++) {
        const float factor = 1.0f / panel->total[lane + head];
        for (int d = 0; d < width; d++) out[head * width + d] = panel->sums[d * lanes + lane + head] * factor;
    }
}

static void begin(struct queries *panel, int lanes, int64_t width) {
    for (int lane = 0; lane < lanes; lane++)
        panel->best[lane] = -INFINITY, panel->total[lane] = 0, panel->last[lane] = -1;
    memset(panel->sums, 0, sizeof(float) * (size_t)(width * lanes));
}

/* The same for a query of few heads, padded to whole fours. */
static void begin_few(const struct attention *job, struct few_heads *few, int64_t row, int64_t group) {
    const int heads = (int)(job->heads / job->groups), width = (int)job->width;
    const float scale = LOG2_E / sqrtf((float)width), *q = job->q + (row * job->heads + group * heads) * width;
    for (int i = 0; i < MOST_FEW * width; i++) few->q[i] = i < heads * width ? q[i] * scale : 0;
    memset(few->sums, 0, sizeof(float) * (size_t)(MOST_FEW * width));
    for (int four = 0; four < MOST_FEW / HEADS; four++) few->best[four] = all(-INFINITY), few->total[four] = all(0);
}

static void take_few(const struct attention *job, const struct few_heads *few, int64_t row, int64_t group) {
    const int heads = (int)(job->heads / job->groups), width = (int)job->width;
    float *out = job->out + (row * job->heads + group * heads) * width;
    for (int head = 0; head < heads; head++) {
        const float factor = 1.0f / few->total[head / HEADS][head % HEADS];
        for (int d = 0; d < width; d++) out[head * width + d] = few->sums[head * width + d] * factor;
    }
}

/* What there is of a sequence for the queries up to `position`. */
INLINE int64_t tokens_in(const struct attention *job, int64_t id, int64_t position) {
    return position + 1 - id * job->block_tokens;
}

#endif
