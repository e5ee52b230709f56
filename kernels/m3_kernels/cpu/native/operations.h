/* The compiled operations: what each is given. Their meaning is in m3_kernels.reference, whose symbols are used here.
 *
 * All sizes count elements; tensors are contiguous, and fp32 where nothing else is said. Nothing is checked here:
 * `compiled.py` gives only what fits.
 */
#ifndef M3_OPERATIONS_H
#define M3_OPERATIONS_H

#include <stdint.h>

/* What an element of a cache is. */
enum element { FLOAT32, BFLOAT16, FLOAT8_E4M3 };

#define MOST_HEADS 64   /* query heads of a group */
#define MOST_WIDTH 1024 /* of a head */

/* Queries over their contexts, or over the blocks that they chose. A run is n consecutive queries of one sequence. */
struct attention {
    const float *q;                 /* [tokens, heads, width] */
    const void *keys, *values;      /* [P, block_tokens, groups, width] */
    float *out;                     /* as q; only the rows of the runs are written */
    const int64_t *runs;            /* [run_count, 5]: first row, rows, sequence, position of the first, if it chose */
    const int64_t *page_table;      /* [S, page_stride] */
    const int32_t *blocks;          /* [groups, tokens, chosen], ascending, all there, the own one last; or NULL */
    int64_t run_count, tokens, heads, groups, width, block_tokens, page_stride, chosen;
    enum element element;
};

/* The best dot product of each query with the keys of each block. */
struct scoring {
    const float *queries;           /* [rows, width] */
    const void *keys;               /* [P, block_tokens, width] */
    const int64_t *pages;           /* [blocks] */
    float *scores;                  /* [blocks, rows] */
    int64_t rows, width, block_tokens, blocks;
    enum element element;
};

/* Rows scaled to unit mean square, then by 1 + weight. */
struct norm {
    const float *x, *weight;        /* [rows, width]; [width] */
    float *out;                     /* [rows, width] */
    int64_t rows, width;
    float eps;
};

/* Norms and rotations of all heads; what is cached is written to its pages. */
struct insertion {
    const float *packed;            /* [tokens, heads + 2 groups (+ groups + 1), width] */
    const float *scales;            /* [heads of a row, width]: 1 + weight */
    const float *cos, *sin;         /* [tokens, turned / 2] */
    const int64_t *slots;           /* [tokens] */
    float *q, *index_q;             /* [tokens, heads, width]; [tokens, groups, width], or NULL */
    void *keys, *values;            /* [slots, groups, width] */
    void *index_keys;               /* [slots, width], or NULL */
    int64_t tokens, heads, groups, width, turned;
    enum element element, index_element;
    float eps;
};

/* The activation of every MLP. */
struct activation {
    const float *gate_up;           /* [rows, 2 width], the gate half first */
    float *out;                     /* [rows, width] */
    int64_t rows, width;
    float alpha, limit;
};

/* Rows times the transpose of a matrix. */
struct product {
    const float *x;                 /* [rows, width] */
    const void *matrix;             /* [outputs, width], FLOAT32 or BFLOAT16 */
    float *out;                     /* [rows, outputs] */
    int64_t rows, width, outputs;
    enum element element;
};

/* Rows, sorted by expert, through their experts' MLPs. */
struct experts {
    const float *x;                 /* [rows, width] */
    const int32_t *ends;            /* [experts]: where the rows of each end */
    const void *gate_up, *down;     /* [experts, 2 hidden, width], [experts, width, hidden], FLOAT32 or BFLOAT16 */
    float *out;                     /* [rows, width] */
    int64_t rows, experts, width, hidden;
    enum element element;
    float alpha, limit;
};

/* All of them, for one kind of processor. What returns a number returns 0 if there is no memory for its scratch. */
struct operations {
    int (*attend)(const struct attention *, int threads);
    int (*score_blocks)(const struct scoring *, int threads);
    void (*gemma_rms_norm)(const struct norm *, int threads);
    void (*qk_norm_rope_insert)(const struct insertion *, int threads);
    void (*swiglu_clamped)(const struct activation *, int threads);
    int (*linear)(const struct product *, int threads);
    int (*run_experts)(const struct experts *, int threads);
};

extern const struct operations operations_base, operations_v3, operations_v4;

#endif
