"""The operations on a GPU: Triton kernels, each giving what `m3_kernels.reference` defines.

One file a family. A family has its kernels, the function that launches them, and `configurations()`: every way in which
it is compiled for M3's shapes, so that the compile gate (`compile_table`) can prove registers, shared memory and
instructions without a GPU.

    launch          which rows of a step go to which program, on the device, made once a step
    tiles           tile sizes, warps and stages by shape and type: a table, chosen without measuring at run time
    index_score     the best dot product of each query with each block
    select_blocks   the k best blocks of each query, from those scores or from candidates
    block_keys      scores as sortable keys, and the best of them
    selection       both together: choose_blocks, best_blocks, join_blocks
    attention       sparse and dense attention of a step: its decoding rows to one kernel, its chunks to another
    sparse_prefill  a chunk over selected blocks, in one of two loop orders
    union_tile      queries outside: adjacent ones walk the union of their blocks; dense attention, a walk over all
    kv_outer        blocks outside: each gathers the queries that chose it, which `block_index` says
    sparse_decode   single queries
    merge           parts of an attention, added up by their log-sum-exps
    experts         the experts' products, by torch's grouped product: no kernel of ours yet
    softmax         the step that these have in common; `attention_tiles`, their sizes

Rules of the room. The same source runs on Triton 3.6 to 3.9: plain `range` in kernels, no autotuning. Kernels get sizes
that change from step to step as arguments that do not specialise them, so that a step never compiles; every argument is
annotated, as `tl.constexpr` or, pointer and number alike, as `tl.tensor`. A launch on
decoding rows has a grid that depends on the number of rows and the width of the page table alone, and asks the host
nothing, so that it can be captured in a CUDA graph. Only a sequence's own tokens are ever computed with: what else
a page holds may be anything, NaN too.
"""
