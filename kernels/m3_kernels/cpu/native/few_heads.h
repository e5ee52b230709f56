/* Attention of one query whose group has few heads: the elements of a head stand in the lanes, and not the heads, of
 * which there are too few to fill them. Four heads and four keys make sixteen dot products, summed up together.
 */
#ifndef M3_FEW_HEADS_H
#define M3_FEW_HEADS_H

#include "block.h"

#define HEADS 4      /* that are computed together */
#define MOST_FEW 8   /* of a group; with more, lanes are full enough of heads */
#define AHEAD 8      /* keys */

/* One query's heads on their way through blocks: [HEADS, width] each, HEADS at a time. */
struct few_heads {
    float *q, *sums;
    floats best[MOST_FEW / HEADS], total[MOST_FEW / HEADS]; /* of head h in lanes h, h + 4, h + 8, h + 12 */
};

#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ints){__VA_ARGS__})

/* Lane i is the sum of v[i]. */
INLINE floats sums_of(const floats v[16]) {
    floats pairs[8], fours[4], eights[2];
    UNROLLED for (int i = 0; i < 8; i++)
        pairs[i] = SHUFFLE(v[i], v[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                   SHUFFLE(v[i], v[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    UNROLLED for (int i = 0; i < 4; i++)
        fours[i] = SHUFFLE(pairs[i], pairs[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
                   SHUFFLE(pairs[i], pairs[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    UNROLLED for (int i = 0; i < 2; i++)
        eights[i] = SHUFFLE(fours[i], fours[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
                    SHUFFLE(fours[i], fours[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return SHUFFLE(eights[0], eights[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           SHUFFLE(eights[0], eights[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

#define HALVES(x) SHUFFLE(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#define QUARTERS(x) SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)

/* The scores of four heads with all keys of a block, [tokens, HEADS] to `shares`; the largest of each head. */
INLINE floats score_few(const float *q, const struct block *block, int width, floats best, float *shares) {
    for (int token = 0; token < block->tokens; token += 4) {
        const float *key[4];
        floats dots[4 * HEADS];
        UNROLLED for (int t = 0; t < 4; t++)
            key[t] = block->keys + block->stride * (token + t < block->tokens ? token + t : block->tokens - 1);
        UNROLLED for (int i = 0; i < 4 * HEADS; i++) dots[i] = all(0);
        for (int d = 0; d < width; d += LANES)
            UNROLLED for (int t = 0; t < 4; t++) {
                const floats elements = load(key[t] + d);
                __builtin_prefetch(key[t] + block->stride * AHEAD + d);
                UNROLLED for (int h = 0; h < HEADS; h++) dots[t * HEADS + h] += load(q + h * width + d) * elements;
            }
        const floats scores = sums_of(dots);
        best = larger(best, scores); /* of the last key there may be several, which changes nothing */
        store(shares + token * HEADS, scores);
    }
    best = larger(best, HALVES(best));
    return larger(best, QUARTERS(best));
}

/* Add the values of a block, by their shares, to the sums of four heads; `vectors` of each head's at a time. */
INLINE void add_values(float *sums, const struct block *block, const float *shares, int width, int vectors,
                       floats shrink) {
    for (int d = 0; d < width; d += vectors * LANES) {
        floats sum[HEADS * 2];
        UNROLLED for (int h = 0; h < HEADS; h++)
            UNROLLED for (int v = 0; v < vectors; v++)
                sum[h * vectors + v] = load(sums + h * width + d + v * LANES) * shrink[h];
        for (int token = 0; token < block->tokens; token++) {
            const float *values = block->values + token * block->stride + d;
            UNROLLED for (int v = 0; v < vectors; v++) {
                const floats elements = load(values + v * LANES);
                __builtin_prefetch(values + block->stride * AHEAD + v * LANES);
                UNROLLED for (int h = 0; h < HEADS; h++) sum[h * vectors + v] += elements * shares[token * HEADS + h];
            }
        }
        UNROLLED for (int h = 0; h < HEADS; h++)
            UNROLLED for (int v = 0; v < vectors; v++) store(sums + h * width + d + v * LANES, sum[h * vectors + v]);
    }
}

/* Four heads, number `four` of the query's fours, over a block. */
static void visit_few(struct few_heads *query, int four, float *shares, const struct block *block, int width) {
    float *sums = query->sums + four * HEADS * width;
    const floats best = score_few(query->q + four * HEADS * width, block, width, query->best[four], shares);
    const floats shrink = exp2_of(query->best[four] - best);
    floats added = all(0);
    for (int i = block->tokens * HEADS; i % LANES; i++) shares[i] = -INFINITY;
    for (int i = 0; i < block->tokens * HEADS; i += LANES) {
        const floats share = exp2_of(load(shares + i) - best);
        added += share;
        store(shares + i, share);
    }
    added += HALVES(added);
    added += QUARTERS(added);
    query->best[four] = best;
    query->total[four] = query->total[four] * shrink + added;
    width % (2 * LANES) ? add_values(sums, block, shares, width, 1, shrink)
                        : add_values(sums, block, shares, width, 2, shrink);
}

#endif
