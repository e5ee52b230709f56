/* Scores of blocks, without a dot product stored. */
#ifndef M3_SCORING_H
#define M3_SCORING_H

#include "panel.h"

/* The best of one block for a panel of queries: scores [lanes]. */
INLINE void score_panel(const float *queries, const float *keys, int tokens, int width, int vectors, float *scores) {
    const int side = SIDE_BY_SIDE(vectors);
    floats best[PANEL];
    UNROLLED for (int v = 0; v < vectors; v++) best[v] = all(-INFINITY);
    for (int token = 0; token < tokens; token += side) {
        floats dots[SUMS];
        const float *key[SUMS];
        UNROLLED for (int t = 0; t < side; t++) key[t] = keys + (token + t < tokens ? token + t : tokens - 1) * width;
        multiply(queries, key, width, vectors, side * width, dots);
        UNROLLED for (int t = 0; t < side; t++)
            UNROLLED for (int v = 0; v < vectors; v++) best[v] = larger(best[v], dots[t * vectors + v]);
    }
    UNROLLED for (int v = 0; v < vectors; v++) store(scores + v * LANES, best[v]);
}

struct scoring_panels {
    const struct scoring *job;
    float *queries;
    int has_failed;
};

/* An item is a block. */
static void score_some(void *argument, struct items *items) {
    struct scoring_panels *panels = argument;
    const struct scoring *job = panels->job;
    const int B = (int)job->block_tokens, width = (int)job->width;
    float scores[PANEL * LANES], e4m3[256], *widened = NULL;
    if (job->element != FLOAT32) {
        widened = malloc(sizeof(float) * (size_t)(B * width));
        if (!widened) {
            panels->has_failed = 1;
            return;
        }
        fill_e4m3(e4m3);
    }
    for (int64_t block; (block = take(items)) >= 0;) {
        const int64_t at = job->pages[block] * B * width;
        const float *keys = (const float *)job->keys + at, *queries = panels->queries;
        if (widened) {
            widen(job->keys, at, B * width, job->element, e4m3, widened);
            keys = widened;
        }
        for (int64_t row = 0, lanes; row < job->rows; row += lanes, queries += lanes * width) {
            const int64_t left = job->rows - row;
            lanes = vectors_for(left) * LANES;
            if (lanes == LANES)
                score_panel(queries, keys, B, width, 1, scores);
            else
                score_panel(queries, keys, B, width, PANEL, scores);
            const size_t bytes = sizeof(float) * (size_t)(left < lanes ? left : lanes);
            memcpy(job->scores + block * job->rows + row, scores, bytes);
        }
    }
    free(widened);
}

static int score_blocks(const struct scoring *job, int threads) {
    struct scoring_panels panels = {job, malloc(sizeof(float) * panel_elements(job->rows, job->width)), 0};
    if (!panels.queries) return 0;
    pack(job->queries, job->rows, job->width, job->width, panels.queries);
    share(score_some, &panels, job->blocks, threads);
    free(panels.queries);
    return !panels.has_failed;
}

#endif
