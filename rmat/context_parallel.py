"""One long row read by several processes: each takes a contiguous part, and hands over the bank only.

    row      | part 0         | part 1         | part 2         |     cut where segments begin
    layer l  |  x, keys, bank | x, keys, bank  | ...
             |      ---------> bank, look-back, tail ---------> |     forward, before attention
             |      <--------- their gradients <--------------- |     backward

What a layer carries from one segment to the next is its state: at most M slots, the look-back chunk, the tail
of the convolution. That is all that crosses, whatever the length. (A state also holds the newest tokens, of
about a segment: parts that are shorter hand those on that the state after the row will hold.) A layer writes
its memory before it attends, so the next process need not wait for attention. Where blocks write from their
output, a segment needs the whole of the one before: that cannot be read in parallel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rmat.model import LanguageModel, ModelConfig, StreamState
from rmat.model.call import Call
from rmat.model.evaluating import is_training
from rmat.model.layout import Layout
from rmat.model.state import PENDING, LayerState, initial_state
from rmat.ops.fifo import take_rows

_SENDING: list[tuple[Any, Tensor]] = []
"""Messages that may still be under way, with what they are made of."""


@dataclass(frozen=True)
class Part:
    """What one process reads of B rows."""

    hidden: Tensor
    """(B, W, E) hidden vectors of its tokens, for `LanguageModel.logits`; what stands behind a row's end is
    anything."""
    index: Tensor
    """(B, W) int64: which tokens of the row they are."""
    valid: Tensor
    """(B, W) bool: false behind a row's end."""
    state: StreamState
    """After the whole rows, in every process; without gradient but in the last."""


def read_parallel(
    model: LanguageModel,
    tokens: Tensor,
    state: StreamState | None = None,
    *,
    resets: Tensor | None = None,
    group: Any = None,
) -> Part:
    """Read this process's part of rows that all processes of `group` hold.

    Args:
        tokens: (B, T) int64, whole rows, the same in every process.
        state: what was read before, the same in every process; None for nothing.
        resets: (B, T) bool, true where a document starts.
        group: a gloo group whose processes share each row, in order; None: all processes.

    Gradients flow back from part to part, so where there is a backward pass every process of the group must
    make it, by `backward()` of a loss that its `hidden` enters. Raises ValueError where the model writes from
    the block output.
    """
    config, device = model.config, tokens.device
    refuse_parts(config)
    state = model.initial_state(tokens.shape[0]) if state is None else state
    position = state.position_on_cpu()
    resets = torch.zeros(tokens.shape, dtype=torch.bool) if resets is None else resets.cpu()
    rank, count = dist.get_rank(group), dist.get_world_size(group)
    places = _places(position, resets)
    cuts = _cuts(config, places, count)
    start, stop = cuts[:, rank], cuts[:, rank + 1]
    width = max(1, int((stop - start).max()))
    index = start[:, None] + torch.arange(width)
    valid = index < stop[:, None]
    index = index.clamp(max=tokens.shape[1] - 1)
    # Where the rows stand before the part; a document that starts at its first token starts there afresh.
    before = torch.cat([position[:, None], places + 1], dim=1).gather(1, start[:, None])[:, 0]
    fresh = (start < stop) & resets.gather(1, index[:, :1])[:, 0]
    before = torch.where(fresh, 0, before)
    inner = resets.gather(1, index) & valid
    inner[:, 0] = False
    layout = Layout.of(
        config,
        before,
        width,
        device,
        None if bool(valid.all()) else stop - start,
        inner if bool(inner.any()) else None,
    )
    link = _Link(config, group, cuts, resets, rank, count)
    taken = take_rows(tokens, index.to(device))
    hidden, state = _read(model, taken, state, layout, fresh.to(device), link)
    return Part(hidden, index, valid, link.spread(state))


