"""Chat templates that know tools, each with its own way to write a call, and a small tokenizer for them."""

import functools

from rmat.data.template import ChatTemplate
from rmat.data.tokenizer import Tokenizer
from tests.makers.byte_level import trained_byte_level

SPECIAL = ("<|end|>", "<|im_start|>", "<|im_end|>", "[TOOL_CALLS]")

_SAID = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% if message.tool_calls %}CALLS{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TOOLS = "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"

TEMPLATES = {
    # Each call between tags of plain text, on lines of its own (Hermes, Qwen).
    "tags": _TOOLS
    + _SAID.replace(
        "CALLS",
        "{% for call in message.tool_calls %}{% if message.content or not loop.first %}{{ '\n' }}{% endif %}<tool_call>\n"
        '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
        "{% endfor %}",
    ),
    # A bare object, and one call only (Llama 3.1).
    "object": _TOOLS
    + _SAID.replace(
        "CALLS",
        "{% if message.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
        "{% set call = message.tool_calls[0].function %}"
        '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}',
    ),
    # A list behind a special token (Mistral).
    "list": _TOOLS
    + _SAID.replace(
        "CALLS",
        "[TOOL_CALLS][{% for call in message.tool_calls %}"
        '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
        "{% if not loop.last %}, {% endif %}{% endfor %}]",
    ),
}
"""Jinja texts by what their calls look like."""

# As "tags", behind thoughts of which an answer in the past has none (Qwen 3).
TEMPLATES["thoughts"] = TEMPLATES["tags"].replace(
    "{{ message['content'] }}",
    "{% if message.tool_calls %}<think>\n\n</think>\n\n{% endif %}{{ message['content'] }}",
)


@functools.cache
def tool_tokenizer(kind: str | None) -> Tokenizer:
    """A byte-level BPE with the template of this kind; with None, one that knows no tools."""
    template = ChatTemplate(
        template=_SAID if kind is None else TEMPLATES[kind],
        tokens={"eos_token": "<|im_end|>"},
        ends=("<|im_end|>", "<|end|>"),
        opens=False,
        special=SPECIAL,
        context=2048,
    )
    text = '<tool_call>\n{"name": "weather", "arguments": {"city": '
    return Tokenizer(trained_byte_level(SPECIAL, text), template)
