"""Llama-type models of Hugging Face (config.json and names of tensors) as configurations and names of ours,
and back.

One table says what every field of a config.json means here. A field that is not in it is refused by name
unless it asks for nothing (null, false), so that no model is ever read as a slightly different one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from rmat.model import ModelConfig
from rmat.model.presets import ONE_ATTENTION
from rmat.settings import whole

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
"""Values of `model_type` that can be read."""

N_SINKS = 4
"""First tokens that stay in sight: without them a pretrained model loses its attention sink."""

WINDOW, SLOTS = 1024, 1024
"""Tokens of local attention and slots of a bank, where nothing is said."""

_USED = {
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings"),
    *("rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "attention_bias", "sliding_window"),
    *("use_sliding_window", "max_window_layers", "layer_types"),
}
_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "mlp_bias": (False, None),
    "attention_dropout": (0, None),
    "partial_rotary_factor": (1, None),
    "pretraining_tp": (1, None),
}
"""Fields that may have these values only."""

_SILENT = {
    *("architectures", "torch_dtype", "dtype", "transformers_version", "use_cache", "initializer_range"),
    *(
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "_name_or_path",
        "name_or_path",
        "transformers.js_config",
    ),
    *("is_llama_config", "id2label", "label2id", "return_dict", "chunk_size_feed_forward", "unk_token_id"),
    *(
        "output_attentions",
        "output_hidden_states",
        "use_return_dict",
        "problem_type",
        "num_labels",
        "task_specific_params",
    ),
    *("_attn_implementation", "_attn_implementation_autoset"),
}
"""Fields that say nothing about the function from tokens to logits."""

_ROPE = {"rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor"} | {
    "original_max_position_embeddings",
    "partial_rotary_factor",
}


@dataclass(frozen=True)
class Window:
    """How much a model keeps in sight. Each None is chosen by `configuration`."""

    tokens: int | None = None
    """Tokens of exact local attention that the state holds; a token sees between half of them and all. The
    trained context or more: no bank, full attention over the trained context."""
    n_slots: int | None = None
    """Slots of every key head's bank."""
    n_sinks: int | None = None
    """First tokens of a document that stay in sight."""


def trained_context(source: Mapping[str, Any]) -> int:
    """Tokens that the model of a config.json was trained to see at once: a sliding window limits them."""
    context = int(_required(source, "max_position_embeddings"))
    window = source.get("sliding_window", 4096 if source["model_type"] == "mistral" else None)
    slides = window is not None
    if source["model_type"] != "mistral":
        kinds = source.get("layer_types") or []
        first = source.get("max_window_layers", source["num_hidden_layers"])
        by_depth = bool(source.get("use_sliding_window")) and first < source["num_hidden_layers"]
        slides = slides and ("sliding_attention" in kinds if kinds else by_depth)
    return min(context, int(window)) if slides and window is not None else context


