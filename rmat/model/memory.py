"""The gated FIFO memory: a bank of M slots per layer, written when a segment closes and read by the next ones.

    write    z  = sigmoid(W_z h + U_z m + b_z)         the paper's gate; m: the newest vector before the segment
             m' = z * h + (1 - z) * m                  push m', drop the oldest slot
             g  = sigmoid(w . h + b)                   the selective gate: h enters only if g > 1/2
             or drop the oldest of those with the least g (eviction="weakest")
    read     s_i = q . k_i / sqrt(D) + log g_i         k_i, v_i: projections of slot i's vector; not rotated
             r   = sum_i softmax(s)_i v_i              over [null slot | filled slots]
             r   = sum_i b_i prod_{j>i} (1 - b_j) v_i  or (memory_read="stick_breaking") newest first, b_i = sigmoid(s_i + c)
    learn    dr/dg_i through s_i, or (gate_gradient="value") as if slot i's value were g_i v_i and s_i did not depend on g

A slot keeps the key and value that its vector projects to, log g and its age. Parallel form: the running count of
entered vectors numbers them, and the bank of a segment is the last M numbers before its start: one gather, no loop
(eviction="weakest" chooses each segment's bank from the one before it).
Paper: sections on the memory bank and the gated update; the push gate is ours (docs/decisions.md).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from rmat.model.bank import Bank, until_full, windows
from rmat.model.config import ModelConfig
from rmat.model.layout import Layout
from rmat.model.state import EMPTY, LayerState
from rmat.model.writers import Candidates, Pending, Writer, price_of_writes
from rmat.ops.attention import MASKED, attend, attend_newest
from rmat.ops.fifo import take_rows

AGE_BUCKETS = 24
"""Ages in segments fall into buckets of doubling width: 1, 2-3, 4-7, ...; the last is open."""


class RecurrentGate(nn.Module):
    """z = sigmoid(W_z h + U_z m + b_z), m' = z * h + (1 - z) * m, in at least float32 (the paper's write gate)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.candidate = nn.Linear(width, width)
        self.recurrent = nn.Linear(width, width, bias=False)

    def forward(self, h_BWE: Tensor, m_BE: Tensor) -> Tensor:
        """Gate all candidates of one segment against the same m."""
        gate = self.candidate.weight.to(m_BE.dtype), self.candidate.bias.to(m_BE.dtype)
        h_BWE = h_BWE.to(m_BE.dtype)
        from_memory_BE = m_BE @ self.recurrent.weight.to(m_BE.dtype).T
        z_BWE = torch.sigmoid(nn.functional.linear(h_BWE, *gate) + from_memory_BE[:, None])
        return z_BWE * h_BWE + (1 - z_BWE) * m_BE[:, None]


