"""Tool calls: a grammar in which a model writes them as its chat template does, and the way back from
text."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from rmat.data.template import CallForm, ChatTemplate
from rmat.data.tokenizer import Tokenizer
from rmat.generation.grammar import json_rule
from rmat.generation.stopping import overlap

_TAG = re.compile(r"<[^<>\s]+>|\[\w+\]")
"""What tells a call from text, if a template's calls begin with it."""


def call_grammar(
    tokenizer: Tokenizer,
    form: CallForm,
    tools: Mapping[str, Mapping[str, Any]],
    *,
    must_call: bool,
    many: bool,
    answer: Mapping[str, Any] | None = None,
) -> str:
    """The grammar of answers that call tools.

    Args:
        tokenizer: one with a chat template.
        form: of the template's calls.
        tools: the schema of its arguments by the name of each.
        must_call: whether a text without a call is none.
        many: whether an answer may have more than one call, where the template allows it.
        answer: the schema of an answer in JSON that calls none; None for any text.
    """
    assert tokenizer.chat is not None
    literal = _Literals(tokenizer, tokenizer.chat)
    more = f"({literal(form.between + form.begin)} call)*" if many and form.between is not None else ""
    rules = [
        f"calls: call {more} {literal(form.tail)}",
        f"call: ({' | '.join(f'call{n}' for n in range(len(tools)))}) {literal(form.end)}",
    ]
    for n, (name, schema) in enumerate(tools.items()):
        rules.append(f"call{n}: {literal(name + form.middle)} arguments{n}")
        rules.append(f"arguments{n}: {json_rule(schema)}")
    opening = form.lead + form.begin
    if must_call:
        rules.append(f"start: {literal(opening)} calls")
    elif answer is not None:
        rules += [f"start: answer | {literal(opening)} calls", f"answer: {json_rule(answer)}"]
    else:
        opening, trigger = text_opening(form)
        pieces = list(tokenizer.chat.cut_up(trigger))
        rules += ["start: TEXT | head calls", r"TEXT: /(.|\n)*/"]
        if pieces[0][1]:
            rules.append(f"head: TEXT {literal(opening)}")
        else:  # as soon as the text has it, nothing but a call may follow
            rules += [
                f"head: before {literal(opening[len(trigger) :])}",
                f"before[lazy]: TEXT {literal(trigger)}",
            ]
    return "\n".join(['%llguidance {"skip_repetition": "once"}', *rules])


def text_opening(form: CallForm) -> tuple[str, str]:
    """What stands before the first tool's name where a text may stand before that, and how much of it tells
    that a call begins."""
    begin = form.begin.lstrip()
    whole = begin if _TAG.match(begin) else (form.lead + form.begin).lstrip()
    tag = _TAG.match(whole)
    return whole, tag[0] if tag else whole


class _Literals:
    """Texts as a grammar has them: special tokens by their ids."""

    def __init__(self, tokenizer: Tokenizer, chat: ChatTemplate) -> None:
        self._tokenizer, self._chat = tokenizer, chat

    def __call__(self, text: str) -> str:
        return " ".join(
            f"<[{self._tokenizer.token_id(piece)}]>" if special else json.dumps(piece)
            for piece, special in self._chat.cut_up(text)
        )


class CallReader:
    """Takes an answer apart while it is written: text before the first call, and then the calls.

    Args:
        chat: the template by which calls are written.
        form: of its calls.
    """

    def __init__(self, chat: ChatTemplate, form: CallForm) -> None:
        def shown(text: str) -> str:
            return "".join(piece for piece, special in chat.cut_up(text) if not special)

        self._openings = {shown(form.lead + form.begin).lstrip(), shown(text_opening(form)[0])}
        self._begin, self._middle = shown(form.begin).lstrip(), shown(form.middle)
        self._held = self._opening = ""
        self._n_calls = 0
        self._in: str = "text"
        self._depth, self._quoted, self._escaped = 0, False, False

    @property
    def called(self) -> bool:
        """Whether a call has begun."""
        return self._n_calls > 0

    def push(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """The text that is safe to show after `text`, and what is new of calls, as OpenAI's API streams
        them."""
        self._held += text
        shown, deltas = "", list[dict[str, Any]]()
        more = True
        while more:
            if self._in == "text":
                piece, more = self._text()
                shown += piece
            elif self._in == "name":
                more = self._name(deltas)
            elif self._in == "arguments":
                more = self._arguments(deltas)
            else:
                more = self._after(self._begin)
        return shown, deltas

    def flush(self) -> str:
        """The text that was held back, now that nothing follows."""
        held, self._held = self._held, ""
        if self._in == "name" and not self._n_calls:
            held = self._opening + held  # no call came of it
        elif self._in != "text":
            held = ""
        return held

    def _text(self) -> tuple[str, bool]:
        places = {self._held.find(opening): opening for opening in self._openings}
        places.pop(-1, None)
        if places:
            place = min(places)
            shown, self._held = self._held[:place].rstrip(), self._held[place + len(places[place]) :]
            self._in, self._opening = "name", places[place]
            return shown, True
        # What may still become an opening is held back, and the blanks before it.
        keep = max(overlap(self._held, opening) for opening in self._openings)
        safe = len(self._held[: len(self._held) - keep].rstrip())
        shown, self._held = self._held[:safe], self._held[safe:]
        return shown, False

    def _name(self, deltas: list[dict[str, Any]]) -> bool:
        name, found, rest = self._held.partition(self._middle)
        if not found:
            return False
        function = {"name": name, "arguments": ""}
        deltas.append({"index": self._n_calls, "id": call_id(), "type": "function", "function": function})
        self._n_calls += 1
        self._held, self._in, self._depth = rest, "arguments", 0
        return True

    def _arguments(self, deltas: list[dict[str, Any]]) -> bool:
        end = self._object_end()
        part = self._held if end is None else self._held[:end]
        if part and deltas and deltas[-1]["index"] == self._n_calls - 1:
            deltas[-1]["function"]["arguments"] += part
        elif part:
            deltas.append({"index": self._n_calls - 1, "function": {"arguments": part}})
        self._held = self._held[len(part) :]
        if end is not None:
            self._in = "after"
        return end is not None

    def _object_end(self) -> int | None:
        """Where in what is held the object ends in which it begins or goes on."""
        for place, char in enumerate(self._held):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._quoted = False
            elif char == '"':
                self._quoted = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if not self._depth:
                    return place + 1
        return None

    def _after(self, begin: str) -> bool:
        """Go on with the next call, if what is held has its beginning."""
        _, found, rest = self._held.partition(begin)
        if found:
            self._held, self._in = rest, "name"
        return bool(found)


def joined(deltas: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Whole calls out of what `CallReader.push` gave."""
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        if delta["index"] == len(calls):
            calls.append({"id": delta["id"], "type": "function", "function": dict(delta["function"])})
        else:
            calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
    return calls


def call_id() -> str:
    """An id of a call: nine letters and digits, which every template takes."""
    return "".join(secrets.choice("0123456789abcdefghijklmnopqrstuvwxyz") for _ in range(9))
