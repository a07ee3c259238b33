"""The memory as keys and values of local attention that a gate admitted (memory_projections="local").

    write    score_t = w . x_t + b,  g_t = sigmoid(score_t)     per layer, or per key head (slots_per)
             when local attention loses sight of S further tokens (write_when="unseen"; "closed": when their
             segment closes), the W best of them with g_t > 1/2 enter the bank of M slots
    read     softmax over [null slot | sinks | bank | local keys] of q . k / sqrt(D) + log g
             q, k: those of the local stream, rotated; the newest slot stands right before the first key that
             the segment's first token sees, the others before it in order, the sinks first
             (memory_position="none": neither q nor k of a slot is rotated)

Sinks are the first n_sinks tokens of the document; they have no gate and stay. Every token from the start of
the document up to the last offered one is a sink, in the bank, refused or evicted; with write_when="unseen"
the others are those that local attention sees. So with every token admitted and none evicted this is full
attention. The tokens that wait to be offered are those that the local stream holds.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from rmat.model.bank import admit, gate_slots, push
from rmat.model.call import Call
from rmat.model.config import ModelConfig
from rmat.model.parameters import parameter
from rmat.model.rotary import Rotary
from rmat.model.slots import Slots, with_null
from rmat.model.state import AdmittedState, KeyValues
from rmat.model.streams import Local
from rmat.model.writers import ranked
from rmat.ops.attention import MASKED, at_least_float32, rotate
from rmat.ops.fifo import take_rows


class TokenScore(nn.Module):
    """The weights of scores w . x_t + b, one for each bank of the layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = parameter(config.slot_groups, config.d_model)
        self.bias = parameter(config.slot_groups)


