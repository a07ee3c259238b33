"""The gated FIFO memory: a bank of M slots per layer, written when a segment closes and read by the next
ones.

    write    z  = sigmoid(W_z h + U_z m + b_z)         the paper's gate; m: the newest vector before
             m' = z * h + (1 - z) * m                  push m', drop the oldest slot
             g  = sigmoid(w . h + b)                   the selective gate: h enters only if g > 1/2
             or drop the oldest of those with the least g (eviction="weakest"), after `fade`,
             the newest aside (newest_share)
    read     s_i = q . k_i / sqrt(D) + log g_i         k_i, v_i: projections of slot i's vector; not rotated
             r   = sum_i softmax(s)_i v_i              over [null slot | filled slots]
             r   = sum_i b_i prod_{j>i} (1 - b_j) v_i  or (memory_read="stick_breaking") newest first,
                                                       b_i = sigmoid(s_i + c)
    learn    dr/dg_i through s_i                       or (gate_gradient="value") as if slot i's value were
                                                       g_i v_i and s_i did not depend on g

A slot keeps the key and value that its vector projects to, log g and its age; `bank.py` says which slots a
segment finds. This is memory_projections="own"; `admitted.py` has the other.
Paper: sections on the memory bank and the gated update; the push gate is ours (docs/decisions.md).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from rmat.model.bank import admit, gate_slots, push
from rmat.model.call import Call
from rmat.model.config import ModelConfig
from rmat.model.layout import Layout
from rmat.model.parameters import adapted, is_plain, linear, parameter
from rmat.model.slots import Slots, with_null
from rmat.model.state import PENDING, MemoryState, Pending
from rmat.model.writers import WRITERS, Candidates, Tokens
from rmat.ops.attention import MASKED, attend, attend_newest
from rmat.ops.fifo import take_rows

AGE_PLACES = 24
"""Places of memory_position="age": ages in segments 1, 2-3, 4-7, ...; the last is open."""


class RecurrentGate(nn.Module):
    """z = sigmoid(W_z h + U_z m + b_z), m' = z * h + (1 - z) * m, in at least float32 (the paper's write
    gate)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.candidate = linear(width, width, bias=True)
        self.recurrent = linear(width, width)

    def forward(self, h_BWE: Tensor, m: Tensor) -> Tensor:
        """Gate all candidates of one segment against the same m (B, E)."""
        h_BWE = h_BWE.to(m.dtype)
        if is_plain(self.recurrent) and is_plain(self.candidate):
            from_memory = m @ self.recurrent.weight.to(m.dtype).T
            from_candidate_BWE = nn.functional.linear(
                h_BWE, self.candidate.weight.to(m.dtype), self.candidate.bias.to(m.dtype)
            )
        else:
            from_memory = adapted(m, self.recurrent)
            from_candidate_BWE = adapted(h_BWE, self.candidate)
        z_BWE = torch.sigmoid(from_candidate_BWE + from_memory[:, None])
        return z_BWE * h_BWE + (1 - z_BWE) * m[:, None]


