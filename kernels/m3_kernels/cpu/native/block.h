/* What attention meets: a block of keys and values, as one group sees it. */
#ifndef M3_BLOCK_H
#define M3_BLOCK_H

#include "elements.h"

/* Token t's element d is element t * stride + d. */
struct block {
    const float *keys, *values;
    int64_t stride;
    int tokens;
    int is_whole; /* no lane is barred from any token */
};

#endif