def configuration(source: Mapping[str, Any], window: Window) -> ModelConfig:
    """The configuration of the model in a config.json of Hugging Face, with the given state.

    Raises ValueError that names an architecture, a field or a value that cannot be honoured, or a state that
    is too large for the trained context.
    """
    kind = source.get("model_type")
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"model_type {kind!r} cannot be imported: what can be is {', '.join(ARCHITECTURES)} (SmolLM2 is "
            "a llama)"
        )
    _refuse_unknown(source)
    heads, width = _required(source, "num_attention_heads"), _required(source, "hidden_size")
    head_width = source.get("head_dim") or (128 if kind == "qwen3" else width // heads)
    theta, scaling = _rope(source)
    kv_heads = source.get("num_key_value_heads") or (
        heads if kind == "llama" else _required(source, "num_key_value_heads")
    )
    biased = bool(source.get("attention_bias")) and kind in ("llama", "qwen3")
    fields: dict[str, Any] = dict(
        vocab_size=_required(source, "vocab_size"),
        d_model=width,
        n_layers=_required(source, "num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_width=None if head_width * heads == width else head_width,
        d_ff=_required(source, "intermediate_size"),
        rope_theta=theta,
        rope_scaling=scaling,
        attention_bias="qkv" if kind == "qwen2" else "all" if biased else "none",
        qk_norm=kind == "qwen3",
        norm="rmsnorm",
        norm_eps=float(source.get("rms_norm_eps", 1e-6)),
        mlp="swiglu",
        tie_embeddings=bool(source.get("tie_word_embeddings", False)),
    )
    return ModelConfig(**fields, **_state(window, trained_context(source)))


def _state(window: Window, context: int) -> dict[str, Any]:
    """The fields that say what the state holds."""
    tokens = min(WINDOW, context // 2 // 2 * 2) if window.tokens is None else window.tokens
    tokens = whole("window", tokens, 2)
    if tokens >= context:
        for name in ("n_slots", "n_sinks"):
            if getattr(window, name):
                raise ValueError(
                    f"{name}={getattr(window, name)} is not possible with a window of the whole trained "
                    "context "
                    f"({context} tokens), which has no bank: give a smaller window"
                )
        return dict(streams=("full",), segment_len=context, chunk_len=context)
    if tokens % 2:
        raise ValueError(f"window={tokens} is not possible: it is two chunks, give an even number of tokens")
    n_sinks = N_SINKS if window.n_sinks is None else window.n_sinks
    n_slots = min(SLOTS, context - tokens - n_sinks) if window.n_slots is None else window.n_slots
    n_slots, n_sinks = whole("n_slots", n_slots, 1), whole("n_sinks", n_sinks, 0)
    if tokens + n_slots + n_sinks > context:
        raise ValueError(
            f"window={tokens}, n_slots={n_slots} and n_sinks={n_sinks} are {tokens + n_slots + n_sinks} "
            "places, and the "
            f"model was trained to tell {context} apart: give fewer"
        )
    chunk = tokens // 2
    return dict(
        ONE_ATTENTION,
        segment_len=chunk,
        chunk_len=chunk,
        n_sinks=n_sinks,
        n_slots=n_slots,
        writer="all" if n_slots >= chunk else "select",
        writes_per_segment=min(chunk, n_slots),
    )


def source_config(config: ModelConfig, context: int) -> dict[str, Any]:
    """The config.json of Hugging Face for the weights of `config`: a model with full attention.

    Raises ValueError for a configuration that none of the architectures can be.
    """
    for wrong, what in (
        (config.norm != "rmsnorm", "norm"),
        (config.mlp != "swiglu", "mlp"),
        (bool(config.conv_width), "conv_width"),
        (isinstance(config.rope_theta, tuple), "rope_theta"),
        (len(config.held) != 1, "projections"),
        (config.has_memory and (config.memory_projections != "local" or config.null_slot), "streams"),
        (config.qk_norm and config.attention_bias == "qkv", "attention_bias"),
        (config.attention_bias == "qkv" and config.head_width is not None, "head_width"),
    ):
        if wrong:
            raise ValueError(
                f"a model with {what}={getattr(config, what)!r} is no Llama-type model and cannot be "
                "exported: only what "
                "was imported can be"
            )
    kind = "qwen3" if config.qk_norm else "qwen2" if config.attention_bias == "qkv" else "llama"
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        rope |= dict(zip(names, config.rope_scaling, strict=True), rope_type="llama3")
        rope["original_max_position_embeddings"] = int(config.rope_scaling[3])
    found: dict[str, Any] = {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "max_position_embeddings": context,
        "tie_word_embeddings": config.tie_embeddings,
        "rms_norm_eps": config.epsilon,
        "hidden_act": "silu",
        "rope_parameters": rope,
        # what releases of transformers before 5 read
        "rope_theta": config.rope_theta,
        "rope_scaling": None
        if config.rope_scaling is None
        else {k: v for k, v in rope.items() if k != "rope_theta"},
    }
    if kind != "qwen2":
        found |= {"head_dim": config.head_dim, "attention_bias": config.attention_bias == "all"}
    return found


_PARTS = {
    "norm": "input_layernorm",
    "local.query": "self_attn.q_proj",
    "local.key": "self_attn.k_proj",
    "local.value": "self_attn.v_proj",
    "local.query_norm": "self_attn.q_norm",
    "local.key_norm": "self_attn.k_norm",
    "output": "self_attn.o_proj",
    "feedforward_norm": "post_attention_layernorm",
    "feedforward.gate": "mlp.gate_proj",
    "feedforward.up": "mlp.up_proj",
    "feedforward.down": "mlp.down_proj",
}
_WHOLE = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_OURS = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")


def source_names(names: Iterator[str]) -> Iterator[tuple[str, str | None]]:
    """Names of our parameters, each with its name in the source; None for those of the memory."""
    for name in names:
        if name in _WHOLE:
            yield name, _WHOLE[name]
            continue
        matched = _OURS.fullmatch(name)
        assert matched is not None, name
        layer, part, end = matched.groups()
        part = re.sub(r"^local\.(full|chunked|shared)\.", "local.", part)
        yield name, f"model.layers.{layer}.{_PARTS[part]}.{end}" if part in _PARTS else None


def _rope(source: Mapping[str, Any]) -> tuple[float, tuple[float, ...] | None]:
    """Rotary base and stretching."""
    given = {**(source.get("rope_scaling") or {}), **(source.get("rope_parameters") or {})}
    theta = given.get("rope_theta", source.get("rope_theta", 10000.0))
    if unknown := sorted(set(given) - _ROPE):
        raise ValueError(
            f"rope_scaling has {unknown[0]!r}, which is not known here: the model cannot be imported"
        )
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "llama3") or given.get("partial_rotary_factor", 1) not in (1, None):
        raise ValueError(f"rope_scaling of type {kind!r} cannot be imported: default and llama3 can be")
    if kind == "default":
        return float(theta), None
    names = ("factor", "low_freq_factor", "high_freq_factor")
    context = given.get("original_max_position_embeddings") or _required(source, "max_position_embeddings")
    return float(theta), (*(float(_required(given, name)) for name in names), float(context))


def _required(source: Mapping[str, Any], name: str) -> Any:
    if source.get(name) is None:
        raise ValueError(f"config.json lacks {name!r}: the model cannot be imported")
    return source[name]


def _refuse_unknown(source: Mapping[str, Any]) -> None:
    for name, value in source.items():
        if name in _ONLY and value not in _ONLY[name]:
            _refuse(name, value)
        if name not in _USED | _SILENT | set(_ONLY) and value not in (None, False):
            _refuse(name, value)


def _refuse(name: str, value: Any) -> NoReturn:
    raise ValueError(
        f"config.json has {name}={value!r}, which is not honoured here: a model read without it would be "
        "another one"
    )
