"""A .gguf file as a `Source`: its fields as those of a config.json, its tensors dequantised, its tokenizer
rebuilt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from rmat.data.tokenizer import Tokenizer
from rmat.pretrained.architecture import trained_context
from rmat.pretrained.source import Source, with_chat

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Values of general.architecture that can be read; Mistral's files say llama."""

_FIELDS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "attention.sliding_window": "sliding_window",
}
_SEEN = {"vocab_size", "rope.dimension_count", "attention.value_length", "rope.scaling.type"}
"""Fields that are checked or follow from others."""

_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

_CONTROL, _USER_DEFINED = 3, 4
"""Types of tokens in a file's table."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{DIGITS}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 and Qwen cut text before byte pairs are merged, but for the number of digits taken together."""

_LLAMA3 = (1.0, 4.0, 8192.0)
"""Fewest and most turns and context of Llama 3.1's stretched frequencies, of which a file keeps the results
only."""


def open_gguf(path: Path) -> Source:
    """The model in a .gguf file. Raises ValueError naming what cannot be read, FileNotFoundError."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ValueError(
            "reading .gguf files needs the package gguf: pip install 'rmat[pretrained]'"
        ) from None
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        reader = GGUFReader(path)
    except Exception as error:  # what the package raises for a damaged file is anything
        raise ValueError(f"{path} is damaged or no .gguf file ({error})") from None
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = _config(fields, tensors)
    heads = (config["num_attention_heads"], config["num_key_value_heads"])
    weights = _Weights(tensors, heads if config["model_type"] == "llama" else None)
    return Source(name=path.name, config=config, tensors=weights, tokenizer=_tokenizer(fields, config))


def _config(fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    kind = fields.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"general.architecture {kind!r} cannot be imported: what can be is {', '.join(ARCHITECTURES)}"
        )
    config: dict[str, Any] = {"model_type": kind, "vocab_size": len(fields["tokenizer.ggml.tokens"])}
    for name, value in fields.items():
        if not name.startswith(f"{kind}."):
            continue
        key = name.removeprefix(f"{kind}.")
        if key in _FIELDS and not isinstance(value, (list, str)):
            # Such as 1e-5, which the file keeps in 32 bits.
            config[_FIELDS[key]] = float(str(np.float32(value))) if isinstance(value, float) else value
        elif key not in _SEEN or (key == "rope.scaling.type" and value != "none"):
            raise ValueError(f"the field {name}={value!r} is not honoured here: the model cannot be imported")
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    config["head_dim"] = width
    for key in ("rope.dimension_count", "attention.value_length"):
        if fields.get(f"{kind}.{key}", width) != width:
            raise ValueError(
                f"the field {kind}.{key} differs from the width of a head: it cannot be imported"
            )
    if "sliding_window" in config:  # of no effect there in Qwen's files
        config |= {"model_type": "mistral"} if kind == "llama" else {"sliding_window": None}
    config["attention_bias"] = kind != "qwen2" and "blk.0.attn_q.bias" in tensors
    config["tie_word_embeddings"] = "output.weight" not in tensors
    if "rope_freqs.weight" in tensors:
        config["rope_scaling"] = _scaling(
            np.asarray(tensors["rope_freqs.weight"].data, dtype=np.float64), config.get("rope_theta", 10000.0)
        )
    return config


def _scaling(divisors: np.ndarray, theta: float) -> dict[str, Any]:
    """rope_scaling of which these are the divisors of the frequencies (D/2,)."""
    factor = float(np.float32(divisors.max()))
    least, most, context = _LLAMA3
    turns = context / (2 * math.pi) * theta ** -(np.arange(len(divisors)) / len(divisors))
    kept = np.clip((turns - least) / (most - least), 0, 1)
    if not np.allclose(1 / (kept + (1 - kept) / factor), divisors, rtol=1e-3):
        raise ValueError("rope_freqs.weight is not as in Llama 3.1: the model cannot be imported")
    names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return {"rope_type": "llama3", "factor": factor, **dict(zip(names, _LLAMA3, strict=True))}


class _Weights:
    """The tensors by the names that transformers gives them, in float32."""

    def __init__(self, tensors: Mapping[str, Any], interleaved: tuple[int, int] | None) -> None:
        """`interleaved`: query and key heads, where the rotary pairs of both stand side by side."""
        self._interleaved = interleaved
        self._tensors: dict[str, Any] = {}
        for name, tensor in tensors.items():
            if name == "rope_freqs.weight":
                continue
            part = name.split(".")
            known = part[0] == "blk" and len(part) == 4 and part[2] in _PARTS
            theirs = _WHOLE.get(name, name)
            self._tensors[f"model.layers.{part[1]}.{_PARTS[part[2]]}.{part[3]}" if known else theirs] = tensor

    def names(self) -> set[str]:
        return set(self._tensors)

    def get(self, name: str) -> Tensor:
        from gguf import dequantize

        tensor = self._tensors[name]
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ValueError(f"{name}: the package gguf cannot dequantise it ({error})") from None
        x = torch.from_numpy(np.array(values, dtype=np.float32, order="C"))  # a copy, which can be written to
        for heads, part in zip(self._interleaved or (), (".q_proj.", ".k_proj."), strict=False):
            if part in name:  # pair i of a head: rows 2 i and 2 i + 1 there, i and i + D/2 here
                x = x.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(x.shape)
        return x


def _tokenizer(fields: Mapping[str, Any], config: Mapping[str, Any]) -> Tokenizer:
    def field(name: str, default: Any = None) -> Any:
        return fields.get(f"tokenizer.ggml.{name}", default)

    tokens, kind, cut = field("tokens"), field("model"), field("pre", "default")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if kind == "gpt2":
        backend = _byte_level(vocabulary, field("merges"), cut)
    elif kind == "llama":
        backend = _sentencepiece(
            tokens, field("scores"), field("unknown_token_id"), field("add_space_prefix", True)
        )
    else:
        raise ValueError(
            f"the tokenizer is of kind {kind!r}: byte-level (gpt2) and SentencePiece (llama) ones are read"
        )
    for index, sort in enumerate(field("token_type", [])):
        if sort in (_CONTROL, _USER_DEFINED):
            token = AddedToken(tokens[index], special=sort == _CONTROL, normalized=False)
            (backend.add_special_tokens if sort == _CONTROL else backend.add_tokens)([token])
    ids = {name: field(f"{name}_token_id") for name in ("bos", "eos", "unknown", "padding", "eot", "eom")}
    named = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    opens = bool(field("add_bos_token", kind == "llama" or cut == "llama-bpe"))
    if opens:
        bos = tokens[ids["bos"]]
        backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, ids["bos"])]
        )
    return with_chat(
        backend,
        fields.get("tokenizer.chat_template"),
        {named[name]: tokens[index] for name, index in ids.items() if name in named and index is not None},
        [tokens[ids[name]] for name in ("eos", "eot", "eom") if ids[name] is not None],
        opens,
        trained_context(config),
    )


def _byte_level(vocabulary: dict[str, int], merges: list[str], cut: str) -> tokenizers.Tokenizer:
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    model = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=cut == "llama-bpe")
    backend = tokenizers.Tokenizer(model)
    by_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if cut in ("default", "gpt-2"):
        before: Any = by_words
    elif cut == "smollm":
        before = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_words])
    elif cut in ("llama-bpe", "qwen2"):
        words = Regex(_WORDS.replace("{DIGITS}", "{1,3}" if cut == "llama-bpe" else ""))
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        before = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), plain])
    else:
        raise ValueError(
            f"the tokenizer cuts text as {cut!r}, which is not known here: default, gpt-2, smollm, "
            "llama-bpe and qwen2 are"
        )
    backend.pre_tokenizer = before
    backend.normalizer = normalizers.NFC() if cut == "qwen2" else None
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(
    tokens: list[str], scores: list[float], unknown: int | None, prefix: bool
) -> tokenizers.Tokenizer:
    """A SentencePiece BPE: pairs merge in the order of what they make in the table of scores."""
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges: list[tuple[float, int, int, str, str]] = []
    for token, score in zip(tokens, scores, strict=True):
        for place in range(1, len(token)):
            left, right = token[:place], token[place:]
            if left in vocabulary and right in vocabulary:
                merges.append((-score, vocabulary[left], vocabulary[right], left, right))
    model = models.BPE(
        vocab=vocabulary,
        merges=[(left, right) for *_, left, right in sorted(merges)],
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = tokenizers.Tokenizer(model)
    blank = [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence([*([normalizers.Prepend("▁")] if prefix else []), *blank])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend
