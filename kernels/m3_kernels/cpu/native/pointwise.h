/* Norms, rotations, cache writes and the activation: each reads its input once. Widths are multiples of LANES. */
#ifndef M3_POINTWISE_H
#define M3_POINTWISE_H

#include "elements.h"

/* The factor that brings a row to unit mean square. */
INLINE float inverse_rms(const float *x, int64_t width, float eps) {
    floats squares = all(0);
    for (int64_t i = 0; i < width; i += LANES) squares += load(x + i) * load(x + i);
    return 1.0f / sqrtf(sum_of(squares) / (float)width + eps);
}

static void norm_some(void *argument, int number, int threads) {
    const struct norm *job = argument;
    for (int64_t row = job->rows * number / threads; row < job->rows * (number + 1) / threads; row++) {
        const float *x = job->x + row * job->width, factor = inverse_rms(x, job->width, job->eps);
        float *out = job->out + row * job->width;
        for (int64_t i = 0; i < job->width; i += LANES)
            store(out + i, load(x + i) * factor * (1.0f + load(job->weight + i)));
    }
}

static void gemma_rms_norm(const struct norm *job, int threads) { run(norm_some, (void *)job, threads); }

INLINE floats swiglu_of(floats gate, floats up, float alpha, float limit) {
    gate = smaller(gate, all(limit));
    return gate * sigmoid_of(gate * alpha) * (smaller(larger(up, all(-limit)), all(limit)) + 1.0f);
}

static void activate_some(void *argument, int number, int threads) {
    const struct activation *job = argument;
    for (int64_t row = job->rows * number / threads; row < job->rows * (number + 1) / threads; row++) {
        const float *x = job->gate_up + row * 2 * job->width;
        float *out = job->out + row * job->width;
        for (int64_t i = 0; i < job->width; i += LANES)
            store(out + i, swiglu_of(load(x + i), load(x + job->width + i), job->alpha, job->limit));
    }
}

static void swiglu_clamped(const struct activation *job, int threads) { run(activate_some, (void *)job, threads); }

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
    const float *packed = job->packed + token * heads * D, *cos = job->cos + token * half, *sin = job->sin + token * half;
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

static void insert_some(void *argument, int number, int threads) {
    const struct insertion *job = argument;
    const int64_t end = job->tokens * (number + 1) / threads;
    for (int64_t token = job->tokens * number / threads; token < end; token++) insert_token(job, token);
}

static void qk_norm_rope_insert(const struct insertion *job, int threads) { run(insert_some, (void *)job, threads); }

#endif
