"""Tiny random models of transformers in folders of Hugging Face, with tokenizers that were trained on a few lines."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

from tests.makers.byte_level import trained_byte_level

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The form of SmolLM2 and Qwen."""

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

_SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}

SOURCES: dict[str, Any] = {
    "llama2": lambda: transformers.LlamaConfig(**_SIZES),
    "llama3": lambda: transformers.LlamaConfig(**_SIZES, tie_word_embeddings=True, rope_parameters=_LLAMA31),
    "llama_biases": lambda: transformers.LlamaConfig(
        **_SIZES, attention_bias=True, head_dim=24, rms_norm_eps=1e-5
    ),
    "mistral": lambda: transformers.MistralConfig(**_SIZES, sliding_window=1024),
    "qwen2": lambda: transformers.Qwen2Config(**_SIZES, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**_SIZES, head_dim=32),
    "qwen3_biases": lambda: transformers.Qwen3Config(**_SIZES, head_dim=16, attention_bias=True),
}
"""Configurations of transformers, small."""


def source_model(name: str, **fields: Any) -> Any:
    """A model of transformers whose biases and norms are no ones and zeros, so that none can be forgotten."""
    torch.manual_seed(0)
    config = SOURCES[name]()
    for field, value in fields.items():
        setattr(config, field, value)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def source_folder(
    folder: Path, name: str = "llama2", *, template: str | None = CHATML, **saving: Any
) -> Path:
    """A folder as `save_pretrained` writes it, with a byte-level tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model = source_model(name)
    model.save_pretrained(folder, **saving)
    byte_level().save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    return folder


def byte_level() -> Tokenizer:
    """That of the sources here: 320 entries, the special tokens first."""
    said = "the user and the assistant say hello", "What is the name of the thing?"
    return trained_byte_level(SPECIAL, *said)


def sentencepiece() -> tuple[list[str], list[float]]:
    """Tokens and scores of a small SentencePiece vocabulary: unknown, begin, end, bytes, letters, a few words."""
    letters = list("▁abcdefghijklmnopqrstuvwxyz.?")
    words = ["▁t", "he", "▁the", "in", "an", "▁an", "er", "on", "▁and", "▁w", "is"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(words) + len(letters))]
    return tokens, scores


ODD_TEXTS = (
    "",
    " ",
    "Hello, world!",
    "  two  blanks\tand a tab\r\n\r\nlines\n\n\nmore",
    "12345 3.14 1e-9 №5",
    "naïve café, e\u0301 combined; ÅÅ",
    "日本語と中文、한국어. Привет мир",
    "🙂👩‍👩‍👧 zero\u200bwidth\ufeff",
    "def f(x):\n    return x**2  # it's I'LL we've",
    "<|nonsense|> <im_start> user\nassistant",
    "\x00\x01 control \x7f",
)
"""Texts at whose edges tokenizers differ."""
