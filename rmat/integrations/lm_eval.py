"""Our models in lm-eval: an `RmatLM` for `simple_evaluate`, or on its command line

    python -m rmat.integrations.lm_eval --model rmat --model_args pretrained=FOLDER ...

Nothing is truncated, whatever its length: a text is read through the state, so the memory counts. What
several questions have in front in common, such as a document or examples, is read once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from torch import Tensor

from rmat.data.documents import Special, dialogue_document
from rmat.data.tokenizer import Tokenizer, load_tokenizer
from rmat.generation.reader import Piece, read, scan
from rmat.generation.row import Row
from rmat.generation.sampling import SamplingConfig
from rmat.machine import pick_device
from rmat.model import LanguageModel, StreamState
from rmat.pretrained.folder import cached
from rmat.settings import choice, whole
from rmat.storage import load_model, model_folder

SHARED_TOKENS = 32
"""Beginnings of at least so many tokens are worth being read once for several texts."""

MARK = "\uf8fd"
"""Stands before a special token in the text of a chat; a character of the private use area."""

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

Scored = tuple[float, bool]
"""Log-likelihood in nats, and whether every token was the likeliest."""


@register_model("rmat")
class RmatLM(TemplateLM):
    """A model of ours, evaluated by lm-eval.

    Args:
        pretrained: folder of a model or of a training run, a name such as `starter`, or a model.
        tokenizer: its own by default; needed for a model that is given itself.
        batch_size: texts read side by side ("auto": 8).
        device: "auto", "cpu" or "cuda".
        memory: "on"; or "zeroed", where every read finds an empty bank.
        max_gen_toks: most tokens that `generate_until` writes where the task does not say.
        seed: of sampling, where a task asks for it.

    Raises ValueError, FileNotFoundError.
    """

    def __init__(
        self,
        pretrained: str | Path | LanguageModel,
        tokenizer: Tokenizer | None = None,
        batch_size: int | str = 8,
        device: str | None = "auto",
        memory: str = "on",
        max_gen_toks: int = 256,
        seed: int = 0,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        del max_batch_size  # lm-eval's bound for a search that is not made here
        self.memory: Any = choice("memory", memory, ("on", "zeroed"))
        self.batch_size = 8 if batch_size == "auto" else whole("batch_size", int(batch_size), 1)
        self.max_gen_toks, self.seed = whole("max_gen_toks", max_gen_toks, 1), whole("seed", seed, 0)
        self._name = str(pretrained)
        if not isinstance(pretrained, LanguageModel):
            folder = model_folder(cached(pretrained))
            pretrained = load_model(folder, pick_device(device or "auto")[0])
            tokenizer = load_tokenizer(folder) if tokenizer is None else tokenizer
        if tokenizer is None:
            raise ValueError("a model that is given itself needs its tokenizer: give tokenizer=...")
        self.model, self.tokenizer = pretrained, tokenizer
        self._specials = {name: index for index, name in tokenizer.special_names.items()}
        self._marked = re.compile(f"{MARK}({'|'.join(map(re.escape, self._specials))})")

    @property
    def eot_token_id(self) -> int:
        """The token between documents."""
        return self.tokenizer.special_id("document")

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of requests."""
        return f"{self._name.replace('/', '__')}-{self.tokenizer.fingerprint}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template of a pretrained model, else a name for our form of dialogues."""
        if not chat_template:
            return None
        return self.tokenizer.chat.template if self.tokenizer.chat else "rmat"

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Turns as in training; without a prompt the last one, the assistant's, stays open. Special tokens
        are marked: what is said in a turn cannot spell one."""
        turns = [(turn["role"], turn["content"]) for turn in chat_history]
        begun = None if add_generation_prompt or not turns else turns.pop()[1]
        if (chat := self.tokenizer.chat) is not None:
            pieces: Any = chat.pieces(turns, "text", answer=True, begun=begun or "")
        else:
            parts = [*dialogue_document("", turns).parts, Special("assistant"), begun or ""]
            pieces = ((f"<|{x.name}|>", True) if isinstance(x, Special) else (x, False) for x in parts)
        return "".join(MARK + text if special else text for text, special in pieces)

    def tok_encode(self, string: str, **_: Any) -> list[int]:
        """Ids of a text, or of a chat with marked special tokens; without what stands in front of every
        text."""
        ids: list[int] = []
        for index, part in enumerate(self._marked.split(string)):
            ids += [self._specials[part]] if index % 2 else self.tokenizer.encode(part)
        return ids

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nats of whole documents, each in one pass from its first token on to its last, however long."""
        front = self._front()
        rows = [front + self.tok_encode(text) for (text,) in (request.args for request in requests)]
        found = [0.0] * len(rows)
        for batch in self._batches(sorted(range(len(rows)), key=lambda index: -len(rows[index]))):
            texts = [rows[index] for index in batch]
            scored = self._score([text[1:] for text in texts], [text[:-1] for text in texts], None)
            for index, (nats, _) in zip(batch, scored, strict=True):
                found[index] = nats
                self.cache_hook.add_partial("loglikelihood_rolling", requests[index].args, nats)
        return found

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[Scored]:
        opening = list(self.tokenizer.opening)
        contexts = []
        for (context, _continuation), ids, _targets in requests:
            contexts.append(self._front() if context == "" else opening + ids)
        found: list[Scored] = [(0.0, True)] * len(requests)
        for members, logits_BV, state in self._read(contexts):
            targets = [requests[index][2] for index in members]
            first = F.log_softmax(logits_BV.double(), dim=-1)
            rest = self._score([ids[1:] for ids in targets], [ids[:-1] for ids in targets], state)
            for place, (index, ids) in enumerate(zip(members, targets, strict=True)):
                if not ids:
                    continue
                nats = float(first[place, ids[0]]) + rest[place][0]
                greedy = int(logits_BV[place].argmax()) == ids[0] and rest[place][1]
                found[index] = (nats, greedy)
                self.cache_hook.add_partial("loglikelihood", requests[index][0], found[index])
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts up to the first stop string or the model's own end; greedy unless a task samples. Raises
        ValueError for an option that is not known."""
        opening = list(self.tokenizer.opening)
        contexts = [
            opening + self.tok_encode(context) if context else self._front()
            for context, _ in (request.args for request in requests)
        ]
        found = [""] * len(requests)
        for members, logits_BV, state in self._read(contexts):
            rows = [self._row(index, requests[index].args[1]) for index in members]
            for index, text in zip(members, self._write(rows, logits_BV, state), strict=True):
                found[index] = text
                self.cache_hook.add_partial("generate_until", requests[index].args, text)
        return found

    def _front(self) -> list[int]:
        """What an empty text begins with."""
        return list(self.tokenizer.opening) or [self.eot_token_id]

    def _batches(self, members: Sequence[int]) -> Iterator[Sequence[int]]:
        for start in range(0, len(members), self.batch_size):
            yield members[start : start + self.batch_size]

    def _read(self, contexts: list[list[int]]) -> Iterator[tuple[Sequence[int], Tensor, StreamState]]:
        """(numbers of contexts, logits (B, V) behind them, state), for all contexts in some order. Equal ones
        and long beginnings that several have in common are read once."""
        for groups in self._batches_of_groups(contexts):
            shared = [group.ids for group in groups]
            _, before = read(self.model, shared, memory=self.memory)
            rows = [(place, row) for place, group in enumerate(groups) for row in group.rows]
            rows.sort(key=lambda one: -len(one[1].tail))
            for batch in (rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)):
                state = before.select([place for place, _ in batch])
                logits_BV, state = read(self.model, [row.tail for _, row in batch], state, memory=self.memory)
                places = [place for place, (_, row) in enumerate(batch) for _ in row.members]
                members = [index for _, row in batch for index in row.members]
                for part in (slice(i, i + self.batch_size) for i in range(0, len(members), self.batch_size)):
                    chosen = places[part]
                    yield members[part], logits_BV[chosen], state.select(chosen)

    def _batches_of_groups(self, contexts: list[list[int]]) -> Iterator[list[_Group]]:
        groups = _grouped(contexts)
        groups.sort(key=lambda group: -len(group.ids))
        for start in range(0, len(groups), self.batch_size):
            yield groups[start : start + self.batch_size]

    def _score(
        self, targets: list[list[int]], inputs: list[list[int]], state: StreamState | None
    ) -> list[Scored]:
        """Of B rows the log-likelihood of `targets`, each read after the input of its place; (0, True) for a
        row of none."""
        nats, greedy = np.zeros(len(targets)), [True] * len(targets)

        def add(piece: Piece) -> None:
            for place, (row, length) in enumerate(zip(piece.rows, piece.lengths, strict=True)):
                if not length:
                    continue
                wanted = torch.tensor(targets[row][piece.start : piece.start + length])
                logits_TV = piece.logits_BTV[place, :length]
                logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
                wanted = wanted.to(logits_TV.device)
                nats[row] -= float(F.cross_entropy(logits_TV, wanted, reduction="none").double().sum())
                greedy[row] = greedy[row] and bool((logits_TV.argmax(-1) == wanted).all())

        if any(inputs):
            scan(self.model, inputs, state, memory=self.memory, leave=True, each=add)
        return list(zip(nats.tolist(), greedy, strict=True))

    def _row(self, index: int, options: dict[str, Any]) -> Row:
        """How a text is written, by the options of a task."""
        options = dict(options)
        until = options.pop("until", None) or []
        most = options.pop("max_gen_toks", options.pop("max_new_tokens", self.max_gen_toks))
        samples = options.pop("do_sample", options.get("temperature", 0) > 0)
        chosen = {name: options.pop(name) for name in _SAMPLING if name in options}
        if options:
            raise ValueError(
                f"generation option {min(options)!r} is not known: it can be until, max_gen_toks, do_sample, "
                f"{', '.join(_SAMPLING)}"
            )
        if not samples:
            chosen["temperature"] = 0.0
        return Row(
            self.tokenizer,
            max_new_tokens=most,
            sampling=SamplingConfig(seed=self.seed + index, **{"temperature": 1.0, **chosen}),
            stop=[until] if isinstance(until, str) else [text for text in until if text],
            begins=False,
        )

    def _write(self, rows: list[Row], logits_BV: Tensor, state: StreamState) -> list[str]:
        """The texts of B rows, token by token side by side; those that are over leave."""
        texts, alive = [""] * len(rows), list(range(len(rows)))
        while alive:
            drawn = [(place, rows[row].draw(logits_BV[place])) for place, row in enumerate(alive)]
            staying = [(place, token) for place, token in drawn if token is not None]
            going_on = []
            for place, token in staying:
                texts[alive[place]] += rows[alive[place]].show(token)
                if rows[alive[place]].finish is None:
                    going_on.append((place, token))
            if going_on:
                places = [place for place, _ in going_on]
                tokens = [[token] for _, token in going_on]
                logits_BV, state = read(self.model, tokens, state.select(places), memory=self.memory)
            alive = [alive[place] for place, _ in going_on]
        return [text + row.rest() for text, row in zip(texts, rows, strict=True)]


@dataclass
class _Text:
    """A text behind a common beginning, and the numbers of the contexts that are it."""

    tail: list[int]
    members: list[int]


@dataclass
class _Group:
    """Texts with a common beginning, which may be empty; each has at least one token behind it."""

    ids: list[int]
    rows: list[_Text] = field(default_factory=list)


def _grouped(contexts: list[list[int]]) -> list[_Group]:
    """Neighbours in sorted order that have at least `SHARED_TOKENS` and half of the shorter one in common."""
    order = sorted(range(len(contexts)), key=lambda index: contexts[index])
    runs: list[tuple[int, list[int]]] = []
    """Tokens in common, and the contexts."""
    for index in order:
        ids = contexts[index]
        if runs:
            common, members = runs[-1]
            shared = _in_common(contexts[members[-1]], ids, common)
            shorter = min(len(ids), min(len(contexts[member]) for member in members))
            if shared >= max(SHARED_TOKENS, shorter // 2):
                runs[-1] = (shared, [*members, index])
                continue
        runs.append((len(ids), [index]))
    groups = []
    for common, members in runs:
        # Every text keeps a token behind the beginning, whose logits are what comes next.
        length = min(common, min(len(contexts[member]) for member in members) - 1) if len(members) > 1 else 0
        group = _Group(contexts[members[0]][:length])
        for member in members:
            tail = contexts[member][length:]
            if group.rows and group.rows[-1].tail == tail:
                group.rows[-1].members.append(member)
            else:
                group.rows.append(_Text(tail, [member]))
        groups.append(group)
    return groups


def _in_common(left: list[int], right: list[int], most: int) -> int:
    """Tokens, at most `most`, with which both begin."""
    for index in range(min(len(left), len(right), most)):
        if left[index] != right[index]:
            return index
    return min(len(left), len(right), most)


def main() -> None:
    """lm-eval's command line, which knows our models."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
