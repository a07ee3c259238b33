"""The one legend of the project.

Every tensor of rank three or more in `rmat/model` and `rmat/ops` carries its axes as a suffix, outermost first:
`q_BTHD` has rows, tokens, heads, head width. One letter means one thing everywhere:

    B   rows of the batch: independent streams of text
    T   tokens of a row in one call
    N   segments that a call touches, counted per row
    S   cells of a segment (its length, or fewer where a call stays inside one segment)
    C   tokens of a chunk
    E   model width, d_model
    F   hidden width of the feed-forward network
    H   query heads            K   key/value heads            D   width of a head
    A   attention streams of a block
    M   memory slots           W   candidates that a segment offers to the memory
    P   vectors kept for the segment that is still open
    R   rows and segments folded into one axis, B * N
    L   tokens held from earlier calls        X   held and new tokens together, or slots and candidates together
    J   keys of one attention call            V   vocabulary

The paper's symbols (arXiv 2507.00453) and their names here:

    A_full, A_chunk, A_mem   streams "full", "chunked", "memory"             streams.py, memory.py
    l1, l2, l3               fusion weights, softmax of learned scalars      streams.py, Fusion
    M, m_i                   memory bank and its slots, first in, first out  state.py, LayerState.slot_*
    s_i, a, r                slot scores, their softmax, what is read        memory.py, Memory.read
    h                        what a segment leaves behind (the writer)       writers.py
    z, m'                    write gate and gated vector                     memory.py, RecurrentGate
"""
