"""Gates of a pretrained model, distilled from the model itself: its weights are frozen, only gates learn.

    teacher  the model with everything in sight
    student  the same, but the logit of a key out of local reach has log g of its gate added, per key head;
             the first n_sinks keys are in everybody's reach
    loss     KL(teacher || student) of the tokens that something is out of reach of, those that ask weighted,
             and a price on g of the key heads whose mean g lately was beyond the share that they may admit

Nothing is refused while gates learn, so that refused tokens have a gradient (as in WG-KV).

Where the oldest leave, g is that of the score, and local reach is drawn anew for every passage, up to the
model's own: gates learn for every distance (as in AHN and SWAX).

Where the weakest leave, every segment finds what its bank would hold: the newest, and of the older tokens as
many of the strongest as there is room for. g is that of a token's strength above the last of these, so that
scores learn to rank, and how fast each key head forgets is learned too. Text is read at the pace at which it
will be read. A passage that asks stands for one up to 8 times as long, in which strength has faded as much
more and the bank has as much less room: what is asked for may have been stated any time before.

A gate's score has standard deviation 1 here, times a sharpness that rises from 2 to that of a fitted gate,
where nearly all gates are 0 or 1 and hardly any token has a gradient. At the beginning soft gates let the
scores move, at the end the student reads what the bank will hold. On a GPU all but the gates is computed in
bfloat16.

Files of a run, in one folder: config.json, environment.json, data.json, metrics.jsonl (a row for every
update), checkpoints/, and result.json once it is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rmat.data.tokenizer import Tokenizer
from rmat.machine import describe_environment, pick_device
from rmat.model import LanguageModel, ModelConfig
from rmat.model.bank import FADE_TOKENS
from rmat.model.call import Call
from rmat.model.layout import Layout
from rmat.ops.attention import MASKED, additive, at_least_float32, attend, attend_slots
from rmat.pretrained.gates import (
    LASTING,
    SAMPLED_TOKENS,
    SHARPNESS,
    Passage,
    admitting,
    mixed,
    require_gates,
    undamped,
    with_all_in_sight,
    with_scores,
)
from rmat.settings import check, coerce, field_types, number, whole
from rmat.storage import CONFIG_FILE, assigned, weights_fingerprint, write_json
from rmat.training.checkpoint import Checkpoint, Saver, model_tensors, newest_sound_checkpoint
from rmat.training.config import TrainConfig
from rmat.training.distributed import Processes
from rmat.training.optimizer import (
    build_optimizers,
    learning_rate_factor,
    optimizer_places,
    optimizer_tensors,
    progress,
    restore_optimizers,
    set_learning_rate,
)
from rmat.training.process import own_defaults, seed_everything, undisturbed
from rmat.training.progress import Reporter, Terminal, stop_on_signal
from rmat.training.records import JsonLines
from rmat.training.run import locked

SOFT = 2.0
"""Sharpness at the beginning: g is between 0.12 and 0.88 within one standard deviation of the threshold."""

PRICE = 4.0
"""Full price in nats per token of g = 1 in all key heads. It rises from the share and is full at twice that.
To admit more gains about a tenth of a nat for each 1 of g, so that gates stay a few hundredths above."""

RECENT = 0.1
"""Weight of a passage in the mean g of passages lately. A price on that of each passage alone would be paid
by a head that admits its share but in one kind of passages more than in another, and would close it."""

ASKED = 8.0
"""Weight in the loss of a token of a question or an answer, of which there are few."""

LEAST_REACH = 4
"""The smallest reach that is drawn is the model's own divided by this."""

LONGEST = 8.0
"""A passage that asks stands for one up to so many times as long where the weakest leave."""

FADING = 10.0
"""How many times faster than a weight the log of a fade learns."""

FASTEST = 4.0
"""The fastest fade of a key head in standard deviations of its scores, beside that of the configuration."""

SCALING_PASSAGES = 8
"""Passages by which scores are scaled and thresholds set."""

HELD_OUT_PASSAGES = 4
"""Passages, of a round that no run reaches, by which the model is measured before and after."""

HEAD_TOKENS = 128
"""Tokens whose logits are in memory at once."""

CHECKPOINT_EVERY = 10
"""Updates between two checkpoints."""

