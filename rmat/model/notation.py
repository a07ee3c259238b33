"""The one legend of the project.

A tensor of rank three or more in `rmat/model` and `rmat/ops` carries its axes as a suffix, outermost first:
`q_BTHD` has rows, tokens, heads, head width. Names of rank two and less have none, and what takes tensors of
any shape calls them `x`. One letter means one thing everywhere; a digit is an axis of that length:

    B   rows of the batch: independent streams of text
    T   tokens of a row in one call
    N   segments that a call touches, counted per row
    S   cells of a segment (its length, or fewer where a call stays inside one segment)
    C   tokens of a chunk
    E   model width, d_model
    F   hidden width of the feed-forward network
    H   query heads            K   key/value heads            G   query heads that share a key head
    D   width of a head, or half of it where pairs turn together; attention may add coordinates
    A   attention streams of a block
    M   memory slots           W   candidates that a segment offers to the memory
    P   vectors kept for the segment that is still open
    R   rows and segments folded into one axis, B * N
    L   tokens held from earlier calls        X   what was held and what is new, one behind the other
    J   keys of one attention call            V   vocabulary

The paper's symbols (arXiv 2507.00453) and their names here:

    A_full, A_chunk, A_mem   streams "full", "chunked", "memory"             streams.py, memory.py
    l1, l2, l3               fusion weights, softmax of learned scalars      streams.py, Fusion
    M, m_i                   memory bank and its slots, first in, first out  slots.py, Slots
    s_i, a, r                slot scores, their softmax, what is read        memory.py, Memory.read
    h                        what a segment leaves behind (the writer)       writers.py, Writer
    z, m'                    write gate and gated vector                     memory.py, RecurrentGate
"""
