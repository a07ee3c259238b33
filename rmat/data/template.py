"""The chat template of a pretrained model: how its turns are written, with its own special tokens.

A template is a Jinja text, as Hugging Face's tokenizers bring it; it runs in Jinja's sandbox. What stands in
a turn never becomes a special token, as everywhere here.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from jinja2 import Template

Before = Literal["nothing", "opened", "text", "system", "user", "assistant"]
"""What stands before a turn: the session's beginning, the token that opens a text, text that was read (of a
model that chats: in a turn which is still open), or the closed turn of a role."""

_MARKS = ("\ue000", "\ue001", "\uf8fe", "\uf8ff")
"""Characters of the private use area: one that no text holds cuts special tokens in what somebody said."""

_STUB, _PLACE = "\u2060rmat\u2060", "\u2060text\u2060"
"""Text of a turn that stands for the one before, and text whose place is asked for."""


@dataclass(frozen=True)
class CallForm:
    """How a template writes the tool calls of an answer: `lead`, the calls with `between` them, `tail`. A
    call is `begin`, the tool's name, `middle`, its arguments as a JSON object, `end`."""

    lead: str
    begin: str
    middle: str
    end: str
    between: str | None
    """None where an answer has one call at most."""
    tail: str


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

    @cached_property
    def text_role(self) -> Literal["system", "user"]:
        """In whose turn a text stands that is read: the system's, out of which answers are better
        (docs/pretrained.md), unless the template knows it at no place or at the beginning alone."""
        asked = [("system", _STUB), ("user", _PLACE)]
        try:
            found = [
                self.render([*before, *asked], False) for before in ([], [("user", "a"), ("assistant", "b")])
            ]
        except ValueError:
            return "user"
        return "system" if all(0 <= text.find(_STUB) < text.find(_PLACE) for text in found) else "user"

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
        mark = _unused_mark([text for _, text in turns])
        defused = [(role, self._defused(text, mark)) for role, text in turns]
        text = self._written(defused, before, answer) + self._defused(begun, mark)
        return self.cut_up(text, mark)

    def tool_pieces(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], *, begun: str = ""
    ) -> Iterator[tuple[str, bool]]:
        """What is read, as in `pieces`, for a whole conversation with tools up to the opening of an answer.

        Args:
            messages: as OpenAI's API has them, the arguments of tool calls as objects.
            tools: their definitions, as there; none where the answer shall not call one.
            begun: text with which the answer begins.

        Raises ValueError where the template refuses them.
        """
        try:
            mark = _unused_mark([json.dumps([messages, tools, begun], ensure_ascii=False)])
            defused = self._defused([messages, tools, begun], mark)
        except RecursionError:
            raise ValueError("messages or tools are nested too deeply") from None
        return self.cut_up(self._render(defused[0], True, defused[1]) + defused[2], mark)

    def _defused(self, value: Any, mark: str) -> Any:
        """`value`, as JSON has them, with the mark in what its texts have of special tokens."""
        if isinstance(value, str):
            return self._cut.sub(lambda found: found[0][0] + mark + found[0][1:], value)
        if isinstance(value, Mapping):
            return {self._defused(name, mark): self._defused(entry, mark) for name, entry in value.items()}
        return [self._defused(entry, mark) for entry in value] if isinstance(value, list | tuple) else value

    @cached_property
    def call_form(self) -> CallForm | None:
        """How tool calls are written, found out by having one and two written; None where the template does
        not know tools, or where it does not write a call as its name and then its arguments in JSON."""
        call = {"type": "function", "id": "000000000", "function": {"name": _STUB, "arguments": {_PLACE: 1}}}
        asked = {"role": "user", "content": "a"}
        schema = {"type": "object", "properties": {}}
        tool = {"type": "function", "function": {"name": _STUB, "description": "", "parameters": schema}}

        def written(n_calls: int) -> str:
            said = {"role": "assistant", "content": "", "tool_calls": [call] * n_calls}
            opened, text = self._render([asked], True, [tool]), self._render([asked, said], False, [tool])
            if _STUB not in opened:
                raise ValueError("the tools are not shown")
            return text[len(_common(opened, text)) :].partition(self.turn_end)[0]

        one = rf"(.*?){_STUB}(.*?)\{{\s*\"{_PLACE}\":\s*1\s*\}}"
        try:
            if self.template is None or (found := re.fullmatch(one + "(.*)", written(1), re.DOTALL)) is None:
                return None
        except ValueError:
            return None
        first, middle, last = found.groups()
        try:
            found = re.fullmatch(one + one + "(.*)", written(2), re.DOTALL)
        except ValueError:
            found = None
        if found is None or (found[1], found[2], found[4], found[5]) != (first, middle, middle, last):
            return CallForm("", first, middle, last, None, "")
        end = _common(last, found[3])
        between = found[3][len(end) :]
        begin = _common(first[::-1], between[::-1])[::-1]
        lead, between = first[: len(first) - len(begin)], between[: len(between) - len(begin)]
        return CallForm(lead, begin, middle, end, between, last[len(end) :])

    def cut_up(self, text: str, mark: str = _MARKS[0]) -> Iterator[tuple[str, bool]]:
        """Special tokens and the texts between them, without the mark."""
        place = 0
        for found in self._cut.finditer(text):
            if plain := text[place : found.start()].replace(mark, ""):
                yield plain, False
            yield found[0], True
            place = found.end()
        if plain := text[place:].replace(mark, ""):
            yield plain, False

    def lead(self, before: Before) -> Iterator[tuple[str, bool]]:
        """What is read, as in `pieces`, before a text in a turn of `text_role`; `before` is no "text"."""
        return self.cut_up(self._written([(self.text_role, _PLACE)], before, False).partition(_PLACE)[0])

    def behind(self, role: Before) -> Iterator[tuple[str, bool]]:
        """What is read, as in `pieces`, behind the text of a role's turn."""
        return self.cut_up(self._after(self._stub(role)))

    def _written(self, turns: Sequence[tuple[str, str]], before: Before, answer: bool) -> str:
        """The template's text of turns that follow `before`."""
        if before in ("nothing", "opened"):
            text = self.render(turns, answer)
            return text.removeprefix(self.tokens["bos_token"]) if before == "opened" and self.opens else text
        if before == "text":  # in a turn that is still open; that of a user a question goes on in
            goes_on = self.text_role == "user" and bool(turns) and turns[0][0] == "user"
            opened = (self.text_role, f"{_STUB}\n\n{turns[0][1]}" if goes_on else _STUB)
            return self._after([opened, *turns[goes_on:]], answer)
        stub = self._stub(before)
        behind = self._after([*stub, *turns], answer)
        if before == "assistant":
            return behind.partition(self.turn_end)[2].removeprefix(self.closing)
        return behind.removeprefix(self._after(stub))

    def _stub(self, role: str) -> list[tuple[str, str]]:
        return [*([("user", "a")] if role == "assistant" else []), (role, _STUB)]

    def render(self, turns: Sequence[tuple[str, str]], answer: bool) -> str:
        """The template's text of all turns from the first on. Raises ValueError where it refuses them."""
        return self._render([{"role": role, "content": text} for role, text in turns], answer)

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        answer: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        from jinja2 import TemplateError

        if self.template is None:
            raise ValueError(
                "this model has no chat template: it completes texts and was not trained to chat"
            )
        given = {"messages": messages, "add_generation_prompt": answer, **({"tools": tools} if tools else {})}
        try:
            return self._compiled.render(**given, **self.tokens)
        except (TemplateError, TypeError, RecursionError) as error:
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


def _unused_mark(texts: Sequence[str]) -> str:
    return next(mark for mark in _MARKS if not any(mark in text for text in texts))


def _common(one: str, other: str) -> str:
    """The longest beginning of both."""
    return one[
        : next(
            (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )
    ]