def _read(
    model: LanguageModel, tokens: Tensor, state: StreamState, layout: Layout, fresh: Tensor, link: _Link
) -> tuple[Tensor, StreamState]:
    """As `LanguageModel.hidden` reads a layout, with states that come from the part before and go to the
    next."""
    h_BTE = model.embedding(tokens)
    call = Call.of(model.config, layout, model.embedding.weight.dtype, "on", is_training(model))
    layers = []
    for number, (block, layer) in enumerate(zip(model.blocks, state.layers, strict=True)):
        h_BTE, layer = block(h_BTE, layer, call, _Crossing(link, number, fresh))
        layers.append(layer)
    end = StreamState(
        position=layout.end.to(layout.device),
        layers=tuple(layers),
        fingerprint=state.fingerprint,
        on_cpu=layout.end,
    )
    return h_BTE + link.ties(h_BTE), end


def refuse_parts(config: ModelConfig) -> None:
    """Raise ValueError where rows cannot be read in parts."""
    if config.has_memory and config.write_from == "output":
        raise ValueError(
            "write_from='output' cannot be read in parts: a segment needs the block outputs of the one "
            "before; use one process for a row, or a configuration with write_from='input'"
        )


def _places(position: Tensor, resets: Tensor) -> Tensor:
    """(B, T) position of every token in its document."""
    t = torch.arange(resets.shape[1])
    start = torch.where(resets, t, -1).cummax(1).values
    return torch.where(start >= 0, t - start, position[:, None] + t)


def _cuts(config: ModelConfig, places: Tensor, count: int) -> Tensor:
    """(B, count + 1) where the parts of each row begin and end: where segments begin, about equally far
    apart; at a row's end if it has no more segments."""
    n_rows, length = places.shape
    edge = torch.where(places % config.segment_len == 0, torch.arange(length), length)
    edge[:, 0] = length  # a row is cut inside
    following = edge.flip(1).cummin(1).values.flip(1)  # the first edge from a token on
    following = torch.cat([following, torch.full((n_rows, 1), length)], dim=1)
    wanted = torch.arange(1, count) * length // count
    inside = following[:, wanted]
    ends = torch.tensor([0, length]).expand(n_rows, 2)
    return torch.cat([ends[:, :1], inside, ends[:, 1:]], dim=1)