class Memory(nn.Module):
    """One layer's memory stream: writer, gates, bank and read."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        kv_width = config.n_kv_heads * config.head_dim
        self.query = nn.Linear(config.d_model, config.n_heads * config.head_dim, bias=False)
        self.key = nn.Linear(config.d_model, kv_width, bias=False)
        self.value = nn.Linear(config.d_model, kv_width, bias=False)
        self.writer = Writer(config)
        if config.recurrent_gate:
            self.gate = RecurrentGate(config.d_model)
        if config.memory_read == "stick_breaking":
            self.read_bias = nn.Parameter(torch.empty(config.n_heads))
        elif config.null_slot:
            self.null_key = nn.Parameter(torch.empty(config.n_kv_heads, config.head_dim))
        if config.null_slot:
            self.null_value = nn.Parameter(torch.empty(config.n_kv_heads, config.head_dim))
        if config.memory_position != "none":
            places = config.n_slots if config.memory_position == "rank" else AGE_BUCKETS
            self.place_key = nn.Parameter(torch.empty(places, config.n_kv_heads, config.head_dim))

    def held_bank(self, state: LayerState) -> Bank:
        """The bank as the call found it, for calls that stay in each row's first segment."""
        assert state.slot_key is not None and state.slot_value is not None and state.pushed is not None
        assert state.slot_log_gate is not None and state.slot_age is not None
        rank = torch.arange(self.config.n_slots - 1, -1, -1, device=state.pushed.device)
        filled_BM = rank < state.pushed[:, None]
        held = (state.slot_key, state.slot_value, state.slot_log_gate, filled_BM, state.slot_age)
        return Bank(*(x[:, None] for x in held))

    def write(self, x_BTE: Tensor, state: LayerState, layout: Layout, memory: str) -> tuple[Bank, LayerState]:
        """Take up the call's tokens; push what the segments that it completes leave behind.

        Args:
            x_BTE: block inputs or outputs, by `config.write_from`.
            memory: "frozen" lets nothing in once the bank is full; any other value writes normally.

        Returns: the bank of every segment of the call, and the layer's new state.
        """
        pending = self._absorb(x_BTE, state, layout)
        bank = self.held_bank(state)
        kept = {
            "pending": pending.vector_RPE,
            "pending_score": pending.score_RP,
            "pending_offset": pending.offset_RP,
        }
        if layout.n_segments == 1 and not layout.closes:  # most tokens of decoding: one segment, still open
            return bank, dataclasses.replace(state, **{k: x for k, x in kept.items() if x is not None})
        bank, state = self._push(pending, x_BTE.dtype, bank, state, layout, memory)
        closed_B1 = layout.closes_BN.gather(1, layout.last_B[:, None])
        changed = {}
        for name, folded in kept.items():
            if folded is not None:
                last = take_rows(folded.unflatten(0, (layout.n_rows, -1)), layout.last_B[:, None])[:, 0]
                changed[name] = torch.where(
                    closed_B1.view(-1, *[1] * (last.dim() - 1)), EMPTY.get(name, 0), last
                )
        return bank, dataclasses.replace(state, **changed)

    def _absorb(self, x_BTE: Tensor, state: LayerState, layout: Layout) -> Pending:
        """The writer's summary of every segment of the call, rows and segments folded."""

        def at_first(name: str) -> Tensor | None:
            held: Tensor | None = getattr(state, name)
            if held is None or layout.n_segments == 1:
                return held
            rest = held.new_full((layout.n_rows, layout.n_segments - 1, *held.shape[1:]), EMPTY.get(name, 0))
            return torch.cat([held[:, None], rest], dim=1).flatten(0, 1)

        vector = at_first("pending")
        assert vector is not None
        pending = Pending(vector, at_first("pending_score"), at_first("pending_offset"))
        x_RSE = layout.fold(x_BTE).flatten(0, 1)
        live_BNS = layout.live_BNS
        offset_BNS = layout.cell_offset_BNS.expand_as(live_BNS)
        return self.writer.absorb(pending, x_RSE, offset_BNS.flatten(0, 1), live_BNS.flatten(0, 1))

    def _push(
        self, pending: Pending, dtype: torch.dtype, held: Bank, state: LayerState, layout: Layout, memory: str
    ) -> tuple[Bank, LayerState]:
        """Number what enters, gather every segment's bank and the one after the call."""
        n_rows, n_slots = layout.n_rows, self.config.n_slots
        offered = self.writer.candidates(pending, dtype)
        entered_BNW = offered.present_RW.unflatten(0, (n_rows, -1)) & layout.closes_BN[..., None]
        if self.config.refuses_writes:
            assert offered.score_RW is not None
            entered_BNW = entered_BNW & (offered.score_RW > 0).unflatten(0, (n_rows, -1))
        assert state.pushed is not None
        if memory == "frozen":
            entered_BNW = until_full(entered_BNW, state.pushed, layout.document_BN, n_slots)
        vector_BNWE, recurrent_BE = self._gate(offered, entered_BNW, state, layout)
        key_BXKD = self.key(vector_BNWE.flatten(1, 2)).unflatten(2, (self.config.n_kv_heads, -1))
        value_BXKD = self.value(vector_BNWE.flatten(1, 2)).unflatten(2, (self.config.n_kv_heads, -1))
        log_gate = held.log_gate_BNM.new_zeros(entered_BNW.shape)
        if offered.score_RW is not None:
            log_gate = nn.functional.logsigmoid(offered.score_RW).view(entered_BNW.shape)
        if self.training and self.config.write_cost and log_gate.requires_grad:
            n_tokens = layout.closes_BN.sum() * self.config.segment_len
            price = price_of_writes(self.config, entered_BNW, log_gate.detach(), n_tokens)
            log_gate.register_hook(lambda gradient: gradient + price)
        if offered.score_RW is not None and self.config.gate_gradient == "value":
            # Through the logit, any harmless token is worth attending while a query finds nothing: gates open, and what
            # they let in evicts what was needed. Through the value, a gate learns from what its own slot says only.
            one_BX = (log_gate - log_gate.detach()).exp().flatten(1).to(value_BXKD.dtype)
            value_BXKD, log_gate = value_BXKD * one_BX[..., None, None], log_gate.detach()
        source_BNW = layout.base_BN[..., None] + offered.offset_RW.view(entered_BNW.shape)
        start_B = layout.base_BN[:, 0]

        index_BNM = windows(self.config, entered_BNW, log_gate.detach(), held, layout)
        segment_BNM = (index_BNM - n_slots).div(self.config.writes_per_segment, rounding_mode="floor")
        segment_BNM = segment_BNM.clamp(min=0)
        was_held_BNM = index_BNM < n_slots
        document_BNM = layout.document_BN.gather(1, segment_BNM.flatten(1)).view(index_BNM.shape)
        document_BNM = torch.where(was_held_BNM, 0, document_BNM)
        end_document_B1 = layout.document_BN.gather(1, layout.last_B[:, None])
        reader_BN = torch.cat([layout.document_BN, end_document_B1], dim=1)
        reader_base_BN = torch.cat([layout.base_BN, layout.open_base_B[:, None]], dim=1)

        def pool(was_BNM: Tensor, new_BNM: Tensor) -> Tensor:
            return torch.cat([was_BNM[:, 0], new_BNM.flatten(1, 2).to(was_BNM.dtype)], dim=1)

        held_filled_BNM = held.filled_BNM[:, 0].gather(1, index_BNM.clamp(max=n_slots - 1).flatten(1))
        filled_BNM = ~was_held_BNM | held_filled_BNM.view(index_BNM.shape)
        bank = Bank(
            take_rows(torch.cat([held.key_BNMKD[:, 0], key_BXKD.to(held.key_BNMKD.dtype)], 1), index_BNM),
            take_rows(
                torch.cat([held.value_BNMKD[:, 0], value_BXKD.to(held.value_BNMKD.dtype)], 1), index_BNM
            ),
            take_rows(pool(held.log_gate_BNM, log_gate), index_BNM),
            filled_BNM & (document_BNM == reader_BN[..., None]),
            reader_base_BN[..., None]
            - take_rows(pool(start_B[:, None, None] - held.age_BNM, source_BNW), index_BNM),
        )
        counted_BN = torch.where(layout.document_BN == end_document_B1, entered_BNW.sum(2), 0)
        pushed_B = counted_BN.sum(1) + torch.where(end_document_B1[:, 0] == 0, state.pushed, 0)
        filled_BM = bank.filled_BNM[:, -1]
        state = dataclasses.replace(
            state,
            slot_key=torch.where(filled_BM[..., None, None], bank.key_BNMKD[:, -1], 0.0),
            slot_value=torch.where(filled_BM[..., None, None], bank.value_BNMKD[:, -1], 0.0),
            slot_log_gate=torch.where(filled_BM, bank.log_gate_BNM[:, -1], 0.0),
            slot_age=torch.where(filled_BM, bank.age_BNM[:, -1], 0),
            pushed=pushed_B,
            recurrent=recurrent_BE,
        )
        reading = (bank.key_BNMKD, bank.value_BNMKD, bank.log_gate_BNM, bank.filled_BNM, bank.age_BNM)
        return Bank(*(x[:, :-1] for x in reading)), state

    def _gate(
        self, offered: Candidates, entered_BNW: Tensor, state: LayerState, layout: Layout
    ) -> tuple[Tensor, Tensor | None]:
        """Pass the candidates through the GRU gate, if there is one: the only loop over segments."""
        vector_BNWE = offered.vector_RWE.unflatten(0, (layout.n_rows, -1))
        if not self.config.recurrent_gate:
            return vector_BNWE, state.recurrent
        assert state.recurrent is not None
        m_BE, gated = state.recurrent, []
        for n in range(layout.n_segments):
            if n:
                same_B = layout.document_BN[:, n] == layout.document_BN[:, n - 1]
                m_BE = torch.where(same_B[:, None], m_BE, 0.0)
            new_BWE = self.gate(vector_BNWE[:, n], m_BE)
            places = torch.arange(1, entered_BNW.shape[2] + 1, device=m_BE.device)
            newest_B1 = (entered_BNW[:, n] * places).max(1, keepdim=True).values
            newest_BE = take_rows(new_BWE, (newest_B1 - 1).clamp(min=0))[:, 0]
            m_BE = torch.where(newest_B1 > 0, newest_BE, m_BE)
            gated.append(new_BWE.to(vector_BNWE.dtype))
        return torch.stack(gated, dim=1), m_BE

    def keys(self, bank: Bank, memory: str) -> tuple[Tensor, Tensor, Tensor]:
        """What a query sees: keys and values (B, N, J, K, D), and the bias (B, N, J) of their logits; J is M, or
        M + 1 with the null slot of a softmax in front. `memory`: "zeroed" hides every slot, "shuffled" shows those of the row
        before; any other value shows each row its own."""
        key_BNJKD, value_BNJKD, log_gate_BNJ = bank.key_BNMKD, bank.value_BNMKD, bank.log_gate_BNM
        filled_BNJ, age_BNJ = bank.filled_BNM, bank.age_BNM
        if self.config.memory_position == "rank":
            key_BNJKD = key_BNJKD + self.place_key.flip(0).to(key_BNJKD.dtype)
        elif self.config.memory_position == "age":
            segments_BNJ = (age_BNJ + self.config.segment_len - 1).div(
                self.config.segment_len, rounding_mode="floor"
            )
            doublings = 2 ** torch.arange(1, AGE_BUCKETS, device=age_BNJ.device)
            bucket_BNJ = torch.bucketize(segments_BNJ, doublings, right=True)
            key_BNJKD = key_BNJKD + self.place_key.to(key_BNJKD.dtype)[bucket_BNJ]
        if memory == "shuffled":
            key_BNJKD, value_BNJKD, log_gate_BNJ, filled_BNJ = (
                x.roll(1, 0) for x in (key_BNJKD, value_BNJKD, log_gate_BNJ, filled_BNJ)
            )
        bias_BNJ = torch.where(filled_BNJ, log_gate_BNJ, MASKED)
        if memory == "zeroed":
            bias_BNJ = torch.full_like(bias_BNJ, MASKED)
        if self.config.memory_read == "stick_breaking":
            return key_BNJKD, value_BNJKD, bias_BNJ
        if not self.config.null_slot:
            # Without a null slot an empty bank must read as zero, whatever an unfilled slot holds.
            seen_BNJ = (bias_BNJ > MASKED / 2)[..., None, None]
            return key_BNJKD, torch.where(seen_BNJ, value_BNJKD, 0.0), bias_BNJ
        shape = (*bias_BNJ.shape[:2], 1, *self.null_key.shape)
        null_key, null_value = (x.to(key_BNJKD.dtype).expand(shape) for x in (self.null_key, self.null_value))
        key_BNJKD = torch.cat([null_key, key_BNJKD], dim=2)
        value_BNJKD = torch.cat([null_value, value_BNJKD], dim=2)
        return key_BNJKD, value_BNJKD, torch.cat([torch.zeros_like(bias_BNJ[..., :1]), bias_BNJ], dim=2)

    def queries(self, x_BTE: Tensor) -> Tensor:
        """(B, T, H, D)."""
        q_BTHD: Tensor = self.query(x_BTE).unflatten(2, (self.config.n_heads, self.config.head_dim))
        return q_BTHD

    def read(self, x_BTE: Tensor, bank: Bank, layout: Layout, memory: str) -> Tensor:
        """r of every token: (B, T, H, D)."""
        key_BNJKD, value_BNJKD, bias_BNJ = self.keys(bank, memory)
        q_RSHD = layout.fold(self.queries(x_BTE)).flatten(0, 1)
        key_RJKD, value_RJKD = key_BNJKD.flatten(0, 1), value_BNJKD.flatten(0, 1)
        bias_RJ = bias_BNJ.flatten(0, 1)
        if self.config.memory_read == "stick_breaking":
            rest_KD = self.null_value if self.config.null_slot else None
            r_RSHD = attend_newest(q_RSHD, key_RJKD, value_RJKD, bias_RJ, self.read_bias, rest_KD)
        else:
            r_RSHD = attend(q_RSHD, key_RJKD, value_RJKD, key_bias_BJ=bias_RJ)
        return layout.unfold(r_RSHD.unflatten(0, (layout.n_rows, -1)))
