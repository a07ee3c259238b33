"""Gates of a pretrained model, fitted by forward passes alone.

A gate should admit what will be wanted once local attention has lost sight of it. The pretrained model itself
tells, with everything in sight: the target of a token, per layer and key head, is the log of the largest
attention weight that a later query out of local reach gave it. The gate's score is a ridge regression of the
targets on the block's input, less the score that a given share of all tokens exceeds.

Text that asks about itself must be among the passages: in plain prose nothing ever asks for a stated fact,
and gates fitted on prose alone refuse it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmat.data.documents import encode_lead, encode_turns
from rmat.data.tokenizer import Tokenizer
from rmat.machine import shared, summed, team
from rmat.model import LanguageModel, ModelConfig
from rmat.model.evaluating import evaluating
from rmat.model.streams import Local
from rmat.settings import number
from rmat.storage import assigned
from rmat.tasks.haystack import Split, fill, hide, load_filler, without
from rmat.tasks.talk import KINDS, pick

STATED = 26.0
"""Weight in the regression of a token of a stated fact, of which there are few."""

SHARPNESS = 16.0
"""Score of a token that lies one standard deviation above the threshold: nearly all gates are then 0 or 1,
and what is admitted is read as it was."""

LASTING, FLEETING = 8.0, 0.5
"""The same where the weakest leave, of key heads that attend stated facts and of the others: what these hold
fades the faster. Where nearly all is admitted scores lie around three times this, and log g, a float32, tells
only scores below 87 from each other."""

UNDAMPED = 4.0
"""Score that the share to admit exceeds where the weakest leave: g is above 0.98 however near scores are."""

LASTING_HEADS = 0.27
"""Share of the key heads that count as attending stated facts: those that do it most."""

RIDGE = 1e-3
"""Penalty on the weights, as a share of the mean square of the block's input."""

LEAST_WEIGHT = 1e-8
"""Smaller attention counts as this much."""

SAMPLED_TOKENS = 128
"""Most tokens of a passage by which the threshold is set."""

PROSE_TOKENS, ASKING_TOKENS = 2048, 1280
"""Tokens of a passage; a passage that asks has its questions behind them."""

ASKING_AT_ONCE = 256
"""Queries whose attention is in memory at once: larger pieces cost more in allocation than in arithmetic."""

FACTS = 3
"""Facts that are stated in a passage and asked for behind it."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A text of T tokens to fit gates on."""

    ids: NDArray[np.int64]
    """(T,) token ids."""
    asks: NDArray[np.bool_]
    """(T,) whether the attention of a token's query is a target."""
    weight: NDArray[np.float32]
    """(T,) weight of a token as a key; 0 leaves it out."""
    reach: int
    """Only queries so many tokens behind a key count for it."""


def prose(
    spec: str, tokenizer: Tokenizer, *, length: int, reach: int, seed: int, split: Split = "train"
) -> Iterator[Passage]:
    """Passages of `length` tokens of the SPEC's text, without end; every token asks for what is out of reach
    of it."""
    random = np.random.default_rng(seed)
    while True:
        sentences = load_filler(spec, split).sentences(random)
        opening = list(tokenizer.opening)
        text = "".join(text for text, _ in fill(sentences, length - len(opening), tokenizer)).lstrip()
        ids = np.array([*opening, *tokenizer.encode(text)], dtype=np.int64)
        at = np.arange(len(ids))
        weight = (at < len(ids) - reach).astype(np.float32)
        yield Passage(ids=ids, asks=at >= reach, weight=weight, reach=reach)