class _Link:
    """The neighbours of a part: states come from the left and go to the right, gradients the other way."""

    def __init__(
        self, config: ModelConfig, group: Any, cuts: Tensor, resets: Tensor, rank: int, count: int
    ) -> None:
        self.config, self.group, self.rank, self.count = config, group, rank, count
        self._wanted = [_wanted(config, cuts[:, number], resets) for number in range(1, count)]
        self._ties: list[Tensor] = []

    def receive(self, number: int, layer: LayerState) -> LayerState:
        """The state of layer `number` before this part; the first part has it, as `layer`."""
        if self.rank == 0:
            return layer
        named = layer.tensors()
        wanted = _handed(named, *self._wanted[self.rank - 1])
        names = [name for name, x in wanted.items() if x.is_floating_point()]
        whole = [name for name in wanted if name not in names]
        like, floats = [wanted[name] for name in names], []
        if like:
            tie, *floats = _Receive.apply(self, number, like, _anchor(like))
            self._ties.append(tie)
        integers = self._get(4 * number + 1, [named[name] for name in whole], left=True)
        came = {**dict(zip(names, floats, strict=True)), **dict(zip(whole, integers, strict=True))}
        for name, x in named.items():
            if name not in came:
                came[name] = torch.full_like(x, PENDING.get(name, 0))
            elif came[name].shape != x.shape:
                missing = x.shape[1] - came[name].shape[1]
                came[name] = torch.cat([torch.zeros_like(x[:, :missing]), came[name]], dim=1)
        return LayerState.of({name: came[name] for name in named})

    def send(self, number: int, layer: LayerState) -> None:
        """Hand the state of layer `number` after this part to the next."""
        if self.rank == self.count - 1:
            return
        message = _handed(layer.tensors(), *self._wanted[self.rank])
        floats = [x for x in message.values() if x.is_floating_point()]
        self._put(4 * number + 1, [x for x in message.values() if not x.is_floating_point()], left=False)
        if floats:
            self._ties.append(_Send.apply(self, number, _anchor(floats), *floats))

    def ties(self, like: Tensor) -> Tensor:
        """Zero, on which the gradients of all that was handed over hang."""
        return sum((tie.to(like.dtype) for tie in self._ties), like.new_zeros(()))

    def spread(self, state: StreamState) -> StreamState:
        """The state after the last part, in every process."""
        last, end = self.count - 1, state.detach()
        source = last if self.group is None else dist.get_global_rank(self.group, last)
        copies = {name: x.cpu().contiguous() for name, x in end.tensors().items()}
        if self.rank != last:  # what is received must not be written over what the backward pass reads
            copies = {name: torch.empty_like(x) for name, x in copies.items()}
        for x in copies.values():
            dist.broadcast(x, src=source, group=self.group)
        _delivered()
        if self.rank == last:
            return state
        device = state.position.device
        held = {name: x.to(device) for name, x in copies.items()}
        return StreamState.from_tensors(self.config, held)

    def _peer(self, left: bool) -> int:
        peer = self.rank - 1 if left else self.rank + 1
        return peer if self.group is None else dist.get_global_rank(self.group, peer)

    def _put(self, tag: int, tensors: list[Tensor], left: bool) -> None:
        """Begin to send tensors of one type as one message."""
        if tensors:
            flat = torch.cat([x.detach().reshape(-1).cpu() for x in tensors])
            work = dist.isend(flat, self._peer(left), group=self.group, tag=tag)
            _SENDING.append((work, flat))

    def _get(self, tag: int, like: list[Tensor], left: bool) -> list[Tensor]:
        """Tensors of the shapes and the type of those in `like`."""
        if not like:
            return []
        flat = torch.empty(sum(x.numel() for x in like), dtype=like[0].dtype)
        dist.recv(flat, self._peer(left), group=self.group, tag=tag)
        pieces = flat.split([x.numel() for x in like])
        return [piece.view(x.shape).to(x.device) for piece, x in zip(pieces, like, strict=True)]


def _delivered() -> None:
    """Wait until messages are under way no more."""
    while _SENDING:
        _SENDING.pop()[0].wait()


class _Crossing:
    """The way of one layer's state through a part (`rmat.model.block.Handover`), which is gone once: a block
    that is computed again for the backward pass finds what it received and has sent."""

    def __init__(self, link: _Link, number: int, fresh: Tensor) -> None:
        self._link, self._number, self._fresh = link, number, fresh
        self._received: LayerState | None = None
        self._sent = False

    def receive(self, state: LayerState) -> LayerState:
        """The state before this part, cleared in rows whose document begins with it."""
        if self._received is None:
            # Activation checkpointing, which counts what is saved, must not see what happens once.
            with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
                named = self._link.receive(self._number, state).tensors()
                self._received = LayerState.of({name: self._cleared(name, x) for name, x in named.items()})
        return self._received

    def send(self, state: LayerState) -> None:
        """Hand on the state after this part."""
        if not self._sent:
            self._link.send(self._number, state)
        self._sent = True

    def _cleared(self, name: str, x: Tensor) -> Tensor:
        return torch.where(self._fresh.view(-1, *[1] * (x.dim() - 1)), PENDING.get(name, 0), x)


