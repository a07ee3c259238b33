"""Our tokenizer as one of transformers, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from transformers import PreTrainedTokenizerFast

from rmat.data.template import ChatTemplate
from rmat.data.tokenizer import CHAT, SPECIAL_TOKENS, Tokenizer

DOCUMENT, TURN_END = "<|document|>", "<|turn_end|>"

DIALOGUE = (
    "{{ bos_token }}{% for message in messages %}{% set role = message['role'] | lower %}"
    "{% if role in ['system', 'user', 'assistant'] %}{{ '<|' + role + '|>' + message['content'] }}"
    "{% else %}{{ '<|user|>' + message['role'] + ': ' + message['content'] }}{% endif %}"
    "{{ '<|turn_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Our form of dialogues (`dialogue_document`) as a chat template."""


def to_transformers(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer of transformers with the same ids; text gets its opening token in front, and turns are
    written as in training.

    Unlike ours it makes special tokens of a text that spells them, as all of transformers does; give it
    split_special_tokens=True to switch that off.
    """
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_json())
    options: dict[str, Any] = {
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    if (chat := tokenizer.chat) is None:
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token=DOCUMENT,
            eos_token=DOCUMENT,
            pad_token=DOCUMENT,
            extra_special_tokens=[token for token in SPECIAL_TOKENS if token != DOCUMENT],
            add_bos_token=True,
            chat_template=DIALOGUE,
            **options,
        )
    named = {"pad_token": chat.ends[0], **chat.tokens}
    if backend.post_processor is None:
        options["add_bos_token"] = chat.opens
    # What transformers has no place for goes with the settings, so that the folder can come back.
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=chat.template, **{CHAT: chat.to_dict()}, **named, **options
    )


def end_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids at which `generate` ends."""
    return sorted({*tokenizer.ends, tokenizer.special_id("turn_end")})


def from_transformers(folder: Path) -> Tokenizer | None:
    """The tokenizer in a folder that `to_transformers` or the Trainer saved; None if there is none. Raises
    ValueError."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        layout = json.loads(path.read_text("utf-8"))
        settings_file = folder / "tokenizer_config.json"
        settings = json.loads(settings_file.read_text("utf-8")) if settings_file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"the tokenizer in {folder} is damaged ({error}): save it again") from None
    layout["truncation"] = layout["padding"] = None
    processor = layout["post_processor"] or {}
    empty = processor.get("type") == "TemplateProcessing" and not processor["special_tokens"]
    if (
        CHAT not in settings or "add_bos_token" in settings or empty
    ):  # transformers put it where there was none
        layout["post_processor"] = None
    if CHAT not in settings:
        return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(layout)))
    template = settings.get("chat_template")
    if (file := folder / "chat_template.jinja").is_file():
        template = file.read_text("utf-8")
    chat = ChatTemplate.from_dict({**settings[CHAT], "template": template})
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(layout)), chat)