RUN_FOLDER, RESULT_FILE = "distil", "result.json"


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """How gates are distilled. Raises ValueError."""

    data: tuple[str, ...] = ("python-stdlib",)
    """SPECs of the text of the passages, a passage of each in turn."""
    share: float = 0.5
    """Share of all tokens that a key head may admit, above 0 and below 1."""
    n_prose: int = 8
    """Passages of prose in each round; rounds follow each other, each with other passages."""
    n_asking: int = 24
    """Passages in each round that ask for what they state."""
    length: int | None = None
    """Tokens of a passage, within the trained context; None: 2,048 of prose, 1,280 of one that asks."""
    steps: int = 400
    """Updates, at most; each reads one passage."""
    minutes: float | None = None
    """Wall-clock budget over all parts of an interrupted run; None: no budget."""
    lr: float = 1e-3
    """Peak learning rate of AdamW, of scores of standard deviation 1 of inputs of root mean square 1."""
    lora: int = 0
    """Rank of additions to query and key maps, which learn too; 0: none."""
    seed: int = 0
    """Seed of the passages and of the reach."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        for name, kind in field_types(DistilConfig).items():
            object.__setattr__(self, name, coerce(getattr(self, name), kind, f"distil.{name}"))
        check(self, "distil", "share", number, above=0, below=1)
        check(self, "distil", ("n_prose", "n_asking", "lora"), whole, 0)
        check(self, "distil", "seed", whole, 0, 2**32 - 1)
        check(self, "distil", "steps", whole, 1)
        if self.length is not None:
            check(self, "distil", "length", whole, 1)
        check(self, "distil", ("minutes", "lr"), number, above=0)
        if not self.n_prose + self.n_asking:
            raise ValueError("n_prose=0 and n_asking=0 leave nothing to read: give one of them 1 or more")

    def training(self) -> TrainConfig:
        """The same in the terms of training."""
        return TrainConfig(
            steps=self.steps,
            max_minutes=self.minutes,
            lr=self.lr,
            warmup_steps=min(10, self.steps),
            weight_decay=0.0,
        )


def distil(
    model: LanguageModel,
    tokenizer: Tokenizer,
    config: DistilConfig,
    out: str | Path,
    *,
    reporter: Reporter | None = None,
) -> LanguageModel | None:
    """The model with distilled gates, on the CPU, written to the model folder `out`; None if SIGINT or
    SIGTERM stopped it, which saves the run.

    The run is in the folder `distil` of `out`. One that is not complete goes on: on the same machine it
    equals an uninterrupted one bit for bit, unless it has a time budget. A complete one is replaced.

    Args:
        model: imported, with fitted gates.

    Raises ValueError for a model without such gates, and where the run there was started with other settings,
    text or weights; FloatingPointError if the numbers break down.
    """
    require_gates(model.config)
    if not any(x.any() for name, x in model.state_dict().items() if name.endswith("score.weight")):
        raise ValueError("the gates of this model are all open: fit them first (rmat gates MODEL)")
    if config.length is not None and tokenizer.chat is not None:
        whole("distil.length", config.length, 1, tokenizer.chat.context)
    device, _ = pick_device(config.device)
    scaling = list(islice(passages(config, tokenizer), SCALING_PASSAGES))
    folder = Path(out) / RUN_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with undisturbed(), own_defaults(), locked(folder):
        there = assigned(model.config, {name: x.to(device) for name, x in model.state_dict().items()})
        run = _Run(there, tokenizer, config, scaling, folder, reporter or Terminal())
        if not run.train():
            return None
        distilled = run.distilled().to("cpu")
        distilled.save(out, tokenizer=tokenizer)
        write_json(folder / RESULT_FILE, run.result())
        return distilled


class Gate(nn.Module):
    """The gate of one layer, on inputs (T, E) that are divided by their root mean squares `scale`."""

    scale: Tensor
    opened: Tensor
    """(K,) mean g lately."""
    spread: Tensor
    """(K,) standard deviation of the scores of the gate that was given, which the distilled one has again
    where scores do not fade."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.n_kv_heads, config.d_model, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(config.n_kv_heads, dtype=dtype))
        self.register_buffer("scale", torch.ones(config.d_model, dtype=dtype))
        self.register_buffer("opened", torch.zeros(config.n_kv_heads, dtype=dtype))
        self.register_buffer("spread", torch.ones(config.n_kv_heads, dtype=dtype))
        if config.fade:
            self.log_fade = nn.Parameter(torch.zeros(config.n_kv_heads, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Scores (T, K) in at least float32."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(at_least_float32(x) / self.scale, self.weight, self.bias)

    def fades(self) -> Tensor | None:
        """What each key head's scores lose in 1,024 tokens, (K,); None if they do not fade."""
        return (FADING * self.log_fade).exp() if hasattr(self, "log_fade") else None


class LowRank(nn.Module):
    """W_up W_down x, zero at first."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        self.down = nn.Linear(base.in_features, rank, bias=False, dtype=dtype)
        self.up = nn.Linear(rank, base.out_features, bias=False, dtype=dtype)
        nn.init.zeros_(self.up.weight)

    def matrix(self) -> Tensor:
        """What is added to the matrix."""
        return (self.up.weight @ self.down.weight).detach()


class Added(nn.Module):
    """A map and what is added to it."""

    def __init__(self, base: nn.Module, addition: LowRank) -> None:
        super().__init__()
        self.base, self.addition = base, addition

    def forward(self, x: Tensor) -> Tensor:
        """(..., n_in) to (..., n_out), in the type of x."""
        wide = at_least_float32(x)
        return torch.add(self.base(x), self.addition.up(self.addition.down(wide))).to(x.dtype)


class Learned(nn.Module):
    """What learns of a model: `blocks`, with the gate of each layer and additions to its maps."""

    def __init__(self, model: LanguageModel, rank: int) -> None:
        super().__init__()
        dtype = torch.promote_types(model.embedding.weight.dtype, torch.float32)
        self.config = model.config
        self.blocks: Any = nn.ModuleList()
        for block in model.blocks:
            parts: dict[str, nn.Module] = {"gate": Gate(model.config, dtype)}
            if rank:
                local: Any = next(iter(block.local.values()))  # type: ignore[operator]
                parts |= {name: LowRank(getattr(local, name), rank) for name in ("query", "key")}
            self.blocks.append(nn.ModuleDict(parts))

    @torch.no_grad()
    def start(self, model: LanguageModel, samples: Sequence[Tensor], share: float) -> None:
        """Take the gates of `model`, scaled by inputs (N, E) of every layer."""
        for index, (block, sample) in enumerate(zip(self.blocks, samples, strict=True)):
            score: Any = model.blocks[index].memory.writer.score  # type: ignore[union-attr]
            gate = block["gate"]
            weight, bias = admitting(share, score.weight.double(), score.bias.double(), sample)
            gate.scale.copy_(sample.square().mean(0).sqrt().clamp(min=1e-6))
            gate.weight.copy_(weight.to(gate.scale) * gate.scale / SHARPNESS)
            gate.bias.copy_(bias / SHARPNESS)
            gate.opened.fill_(share)
            gate.spread.copy_((sample.double() @ score.weight.double().T).std(0))
            if self.config.fade:
                gate.log_fade.copy_((self.config.fade / gate.spread).log() / FADING)
        self.bound()

    @torch.no_grad()
    def bound(self) -> None:
        """Keep fades within what scores can express: log g tells only those below 87 from each other."""
        if self.config.fade:
            slowest, fastest = self.config.fade / LASTING, self.config.fade * FASTEST
            for block in self.blocks:
                block["gate"].log_fade.clamp_(math.log(slowest) / FADING, math.log(fastest) / FADING)

    def read(self, full: LanguageModel, tokens: Tensor, sight: Sight) -> tuple[Tensor, Tensor]:
        """Read tokens (T,) as the student does: hidden vectors (T, E), and the mean g of every layer's key
        heads (L, K) before thresholds are raised.

        Args:
            full: the model with everything in sight, whose maps are changed where there are additions.
        """
        config, device = self.config, tokens.device
        position = torch.zeros(1, dtype=torch.int64, device="cpu")
        layout = Layout.of(full.config, position, len(tokens), device)
        call = Call.of(full.config, layout, full.embedding.weight.dtype, "on", False)
        state = full.initial_state(1)
        # A GPU's kernel keeps what the gradient of a mask needs only where the queries have one too.
        h_BTE, opened = full.embedding(tokens[None]).detach().requires_grad_(), []
        parts: Any = zip(full.blocks, self.blocks, state.layers, strict=True)
        for block, own, layer in parts:
            projection = block.local["full"]
            for name in set(own) - {"gate"}:
                setattr(projection, name, Added(getattr(projection, name), own[name]))

            def read(h_BTE: Tensor, block: Any = block, own: Any = own, layer: Any = layer) -> Any:
                x_BTE = block.norm(h_BTE)
                local, _ = block.local["full"](x_BTE, layer.full, call.ranges["full"])
                score = own["gate"](x_BTE[0])
                log_gate = log_gates(config, score, own["gate"].fades(), sight)
                seen = (local.q_RSHD, local.k_RJKD, local.v_RJKD)
                h_BTE = h_BTE + block.output(attend_gated(*seen, log_gate, sight.chunk).flatten(2))
                h_BTE = h_BTE + block.feedforward(block.feedforward_norm(h_BTE))
                return h_BTE, (sight.sharpness * score[config.n_sinks :]).sigmoid().mean(0)

            h_BTE, mean = checkpoint(read, h_BTE, use_reentrant=False)
            opened.append(mean)
        return h_BTE[0], torch.stack(opened)

    @torch.no_grad()
    def lately(self, opened: Tensor) -> Tensor:
        """Mean g (L, K) of passages up to this one, whose own is `opened`."""
        pairs = zip(self.blocks, opened, strict=True)
        return torch.stack([block["gate"].opened.lerp_(own, RECENT) for block, own in pairs])

    @torch.no_grad()
    def added_to(self, model: LanguageModel) -> LanguageModel:
        """`model` with what was added to its maps, or itself."""
        tensors = dict(model.state_dict())
        (name,) = model.config.held
        for index, own in enumerate(self.blocks):
            for part in set(own) - {"gate"}:
                key = f"blocks.{index}.local.{name}.{part}.weight"
                addition = own[part].matrix()
                tensors[key] = (tensors[key].to(addition.dtype) + addition).to(tensors[key].dtype)
        return assigned(model.config, tensors)

    @torch.no_grad()
    def scores(self) -> list[tuple[Tensor, Tensor]]:
        """Weights (K, E) and biases (K,) of every layer, in float64, for inputs as they are."""
        gates = [own["gate"] for own in self.blocks]
        return [((gate.weight / gate.scale).double(), gate.bias.double()) for gate in gates]

    @torch.no_grad()
    def spreads(self, samples: Sequence[Tensor]) -> list[Tensor]:
        """Standard deviations (K,) that the scores of every layer's gate should have, at inputs (N, E): those
        of the gate that was given, or such that all fade as the configuration says."""
        found = []
        for own, sample, (weight, _) in zip(self.blocks, samples, self.scores(), strict=True):
            fades = own["gate"].fades()
            spread = own["gate"].spread.double()
            if fades is not None:
                spread = (sample.double() @ weight.T).std(0) * self.config.fade / fades.double()
            found.append(spread)
        return found


def log_gates(config: ModelConfig, score: Tensor, fades: Tensor | None, sight: Sight) -> Tensor:
    """log g of every token for every chunk of queries, (N, T, K), by scores (T, K). Sinks have g = 1, and
    where the weakest leave, the newest that a bank holds too."""
    n_tokens, n_sinks = score.shape[0], config.n_sinks
    n_chunks = -(-n_tokens // sight.chunk)
    if config.eviction == "oldest":
        levels = score.new_tensor([1 - sight.share, 1 - sight.kept])
        low, high = score[n_sinks:].detach().quantile(levels, dim=0)
        log_gate = F.logsigmoid(sight.sharpness * (score[n_sinks:] - (high - low)))
        return F.pad(log_gate, (0, 0, n_sinks, 0)).expand(n_chunks, -1, -1)
    at = torch.arange(n_tokens, device=score.device)
    if fades is not None:
        score = score + fades * (sight.pace / FADE_TOKENS * at)[:, None]
    old = sight.chunk * (torch.arange(n_chunks, device=score.device) - 1) - config.n_newest
    old_NT = (at >= n_sinks) & (at < old[:, None])
    room = min(max(round((config.n_slots - config.n_newest) / sight.pace), 1), n_tokens)
    ranked_NKT = torch.where(old_NT[:, None], score.T, -torch.inf)
    last_NK = ranked_NKT.topk(room, dim=2).values[..., -1]
    full_NK = last_NK > -torch.inf
    above_NTK = score - torch.where(full_NK, last_NK, 0.0)[:, None]
    log_gate_NTK = F.logsigmoid(sight.sharpness * above_NTK)
    return torch.where(old_NT[..., None] & full_NK[:, None], log_gate_NTK, 0.0)


def attend_gated(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, log_gate_NTK: Tensor, chunk: int) -> Tensor:
    """Attention (1, T, H, D) of a row of T tokens: in one softmax the keys of a token's own chunk up to
    itself, and of the one before, and all keys before these with the log g that its chunk n finds added to
    their logits."""
    if q_BTHD.device.type == "cuda":
        return attend_at_once(q_BTHD, k_BTKD, v_BTKD, log_gate_NTK, chunk)
    n_tokens, near = log_gate_NTK.shape[1], 2 * chunk
    at = torch.arange(near, device=log_gate_NTK.device)
    mask = additive(at <= at[:chunk, None] + chunk, q_BTHD.dtype)[None, None]
    parts = [attend(q_BTHD[:, :near], k_BTKD[:, :near], v_BTKD[:, :near], causal=True)]
    for start in range(near, n_tokens, chunk):
        stop, far = min(start + chunk, n_tokens), start - chunk
        asked = q_BTHD[:, start:stop]
        seen = (asked, k_BTKD[:, far:stop], v_BTKD[:, far:stop], mask[..., : stop - start, : stop - far])
        slots = (asked, k_BTKD[:, :far], v_BTKD[:, :far], log_gate_NTK[None, start // chunk, :far])
        parts.append(attend_slots(*seen, *slots))
    return torch.cat(parts, dim=1)


def attend_at_once(
    q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, log_gate_NTK: Tensor, chunk: int
) -> Tensor:
    """The same in one call with a mask of all queries and keys: for a GPU, which has the memory and is slow
    at many small calls."""
    n_tokens = log_gate_NTK.shape[1]
    at = torch.arange(n_tokens, device=q_BTHD.device)
    far_TT = at < chunk * (at // chunk - 1)[:, None]
    near_TT = torch.where(at <= at[:, None], 0.0, MASKED)
    log_gate_KTT = log_gate_NTK.movedim(2, 0).repeat_interleave(chunk, dim=1)[:, :n_tokens]
    bias_KTT = torch.where(far_TT, log_gate_KTT, near_TT).to(q_BTHD.dtype)
    groups = q_BTHD.shape[2] // k_BTKD.shape[2]
    return attend(q_BTHD, k_BTKD, v_BTKD, mask=bias_KTT.repeat_interleave(groups, 0)[None])


def divergence(model: LanguageModel, student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """The sum over tokens of weight (N,) times KL(teacher || student), in nats, of hidden vectors (N, E)."""
    log_p, log_q = (at_least_float32(model.logits(x)).log_softmax(-1) for x in (teacher, student))
    return (F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1) * weight).sum()


def divergence_and_gradient(
    model: LanguageModel, student: Tensor, teacher: Tensor, weight: Tensor
) -> tuple[float, Tensor]:
    """`divergence` and its gradient to the student's vectors (N, E), few tokens after few: logits are
    large."""
    total, gradients = 0.0, []
    pieces = (x.detach().split(HEAD_TOKENS) for x in (student, teacher, weight))
    for own, theirs, each in zip(*pieces, strict=True):
        loss = divergence(model, own.requires_grad_(), theirs, each)
        gradients += torch.autograd.grad(loss, own)
        total += loss.item()
    return total, torch.cat(gradients)


@torch.no_grad()
def behind(model: LanguageModel, teacher: LanguageModel, some: Sequence[Passage]) -> float:
    """Nats per token, those that ask weighted, by which a model with its bank is behind `teacher` with
    everything in sight, where something is out of reach of local attention."""
    near, found, total = 2 * model.config.chunk_len, 0.0, 0.0
    for passage in some:
        tokens = torch.from_numpy(passage.ids)[None].to(model.embedding.weight.device)
        full = with_all_in_sight(teacher, tokens.shape[1])
        read = [each.hidden(tokens)[0][0, near:] for each in (model, full)]
        weight = weights(passage, near).to(read[0])
        for own, theirs, each in zip(*(x.split(HEAD_TOKENS) for x in (*read, weight)), strict=True):
            found += divergence(teacher, own, theirs, each).item()
        total += weight.sum().item()
    return found / total if total else 0.0


def weights(passage: Passage, start: int) -> Tensor:
    """Weights in the loss of the tokens of a passage from `start` on."""
    return torch.where(torch.from_numpy(passage.asks)[start:], ASKED, 1.0)


def price(lately: Tensor, share: float) -> Tensor:
    """Nats per token that g = 1 costs in each key head (L, K), by its mean g lately: nothing up to the
    share."""
    return PRICE * ((lately - share) / share).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Sight:
    """How the student reads a passage."""

    chunk: int
    """A token sees its own chunk of so many tokens, and the one before, as they are."""
    sharpness: float
    """g = sigmoid(sharpness * score)."""
    share: float
    """Share of all tokens that a key head may admit."""
    kept: float = 1.0
    """Where the oldest leave: thresholds are raised so that of a `share` of the tokens this share is left."""
    pace: float = 1.0
    """Where the weakest leave: the passage stands for one so many times as long."""


@dataclass(frozen=True)
class Step:
    """What one update did."""

    kl: float
    """Nats per token, those that ask weighted, before the price."""
    price: float
    """Nats per token that g = 1 costs, the mean over key heads."""
    opened: float
    """Mean g."""
    gradient_norm: float
    """Before clipping."""


def update(
    learned: Learned,
    optimizers: Sequence[torch.optim.Optimizer],
    model: LanguageModel,
    passage: Passage,
    sight: Sight,
    clip: float = 1.0,
) -> Step:
    """Read a passage of more than 2 chunks and update what is learned once. Raises FloatingPointError if a
    number is not finite, and then no parameter is changed."""
    device = model.embedding.weight.device
    tokens = torch.from_numpy(passage.ids).to(device)
    full = with_all_in_sight(model, len(tokens)).requires_grad_(False)
    near = 2 * sight.chunk  # what sees everything is the same in both
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        with torch.no_grad():
            teacher = full.hidden(tokens[None])[0][0]
        student, opened = learned.read(full, tokens, sight)
        weight = weights(passage, near).to(opened)
        kl, gradient = divergence_and_gradient(model, student[near:], teacher[near:], weight / weight.sum())
    cost = price(learned.lately(opened), sight.share)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward([student[near:], (cost * opened).mean()], [gradient, None])
    norm = nn.utils.clip_grad_norm_(learned.parameters(), clip).item()
    if not (math.isfinite(kl) and math.isfinite(norm)):
        raise FloatingPointError(f"the divergence is {kl}, its gradient {norm}: lower the learning rate")
    for optimizer in optimizers:
        optimizer.step()
    learned.bound()
    return Step(kl, cost.mean().item(), opened.mean().item(), norm)


def passages(config: DistilConfig, tokenizer: Tokenizer, step: int = 0) -> Iterator[Passage]:
    """The passages of all updates from `step` on, without end: round after round in random order."""
    size = config.n_prose + config.n_asking
    begun, within = divmod(step, size)
    for turn in count(begun):
        random = np.random.default_rng([config.seed, turn])
        # With reach 0 no token of prose asks more than another.
        some = mixed(
            config.data,
            tokenizer,
            n_prose=config.n_prose,
            n_asking=config.n_asking,
            reach=0,
            seed=int(random.integers(2**31)),
            length=config.length,
        )
        made, order = list(some), random.permutation(size)
        yield from (made[place] for place in order[within if turn == begun else 0 :])


@torch.no_grad()
def sampled(model: LanguageModel, some: Sequence[Passage]) -> list[Tensor]:
    """Inputs (N, E) of the gates of every layer at some tokens of passages, with everything in sight."""
    found: list[list[Tensor]] = [[] for _ in range(model.config.n_layers)]
    for passage in some:
        keys = torch.from_numpy(passage.weight > 0).nonzero().flatten()
        keys = keys[:: -(-len(keys) // SAMPLED_TOKENS)]
        full = with_all_in_sight(model, len(passage.ids))
        blocks: Any = full.blocks
        for block, kept in zip(blocks, found, strict=True):

            def keep(_: Any, __: Any, x_BTE: Tensor, kept: list[Tensor] = kept, keys: Tensor = keys) -> None:
                kept.append(at_least_float32(x_BTE[0, keys.to(x_BTE.device)]))

            block.norm.register_forward_hook(keep)
        full.hidden(torch.from_numpy(passage.ids)[None].to(model.embedding.weight.device))
    return [torch.cat(kept) for kept in found]


class _Run:
    """A run that is open."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        config: DistilConfig,
        scaling: Sequence[Passage],
        folder: Path,
        reporter: Reporter,
    ) -> None:
        self.model, self.tokenizer, self.config, self.folder = model, tokenizer, config, folder
        self.reporter, self.settings, self.scaling = reporter, config.training(), scaling
        seed_everything(config.seed)
        self.learned = Learned(model, config.lora).to(model.embedding.weight.device)
        self.optimizers = build_optimizers(self.learned, self.settings)
        self.metrics = JsonLines(folder / "metrics.jsonl")
        self.saver = Saver(folder / "checkpoints", self.settings.keep_last, Processes())
        self.step, self.tokens, self.elapsed = 0, 0, 0.0
        found = self._claim()
        self.began = time.perf_counter()
        if found is None:
            self.metrics.cut_after(-1)
            self._measure(model)
            self.learned.start(model, sampled(model, self.scaling), config.share)
        else:
            self._restore(found)
            reporter.say(f"continuing after update {self.step:,}")
        self.began -= self.elapsed
        self.metrics.cut_after(self.step)

    def _claim(self) -> Checkpoint | None:
        """Write down what the run is; of one that goes on the checkpoint to go on from."""
        read = hashlib.sha256(b"".join(passage.ids.tobytes() for passage in self.scaling)).hexdigest()
        given = {"model": weights_fingerprint(self.model), "passages": read}
        config = json.loads(json.dumps(dataclasses.asdict(self.config)))
        path, place = self.folder / CONFIG_FILE, self.folder / "checkpoints"
        found = None
        if path.is_file() and not (self.folder / RESULT_FILE).exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            data = json.loads((self.folder / "data.json").read_text(encoding="utf-8"))
            for name, value in {**config, **given}.items():
                if name not in ("steps", "minutes", "device") and {**before, **data}.get(name) != value:
                    raise ValueError(
                        f"the run in {self.folder} was started with another {name}: put that back as it was, "
                        "or give another folder"
                    )
            found = newest_sound_checkpoint(place, self.reporter.say)
        else:
            for old in place.glob("*step-*"):
                shutil.rmtree(old)
            (self.folder / RESULT_FILE).unlink(missing_ok=True)
        place.mkdir(exist_ok=True)
        device = self.model.embedding.weight.device
        write_json(self.folder / "environment.json", describe_environment(device, self.config.seed))
        write_json(self.folder / "data.json", given)
        write_json(path, config)
        return found

    def _restore(self, found: Checkpoint) -> None:
        memories = optimizer_places(self.learned, found.tensors)
        found.load({**model_tensors(self.learned), **memories})
        restore_optimizers(self.learned, self.optimizers, memories)
        self.step, self.tokens = found.step, found.values["tokens"]
        self.elapsed = found.values["elapsed"]

    def _save(self) -> None:
        self.metrics.sync()
        tensors = {**model_tensors(self.learned), **optimizer_tensors(self.learned, self.optimizers)}
        self.saver.save(self.step, tensors, {"tokens": self.tokens, "elapsed": self.elapsed}, None)

    def train(self) -> bool:
        """All updates; False if it was told to stop, and has saved."""
        config, reporter = self.config, self.reporter
        n_learned = sum(x.numel() for x in self.learned.parameters())
        budget = "" if config.minutes is None else f", at most {config.minutes:g} minutes"
        reporter.say(
            f"distilling {n_learned:,} parameters: {config.steps:,} updates of one passage each{budget}; "
            f"run in {self.folder}"
        )
        reporter.started(self.step, config.steps)
        try:
            with stop_on_signal(reporter.say) as stop:
                source = passages(config, self.tokenizer, self.step)
                while not (over := self._share() >= 1) and not stop.requested:
                    self._update(next(source))
                    if self.step % CHECKPOINT_EVERY == 0:
                        self._save()
                if self.step % CHECKPOINT_EVERY:
                    self._save()
                self.saver.wait()
        finally:
            reporter.stopped()
        if not over:
            reporter.say(f"stopped after update {self.step:,} and saved; the same command goes on")
        return over

    def _share(self) -> float:
        """How much of the run is over, 0 to 1."""
        return progress(self.step, self.elapsed, self.settings)

    def _update(self, passage: Passage) -> None:
        started, config = time.perf_counter(), self.config
        share = self._share()
        lr = config.lr * learning_rate_factor(self.step, share, self.settings)
        set_learning_rate(self.optimizers, lr)
        sight = self._sight(passage, share)
        result = update(self.learned, self.optimizers, self.model, passage, sight, clip=self.settings.clip)
        self.step += 1
        self.tokens += len(passage.ids)
        now = time.perf_counter()
        self.elapsed = now - self.began
        share = self._share()
        row = {
            "kind": "train",
            "step": self.step,
            "tokens": self.tokens,
            "loss": result.kl,
            "bits_per_byte": None,
            "price": result.price,
            "openness": [result.opened],
            "gradient_norm": result.gradient_norm,
            "lr": lr,
            "sharpness": sight.sharpness,
            "chunk": sight.chunk,
            "kept": sight.kept,
            "pace": sight.pace,
            "tokens_per_second": len(passage.ids) / (now - started),
            "elapsed": self.elapsed,
            "seconds_left": self.elapsed / share * (1 - share),
        }
        self.metrics.append(row)
        self.reporter.stepped(self.step)
        self.reporter.logged(row)

    def _sight(self, passage: Passage, share: float) -> Sight:
        """How the next passage is read when this share of the run is over."""
        model, allowed = self.model.config, self.config.share
        most = max(min(model.chunk_len, len(passage.ids) // 4), 1)
        random = np.random.default_rng([self.config.seed, self.step, most])
        sharpness = SOFT * (SHARPNESS / SOFT) ** share
        if model.eviction == "weakest":
            pace = 1.0 if passage.asks.all() else LONGEST ** float(random.random())
            return Sight(chunk=most, sharpness=sharpness, share=allowed, pace=pace)
        chunk = int(random.integers(max(most // LEAST_REACH, 1), most + 1))
        return Sight(chunk=chunk, sharpness=sharpness, share=allowed, kept=allowed)

    def _measure(self, model: LanguageModel) -> None:
        """A row of how far a model with its bank is behind."""
        config = self.config
        far = (config.n_prose + config.n_asking) << 32
        some = list(islice(passages(config, self.tokenizer, far), HELD_OUT_PASSAGES))
        row = {"kind": "eval", "step": self.step, "kl": behind(model, self.model, some)}
        self.metrics.append(row)
        self.reporter.logged(row)

    def distilled(self) -> LanguageModel:
        """The model with what was learned, its thresholds set as those of fitted gates are."""
        model = self.learned.added_to(self.model)
        samples = sampled(model, self.scaling)
        parts = zip(self.learned.scores(), samples, self.learned.spreads(samples), strict=True)
        distilled = with_scores(
            model,
            [
                admitting(self.config.share, *score, x, spread, undamped(model.config))
                for score, x, spread in parts
            ],
        )
        self._measure(distilled)
        return distilled

    def result(self) -> dict[str, Any]:
        """What is said of a complete run."""
        before, *_, after = [row["kl"] for row in self.metrics.rows() if row["kind"] == "eval"]
        counted = {"steps": self.step, "tokens": self.tokens, "seconds": self.elapsed}
        return {**counted, "kl_before": before, "kl_after": after}