def asking(
    spec: str,
    tokenizer: Tokenizer,
    *,
    length: int,
    seed: int,
    split: Split = "train",
    in_all: bool = False,
) -> Iterator[Passage]:
    """Passages without end, in which facts are stated in about `length` tokens of the SPEC's text (`in_all`:
    all else counts too) and asked for in the model's chat format. Questions and answers ask;
    tokens before them are keys.

    Raises ValueError for a model without a chat template.
    """
    if tokenizer.chat is None or tokenizer.chat.template is None:
        raise ValueError("this model has no chat template, in which questions about a text could be asked")
    random = np.random.default_rng(seed)
    while True:
        kinds = [KINDS[k] for k in random.permutation(len(KINDS))[:FACTS]]
        values = [kind.draw(random) for kind in kinds]
        stated = [
            pick(random, kind.statements).format(value) for kind, value in zip(kinds, values, strict=True)
        ]
        asked = [
            turn
            for kind, value in zip(kinds, values, strict=True)
            for turn in (("user", pick(random, kind.questions)), ("assistant", kind.answer.format(value)))
        ]
        places = np.sort(random.random(FACTS)).tolist()
        sentences = without(values, load_filler(spec, split).sentences(random))
        lead, turns = encode_lead(tokenizer, "nothing"), encode_turns(tokenizer, asked, "text")
        facts = [f" {statement}" for statement in stated]
        beside = len(lead) + len(turns) + sum(len(tokenizer.encode(fact)) for fact in facts)
        budget = max(length - beside, 1) if in_all else length
        hidden = hide(list(zip(places, facts, strict=True)), sentences, budget, tokenizer)
        text = "".join(text for _, text in hidden).strip()
        ids = np.array([*lead, *tokenizer.encode(text), *turns], dtype=np.int64)
        ends = np.cumsum(tokenizer.byte_counts(ids))
        spelled = tokenizer.decode_bytes(ids.tolist())
        question = spelled.index(asked[0][1].encode(), spelled.index(stated[-1].encode()))
        asks = ends > question
        weight = np.where(asks, 0.0, 1.0).astype(np.float32)
        for statement in stated:
            begin = spelled.index(statement.encode())
            weight[(ends > begin) & (ends <= begin + len(statement.encode()))] = STATED
        yield Passage(ids=ids, asks=asks, weight=weight, reach=0)


