"""The operations on a CPU: what `m3_kernels.reference` defines, in few calls and little memory.

Same results up to rounding, the same blocks chosen. What makes them fast, in the order of what it brings:

    keys and values are read where they lie, and once for all heads of a group and many queries (`native/attention.h`)
    a chunk of a prompt is attended block by block, each with the queries that chose it
    dot products of index keys are never stored, and a context that fits has none (`selection`, `native/scoring.h`)
    tokens are sorted by expert once, and all experts are one call (`experts`)
    norms, rotations and cache writes read their input once (`pointwise`, `native/pointwise.h`)

Matrix products are torch's; the rest is compiled C, in fp32 whatever the type of weights and cache, and takes memory
that does not grow with the context. Where it was not compiled, or a shape does not fit it, the definition runs.
"""
