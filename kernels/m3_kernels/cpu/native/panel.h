/* A panel: up to 64 rows side by side in the lanes of vectors, [width, lanes]. What is multiplied with them (keys, rows
 * of weights) needs no rearranging, since each of its elements is broadcast to all lanes.
 */
#ifndef M3_PANEL_H
#define M3_PANEL_H

#include "elements.h"

#include <stdlib.h>

#define PANEL 4 /* vectors */
#define LINE 16 /* floats of a cache line */
#define SUMS 16 /* in registers at a time */
/* Rows that meet a panel at a time: with few vectors some more than registers ask for, to hide the latency of sums. */
#define SIDE_BY_SIDE(vectors) ((vectors) == 1 ? 8 : SUMS / (vectors))

/* Vectors of a panel that holds the first of `left` rows. */
INLINE int vectors_for(int64_t left) { return left > LANES ? PANEL : 1; }

/* The dot products of SIDE_BY_SIDE rows with a panel: dots[row * vectors + v].
 * The rows that come `ahead` elements behind these are fetched meanwhile. */
INLINE void multiply(const float *panel, const float *const *rows, int width, int vectors, int64_t ahead,
                     floats *dots) {
    const int side = SIDE_BY_SIDE(vectors);
    UNROLLED for (int i = 0; i < side * vectors; i++) dots[i] = all(0);
    for (int begin = 0; begin < width; begin += LINE) {
        UNROLLED for (int r = 0; r < side; r++) __builtin_prefetch(rows[r] + begin + ahead);
        for (int d = begin; d < begin + LINE && d < width; d++)
            UNROLLED for (int r = 0; r < side; r++)
                UNROLLED for (int v = 0; v < vectors; v++)
                    dots[r * vectors + v] += load(panel + (d * vectors + v) * LANES) * rows[r][d];
    }
}

/* `count` rows, [width] each and `stride` apart, as panels one after another. */
static void pack(const float *rows, int64_t count, int64_t stride, int64_t width, float *panels) {
    for (int64_t row = 0, lanes; row < count; row += lanes, panels += lanes * width) {
        lanes = vectors_for(count - row) * LANES;
        for (int64_t lane = 0; lane < lanes; lane++)
            for (int64_t d = 0; d < width; d++)
                panels[d * lanes + lane] = row + lane < count ? rows[(row + lane) * stride + d] : 0;
    }
}

/* Elements that the panels of so many rows take. */
static inline size_t panel_elements(int64_t rows, int64_t width) {
    return (size_t)((rows + PANEL * LANES - 1) / (PANEL * LANES) * PANEL * LANES * width);
}

#endif