class _Send(torch.autograd.Function):
    """Hands tensors to the next part; gives a zero that brings back their gradients."""

    @staticmethod
    def forward(ctx: Any, link: _Link, number: int, anchor: Tensor, *tensors: Tensor) -> Tensor:
        ctx.link, ctx.number, ctx.like = link, number, [torch.empty_like(x) for x in tensors]
        link._put(4 * number, [x.to(anchor.dtype) for x in tensors], left=False)
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Any) -> Any:
        (tie,) = gradient
        (used,) = ctx.link._get(
            4 * ctx.number + 3, [torch.empty(len(ctx.like), dtype=torch.bool)], left=False
        )
        like = [x.to(tie.dtype) for x, wanted in zip(ctx.like, used, strict=True) if wanted]
        found = iter(ctx.link._get(4 * ctx.number + 2, like, left=False))
        each = (next(found).to(x.dtype) if wanted else None for x, wanted in zip(ctx.like, used, strict=True))
        return None, None, torch.zeros_like(tie), *each


class _Receive(torch.autograd.Function):
    """Takes tensors from the part before, and hands back their gradients; gives a zero beside them."""

    @staticmethod
    def forward(ctx: Any, link: _Link, number: int, like: list[Tensor], anchor: Tensor) -> Any:
        ctx.link, ctx.number = link, number
        ctx.set_materialize_grads(False)
        found = link._get(4 * number, [x.to(anchor.dtype) for x in like], left=True)
        return anchor.clone(), *(x.to(y.dtype) for x, y in zip(found, like, strict=True))

    @staticmethod
    def backward(ctx: Any, tie: Tensor, *gradients: Tensor | None) -> Any:
        # What no later token reads has no gradient, as in one process: a gradient of zero would move weights.
        used = torch.tensor([x is not None for x in gradients])
        ctx.link._put(4 * ctx.number + 3, [used], left=True)
        ctx.link._put(4 * ctx.number + 2, [x.to(tie.dtype) for x in gradients if x is not None], left=True)
        # At the end of the backward pass: a process that leaves takes along what nobody has received.
        torch.autograd.Variable._execution_engine.queue_callback(_delivered)
        return None, None, None, torch.zeros_like(tie)


def _anchor(tensors: list[Tensor]) -> Tensor:
    """A zero that takes the backward pass to both sides of a message, also where what is handed on hangs on
    no weight: gradients that nobody takes would be taken for those of the next message."""
    anchor = torch.zeros((), dtype=_widest(tensors), device=tensors[0].device)
    return anchor.requires_grad_(torch.is_grad_enabled())


def _widest(tensors: list[Tensor]) -> torch.dtype:
    """The widest floating type among some tensors."""
    kind = torch.float32
    for x in tensors:
        kind = torch.promote_types(kind, x.dtype)
    return kind


def _wanted(config: ModelConfig, start: Tensor, resets: Tensor) -> tuple[int, bool]:
    """How many of the newest tokens those parts need that begin at `start` (B,) and later, and whether they
    need what a writer keeps of an open segment: only where nothing of a row is left for them.

    They see the look-back. The state after the row holds more, which in a short document is of before."""
    length = resets.shape[1]
    rest = length - start
    last = torch.where(resets, torch.arange(length), -1).max(1).values
    missing = torch.where(last >= start, 0, max(config.held.values(), default=0) - rest)
    return max(config.lookback, int(missing.max())), bool((rest == 0).any())


def _handed(layer: Mapping[str, Tensor], n_tokens: int, pending: bool) -> dict[str, Tensor]:
    """Of a layer's state where a segment begins, what later parts need: see `_wanted`."""
    held = ("full_key", "full_value", "chunked_key", "chunked_value", "score")
    own = {name: x[:, max(x.shape[1] - n_tokens, 0) :] if name in held else x for name, x in layer.items()}
    return {name: x for name, x in own.items() if (pending or name not in PENDING) and x.numel()}


def handed_bytes(config: ModelConfig, dtype: torch.dtype = torch.float32) -> list[int]:
    """Bytes of one row that a part of two segments or more hands on at each layer, whatever its length; as
    many come back as gradients, but for the integers, and one for each tensor."""
    state = initial_state(config, 1, torch.device("meta"), dtype)
    layers = [_handed(layer.tensors(), config.lookback, False) for layer in state.layers]
    return [sum(x.nbytes for x in layer.values()) for layer in layers]
