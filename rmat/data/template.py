"""The chat template of a pretrained model: how its turns are written, with its own special tokens.

A template is a Jinja text, as Hugging Face's tokenizers bring it; it runs in Jinja's sandbox. What stands in
a turn never becomes a special token, as everywhere here.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from jinja2 import Template

Before = Literal["nothing", "text", "system", "user", "assistant"]
"""What stands before a turn: the session's beginning, text without roles, or the turn of a role."""

_MARKS = ("\ue000", "\ue001", "\uf8fe", "\uf8ff")
"""Characters of the private use area: one that no text holds cuts special tokens in what somebody said."""

_STUB = "\u2060rmat\u2060"
"""Text of a turn that stands for the one before."""


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """What a pretrained model's tokenizer brings beside its vocabulary. All tokens are given by their
    text."""

    template: str | None
    """Jinja text; None for a model that was not trained to chat."""
    tokens: dict[str, str]
    """The tokens that the template knows by name: bos_token, eos_token, ..."""
    ends: tuple[str, ...]
    """Tokens at which an answer is over."""
    opens: bool
    """Whether the bos_token stands in front of every text."""
    special: tuple[str, ...]
    """All special tokens."""
    context: int
    """Tokens that the model was trained to see at once."""

    def to_dict(self) -> dict[str, Any]:
        """All fields as values that JSON can hold."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ChatTemplate:
        """Inverse of `to_dict`."""
        lists = {name: tuple(values[name]) for name in ("ends", "special")}
        return ChatTemplate(**{**values, **lists})

    @cached_property
    def turn_end(self) -> str:
        """The token behind an answer: the one the template writes there, else the first of `ends`."""
        behind = self._after([("user", "a"), ("assistant", _STUB)]) if self.template else ""
        written = [(behind.find(end), end) for end in self.ends if end in behind]
        return min(written)[1] if written else self.ends[0]

    @cached_property
    def closing(self) -> str:
        """What the template writes behind the `turn_end` of an answer, such as a line break."""
        behind = self._after([("user", "a"), ("assistant", _STUB)])
        return behind.partition(self.turn_end)[2]

    def pieces(
        self, turns: Sequence[tuple[str, str]], before: Before, *, answer: bool, begun: str = ""
    ) -> Iterator[tuple[str, bool]]:
        """What is read for `turns`: (text, whether it is one special token), one behind the other.

        Args:
            turns: (role, text), at least one unless the answer is to be opened behind `before`.
            before: what they follow.
            answer: whether the assistant's turn is opened behind them.
            begun: text with which that turn begins.

        Raises ValueError where the template refuses the turns, such as a role that it does not know.
        """
        mark = next(mark for mark in _MARKS if not any(mark in text for _, text in turns))
        cut = self._cut
        defused = [
            (role, cut.sub(lambda found: found[0][0] + mark + found[0][1:], text)) for role, text in turns
        ]
        if before in ("nothing", "text"):
            text = self.render(defused, answer)
            if before == "text" and self.opens:  # it opened the text already
                text = text.removeprefix(self.tokens["bos_token"])
        else:
            stub = [("user", "a"), (before, _STUB)] if before == "assistant" else [(before, _STUB)]
            behind = self._after([*stub, *defused], answer)
            if before == "assistant":
                closing = behind.partition(self.turn_end)[2]
                text = closing.removeprefix(self.closing)
            else:
                text = behind.removeprefix(self._after(stub))
        place = 0
        text += cut.sub(lambda found: found[0][0] + mark + found[0][1:], begun)
        for found in cut.finditer(text):
            if plain := text[place : found.start()].replace(mark, ""):
                yield plain, False
            yield found[0], True
            place = found.end()
        if plain := text[place:].replace(mark, ""):
            yield plain, False

    def render(self, turns: Sequence[tuple[str, str]], answer: bool) -> str:
        """The template's text of all turns from the first on. Raises ValueError where it refuses them."""
        from jinja2 import TemplateError

        if self.template is None:
            raise ValueError(
                "this model has no chat template: it completes texts and was not trained to chat"
            )
        messages = [{"role": role, "content": text} for role, text in turns]
        try:
            return self._compiled.render(messages=messages, add_generation_prompt=answer, **self.tokens)
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the model's chat template refuses these turns: {error}") from None

    def _after(self, turns: Sequence[tuple[str, str]], answer: bool = False) -> str:
        """What is written behind the text of the stub."""
        return self.render(turns, answer).partition(_STUB)[2]

    @cached_property
    def _cut(self) -> re.Pattern[str]:
        longest_first = sorted(self.special, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @cached_property
    def _compiled(self) -> Template:
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = lambda x, **how: json.dumps(x, ensure_ascii=False, **how)
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            return environment.from_string(self.template or "")
        except TemplateError as error:
            raise ValueError(f"the model's chat template is no Jinja template ({error})") from None
