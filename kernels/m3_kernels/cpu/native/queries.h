/* Many query heads over one block, side by side in the lanes of a panel: an element of a key or a value is broadcast to
 * all, the softmax needs no sum across lanes, and a mask is a comparison by lane.
 */
#ifndef M3_QUERIES_H
#define M3_QUERIES_H

#include "block.h"
#include "panel.h"

/* Query heads on their way through blocks; [width, lanes] where nothing else is said. */
struct queries {
    float *q, *sums;
    float best[PANEL * LANES], total[PANEL * LANES];
    int32_t last[PANEL * LANES]; /* of the tokens in the block, that a lane sees */
};

INLINE void visit(struct queries *panel, float *shares, struct block block, int width, int vectors) {
    const int lanes = vectors * LANES, side = SIDE_BY_SIDE(vectors);
    floats best[PANEL], shrink[PANEL], total[PANEL];
    UNROLLED for (int v = 0; v < vectors; v++) best[v] = load(panel->best + v * LANES);
    for (int token = 0; token < block.tokens; token += side) {
        floats dots[SUMS];
        const float *key[SUMS];
        UNROLLED for (int t = 0; t < side; t++)
            key[t] = block.keys + block.stride * (token + t < block.tokens ? token + t : block.tokens - 1);
        /* By the time that values are read, they are here. */
        for (int t = 0; vectors == 1 && t < side && token + t < block.tokens; t++)
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
            UNROLLED for (int v = 0; v < vectors; v++)
                store(panel->sums + (d + e) * lanes + v * LANES, sums[e * vectors + v]);
    }
}

/* Of a panel that is full, or holds few. */
static void visit_any(struct queries *panel, float *shares, struct block block, int width, int vectors) {
    vectors == 1 ? visit(panel, shares, block, width, 1) : visit(panel, shares, block, width, PANEL);
}

#endif
