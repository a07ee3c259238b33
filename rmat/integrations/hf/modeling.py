"""`LanguageModel` as a model of transformers: forward, generate, the Trainer, saving."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from rmat.integrations.hf.cache import RmatCache
from rmat.integrations.hf.card import CARD_FILE, card
from rmat.integrations.hf.configuration import RmatConfig
from rmat.model import LanguageModel, StreamState
from rmat.model.block import Block
from rmat.model.initialization import initialize

CACHE = (
    "cache"
    if any(field.name == "cache" for field in dataclasses.fields(CausalLMOutputWithPast))
    else "past_key_values"
)
"""What this release of transformers calls a cache: past_key_values up to 5.23, cache from 5.24 on. Both are
taken, and this one is given back."""

THEIR_CARD = "This model card has been automatically generated"
"""Stands in the card that transformers makes of its template."""

IGNORED = -100
"""Label of what is not scored."""


class RmatBlock(GradientCheckpointingLayer, Block):
    """A block whose activations may be computed again in the backward pass."""


class RmatCore(LanguageModel):
    """The language model, of such blocks."""

    block_class = RmatBlock


class RmatPreTrainedModel(PreTrainedModel):
    """What a model with a head and one without have in common: a `LanguageModel` under the name `model`."""

    config: RmatConfig
    config_class = RmatConfig
    base_model_prefix = "rmat"
    _input_embed_layer = "embedding"
    _is_stateful = True
    _no_split_modules = ("RmatCore",)
    _skip_keys_device_placement = ("cache", "past_key_values")
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config: RmatConfig) -> None:
        super().__init__(config)
        # Of the type that transformers asks for by setting torch's default one.
        self.model = RmatCore(config.to_model_config()).to(torch.get_default_dtype())
        for parameter in self.model.parameters():
            if not parameter.is_meta:  # it has been drawn: see `_init_weights`
                setattr(parameter, "_is_hf_initialized", True)  # noqa: B010 (not a field)
        self.post_init()

    @classmethod
    def wrap(cls, model: LanguageModel) -> Self:
        """A model of transformers that shares the parameters of `model`, and is in its mode."""
        config = RmatConfig(rmat=model.config.to_dict())
        # What a seeded program draws next stays the same.
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            wrapped = cls(config)
        wrapped.model.load_state_dict(model.state_dict(keep_vars=True), assign=True)
        wrapped.train(model.training)
        return wrapped

    def get_output_embeddings(self) -> nn.Module | None:
        """The head; None where it is the embedding."""
        return getattr(self.model, "head", None)

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Another head."""
        self.model.head = new_embeddings

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; states of before belong to another model afterwards."""
        embedding: nn.Embedding = super().resize_token_embeddings(*args, **kwargs)
        self.model.config = self.config.to_model_config()
        return embedding

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As in transformers, and a model card where there is none."""
        super().save_pretrained(save_directory, *args, **kwargs)
        path = Path(save_directory) / CARD_FILE
        if kwargs.get("is_main_process", True) and path.parent.is_dir() and not path.exists():
            path.write_text(card(self.model.config), encoding="utf-8")

    def _upload_modified_files(self, working_dir: str | Path, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, which makes a card of a template where the hub has none: ours in its place."""
        from huggingface_hub import ModelCard

        path = Path(working_dir) / CARD_FILE
        if path.is_file() and THEIR_CARD in path.read_text("utf-8"):
            ours, tags = ModelCard(card(self.model.config)), ModelCard.load(path).data.get("tags") or []
            ours.data["tags"] = [*dict.fromkeys([*ours.data["tags"], *tags])]
            ours.save(path)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: object = "AutoModel") -> None:
        """Nothing: see `RmatConfig.register_for_auto_class`."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw those parameters of a module that no checkpoint has brought."""
        own = {id(x) for x in module.parameters(False) if not getattr(x, "_is_hf_initialized", False)}
        names = [name for name, parameter in self.model.named_parameters() if id(parameter) in own]
        if names:
            initialize(self.model, names)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint, **kwargs: Any
    ) -> None:
        # Gradients flow through a block's state too, which only the form without reentrance sees.
        given = getattr(gradient_checkpointing_func, "keywords", {})
        again = partial(checkpoint, **{**given, "use_reentrant": False})
        super()._set_gradient_checkpointing(enable, again, **kwargs)

    def _read(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        cache: RmatCache | None,
        use_cache: bool | None,
        output_hidden_states: bool | None,
        options: dict[str, Any],
    ) -> _Read:
        """What both models do with the arguments of `forward`. Raises ValueError."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        if options.get("output_attentions", self.config.output_attentions):
            raise ValueError(
                "output_attentions is not possible: streams and memory have other weights than one matrix a "
                "layer; `rmat report` shows them"
            )
        tokens = inputs_embeds if input_ids is None else input_ids.long()
        assert tokens is not None
        n_rows, n_tokens = tokens.shape[:2]
        if cache is not None and not isinstance(cache, RmatCache):
            raise ValueError(
                f"the cache is a {type(cache).__name__}: give the RmatCache that this model returns, or none"
            )
        if use_cache is None:
            use_cache = self.config.use_cache
        if self.training and torch.is_grad_enabled() and self._is_checkpointing:
            use_cache = cache is not None
        if cache is None and use_cache:
            cache = RmatCache()
        valid = _valid(attention_mask, n_rows, n_tokens)
        resets = None
        if (position_ids := options.get("position_ids")) is not None:
            starts = (position_ids == 0).expand(n_rows, -1)
            resets = starts if valid is None else starts & valid.to(starts.device)
        elif any(options.get(name) is not None for name in ("cu_seq_lens_q", "seq_idx")):
            raise ValueError(
                "rows with several documents need position_ids, which begin at 0 in each of them"
            )
        state = None if cache is None else cache.state
        with _layers(self.model, output_hidden_states) as recorded:
            hidden_BTE, after = self.model.hidden(tokens, state, resets=resets, valid=valid)
        layers = None
        if output_hidden_states:
            layers = (*_placed(recorded, valid, n_tokens)[:-1], self.model.norm(hidden_BTE))
        unread = None
        if valid is not None:
            last = None if cache is None else cache.held.last
            hidden_BTE, unread = _behind_padding(hidden_BTE, valid, state, last)
        if cache is not None:
            cache.held.state, cache.held.last = after, hidden_BTE[:, -1].clone()
            cache.held.seen += n_tokens
        return _Read(hidden_BTE, cache if use_cache else None, layers, unread)

    @property
    def _is_checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return any(block.gradient_checkpointing for block in self.model.blocks)


class RmatModel(RmatPreTrainedModel):
    """The model without its head."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: RmatCache | None = None,
        past_key_values: RmatCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden vectors (B, T, E) after the last norm; arguments as in `RmatForCausalLM.forward`."""
        cache = past_key_values if cache is None else cache
        read = self._read(
            input_ids, attention_mask, inputs_embeds, cache, use_cache, output_hidden_states, kwargs
        )
        return BaseModelOutputWithPast(
            last_hidden_state=self.model.norm(read.hidden_BTE),
            hidden_states=read.layers,
            **{CACHE: read.cache},
        )


class RmatForCausalLM(RmatPreTrainedModel, GenerationMixin):
    """The model with its head: logits, loss and `generate`."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: RmatCache | None = None,
        past_key_values: RmatCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Read tokens on from a cache.

        Args:
            input_ids: (B, T) integers. inputs_embeds: (B, T, E) in their place.
            attention_mask: (B, T or more) 0 for padding, which may stand anywhere; of a longer one the last T
                columns count. Logits behind a row's tokens are those after its last one.
            cache, past_key_values: what was read before; one object under two names. It goes on in place.
            labels: (B, T) for the loss, shifted inside; -100 is not scored, nor is a token before which
                nothing was read.
            use_cache: whether the cache is given back; the configuration's by default.
            output_hidden_states: also the vectors between the blocks, the last after the norm.
            logits_to_keep: logits of so many last places only, or of the places given; 0 for all.
            kwargs: position_ids (B, T): where they are 0 a new document begins, and the rest is not looked
                at. num_items_in_batch and more for the loss.

        Returns: loss, logits (B, T, V), cache, hidden_states. Raises ValueError.
        """
        cache = past_key_values if cache is None else cache
        read = self._read(
            input_ids, attention_mask, inputs_embeds, cache, use_cache, output_hidden_states, kwargs
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.model.logits(read.hidden_BTE[:, kept])
        loss = None
        if labels is not None:
            if read.unread is not None:
                labels = labels.clone()
                labels[:, 1:].masked_fill_(read.unread[:, :-1].to(labels.device), IGNORED)
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=read.layers, **{CACHE: read.cache}
        )

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """A cache of ours in the place of the one that `generate` would make."""
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r} is not possible: the state "
                "of an rmat model has one size however much was read; leave it out"
            )
        if getattr(generation_config, "is_assistant", False):
            raise ValueError(
                "an rmat model cannot be the assistant of another: its state cannot be taken back by tokens "
                "that are not accepted"
            )
        if (given := model_kwargs.get(CACHE)) is not None:
            given._is_user_defined = True
        elif generation_config.use_cache is not False:
            model_kwargs[CACHE] = RmatCache()


@dataclasses.dataclass(frozen=True)
class _Read:
    """What one call has read."""

    hidden_BTE: Tensor
    """Before the last norm; behind padding those of the last token."""
    cache: RmatCache | None
    layers: tuple[Tensor, ...] | None
    unread: Tensor | None
    """(B, T) where a row has read nothing yet; None if there is no padding."""


def _valid(attention_mask: Tensor | None, n_rows: int, n_tokens: int) -> Tensor | None:
    """(B, T) bool, true for tokens; None if there is no padding."""
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2 or attention_mask.shape[0] != n_rows or attention_mask.shape[1] < n_tokens:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}: give ({n_rows}, {n_tokens}), 0 for "
            "padding; which tokens see each other is the model's own affair"
        )
    valid = attention_mask[:, -n_tokens:] != 0
    return None if bool(valid.all()) else valid


def _behind_padding(
    hidden_BTE: Tensor, valid: Tensor, state: StreamState | None, last: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Hidden vectors where padding repeats those of the token before it, in this call or the one before
    (`last`, (B, E)); and (B, T) where there was no token yet."""
    valid = valid.to(hidden_BTE.device)
    places = torch.arange(valid.shape[1], device=valid.device)
    seen = torch.where(valid, places, -1).cummax(1).values
    first = torch.zeros_like(hidden_BTE[:, 0]) if last is None else last.to(hidden_BTE)
    joined_BXE = torch.cat([first[:, None], hidden_BTE], dim=1)
    unread = seen < 0
    if state is not None:
        unread = unread & (state.position == 0)[:, None]
    return torch.take_along_dim(joined_BXE, (seen + 1)[..., None], dim=1), unread


