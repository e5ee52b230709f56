/* All operations, compiled for the processor that the including file names; LEVEL is the name of their table. */
#include "pointwise.h"
#include "attention.h"
#include "products.h"
#include "scoring.h"

const struct operations LEVEL = {attend, score_blocks, gemma_rms_norm, qk_norm_rope_insert, swiglu_clamped,
                                 linear, run_experts};
