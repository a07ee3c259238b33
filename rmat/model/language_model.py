"""The language model: embedding, blocks, head; and the schedules that all give the same result."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rmat.model.block import Block
from rmat.model.call import Call
from rmat.model.config import Eviction, ModelConfig
from rmat.model.evaluating import is_training
from rmat.model.initialization import initialize
from rmat.model.layout import Layout
from rmat.model.parameters import embedding, linear, norm
from rmat.model.slots import MemoryMode as MemoryMode
from rmat.model.state import StreamState, initial_state
from rmat.ops.fifo import take_rows
from rmat.settings import known_keywords

Schedule = Literal["auto", "parallel", "sequential"]


class LanguageModel(nn.Module):
    """A recurrent memory-augmented Transformer (arXiv 2507.00453) and everything that `ModelConfig` makes of
    it.

    `forward(tokens, state) -> (logits, state)` reads on from a state and returns the next; nothing is kept
    on the module. One call of T tokens, T calls of one, and any split between give the same logits, state
    and gradients.
    """

    block_class: type[Block] = Block
    """What the blocks are; for those who wrap a block, as transformers does."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not isinstance(config, ModelConfig):
            raise ValueError(
                f"LanguageModel takes a ModelConfig, not {type(config).__name__}: try ModelConfig.preset"
            )
        self.config = config
        self.embedding = embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(
            self.block_class(config.of_layer(index)) for index in range(config.n_layers)
        )
        self.norm = norm(config)
        if not config.tie_embeddings:
            self.head = linear(config.d_model, config.vocab_size)
        initialize(self)

    @known_keywords()
    def forward(
        self,
        tokens: Tensor,
        state: StreamState | None = None,
        *,
        resets: Tensor | None = None,
        valid: Tensor | None = None,
        schedule: Schedule = "auto",
        memory: MemoryMode = "on",
    ) -> tuple[Tensor, StreamState]:
        """Read tokens on from a state.

        Args:
            tokens: (B, T) int64, T >= 1.
            state: what was read before; None starts every row afresh. It stays valid.
            resets: (B, T) bool, true where a new document starts; what came before it is forgotten.
            valid: (B, T) bool, false for padding anywhere in a row; it leaves the row's state untouched.
                Both may stay on the CPU: with a model on a GPU, which is then not waited for.
            schedule: "parallel" reads all segments of a layer at once, "sequential" one after the other,
                "auto" picks (`resolve_schedule` says why). A model that writes from the block output cannot
                be parallel.
            memory: "on"; or, to measure what the memory is worth: "zeroed" (every read finds an empty bank),
                "frozen" (a full bank takes no more writes: it keeps the document's start), "shuffled" (row b
                reads the bank of row b - 1).

        Returns: logits (B, T, V), zero at padding, and the state after the last token. Gradients flow
        through the memory inside a call, and into earlier calls unless the state was detached.

        Raises: `ValueError` that names what is wrong with an argument, its value and the remedy.
        """
        hidden, state = self.hidden(
            tokens, state, resets=resets, valid=valid, schedule=schedule, memory=memory
        )
        logits = self.logits(hidden)
        if valid is not None:
            logits = torch.where(valid.to(logits.device, non_blocking=True)[..., None], logits, 0.0)
        return logits, state

    @known_keywords()
    def hidden(
        self,
        tokens: Tensor,
        state: StreamState | None = None,
        *,
        resets: Tensor | None = None,
        valid: Tensor | None = None,
        schedule: Schedule = "auto",
        memory: MemoryMode = "on",
    ) -> tuple[Tensor, StreamState]:
        """`forward` without the head: hidden vectors (B, T, E) for `logits`, and the state. For callers that
        need the logits of few places only, as a large vocabulary makes the head the costliest part. Padding
        holds anything. In place of tokens there may be vectors (B, T, E), which are read as if the embedding
        had made them."""
        state = self._check(tokens, state, resets, valid)
        name, _ = self.resolve_schedule(schedule)
        if memory not in get_args(MemoryMode):
            raise ValueError(
                f"memory={memory!r} is not possible: choose one of {', '.join(get_args(MemoryMode))}"
            )
        length, place, device = None, None, tokens.device
        # What decides on shapes is known on the CPU, so that no question waits for the work of a GPU.
        position = state.position_on_cpu()
        resets, valid = (None if x is None else x.cpu() for x in (resets, valid))
        if valid is not None and not bool(valid.all()):
            tokens, resets, length, place = _compact(tokens, resets, valid)
        if resets is not None:
            fresh = resets[:, 0] if length is None else resets[:, 0] & (length > 0)
            if bool(fresh.any()):
                state = state.reset(fresh.to(device, non_blocking=True))
                position = torch.where(fresh, 0, position)
            resets = resets.clone()
            resets[:, 0] = False
            resets = resets if bool(resets.any()) else None
        layout = Layout.of(self.config, position, tokens.shape[1], device, length, resets)
        if name == "parallel" or (layout.n_segments == 1 and resets is None):
            hidden, state = self._read(tokens, state, layout, memory)
        else:
            hidden, state = self._read_pieces(tokens, state, position, layout, memory)
        if place is not None:
            hidden = take_rows(hidden, place.to(device, non_blocking=True))
        return hidden, state

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) of hidden vectors (..., E)."""
        hidden = self.norm(hidden)
        if self.config.tie_embeddings:
            return nn.functional.linear(hidden, self.embedding.weight)
        logits: Tensor = self.head(hidden)
        return logits

    def resolve_schedule(self, schedule: Schedule = "auto") -> tuple[str, str]:
        """The schedule that `forward` takes for `schedule`, and why."""
        if schedule not in get_args(Schedule):
            raise ValueError(
                f"schedule={schedule!r} is not possible: choose one of {', '.join(get_args(Schedule))}"
            )
        recurrent = self.config.has_memory and self.config.write_from == "output"
        if schedule == "parallel" and recurrent:
            raise ValueError(
                "schedule='parallel' is not possible with write_from='output': a segment's memory needs the "
                "outputs of the one before; use schedule='auto', or a configuration with write_from='input'"
            )
        if schedule != "auto":
            return schedule, "asked for"
        if recurrent:
            return (
                "sequential",
                "write_from='output': a segment's memory needs the block outputs of the one before",
            )
        if not self.config.has_memory:
            return "parallel", "no memory: segments need only keys and values of their neighbours"
        return "parallel", "write_from='input': all segments of a layer are known at once"

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> StreamState:
        """The state of rows that have read nothing; device and floating type default to the model's."""
        weight = self.embedding.weight
        return initial_state(
            self.config, batch_size, torch.device(device or weight.device), dtype or weight.dtype
        )

    def with_slots(
        self,
        n_slots: int | None = None,
        eviction: Eviction | None = None,
        fade: float | None = None,
        newest_share: float | None = None,
    ) -> LanguageModel:
        """A model with these weights and banks of `n_slots` slots: they may be more, or fewer, than in
        training; `eviction`, `fade` and `newest_share` say what they give up when they are full. None leaves
        a choice as it is; where the oldest leave the last two are 0.

        Raises `ValueError` if the configuration refuses the number, or if slots have learned places
        (memory_position="rank").
        """
        n_slots = self.config.n_slots if n_slots is None else n_slots
        eviction = self.config.eviction if eviction is None else eviction
        weakest = eviction == "weakest"
        if fade is None:
            fade = self.config.fade if weakest else 0.0
        if newest_share is None:
            newest_share = self.config.newest_share if weakest else 0.0
        config = dataclasses.replace(
            self.config, n_slots=n_slots, eviction=eviction, fade=fade, newest_share=newest_share
        )
        if n_slots != self.config.n_slots and config.has_memory and config.memory_position == "rank":
            raise ValueError(
                f"n_slots={n_slots} is not possible: memory_position='rank' has learned "
                f"{self.config.n_slots} places"
            )
        weight = self.embedding.weight
        # What a seeded program draws next stays the same.
        with torch.random.fork_rng(devices=[]), torch.device(weight.device):
            other = LanguageModel(config).to(dtype=weight.dtype)
        other.load_state_dict(self.state_dict())
        return other.train(self.training)

    def save(self, folder: str | Path, tokenizer: Any = None) -> None:
        """Write a model folder (config.json, model.safetensors and, if given, tokenizer.json)."""
        from rmat.storage import save_model  # the one place where the model knows of its folder

        save_model(self, folder, tokenizer=tokenizer)

    def _read(
        self, tokens: Tensor, state: StreamState, layout: Layout, memory: MemoryMode
    ) -> tuple[Tensor, StreamState]:
        """All blocks over one layout: hidden vectors (B, T, E) and the new state."""
        h_BTE = tokens if tokens.is_floating_point() else self.embedding(tokens)
        call = Call.of(self.config, layout, self.embedding.weight.dtype, memory, is_training(self))
        layers = []
        for block, layer in zip(self.blocks, state.layers, strict=True):
            h_BTE, layer = block(h_BTE, layer, call)
            layers.append(layer)
        return h_BTE, StreamState(
            position=layout.end.to(layout.device, non_blocking=True),
            layers=tuple(layers),
            fingerprint=state.fingerprint,
            on_cpu=layout.end,
        )

    def _read_pieces(
        self, tokens: Tensor, state: StreamState, position: Tensor, layout: Layout, memory: MemoryMode
    ) -> tuple[Tensor, StreamState]:
        """Segment after segment: every layer of one before the first of the next. `position`: that of the
        state, on the CPU."""
        parts, starts, n_read = [], [], 0
        for piece in layout.pieces():
            if piece.fresh is not None and bool(piece.fresh.any()):
                state = state.reset(piece.fresh.to(layout.device, non_blocking=True))
                position = torch.where(piece.fresh, 0, position)
            n_tokens = piece.index.shape[1]
            part = Layout.of(self.config, position, n_tokens, layout.device, piece.length)
            taken = take_rows(tokens, piece.index.to(layout.device, non_blocking=True))
            hidden_BTE, state = self._read(taken, state, part, memory)
            position = part.end
            parts.append(hidden_BTE)
            starts.append(n_read)
            n_read += n_tokens
        joined_BXE = torch.cat(parts, dim=1)
        if layout.host is None:
            return joined_BXE, state
        start = torch.tensor(starts, device="cpu")[layout.host.segment]
        within = torch.arange(layout.n_tokens, device="cpu")
        within = within - layout.host.first.gather(1, layout.host.segment)
        place = (start + within).clamp(0, n_read - 1).to(layout.device, non_blocking=True)
        return take_rows(joined_BXE, place), state

    def _check(
        self, tokens: Tensor, state: StreamState | None, resets: Tensor | None, valid: Tensor | None
    ) -> StreamState:
        vectors = isinstance(tokens, Tensor) and tokens.is_floating_point() and tokens.dim() == 3
        if not vectors and (not isinstance(tokens, Tensor) or tokens.dtype != torch.int64):
            kind = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(f"tokens are {kind}: give an int64 tensor of shape (rows, tokens)")
        if vectors and (tokens.shape[2] != self.config.d_model or not tokens.numel()):
            raise ValueError(
                f"vectors have shape {tuple(tokens.shape)}: give (rows, tokens, {self.config.d_model}) with "
                "at least one of each"
            )
        if not vectors and (tokens.dim() != 2 or not tokens.numel()):
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)}: give (rows, tokens) with at least one of each"
            )
        device = self.embedding.weight.device
        if tokens.device != device:
            raise ValueError(f"tokens are on {tokens.device}, the model on {device}: move one of them")
        if device.type == "cpu" and not vectors:  # to ask a GPU would wait for its work: see `tokens_to`
            check_tokens(tokens, self.config.vocab_size)
        for name, mask in (("resets", resets), ("valid", valid)):
            if mask is None:
                continue
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != tokens.shape[:2]:
                seen = (
                    f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
                )
                raise ValueError(
                    f"{name} is {seen}: give a bool tensor of the tokens' shape {tuple(tokens.shape[:2])}"
                )
            if mask.device not in (device, torch.device("cpu")):
                raise ValueError(f"{name} is on {mask.device}, the model on {device}: move one of them")
        if state is None:
            return self.initial_state(tokens.shape[0])
        if not isinstance(state, StreamState):
            raise ValueError(
                f"state is {type(state).__name__}: give the StreamState of an earlier call, or None"
            )
        if state.fingerprint != self.config.fingerprint():
            raise ValueError(
                f"state belongs to another configuration (fingerprint {state.fingerprint}, this model has "
                f"{self.config.fingerprint()}): start from model.initial_state"
            )
        if state.batch_size != tokens.shape[0]:
            raise ValueError(
                f"state has {state.batch_size} rows, tokens have {tokens.shape[0]}: select or concat rows"
            )
        if state.position.device != device:
            raise ValueError(
                f"state is on {state.position.device}, the model on {device}: use state.to('{device}')"
            )
        if state.dtype != self.embedding.weight.dtype:
            kind = self.embedding.weight.dtype
            raise ValueError(f"state holds {state.dtype}, the model computes in {kind}: use state.to({kind})")
        return state