@contextmanager
def _layers(model: LanguageModel, wanted: bool) -> Iterator[list[list[Tensor]]]:
    """Lists that fill with the vectors before each block and after the last one, call by call."""
    kept: list[list[Tensor]] = [[] for _ in range(len(model.blocks) + 1)]

    def keep(index: int, args: tuple[Any, ...], out: tuple[Any, ...]) -> None:
        kept[index].append(args[0])
        if index + 1 == len(model.blocks):
            kept[-1].append(out[0])

    hooks = [
        block.register_forward_hook(lambda _, args, out, index=index: keep(index, args, out))
        for index, block in enumerate(model.blocks)
        if wanted
    ]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _placed(recorded: list[list[Tensor]], valid: Tensor | None, n_tokens: int) -> tuple[Tensor, ...]:
    """Recorded vectors in the places of the tokens: blocks see a row's tokens without padding. Raises
    ValueError."""
    # One alone stays the tensor that it is, so that its gradient can be asked for.
    joined = [pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1) for pieces in recorded]
    if len(recorded[0]) > 1 and (valid is not None or joined[0].shape[1] != n_tokens):
        raise ValueError(
            "output_hidden_states is not possible for rows of several lengths in a model that writes from "
            "the block output, which reads segment after segment: read the rows one by one"
        )
    if valid is None:
        return tuple(joined)
    place = (valid.cumsum(1) - 1).clamp(min=0)[..., None]
    return tuple(torch.take_along_dim(x, place.to(x.device), dim=1) for x in joined)
