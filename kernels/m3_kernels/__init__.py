"""The operations of MiniMax-M3: what each means (`reference`), and the one door to them (`ops`).

`cpu` is the implementation for CPUs, `gpu` the one for CUDA devices; what neither has, the reference does.

Way of one attention: `ops.qk_norm_rope_insert` -> `ops.choose_blocks` -> `ops.sparse_attention`.
Way of one mixture of experts:
`ops.route_experts` -> `ops.sort_by_expert` -> `ops.run_experts` -> `ops.combine_experts`.

Symbols, used in every docstring of this package:

    T   tokens of one step, all sequences one after another, without padding
    S   sequences in the step
    H   query heads
    G   groups = key/value heads = index query heads; group g serves query heads g*H/G .. (g+1)*H/G - 1
    D   dimension of an attention head
    I   dimension of an index head
    R   rotated dimensions of a head, the first R of D (and of I)
    B   tokens of a page, which is also one block of selection
    P   pages in the cache
    NB  blocks of the longest sequence in the step
    K   blocks that a query attends to at most (top-k)
    C   dimension of the hidden state
    E   experts
    A   experts active per token
    F   intermediate dimension of one expert, or of a dense MLP

A *page* is a place in the cache, a *block* is the n-th run of B tokens of a sequence, counted from its first token:
block b of a sequence holds its tokens b*B .. b*B + B - 1 and lies in page `page_table[sequence, b]`.
"""
