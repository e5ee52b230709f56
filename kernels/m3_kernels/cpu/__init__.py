"""The operations on a CPU: what `m3_kernels.reference` defines, in few calls and little memory.

Same results up to rounding, the same blocks chosen. What makes them fast, in the order of what it brings:

    a chunk of a prompt is attended block by block, each with the queries that chose it (`attention`)
    scores of blocks are never stored for more than a tile of queries, and a context that fits has none (`selection`)
    keys and values are read where they lie, without a copy, where a sequence's pages follow each other (`pages`)
    tokens are sorted by expert once, and all experts are one call (`experts`)
    norms and rotations of all heads are one call each (`pointwise`)

Everything is torch, in fp32 whatever the cache's type, and takes memory that does not grow with the context.
"""
