/* Norms, rotations, cache writes and the activation: each reads its input once. Widths are multiples of LANES. */
#ifndef M3_POINTWISE_H
#define M3_POINTWISE_H

#include "elements.h"

#define ROWS 32 /* of an item */

/* Where the rows of an item end. */
static inline int64_t end_of(int64_t item, int64_t rows) { return (item + 1) * ROWS < rows ? (item + 1) * ROWS : rows; }

static inline int64_t items_of(int64_t rows) { return (rows + ROWS - 1) / ROWS; }

/* The factor that brings a row to unit mean square. */
INLINE float inverse_rms(const float *x, int64_t width, float eps) {
    floats squares = all(0);
    for (int64_t i = 0; i < width; i += LANES) squares += load(x + i) * load(x + i);
    return 1.0f / sqrtf(sum_of(squares) / (float)width + eps);
}

static void norm_some(void *argument, struct items *items) {
    const struct norm *job = argument;
    for (int64_t item; (item = take(items)) >= 0;)
        for (int64_t row = item * ROWS; row < end_of(item, job->rows); row++) {
            const float *x = job->x + row * job->width, factor = inverse_rms(x, job->width, job->eps);
            float *out = job->out + row * job->width;
            for (int64_t i = 0; i < job->width; i += LANES)
                store(out + i, load(x + i) * factor * (1.0f + load(job->weight + i)));
        }
}

static void gemma_rms_norm(const struct norm *job, int threads) {
    share(norm_some, (void *)job, items_of(job->rows), threads);
}

INLINE floats swiglu_of(floats gate, floats up, float alpha, float limit) {
    gate = smaller(gate, all(limit));
    return gate * sigmoid_of(gate * alpha) * (smaller(larger(up, all(-limit)), all(limit)) + 1.0f);
}

static void activate_some(void *argument, struct items *items) {
    const struct activation *job = argument;
    for (int64_t item; (item = take(items)) >= 0;)
        for (int64_t row = item * ROWS; row < end_of(item, job->rows); row++) {
            const float *x = job->gate_up + row * 2 * job->width;
            float *out = job->out + row * job->width;
            for (int64_t i = 0; i < job->width; i += LANES)
                store(out + i, swiglu_of(load(x + i), load(x + job->width + i), job->alpha, job->limit));
        }
}

static void swiglu_clamped(const struct activation *job, int threads) {
    share(activate_some, (void *)job, items_of(job->rows), threads);
}

INLINE void put(void *pool, int64_t at, const float *values, int64_t width, enum element element) {
    if (element == FLOAT32)
        memcpy((float *)pool + at, values, sizeof(float) * (size_t)width);
    else if (element == BFLOAT16)
        for (int64_t i = 0; i < width; i++) ((uint16_t *)pool)[at + i] = bfloat16_of(values[i]);
    else
        for (int64_t i = 0; i < width; i++) ((uint8_t *)pool)[at + i] = e4m3_of(values[i]);
}

/* One head: normed, scaled, and its first 2 `half` elements rotated. */
INLINE void turn(const float *x, const float *scale, const float *cos, const float *sin, int64_t width, int64_t half,
                 float eps, float *out) {
    const float factor = inverse_rms(x, width, eps);
    for (int64_t i = 0; i < width; i += LANES) store(out + i, load(x + i) * factor * load(scale + i));
    for (int64_t i = 0; i < half; i++) {
        const float first = out[i], second = out[half + i];
        out[i] = first * cos[i] - second * sin[i];
        out[half + i] = second * cos[i] + first * sin[i];
    }
}

static void insert_token(const struct insertion *job, int64_t token) {
    const int64_t H = job->heads, G = job->groups, D = job->width, half = job->turned / 2, slot = job->slots[token];
    const int64_t heads = H + 2 * G + (job->index_keys ? G + 1 : 0);
    const float *packed = job->packed + token * heads * D;
    const float *cos = job->cos + token * half, *sin = job->sin + token * half;
    float key[MOST_WIDTH];
#define TURN(head, out) turn(packed + (head) * D, job->scales + (head) * D, cos, sin, D, half, job->eps, out)
    for (int64_t head = 0; head < H; head++) TURN(head, job->q + (token * H + head) * D);
    for (int64_t group = 0; group < G; group++) {
        TURN(H + group, key);
        put(job->keys, (slot * G + group) * D, key, D, job->element);
        put(job->values, (slot * G + group) * D, packed + (H + G + group) * D, D, job->element);
    }
    if (!job->index_keys) return;
    for (int64_t group = 0; group < G; group++) TURN(H + 2 * G + group, job->index_q + (token * G + group) * D);
    TURN(H + 3 * G, key);
    put(job->index_keys, slot * D, key, D, job->index_element);
#undef TURN
}

static void insert_some(void *argument, struct items *items) {
    const struct insertion *job = argument;
    for (int64_t item; (item = take(items)) >= 0;)
        for (int64_t token = item * ROWS; token < end_of(item, job->tokens); token++) insert_token(job, token);
}

static void qk_norm_rope_insert(const struct insertion *job, int threads) {
    share(insert_some, (void *)job, items_of(job->tokens), threads);
}

#endif
