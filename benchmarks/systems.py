"""The systems that `peers.py` compares: ours and other people's, each driven as its own documentation says.

A system is a small class around a model. All get the vocabulary, width, depth, heads and local window of one
reference model of ours; the width of the feed-forward layers is what brings their parameters to the same
number. Where a peer's README leaves a choice, it is said in the class.
"""

from __future__ import annotations

import copy
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import speed
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmat.model import LanguageModel, ModelConfig, StreamState
from rmat.model.presets import VARIANTS

TOLERANCE = 0.1
"""Largest relative difference in parameters between two systems."""

VOCABULARY = ("embedding.", "head.", "model.embed_tokens.", "lm_head.", "token_emb.", "to_logits.")
"""Names of the parameters of embeddings and heads."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What all systems have in common."""

    preset: str
    """Preset size of ours."""
    shared: dict[str, Any]
    """Fields of `ModelConfig` that all systems follow where they have such a thing: width, segments, ..."""
    ours: dict[str, Any] = field(default_factory=dict)
    """Further fields of variants of ours with a gated memory."""
    length: int
    """Tokens of a row: the context of systems that attend to everything."""
    compute: bool
    """True: all parameters count, and they agree within `TOLERANCE`. False, where systems are compared by what
    they learn: embeddings and heads do not count (some share one matrix, others have two), and no system has
    feed-forward layers narrower than the model, so that one with much else may be larger."""

    @property
    def reference(self) -> ModelConfig:
        """The model whose size the others take."""
        return ModelConfig.preset(self.preset, **self.shared, **self.ours)


class System(ABC):
    """A model of some size.

    Args:
        size: what it has in common with the others.
        device: where it is.
        seed: of its weights.

    Raises ValueError if no feed-forward width brings its parameters near those of the reference (`Size`),
    ImportError if its package is not installed.
    """

    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions it comes from, whose versions are recorded."""

    def __init__(self, size: Size, device: str = "cpu", seed: int = 0) -> None:
        self.size, self.device = size, device
        self.reference = size.reference
        target = self._counted(LanguageModel(self.reference))
        width = self.feed_forward(target)
        torch.manual_seed(seed)
        self.model = self.build(width).to(device)
        self.parameters = {"all": count(self.model), "blocks": count(self.model, vocabulary=False)}
        share = self._counted(self.model) / target
        if share < 1 - TOLERANCE or (size.compute and share > 1 + TOLERANCE):
            raise ValueError(
                f"with feed-forward layers of {width} it has {share:.2f} times the parameters of the "
                "reference: give another size"
            )

    def feed_forward(self, parameters: int) -> int:
        """Width of the feed-forward layers, a multiple of 8, that makes the model nearest to so many
        parameters."""
        few, more = self._counted(self.build(64)), self._counted(self.build(128))
        least = 8 if self.size.compute else self.reference.d_model
        return max(least, 8 * round((64 + (parameters - few) * 64 / (more - few)) / 8))

    def _counted(self, model: nn.Module) -> int:
        return count(model, vocabulary=self.size.compute)

    @abstractmethod
    def build(self, width: int) -> nn.Module:
        """The model with feed-forward layers of `width`; leaves its other settings in `config`."""

    config: dict[str, Any]
    """JSON-able settings of the model."""

    @abstractmethod
    def logits(self, tokens_BT: Tensor) -> Tensor:
        """(B, T, V) logits of rows from their start, memory carried and cut from the gradient as the system
        does."""

    @abstractmethod
    def read(self, tokens_BT: Tensor) -> Any:
        """The state after reading tokens (B, T) from an empty memory, with what a system computes of logits
        on the way."""

    @abstractmethod
    def step(self, token_B1: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits (B, V) after one more token, and the next state."""

    def backward(self, tokens_BT: Tensor) -> None:
        """Add the gradient of the mean loss of tokens (B, T + 1), each from those before it."""
        logits_BTV = self.logits(tokens_BT[:, :-1])
        F.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT[:, 1:].flatten()).backward()

    def decode(self, state: Any, tokens: int) -> None:
        """Greedily generate `tokens` tokens from `state`, which may be overwritten (`fork` it before)."""
        rows = self.rows(state)
        token_B1 = torch.zeros(rows, 1, dtype=torch.int64, device=self.device)
        for _ in range(tokens):
            logits_BV, state = self.step(token_B1, state)
            token_B1 = logits_BV.argmax(-1, keepdim=True)

    def rows(self, state: Any) -> int:
        """Rows of a state."""
        return int(state[0].shape[0])

    def fork(self, state: Any) -> Any:
        """A state that may be overwritten while `state` stays."""
        return state

    def state_bytes(self, state: Any) -> int:
        """Bytes of all that is needed to read on from a state."""
        return sum(x.numel() * x.element_size() for x in tensors(state))

    def versions(self) -> dict[str, str]:
        """Versions of `packages`."""
        return {name: importlib.metadata.version(name) for name in self.packages}