class _Regression:
    """The sums of one layer's weighted regression, in float64; E + 1 features, the last one constant."""

    def __init__(self, config: ModelConfig) -> None:
        width = config.d_model + 1
        self.gram = torch.zeros(width, width, dtype=torch.float64)
        self.moment = torch.zeros(width, config.n_kv_heads, dtype=torch.float64)
        self.stated = torch.zeros(config.n_kv_heads + 1, dtype=torch.float64)
        """Sum of the targets of tokens of stated facts, and the number of these tokens."""
        self.sample: list[Tensor] = []
        """Inputs of some tokens of each passage, for the threshold."""

    def add(self, x: Tensor, target: Tensor, weight: Tensor) -> None:
        """Inputs (T, E), targets (T, K) and weights (T,)."""
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        weighted = x * weight[:, None]
        self.gram += (x.T @ weighted).double().cpu()
        self.moment += (weighted.T @ target).double().cpu()
        stated = target[weight == STATED].double().cpu()
        self.stated += torch.cat([stated.sum(0), stated.new_tensor([len(stated)])])
        self.sample.append(x[:: -(-len(x) // SAMPLED_TOKENS)].half().cpu())

    def join(self) -> None:
        """Take up what the other processes of `rmat.machine.spread` have added."""
        summed(self.gram)
        summed(self.moment)
        summed(self.stated)
        self.sample = list(chain.from_iterable(shared(range(team()), lambda _: self.sample)))

    def solve(self, share: float, sharpness: Tensor, above: float) -> tuple[Tensor, Tensor]:
        """Weights (K, E) and biases (K,) of scores of which a `share` of the tokens has one above `above`."""
        width = len(self.gram) - 1
        penalty = RIDGE * self.gram.diagonal()[:width].mean()
        ridge = torch.diag(torch.cat([penalty.expand(width), penalty.new_zeros(1)]))
        solved = torch.linalg.solve(self.gram + ridge, self.moment)  # (E + 1, K)
        return admitting(share, solved[:-1].T, solved[-1], torch.cat(self.sample)[:, :-1], sharpness, above)


def admitting(
    share: float,
    weight: Tensor,
    bias: Tensor,
    sample: Tensor,
    sharpness: Tensor | float = SHARPNESS,
    above: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Weights (K, E) and biases (K,) of scores w . x + b with threshold and scale such that a `share` of the
    inputs `sample` (N, E) has them above `above`, and their standard deviation is `sharpness`, one or
    (K,)."""
    score = sample.to(weight.dtype) @ weight.T + bias
    scale = sharpness / score.std(0).clamp(min=1e-12)
    threshold = score.quantile(1 - share, dim=0)
    return weight * scale[:, None], (bias - threshold) * scale + above


def undamped(config: ModelConfig) -> float:
    """The score that the share to admit exceeds."""
    return UNDAMPED if config.eviction == "weakest" else 0.0


def require_gates(config: ModelConfig) -> None:
    """Raise ValueError for a model without a gate for each key head."""
    if not (config.has_memory and config.slots_per == "key_head" and config.refuses_writes):
        raise ValueError("this model has no gate for each key head: import it with a window and slots")


def with_scores(model: LanguageModel, scores: Sequence[tuple[Tensor, Tensor]]) -> LanguageModel:
    """The model whose gates have these weights (K, E) and biases (K,), one pair a layer."""
    tensors = dict(model.state_dict())
    for index, score in enumerate(scores):
        for name, value in zip(("weight", "bias"), score, strict=True):
            key = f"blocks.{index}.memory.writer.score.{name}"
            tensors[key] = value.to(tensors[key])
    return assigned(model.config, tensors)


def fit(
    model: LanguageModel,
    passages: Iterable[Passage],
    *,
    share: float = 0.5,
    advance: Callable[[int], None] = lambda _: None,
) -> LanguageModel:
    """The model with fitted gates: about a `share` of all tokens, above 0 and below 1, is admitted (where
    the weakest leave: has g above 0.98).

    Args:
        model: imported, with a bank for every key head.
        passages: at least one; each is read with everything in sight, so that its length squared must fit
            into memory.
        advance: called with the tokens of each passage that was read.

    Inside `rmat.machine.spread` processes share the passages. Raises ValueError for a model without such a
    bank.
    """
    number("share", share, above=0, below=1)
    require_gates(model.config)
    regressions = [_Regression(model.config) for _ in range(model.config.n_layers)]

    def read(passage: Passage) -> None:
        _read(model, passage, regressions)
        advance(len(passage.ids))

    for _ in shared(passages, read):
        pass
    for regression in regressions:
        regression.join()
    stated = torch.stack([regression.stated for regression in regressions])
    sharpness = _sharpness(model.config, stated)
    above = undamped(model.config)
    return with_scores(
        model, [each.solve(share, sharp, above) for each, sharp in zip(regressions, sharpness, strict=True)]
    )


def _sharpness(config: ModelConfig, stated: Tensor) -> Tensor:
    """Standard deviation of the scores of every key head (L, K), from the sums (L, K + 1) of its targets.

    What fades loses as much in every head. Where strength should last scores are far apart: in the heads that
    find stated facts when they are asked for. The others, which read on, need the recent: theirs are near.
    """
    found, count = stated[:, :-1], stated[0, -1]
    if config.eviction == "oldest":
        return torch.full_like(found, SHARPNESS)
    if not (config.fade and count):
        return torch.full_like(found, LASTING)
    lasting = found >= found.flatten().quantile(1 - LASTING_HEADS)
    return torch.where(lasting, LASTING, FLEETING)


@torch.no_grad()
def _read(model: LanguageModel, passage: Passage, regressions: Sequence[_Regression]) -> None:
    """Add a passage to the regressions of all layers."""
    ids = torch.from_numpy(passage.ids)
    full = with_all_in_sight(model, len(ids))
    caught: dict[int, Tensor] = {}

    def keep(index: int) -> Any:
        return lambda _, __, x_BTE: caught.__setitem__(index, x_BTE[0])

    def add(index: int) -> Any:
        def hook(_: Any, __: Any, outputs: tuple[Local, Any]) -> None:
            target = _targets(outputs[0], passage)
            weight = torch.from_numpy(passage.weight).to(target.device)
            used = weight > 0
            regressions[index].add(caught.pop(index).float()[used], target[used], weight[used])

        return hook

    hooks = []
    blocks: Any = full.blocks
    for index, block in enumerate(blocks):
        hooks.append(block.norm.register_forward_hook(keep(index)))
        hooks.append(block.local["full"].register_forward_hook(add(index)))
    try:
        with evaluating(full):
            full.hidden(ids[None].to(model.embedding.weight.device))
    finally:
        for hook in hooks:
            hook.remove()


def with_all_in_sight(model: LanguageModel, n_tokens: int) -> LanguageModel:
    """The pretrained model itself over so many tokens; it shares its weights with `model`."""
    config = dataclasses.replace(
        model.config,
        streams=("full",),
        segment_len=n_tokens,
        chunk_len=n_tokens,
        chunk_lookback=0,
        fusion="scalar",
    )
    tensors = {
        name.replace(".local.chunked.", ".local.full."): x
        for name, x in model.state_dict().items()
        if ".memory." not in name
    }
    return assigned(config, tensors)


def _targets(local: Local, passage: Passage) -> Tensor:
    """Log of the largest attention weight that a query which asks gave to each token: (T, K)."""
    n_tokens = len(passage.ids)
    q_SHD, k_JKD = (x[0, :n_tokens].float() for x in (local.q_RSHD, local.k_RJKD))
    n_kv_heads, device = k_JKD.shape[1], k_JKD.device
    most = torch.zeros(n_tokens, n_kv_heads, device=device)
    for some in torch.from_numpy(passage.asks).nonzero().flatten().split(ASKING_AT_ONCE):
        asks, key = some.to(device), torch.arange(int(some[-1]) + 1, device=device)
        seen = key <= asks[:, None]
        counts = key <= asks[:, None] - passage.reach
        q_QKGD = q_SHD[asks].unflatten(1, (n_kv_heads, -1))
        for head in range(n_kv_heads):
            k = k_JKD[: len(key), head]
            logits_GQJ = torch.einsum("qgd,jd->gqj", q_QKGD[:, head], k) * k.shape[1] ** -0.5
            weight_GQJ = logits_GQJ.masked_fill(~seen, -torch.inf).softmax(2)
            found = weight_GQJ.masked_fill(~counts, 0).flatten(0, 1).amax(0)
            most[: len(key), head] = torch.maximum(most[: len(key), head], found)
    return most.clamp(min=LEAST_WEIGHT).log()


def passage_lengths(length: int | None) -> tuple[int, int]:
    """Tokens of a passage of prose, and of the text of one that asks, where `length` was given or not."""
    return (PROSE_TOKENS, ASKING_TOKENS) if length is None else (length, length)


def mixed(
    specs: Sequence[str],
    tokenizer: Tokenizer,
    *,
    n_prose: int,
    n_asking: int,
    reach: int,
    seed: int = 0,
    length: int | None = None,
) -> Iterator[Passage]:
    """So many passages of prose, then of text that asks about itself, of each SPEC in turn; of about `length`
    tokens each, questions included (None: 2,048 and 1,280).

    Raises TypeError for a string, whose letters would be taken for SPECs.
    """
    if isinstance(specs, str):
        raise TypeError(f"specs={specs!r} is one SPEC: give a list, [{specs!r}]")
    read, stated = passage_lengths(length)
    plain = [prose(spec, tokenizer, length=read, reach=reach, seed=seed) for spec in specs]
    asked = [
        asking(spec, tokenizer, length=stated, seed=seed + 1, in_all=length is not None) for spec in specs
    ]
    for sources, count in ((plain, n_prose), (asked, n_asking)):
        yield from (next(sources[k % len(sources)]) for k in range(count))