class Memory(nn.Module):
    """One layer's memory stream: writer, gates, bank and read."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        kv_heads = (config.n_kv_heads, config.head_dim)
        self.query = linear(config.d_model, config.n_heads * config.head_dim)
        self.key = linear(config.d_model, config.n_kv_heads * config.head_dim)
        self.value = linear(config.d_model, config.n_kv_heads * config.head_dim)
        self.writer = WRITERS[config.writer](config)
        if config.recurrent_gate:
            self.gate = RecurrentGate(config.d_model)
        if config.memory_read == "stick_breaking":
            self.read_bias = parameter(config.n_heads)
        elif config.null_slot:
            self.null_key = parameter(*kv_heads)
        if config.null_slot:
            self.null_value = parameter(*kv_heads)
        if config.memory_position != "none":
            places = config.n_slots if config.memory_position == "rank" else AGE_PLACES
            self.place_key = parameter(places, *kv_heads)

    def write(self, x_BTE: Tensor, state: MemoryState, call: Call) -> tuple[Slots, MemoryState]:
        """Take up the call's tokens; push what the segments that it completes leave behind.

        Args:
            x_BTE: block inputs or outputs, by `config.write_from`.

        Returns: the bank of every segment of the call, (B, N, M), and the new state. Where the memory is
        "frozen" nothing enters a full bank.
        """
        layout = call.layout
        pending = self._absorb(x_BTE, state.pending, call)
        if layout.n_segments == 1 and not layout.closes:  # most tokens of decoding: one segment, still open
            return state.bank(), replace(state, pending=pending)
        bank, state = self._push(pending, x_BTE.dtype, state, call)
        closed = layout.closed.gather(1, layout.at.last[:, None])
        kept = []
        for x, empty in zip(pending, PENDING.values(), strict=False):
            last = take_rows(x.unflatten(0, (layout.n_rows, -1)), layout.at.last[:, None])[:, 0]
            kept.append(torch.where(closed.view(-1, *[1] * (last.dim() - 1)), empty, last))
        return bank, replace(state, pending=tuple(kept))

    def _absorb(self, x_BTE: Tensor, held: Pending, call: Call) -> Pending:
        """The writer's summary of every segment of the call, rows and segments folded."""
        layout = call.layout
        if layout.n_segments > 1:  # a row's first segment goes on from what is held, the others are new
            more = (layout.n_rows, layout.n_segments - 1)
            held = tuple(
                torch.cat([x[:, None], x.new_full((*more, *x.shape[1:]), empty)], dim=1).flatten(0, 1)
                for x, empty in zip(held, PENDING.values(), strict=False)
            )
        x_RSE = layout.fold(x_BTE).flatten(0, 1)
        live_BNS = layout.live_BNS
        offset_BNS = layout.cell_offset_BNS.expand_as(live_BNS)
        new = Tokens(x_RSE, offset_BNS.flatten(0, 1), live_BNS.flatten(0, 1))
        return self.writer.absorb(held, new, self._noise(call))

    def _push(
        self, pending: Pending, dtype: torch.dtype, state: MemoryState, call: Call
    ) -> tuple[Slots, MemoryState]:
        """Gate the candidates and push those that enter."""
        layout, config = call.layout, self.config
        offered = self.writer.candidates(pending, dtype, self._noise(call))
        present_BNW = offered.present.unflatten(0, (layout.n_rows, -1))
        entered_BNW = admit(config, present_BNW, offered.score, state.pushed, layout, call.memory)
        vector_BNWE, recurrent = self._gate(offered, entered_BNW, state, layout)
        new = self._slots(vector_BNWE, offered, entered_BNW, call)
        bank, after, pushed = push(config, entered_BNW, new, state.slots, state.pushed, layout)
        return bank, MemoryState(slots=after, pushed=pushed, recurrent=recurrent, pending=pending)

    def _slots(self, vector_BNWE: Tensor, offered: Candidates, entered_BNW: Tensor, call: Call) -> Slots:
        """The candidates as slots (B, N * W), their ages counted from the call's first token."""
        config, shape = self.config, entered_BNW.shape
        key_BXKD = self.key(vector_BNWE.flatten(1, 2)).unflatten(2, (config.n_kv_heads, -1))
        value_BXKD = self.value(vector_BNWE.flatten(1, 2)).unflatten(2, (config.n_kv_heads, -1))
        if offered.score is None:
            wide = torch.promote_types(vector_BNWE.dtype, torch.float32)
            log_gate_BNW = torch.zeros(shape, dtype=wide, device=vector_BNWE.device)
        else:
            log_gate_BNW, value_BXKD = gate_slots(
                config, offered.score, entered_BNW, value_BXKD, call.layout, call.training
            )
        source_BNW = call.layout.base[..., None] + offered.offset.view(shape)
        age, log_gate = -source_BNW.flatten(1), log_gate_BNW.flatten(1)
        return Slots(key_BXKD, value_BXKD, log_gate, age, filled=torch.ones_like(age, dtype=torch.bool))

    def _gate(
        self, offered: Candidates, entered_BNW: Tensor, state: MemoryState, layout: Layout
    ) -> tuple[Tensor, Tensor | None]:
        """Pass the candidates through the GRU gate, if there is one: the only loop over segments."""
        vector_BNWE = offered.vector_RWE.unflatten(0, (layout.n_rows, -1))
        if (m := state.recurrent) is None:
            return vector_BNWE, None
        gated = []
        for n in range(layout.n_segments):
            if n:
                same = layout.at.document[:, n] == layout.at.document[:, n - 1]
                m = torch.where(same[:, None], m, 0.0)
            new_BWE = self.gate(vector_BNWE[:, n], m)
            places = torch.arange(1, entered_BNW.shape[2] + 1, device=m.device)
            newest = (entered_BNW[:, n] * places).max(1, keepdim=True).values
            m = torch.where(newest > 0, take_rows(new_BWE, (newest - 1).clamp(min=0))[:, 0], m)
            gated.append(new_BWE.to(vector_BNWE.dtype))
        return torch.stack(gated, dim=1), m

    def _noise(self, call: Call) -> float:
        return self.config.gate_noise if call.training else 0.0

    def keys(self, bank: Slots) -> tuple[Tensor, Tensor, Tensor]:
        """What a query sees of a bank (B, N, M): keys and values (B, N, J, K, D), and the bias (B, N, J) of
        their logits; J is M, or M + 1 with the null slot of a softmax in front."""
        key_BNJKD, value_BNJKD = bank.key, bank.value
        if self.config.memory_position == "rank":
            key_BNJKD = key_BNJKD + self.place_key.flip(0).to(key_BNJKD.dtype)
        elif self.config.memory_position == "age":
            length = self.config.segment_len
            segments_BNJ = (bank.age + length - 1).div(length, rounding_mode="floor")
            doublings = 2 ** torch.arange(1, AGE_PLACES, device=bank.age.device)
            place_BNJ = torch.bucketize(segments_BNJ, doublings, right=True)
            key_BNJKD = key_BNJKD + self.place_key.to(key_BNJKD.dtype)[place_BNJ]
        bias_BNJ = torch.where(bank.filled, bank.log_gate, MASKED)
        if self.config.memory_read == "stick_breaking":
            return key_BNJKD, value_BNJKD, bias_BNJ
        if not self.config.null_slot:
            # Without a null slot an empty bank must read as zero, whatever an unfilled slot holds.
            seen_BNJ = bias_BNJ > MASKED / 2
            return key_BNJKD, torch.where(seen_BNJ[..., None, None], value_BNJKD, 0.0), bias_BNJ
        return with_null(key_BNJKD, value_BNJKD, bias_BNJ, self.null_key, self.null_value)

    def queries(self, x_BTE: Tensor) -> Tensor:
        """(B, T, H, D)."""
        q_BTHD: Tensor = self.query(x_BTE).unflatten(2, (self.config.n_heads, self.config.head_dim))
        return q_BTHD

    def read(self, x_BTE: Tensor, bank: Slots, layout: Layout) -> Tensor:
        """r of every token: (B, T, H, D)."""
        key_RJKD, value_RJKD, bias = (x.flatten(0, 1) for x in self.keys(bank))
        q_RSHD = layout.fold(self.queries(x_BTE)).flatten(0, 1)
        if self.config.memory_read == "stick_breaking":
            rest = self.null_value if self.config.null_slot else None
            r_RSHD = attend_newest(q_RSHD, key_RJKD, value_RJKD, bias, self.read_bias, rest)
        else:
            r_RSHD = attend(q_RSHD, key_RJKD, value_RJKD, key_bias=bias)
        return layout.unfold(r_RSHD.unflatten(0, (layout.n_rows, -1)))
