"""A .gguf file: tensors that were permuted and quantised, fields, tokenizers."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch

from rmat.pretrained.model import from_pretrained
from rmat.pretrained.source import open_source
from tests.makers.pretrained import CHATML, ODD_TEXTS, byte_level, sentencepiece, source_model

PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def file_name(name: str) -> str:
    """A tensor's name in the file."""
    stem, _, end = name.rpartition(".")
    if stem in WHOLE:
        return f"{WHOLE[stem]}.{end}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{PARTS[part]}.{end}"


def write(
    path: Path, model: Any, kind: str, quantised: gguf.GGMLQuantizationType | None = None, **fields: Any
) -> Path:
    """The file that llama.cpp's converter writes of a model of transformers."""
    config = model.config
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(width)
    writer.add_value_length(width)
    for name, value in fields.items():
        key = name.replace("__", ".")
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(f"{kind}.{key}", value)
    add_byte_level(writer)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        part = name.split(".")[-2]
        if kind == "llama" and part in heads:  # pairs side by side
            shape = (heads[part], 2, -1, *values.shape[1:])
            values = np.ascontiguousarray(values.reshape(shape).swapaxes(1, 2).reshape(values.shape))
        if quantised is not None and values.ndim > 1:
            writer.add_tensor(file_name(name), gguf.quantize(values, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(file_name(name), values.astype(np.float32))
    if (scaling := config.rope_parameters).get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", divisors(scaling, width))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def divisors(scaling: dict[str, float], width: int) -> np.ndarray:
    """What the frequencies are divided by, as llama.cpp's converter computes it."""
    found = []
    for pair in range(width // 2):
        wave = 2 * np.pi * scaling["rope_theta"] ** (2 * pair / width)
        context = scaling["original_max_position_embeddings"]
        low, high = context / scaling["low_freq_factor"], context / scaling["high_freq_factor"]
        if wave < high:
            found.append(1.0)
        elif wave > low:
            found.append(scaling["factor"])
        else:
            smooth = (context / wave - scaling["low_freq_factor"]) / (
                scaling["high_freq_factor"] - scaling["low_freq_factor"]
            )
            found.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(found, dtype=np.float32)


def add_byte_level(writer: gguf.GGUFWriter) -> None:
    backend = byte_level()
    vocabulary = backend.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = gguf_merges(backend)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if index < 3 else 1 for index in range(len(tokens))])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHATML)


def gguf_merges(backend: tokenizers.Tokenizer) -> list[str]:
    return [" ".join(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]


def small(name: str, **fields: Any) -> Any:
    """A model whose vocabulary is the tokenizer's."""
    size = len(byte_level().get_vocab())
    return source_model(name, vocab_size=size, **fields)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("llama2", "llama"), ("llama_biases", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")],
)
def test_logits_are_the_sources(tmp_path: Path, name: str, kind: str) -> None:
    theirs = small(name)
    model, _ = from_pretrained(write(tmp_path / "model.gguf", theirs, kind), window=64, n_slots=300)
    tokens = torch.randint(0, 256, (1, 300))
    with torch.no_grad():
        assert float((model(tokens)[0] - theirs(tokens).logits).abs().max()) < 1e-4


def test_stretched_frequencies_are_found_again(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    theirs = small("llama2", rope_parameters=scaling, head_dim=32)
    model, _ = from_pretrained(write(tmp_path / "model.gguf", theirs, "llama"), window=64, n_slots=300)
    assert model.config.rope_scaling == (8.0, 1.0, 4.0, 8192.0)
    tokens = torch.randint(0, 256, (1, 300))
    with torch.no_grad():
        assert float((model(tokens)[0] - theirs(tokens).logits).abs().max()) < 1e-4


QUANTISED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16")


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_tensors_are_what_the_package_makes_of_them(tmp_path: Path, kind: str) -> None:
    sort = gguf.GGMLQuantizationType[kind]
    theirs = small("llama2")
    path = write(tmp_path / "model.gguf", theirs, "llama", sort)
    model, _ = from_pretrained(path, window=64, n_slots=64)
    original = theirs.state_dict()["model.layers.1.mlp.up_proj.weight"].numpy()
    expected = gguf.dequantize(gguf.quantize(original, sort), sort)
    assert np.array_equal(model.get_parameter("blocks.1.feedforward.up.weight").detach().numpy(), expected)


def test_the_tokenizer_is_the_sources(tmp_path: Path) -> None:
    tokenizer = open_source(write(tmp_path / "model.gguf", small("llama2"), "llama")).tokenizer
    assert tokenizer.vocab_size == len(byte_level().get_vocab())
    for text in ODD_TEXTS:
        assert tokenizer.encode(text) == byte_level().encode(text, add_special_tokens=False).ids, text
    assert tokenizer.chat is not None
    assert (tokenizer.chat.template, tokenizer.chat.ends) == (CHATML, ("<|im_end|>",))
    assert tokenizer.opening == ()


def test_sentencepiece_merges_by_score(tmp_path: Path) -> None:
    """In the order of scores, unknown letters as bytes, a blank in front; as in Llama 2."""
    from rmat.pretrained.gguf_file import _sentencepiece

    tokens, scores = sentencepiece()
    backend = _sentencepiece(tokens, scores, 0, True)

    def spelled(text: str) -> list[str]:
        return list(backend.encode(text, add_special_tokens=False).tokens)

    assert spelled("the in") == ["▁the", "▁", "in"]
    assert spelled("and an") == ["▁and", "▁an"]
    assert spelled("other") == ["▁", "o", "t", "he", "r"]
    assert spelled("é") == ["▁", "<0xC3>", "<0xA9>"]
    for text in ("the in", "é is on", "  two  blanks"):
        assert backend.decode(backend.encode(text, add_special_tokens=False).ids) == text


@pytest.mark.parametrize(
    ("kind", "fields", "told"),
    [
        ("gemma", {}, "general.architecture 'gemma'.*llama, qwen2, qwen3"),
        ("llama", {"expert_count": 8}, "llama.expert_count=8"),
        ("llama", {"rope__scaling__type": "yarn"}, "llama.rope.scaling.type='yarn'"),
        ("llama", {"rope__dimension_count": 8}, "rope.dimension_count"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(
    tmp_path: Path, kind: str, fields: dict[str, Any], told: str
) -> None:
    path = write(tmp_path / "model.gguf", small("llama2"), kind, **fields)
    with pytest.raises(ValueError, match=told):
        open_source(path)


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(ValueError, match=r"damaged or no \.gguf file"):
        open_source(path)