class TokenWriter(nn.Module):
    """Scores tokens and chooses which of them are offered to the bank."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        if config.scores_writes:
            self.score = TokenScore(config)

    def scores(self, x_BTE: Tensor, noise: float = 0.0) -> Tensor:
        """Write scores (B, T), or (B, T, K) by key head, in at least float32."""
        x_BTE = at_least_float32(x_BTE)
        score = x_BTE @ self.score.weight.to(x_BTE.dtype).T + self.score.bias.to(x_BTE.dtype)
        score = score if self.config.slots_per == "key_head" else score[..., 0]
        return score + noise * torch.randn_like(score) if noise else score

    def choose(self, score_BNS: Tensor, present_BNS: Tensor) -> Tensor:
        """Which of S tokens are offered, (B, N, W) in time order; as `SelectWriter` chooses."""
        n_tokens = score_BNS.shape[2]
        rank_BNS = ranked(score_BNS) * 2**20 - torch.arange(n_tokens, device=score_BNS.device)
        rank_BNS = torch.where(present_BNS, rank_BNS, torch.iinfo(torch.int64).min)
        best_BNW = rank_BNS.topk(self.config.writes_per_segment, dim=2, sorted=False).indices
        return best_BNW.sort(dim=2).values


class AdmittedMemory(nn.Module):
    """One layer's memory: write gate, bank and sinks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.writer = TokenWriter(config)
        if config.null_slot:
            self.null_key = parameter(config.n_kv_heads, config.head_dim)
            self.null_value = parameter(config.n_kv_heads, config.head_dim)

    def write(
        self, x_BTE: Tensor, local: Local, state: AdmittedState, call: Call
    ) -> tuple[Slots | None, AdmittedState]:
        """Score the call's tokens; admit those that the segments it completes offer.

        Args:
            x_BTE: block inputs. local: their keys and values, behind those held from before.

        Returns: what every segment of the call finds, sinks before the bank, (B, N, n_sinks + M), with keys
        as they are read, or None if it stands before the local keys already; and the new state.
        """
        layout, score = call.layout, None
        if state.score is not None:
            noise = self.config.gate_noise if call.training else 0.0
            score = torch.cat([state.score, self.writer.scores(x_BTE, noise)], dim=1)
            state = replace(state, score=layout.hold(score, local.range.n_held))
        if layout.n_segments == 1 and not layout.closes:  # most tokens of decoding: one segment, still open
            if local.n_slots:
                return None, state
            found = state.slots.map(lambda x: x[:, None])
        else:
            found, state = self._push(score, local, state, call)
        if self.config.n_sinks:
            sinks, held = self._sinks(local, state, call)
            found, state = sinks.cat(found, dim=2), replace(state, sinks=held)
        return self._placed(found, call.rotary), state

    def _push(
        self, score: Tensor | None, local: Local, state: AdmittedState, call: Call
    ) -> tuple[Slots, AdmittedState]:
        """Every segment's bank (B, N, M), and the state with the one after the call. Inside, rows are banks:
        where key heads have slots of their own, rows times key heads."""
        config, layout = self.config, call.banks
        # The tokens offered when a segment closes, by their offsets in it.
        offset = torch.arange(
            -config.write_lag, config.segment_len - config.write_lag, device=layout.base.device
        )
        place_BNW = (layout.base[..., None] + offset).clamp(-local.range.n_held, layout.n_tokens - 1)
        present_BNW = layout.at.prior[..., None] + offset >= config.n_sinks
        if score is not None:
            score = take_rows(self._banks(score), place_BNW + local.range.n_held)
            if config.writer == "select":
                best_BNW = self.writer.choose(score, present_BNW & layout.closed[..., None])
                place_BNW, present_BNW, score = (
                    x.gather(2, best_BNW) for x in (place_BNW, present_BNW, score)
                )
        slots, pushed = state.slots.map(self._banks), state.pushed.flatten()
        entered_BNW = admit(config, present_BNW, score, pushed, layout, call.memory)
        at = (place_BNW + local.range.n_held).flatten(1)
        key, value = (take_rows(self._banks(x), at) for x in (local.tokens.key, local.tokens.value))
        if score is None:
            log_gate = torch.zeros_like(at, dtype=slots.log_gate.dtype)
        else:
            log_gate, value = gate_slots(config, score, entered_BNW, value, layout, call.training)
        age = -place_BNW.flatten(1)
        new = Slots(key, value, log_gate.flatten(1), age, filled=torch.ones_like(age, dtype=torch.bool))
        found, after, pushed = push(config, entered_BNW, new, slots, pushed, layout)
        rows = (call.layout.n_rows, config.slot_groups)
        pushed = pushed.view(rows) if config.slots_per == "key_head" else pushed
        after = after.map(lambda x: self._rows(x, 2))
        return found.map(lambda x: self._rows(x, 3)), replace(state, slots=after, pushed=pushed)

    def _banks(self, x: Tensor) -> Tensor:
        """(B, X, ...) or, by key head, (B, X, K, ...) to rows of their own (B * K, X, ...)."""
        return x.movedim(2, 1).flatten(0, 1) if self.config.slots_per == "key_head" else x

    def _rows(self, x: Tensor, axis: int) -> Tensor:
        """Inverse of `_banks`: key heads go to `axis`."""
        if self.config.slots_per == "layer":
            return x
        x = x.unflatten(0, (-1, self.config.slot_groups))
        return x.movedim(1, axis)

    def _sinks(self, local: Local, state: AdmittedState, call: Call) -> tuple[Slots, KeyValues]:
        """The sinks that every segment finds, (B, N, n_sinks), and those to hold."""
        config, layout, held = self.config, call.layout, state.sinks
        assert held is not None
        open_prior = layout.at.end - layout.at.end % config.segment_len
        base = torch.cat([layout.base, layout.open_base[:, None]], dim=1)
        prior = torch.cat([layout.at.prior, open_prior[:, None]], dim=1)
        document = torch.cat(
            [layout.at.document, layout.at.document.gather(1, layout.at.last[:, None])], dim=1
        )
        number = torch.arange(config.n_sinks, device=base.device)
        filled_BNJ = number < prior[..., None] - config.write_lag
        before_BNJ = (document == 0)[..., None] & filled_BNJ[:, :1]  # known before the call
        at_BNJ = (base - prior)[..., None] + number + local.range.n_held
        at_BNJ = at_BNJ.clamp(0, local.tokens.key.shape[1] - 1)

        def found(x_BXKD: Tensor, held_BJKD: Tensor) -> Tensor:
            x_BNJKD = torch.where(before_BNJ[..., None, None], held_BJKD[:, None], take_rows(x_BXKD, at_BNJ))
            return torch.where(filled_BNJ[..., None, None], x_BNJKD, 0.0)

        key_BNJKD = found(local.tokens.key, held.key)
        value_BNJKD = found(local.tokens.value, held.value)
        age_BNJ = prior[..., None] - number
        filled, age = filled_BNJ, age_BNJ
        if config.slots_per == "key_head":
            filled, age = (x[..., None].expand(-1, -1, -1, config.n_kv_heads) for x in (filled, age))
        log_gate = torch.zeros_like(age, dtype=state.slots.log_gate.dtype)
        sinks = Slots(key_BNJKD, value_BNJKD, log_gate, age, filled)
        return sinks.map(lambda x: x[:, :-1]), KeyValues(key_BNJKD[:, -1].clone(), value_BNJKD[:, -1].clone())

    def _placed(self, found: Slots, rotary: Rotary) -> Slots:
        """Slots with the keys that are read: rotated to their places, if they have any."""
        config = self.config
        if config.memory_position == "none":
            return found
        first, heads = -config.lookback, config.n_kv_heads
        angles = rotary.at(slice(first - config.n_slots, first), heads)
        sink_BNJKD, key_BNMKD = found.key.split([config.n_sinks, config.n_slots], dim=2)
        key_BNMKD = rotate(key_BNMKD.flatten(0, 1), angles.cos, angles.sin).view_as(key_BNMKD)
        if not config.n_sinks:
            return replace(found, key=key_BNMKD)
        # The sinks stand before the oldest slot that is filled.
        n_places = config.n_sinks + config.n_slots
        n_filled = found.filled.flatten(0, 1).view(-1, n_places, config.slot_groups).sum(1)
        number = torch.arange(config.n_sinks, device=n_filled.device)
        place_RJK = (first - n_filled[:, None] + number[:, None]).clamp(max=first - 1)
        angles = rotary.at(place_RJK.expand(-1, -1, heads), heads)
        sink_BNJKD = rotate(sink_BNJKD.flatten(0, 1), angles.cos, angles.sin).view_as(sink_BNJKD)
        return replace(found, key=torch.cat([sink_BNJKD, key_BNMKD], dim=2))

    def learned(self) -> tuple[object, ...]:
        """The parameters among `keys`, and their versions."""
        if not self.config.null_slot:
            return ()
        parameters = (self.null_key, self.null_value)
        return tuple((id(x), 0 if x.is_inference() else x._version) for x in parameters)

    def keys(self, found: Slots) -> tuple[Tensor, Tensor, Tensor]:
        """What a query sees beside local keys: keys and values (B, N, J, K, D), and the bias (B, N, J), or
        (B, N, J, K) by key head, of their logits; the null slot, if there is one, in front."""
        key_BNJKD, value_BNJKD = found.key, found.value
        bias = torch.where(found.filled, found.log_gate, MASKED)
        if not self.config.null_slot:
            return key_BNJKD, value_BNJKD, bias
        return with_null(key_BNJKD, value_BNJKD, bias, self.null_key, self.null_value)

    def queries(self, local: Local) -> Tensor | None:
        """The queries (R, S, H, D) of slots that have no places; None where the rotated local ones serve."""
        return local.plain_RSHD if self.config.memory_position == "none" else None