def tokens_to(device: torch.device, tokens: Tensor, vocab_size: int) -> Tensor:
    """Tokens of the CPU on a model's device. Those that leave the CPU are checked before; the others are
    checked by the model. Raises `ValueError` as `check_tokens`."""
    if device.type != "cpu":
        check_tokens(tokens, vocab_size)
    return tokens.to(device)


def check_tokens(tokens: Tensor, vocab_size: int) -> None:
    """Raise `ValueError` if a token id is not in [0, vocab_size)."""
    low, high = (int(x) for x in tokens.aminmax())
    if low < 0 or high >= vocab_size:
        odd = low if low < 0 else high
        raise ValueError(f"token {odd} is out of range: ids must be in [0, vocab_size={vocab_size})")


def _compact(
    tokens: Tensor, resets: Tensor | None, valid: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Move every row's real tokens to its front. Returns tokens and, on the CPU as the masks are, resets of
    the longest row's length, the rows' lengths (B,), and where each original place (B, T) went. Resets at
    padding are no document starts."""
    length = valid.sum(1)
    order = (~valid).long().argsort(dim=1, stable=True)[:, : max(int(length.max()), 1)]
    place = (valid.cumsum(1) - 1).clamp(min=0)
    if resets is not None:
        resets = (resets & valid).gather(1, order)
    return take_rows(tokens, order.to(tokens.device, non_blocking=True)), resets, length, place
