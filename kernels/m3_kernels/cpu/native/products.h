/* Products of few rows with large matrices, which are read once: what a decode step's weights cost.
 *
 * Many rows are for a library of matrix products; here are those with which the matrix fits no cache and the rows do.
 */
#ifndef M3_PRODUCTS_H
#define M3_PRODUCTS_H

#include "panel.h"
#include "pointwise.h"

/* `count` rows of a matrix [.., width] from number `first` on, as floats; those beyond `last` are `last` again. */
INLINE void take_rows(const void *matrix, enum element element, int64_t first, int64_t last, int width, int count,
                      float *widened, const float **rows) {
    for (int r = 0; r < count; r++) {
        const int64_t row = first + r < last ? first + r : last;
        rows[r] = (const float *)matrix + row * width;
        if (element == FLOAT32) continue;
        widen(matrix, row * width, width, element, NULL, widened + r * width);
        rows[r] = widened + r * width;
    }
}

/* A panel times the rows first .. end - 1 of a matrix: result [rows of the matrix, lanes]. */
INLINE void multiply_rows(const float *panel, const void *matrix, enum element element, int64_t first, int64_t end,
                          int width, int vectors, float *widened, float *result) {
    const int side = SIDE_BY_SIDE(vectors);
    for (int64_t at = first; at < end; at += side) {
        const float *rows[SUMS];
        floats dots[SUMS];
        take_rows(matrix, element, at, end - 1, width, side, widened, rows);
        multiply(panel, rows, width, vectors, side * width, dots);
        for (int r = 0; r < side && at + r < end; r++)
            UNROLLED for (int v = 0; v < vectors; v++)
                store(result + ((at - first + r) * vectors + v) * LANES, dots[r * vectors + v]);
    }
}

static void multiply_any(const float *panel, const void *matrix, enum element element, int64_t first, int64_t end,
                         int width, int vectors, float *widened, float *result) {
    if (element == FLOAT32)
        vectors == 1 ? multiply_rows(panel, matrix, FLOAT32, first, end, width, 1, widened, result)
                     : multiply_rows(panel, matrix, FLOAT32, first, end, width, PANEL, widened, result);
    else
        vectors == 1 ? multiply_rows(panel, matrix, BFLOAT16, first, end, width, 1, widened, result)
                     : multiply_rows(panel, matrix, BFLOAT16, first, end, width, PANEL, widened, result);
}

struct product_panels {
    const struct product *job;
    float *panels;
    int has_failed;
};

#define OUTPUTS 64 /* of an item */

static void multiply_some(void *argument, struct items *items) {
    struct product_panels *panels = argument;
    const struct product *job = panels->job;
    const int width = (int)job->width;
    float *result = malloc(sizeof(float) * (OUTPUTS * PANEL * LANES + (size_t)(SUMS * width)));
    if (!result) {
        panels->has_failed = 1;
        return;
    }
    for (int64_t item; (item = take(items)) >= 0;) {
        const int64_t first = item * OUTPUTS, end = first + OUTPUTS < job->outputs ? first + OUTPUTS : job->outputs;
        const float *panel = panels->panels;
        for (int64_t row = 0, lanes; row < job->rows; row += lanes, panel += lanes * width) {
            lanes = vectors_for(job->rows - row) * LANES;
            multiply_any(panel, job->matrix, job->element, first, end, width, (int)lanes / LANES,
                         result + OUTPUTS * PANEL * LANES, result);
            for (int64_t lane = 0; lane < lanes && row + lane < job->rows; lane++)
                for (int64_t at = first; at < end; at++)
                    job->out[(row + lane) * job->outputs + at] = result[(at - first) * lanes + lane];
        }
    }
    free(result);
}

static int linear(const struct product *job, int threads) {
    struct product_panels panels = {job, malloc(sizeof(float) * panel_elements(job->rows, job->width)), 0};
    if (!panels.panels) return 0;
    pack(job->x, job->rows, job->width, job->width, panels.panels);
    share(multiply_some, &panels, (job->outputs + OUTPUTS - 1) / OUTPUTS, threads);
    free(panels.panels);
    return !panels.has_failed;
}

/* Scratch of one thread that runs experts. */
struct expert_room {
    float *x, *gate_up, *hidden, *out, *widened;
    void *memory;
};

static int allocate_expert_room(struct expert_room *room, const struct experts *job) {
    const size_t lanes = PANEL * LANES, width = (size_t)job->width, hidden = (size_t)job->hidden;
    float *at = malloc(sizeof(float) * (lanes * (2 * width + 3 * hidden) + SUMS * (width > hidden ? width : hidden)));
    room->memory = at;
    if (!at) return 0;
    room->x = at;
    room->gate_up = room->x + lanes * width;
    room->hidden = room->gate_up + lanes * 2 * hidden;
    room->out = room->hidden + lanes * hidden;
    room->widened = room->out + lanes * width;
    return 1;
}

/* At most a panel of rows through one expert. */
static void run_expert(const struct experts *job, struct expert_room *room, int64_t expert, int64_t first,
                       int64_t count) {
    const int width = (int)job->width, hidden = (int)job->hidden, vectors = vectors_for(count), lanes = vectors * LANES;
    const int64_t bytes = bytes_of(job->element);
    const char *gate_up = (const char *)job->gate_up + expert * 2 * hidden * width * bytes;
    const char *down = (const char *)job->down + expert * hidden * width * bytes;
    pack(job->x + first * width, count, width, width, room->x);
    multiply_any(room->x, gate_up, job->element, 0, 2 * hidden, width, vectors, room->widened, room->gate_up);
    for (int i = 0; i < hidden * lanes; i += LANES)
        store(room->hidden + i, swiglu_of(load(room->gate_up + i), load(room->gate_up + hidden * lanes + i), job->alpha,
                                          job->limit));
    multiply_any(room->hidden, down, job->element, 0, width, hidden, vectors, room->widened, room->out);
    for (int64_t lane = 0; lane < count; lane++)
        for (int d = 0; d < width; d++) job->out[(first + lane) * width + d] = room->out[d * lanes + lane];
}

struct running_experts {
    const struct experts *job;
    int has_failed;
};

/* An item is an expert. */
static void run_some_experts(void *argument, struct items *items) {
    struct running_experts *running = argument;
    const struct experts *job = running->job;
    struct expert_room room;
    if (!allocate_expert_room(&room, job)) {
        running->has_failed = 1;
        return;
    }
    for (int64_t expert; (expert = take(items)) >= 0;) {
        const int64_t end = job->ends[expert];
        for (int64_t first = expert ? job->ends[expert - 1] : 0; first < end; first += PANEL * LANES)
            run_expert(job, &room, expert, first, end - first < PANEL * LANES ? end - first : PANEL * LANES);
    }
    free(room.memory);
}

static int run_experts(const struct experts *job, int threads) {
    struct running_experts running = {job, 0};
    share(run_some_experts, &running, job->experts, threads);
    return !running.has_failed;
}

#endif