def count(model: nn.Module, *, vocabulary: bool = True) -> int:
    """Parameters, shared ones once; with `vocabulary` or without embeddings and heads."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if vocabulary or not name.startswith(VOCABULARY)
    )


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers, each once."""
    seen: set[int] = set()

    def walk(value: Any) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            if id(value) not in seen:
                seen.add(id(value))
                yield value
        elif isinstance(value, Mapping) or hasattr(value, "items"):  # the second for a TensorDict
            for _, item in value.items():
                yield from walk(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield from walk(item)

    return walk(value)


class Ours(System):
    """A preset variant."""

    variant: ClassVar[str]
    packages = ("rmat",)

    def build(self, width: int) -> nn.Module:
        fields = dict(self.size.shared)
        if self.variant in ("recommended", "admitted"):
            fields |= self.size.ours
        if self.variant == "full":
            fields["segment_len"] = self.size.length
        fields["d_ff"] = width
        config = ModelConfig.preset(self.size.preset, variant=self.variant, **fields)
        self.config = config.to_dict()
        return LanguageModel(config)

    def feed_forward(self, parameters: int) -> int:
        if self.variant == "recommended":
            return self.reference.d_ff
        return super().feed_forward(parameters)

    def logits(self, tokens_BT: Tensor) -> Tensor:
        logits_BTV: Tensor = self.model(tokens_BT)[0]
        return logits_BTV

    def read(self, tokens_BT: Tensor) -> StreamState:
        state = None
        for part_BT in tokens_BT.split(max(1, 16384 // len(tokens_BT)), dim=1):
            hidden_BTE, state = self.model.hidden(part_BT, state)
            self.model.logits(hidden_BTE[:, -1])
        assert state is not None
        return state

    def step(self, token_B1: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        logits_BTV, state = self.model(token_B1, state)
        return logits_BTV[:, -1], state

    def decode(self, state: StreamState, tokens: int) -> None:
        speed.decode(self.model, state, tokens=tokens, device=self.device)

    def state_bytes(self, state: StreamState) -> int:
        return state.nbytes


class HuggingFace(System):
    """A decoder of transformers with its own cache; generation asks it for the logits of the last place
    alone."""

    packages = ("transformers",)
    kind: ClassVar[str]

    def settings(self) -> dict[str, Any]:
        """Settings beyond those in common."""
        return {}

    def build(self, width: int) -> nn.Module:
        import transformers

        reference = self.reference
        self.config = {
            "vocab_size": reference.vocab_size,
            "hidden_size": reference.d_model,
            "intermediate_size": width,
            "num_hidden_layers": reference.n_layers,
            "num_attention_heads": reference.n_heads,
            "num_key_value_heads": reference.n_kv_heads,
            "max_position_embeddings": 2**20,
            "tie_word_embeddings": True,
            **self.settings(),
        }
        special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        config = getattr(transformers, f"{self.kind}Config")(**self.config, **special)
        return getattr(transformers, f"{self.kind}ForCausalLM")(config)

    def logits(self, tokens_BT: Tensor) -> Tensor:
        logits_BTV: Tensor = self.model(tokens_BT, use_cache=False).logits
        return logits_BTV

    def read(self, tokens_BT: Tensor) -> Any:
        return self.model(tokens_BT, use_cache=True, logits_to_keep=1).cache

    def step(self, token_B1: Tensor, state: Any) -> tuple[Tensor, Any]:
        found = self.model(token_B1, cache=state, use_cache=True)
        return found.logits[:, -1], found.cache

    def rows(self, state: Any) -> int:
        return int(state.layers[0].keys.shape[0])

    def fork(self, state: Any) -> Any:
        return copy.deepcopy(state)

    def state_bytes(self, state: Any) -> int:
        return sum(x.numel() * x.element_size() for layer in state.layers for x in (layer.keys, layer.values))


class Llama(HuggingFace):
    """Full attention."""

    kind = "Llama"


class Mistral(HuggingFace):
    """A sliding window as long as our segment."""

    kind = "Mistral"

    def settings(self) -> dict[str, Any]:
        return {"sliding_window": self.reference.segment_len}


class Segments(System):
    """A peer that reads segment by segment, carries a memory from one to the next and attends anew to the
    whole of the current segment for every token that it generates.

    The state is (tokens of the current segment (B, t), memory).
    """

    segment: int
    """Most tokens of a segment."""

    @abstractmethod
    def forward(self, part_BT: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Logits of a segment behind a memory (None at the start), and the memory after it, of use if the
        segment is full."""

    def logits(self, tokens_BT: Tensor) -> Tensor:
        memory, found = None, []
        for part_BT in tokens_BT.split(self.segment, dim=1):
            logits_BTV, memory = self.forward(part_BT, memory)
            found.append(logits_BTV)
        return torch.cat(found, dim=1)

    def read(self, tokens_BT: Tensor) -> tuple[Tensor, Any]:
        state: tuple[Tensor, Any] = (tokens_BT[:, :0], None)
        for part_BT in tokens_BT.split(self.segment, dim=1):
            _, state = self._advance(part_BT, state[1])
        return state

    def step(self, token_B1: Tensor, state: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        logits_BTV, state = self._advance(torch.cat((state[0], token_B1), dim=1), state[1])
        return logits_BTV[:, -1], state

    def _advance(self, part_BT: Tensor, memory: Any) -> tuple[Tensor, tuple[Tensor, Any]]:
        logits_BTV, after = self.forward(part_BT, memory)
        full = part_BT.shape[1] == self.segment
        return logits_BTV, ((part_BT[:, :0], after) if full else (part_BT, memory))


class BlockRecurrent(Segments):
    """Blocks as long as our segment, segments of two blocks ("2 * block size in paper"), one recurrent layer
    in the middle with as many state vectors as a block has tokens, which are the package's defaults; states
    and keys are cut from the gradient between segments, as it does itself."""

    packages = ("block-recurrent-transformer-pytorch",)

    def build(self, width: int) -> nn.Module:
        from block_recurrent_transformer_pytorch import BlockRecurrentTransformer

        reference = self.reference
        self.segment = 2 * reference.segment_len
        self.config = {
            **shape(reference, width),
            "max_seq_len": self.segment,
            "block_width": reference.segment_len,
        }
        model: nn.Module = BlockRecurrentTransformer(**self.config)
        return model

    def forward(self, part_BT: Tensor, memory: Any) -> tuple[Tensor, Any]:
        keys, states = memory or ([], [])
        logits_BTV, keys, states = self.model(part_BT, xl_memories=keys, states=states)
        return logits_BTV, (keys, states)


class RecurrentMemory(Segments):
    """Segments as long as ours with an eighth as many memory tokens (128 of 1024 in the README; at least 16)
    and keys of half a segment before ("With XL memories"); trained by `memory_replay_backprop`, the README's
    way to train on long sequences, which reads everything twice to save memory."""

    packages = ("recurrent-memory-transformer-pytorch",)

    def build(self, width: int) -> nn.Module:
        from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer

        reference = self.reference
        self.segment = reference.segment_len
        self.config = {
            **shape(reference, width),
            "num_memory_tokens": max(16, self.segment // 8),
            "causal": True,
            "seq_len": self.segment,
            "use_flash_attn": True,
            "use_xl_memories": True,
            "xl_mem_len": max(1, self.segment // 2),
        }
        model: nn.Module = RecurrentMemoryTransformer(**self.config)
        return model

    def forward(self, part_BT: Tensor, memory: Any) -> tuple[Tensor, Any]:
        written, keys = memory or (None, None)
        logits_BTV, written, keys = self.model(part_BT, written, xl_memories=keys)
        return logits_BTV, (written, keys)

    def backward(self, tokens_BT: Tensor) -> None:
        from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformerWrapper

        RecurrentMemoryTransformerWrapper(self.model)(tokens_BT, memory_replay_backprop=True)


class RecurrentMemoryPlain(RecurrentMemory):
    """The same, trained by plain backpropagation through all segments: faster, more memory."""

    def backward(self, tokens_BT: Tensor) -> None:
        System.backward(self, tokens_BT)


class Infini(System):
    """Segments as long as ours, the delta rule, memories cut from the gradient every two segments, as in the
    README; trained by its wrapper, which goes backwards each time it cuts. Heads are as wide as ours.

    The state is (keys and values of the current segment, memories, tokens of the segment).
    """

    packages = ("infini-transformer-pytorch",)
    CUT = 2
    """Segments that a gradient goes through."""

    def build(self, width: int) -> nn.Module:
        from infini_transformer_pytorch import InfiniTransformer

        reference = self.reference
        self.segment = reference.segment_len
        self.config = {
            **shape(reference, width),
            "use_mem_delta_rule": True,
        }
        model: nn.Module = InfiniTransformer(**self.config)
        return model

    def logits(self, tokens_BT: Tensor) -> Tensor:
        memories, found = None, []
        for number, part_BT in enumerate(tokens_BT.split(self.segment, dim=1), 1):
            logits_BTV, _, memories = self.model(part_BT, past_memories=memories, return_new_memories=True)
            if number % self.CUT == 0:
                memories = [type(one)(*(x.detach() for x in one)) for one in memories]
            found.append(logits_BTV)
        return torch.cat(found, dim=1)

    def backward(self, tokens_BT: Tensor) -> None:
        from infini_transformer_pytorch import InfiniTransformerWrapper

        InfiniTransformerWrapper(
            self.model, segment_length=self.segment, detach_mems_every_num_segments=self.CUT
        )(tokens_BT, backward=True)

    def read(self, tokens_BT: Tensor) -> tuple[Any, Any, int]:
        cached, memories = None, None
        for part_BT in tokens_BT.split(self.segment, dim=1):
            _, cached, memories = self.model(
                part_BT, past_memories=memories, return_new_memories=part_BT.shape[1] == self.segment
            )
        return cached, memories, tokens_BT.shape[1] % self.segment

    def step(self, token_B1: Tensor, state: tuple[Any, Any, int]) -> tuple[Tensor, tuple[Any, Any, int]]:
        cached, memories, tokens = state
        tokens = (tokens + 1) % self.segment
        logits_BTV, cached, memories = self.model(
            token_B1, cached_kv=cached, past_memories=memories, return_new_memories=tokens == 0
        )
        return logits_BTV[:, -1], (cached, memories, tokens)

    def rows(self, state: tuple[Any, Any, int]) -> int:
        return int(next(tensors(state[1] or [one[0] for one in state[0]])).shape[0])


class Titans(System):
    """Memory as context: segments as long as ours with an eighth as many long-term tokens (16 of 128 in the
    README) and 4 persistent ones; a neural memory in every second layer with as many heads as attention, as
    in its train_mac.py (one of the README's default size in every layer would be most of the parameters).

    It reads a sequence in one call. Generation is by `use_cache`, which it offers and which is far faster
    than the default; from a prompt longer than a segment its answers are not those without the cache.
    The state is (all tokens (B, T), cache).
    """

    packages = ("titans-pytorch",)

    def build(self, width: int) -> nn.Module:
        from titans_pytorch import MemoryAsContextTransformer

        reference = self.reference
        self.config = {
            **shape(reference, width),
            "segment_len": reference.segment_len,
            "num_persist_mem_tokens": 4,
            "num_longterm_mem_tokens": max(1, reference.segment_len // 8),
            "neural_memory_layers": tuple(range(2, reference.n_layers + 1, 2)),
            "neural_memory_kwargs": {"dim_head": reference.head_dim, "heads": reference.n_heads},
        }
        model: nn.Module = MemoryAsContextTransformer(**self.config)
        for parameter in model.parameters():  # its heads share storage until they are moved to a GPU
            parameter.data = parameter.data.contiguous()
        return model

    def logits(self, tokens_BT: Tensor) -> Tensor:
        logits_BTV: Tensor = self.model(tokens_BT)
        return logits_BTV

    def read(self, tokens_BT: Tensor) -> tuple[Tensor, Any]:
        return tokens_BT, self.model(tokens_BT, disable_flex_attn=True, return_cache=True)[1]

    def step(self, token_B1: Tensor, state: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        tokens_BT, cache = torch.cat((state[0], token_B1), dim=1), state[1]
        logits_BTV = None
        while logits_BTV is None:  # long-term tokens stand between segments and have no logits
            logits_BTV, cache = self.model(tokens_BT, disable_flex_attn=True, cache=cache, return_cache=True)
        return logits_BTV[:, -1], (tokens_BT, cache)

    def state_bytes(self, state: tuple[Tensor, Any]) -> int:
        return super().state_bytes(state[1])  # of the tokens it uses the last alone


def shape(reference: ModelConfig, width: int) -> dict[str, Any]:
    """What the packages of one author call the sizes of `reference`, with feed-forward layers of `width`."""
    return {
        "num_tokens": reference.vocab_size,
        "dim": reference.d_model,
        "depth": reference.n_layers,
        "dim_head": reference.head_dim,
        "heads": reference.n_heads,
        "ff_mult": multiple(width, reference.d_model),
    }


def multiple(width: int, dim: int) -> float:
    """The factor from which these peers compute feed-forward layers of `width`: int(dim * factor * 2 / 3)."""
    return (width + 0.5) * 1.5 / dim


SYSTEMS: dict[str, type[System]] = {
    **{
        name: type(name, (Ours,), {"variant": name})
        for name in ("admitted", "recommended", "paper", "local", "full")
        if name in VARIANTS
    },
    "llama": Llama,
    "mistral": Mistral,
    "block-recurrent": BlockRecurrent,
    "rmt": RecurrentMemory,
    "rmt-plain": RecurrentMemoryPlain,
    "infini": Infini,
    "titans": Titans,
}
"""Name -> system; ratios are of the first to each of the others."""
