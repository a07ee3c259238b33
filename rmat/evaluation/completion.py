"""Completion of held-out code: is the next line exactly right, and what do suffix, repository and memory give
to it?

Every line is asked for in each of these ways, so that differences are paired:

    prompt   prefix: what stands before the line | fim: also what stands behind it, in the form of training
    context  nothing else | before it, files of the same folder that the model was trained on
    memory   on | zeroed (every read finds it empty), from the first token of the context on

A line is written greedily up to its newline. Its prefix ends with a newline, so indentation is asked for too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Literal

from rmat.data.tokenizer import Tokenizer
from rmat.evaluation.completion_scores import CompletionResult, Way
from rmat.evaluation.next_line import CodeFile
from rmat.generation.cursor import CursorPrompt, CursorRow, cursor_prompt, file_header
from rmat.generation.reader import Advance, read, scan
from rmat.generation.sampling import SamplingConfig
from rmat.model import LanguageModel, StreamState
from rmat.model.language_model import MemoryMode


def completion(
    model: LanguageModel,
    tokenizer: Tokenizer,
    files: Sequence[CodeFile],
    *,
    max_new_tokens: int = 48,
    batch_size: int = 8,
    seed: int = 0,
    advance: Advance | None = None,
) -> CompletionResult:
    """Ask for the lines of held-out files in every way, and score what is written.

    A model without memory is asked with the memory on only. An answer does not depend on its neighbours nor
    on `batch_size`.

    Args:
        model: stays on its device; it reads without dropout and is then in the mode it was in.
        tokenizer: the one the model was trained with.
        files: what to ask, from `choose_files`.
        max_new_tokens: most tokens of a line.
        batch_size: lines side by side, each in all ways of one use of the memory; more where a file has more
            lines.
        seed: seed of the bootstrap.
        advance: called with the number of tokens read since the last call.

    Raises ValueError for a tokenizer of another size than the model's vocabulary, no files, or a count below
    one.
    """
    tokenizer.require_vocab_size(model.config.vocab_size)
    if min(max_new_tokens, batch_size) < 1 or not files:
        raise ValueError(
            f"{len(files)} files, max_new_tokens={max_new_tokens}, batch_size={batch_size}: "
            "give at least one each"
        )
    ways = ways_of(model)
    answers: dict[Way, list[str]] = {way: [] for way in ways}
    tokens = dict.fromkeys(ways, 0)
    for batch in _batches(files, batch_size):
        rows = [place for place, file in enumerate(batch) for _ in file.lines]
        for memory in dict.fromkeys(way.memory for way in ways):
            asked = [way for way in ways if way.memory == memory]
            before = {
                context: [context_ids(tokenizer, file, context) for file in batch]
                for context in (False, True)
            }
            states = {
                context: scan(model, ids, memory=memory, advance=advance) for context, ids in before.items()
            }
            prompts = [prompts_of(tokenizer, batch, way) for way in asked]
            found = _write(
                model,
                tokenizer,
                [prompt for part in prompts for prompt in part],
                StreamState.concat([states[way.context].select(rows) for way in asked]),
                memory,
                max_new_tokens,
                advance,
            )
            for number, way in enumerate(asked):
                answers[way] += found[number * len(rows) : (number + 1) * len(rows)]
                tokens[way] += sum(len(before[way.context][row]) for row in rows)
                tokens[way] += sum(len(prompt.ids) for prompt in prompts[number])
    return CompletionResult(
        files=tuple(files),
        answers={way: tuple(found) for way, found in answers.items()},
        tokens=tokens,
        state_bytes=model.initial_state(batch_size=1).nbytes,
        seed=seed,
    )


def _write(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[CursorPrompt],
    state: StreamState,
    memory: MemoryMode,
    max_new_tokens: int,
    advance: Advance | None,
) -> list[str]:
    """The line that is written behind each prompt."""
    written = [
        CursorRow(
            tokenizer,
            removed=prompt.removed,
            line="",
            lines=1,
            max_new_tokens=max_new_tokens,
            sampling=SamplingConfig(temperature=0.0),
            stop=(),
        )
        for prompt in prompts
    ]
    texts = [""] * len(written)
    live = list(range(len(written)))
    logits_BV, state = read(model, [prompt.ids for prompt in prompts], state, memory=memory, advance=advance)
    while live:
        places, tokens = [], []
        for place, (number, logits) in enumerate(zip(live, logits_BV, strict=True)):
            token = written[number].draw(logits)
            if token is not None:
                texts[number] += written[number].show(token)
            if token is not None and written[number].finish is None:
                places.append(place)
                tokens.append([token])
        if len(places) < len(live):  # lines that are complete cost no more
            live, state = [live[place] for place in places], state.select(places)
        if live:
            logits_BV, state = read(model, tokens, state, memory=memory, advance=advance)
    return [(text + row.rest()).partition("\n")[0] for text, row in zip(texts, written, strict=True)]


def tokens_to_read(model: LanguageModel, tokenizer: Tokenizer, files: Sequence[CodeFile]) -> int:
    """Tokens of all contexts and prompts that `completion` reads, in every way."""
    return sum(
        sum(len(context_ids(tokenizer, file, way.context)) for file in files) // 2
        + sum(len(prompt.ids) for prompt in prompts_of(tokenizer, files, way))
        for way in ways_of(model)
    )


def ways_of(model: LanguageModel) -> list[Way]:
    """Every way in which a model is asked."""
    prompts: tuple[Literal["prefix", "fim"], ...] = ("prefix", "fim")
    memories: tuple[MemoryMode, ...] = ("on", "zeroed") if model.config.has_memory else ("on",)
    return [Way(*way) for way in product(prompts, (False, True), memories)]


def prompts_of(tokenizer: Tokenizer, files: Sequence[CodeFile], way: Way) -> list[CursorPrompt]:
    """What is read for every line of `files`, without the context."""
    return [
        cursor_prompt(
            tokenizer,
            line.prefix,
            line.suffix,
            file_name=file.name,
            mode="fim" if way.prompt == "fim" else "plain",
        )
        for file in files
        for line in file.lines
    ]


def context_ids(tokenizer: Tokenizer, file: CodeFile, context: bool) -> list[int]:
    """What is read before a file: the document token and, with context, the other files."""
    ids = [tokenizer.special_id("document")]
    for name, text in file.context if context else ():
        ids += [*file_header(tokenizer, name), *tokenizer.encode(text)]
    return ids


def _batches(files: Sequence[CodeFile], batch_size: int) -> Iterator[list[CodeFile]]:
    """Whole files, so many that they have `batch_size` lines where that can be."""
    batch: list[CodeFile] = []
    for file in files:
        if batch and sum(len(one.lines) for one in (*batch, file)) > batch_size:
            yield batch
            batch = []
        batch.append(file)
    yield batch
