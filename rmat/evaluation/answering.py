"""Answers to prompts of any length, several side by side: prompts are read in pieces, answers written greedily."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

import torch
from torch import Tensor

from rmat.data.documents import Special
from rmat.data.tokenizer import Tokenizer
from rmat.generation.reader import PIECE_LOGITS, Advance, read
from rmat.generation.row import END_TOKENS
from rmat.model import LanguageModel, StreamState
from rmat.model.language_model import MemoryMode
from rmat.tasks.task import Example, encode_parts


def answers(
    model: LanguageModel,
    tokenizer: Tokenizer,
    examples: Iterable[Example],
    *,
    batch_size: int = 8,
    max_new_tokens: int = 32,
    piece: int = 4096,
    memory: MemoryMode = "on",
    advance: Advance | None = None,
) -> Iterator[str]:
    """What the model says after each example's prompt, in order, without the token that ends it.

    The document token is put in front of every prompt, as in training. Prompts are read as they are made, so memory
    does not grow with their length. An answer depends neither on its neighbours nor on `batch_size` and `piece`, except
    with memory="shuffled", where a row reads its neighbour's bank.

    Args:
        model: stays on its device; it reads without dropout and is then in the mode it was in.
        tokenizer: the one the model was trained with.
        examples: taken a batch at a time.
        batch_size: prompts read side by side.
        max_new_tokens: most tokens of an answer; it also ends at turn_end or document.
        piece: most tokens of a prompt read in one call; less where the logits would be very many.
        memory: "on", or an ablation of the model's memory.
        advance: called with the number of tokens read, all rows together.

    Raises ValueError for a tokenizer of another size than the model's vocabulary, a count below one, or
    memory="shuffled" with batch_size=1.
    """
    tokenizer.require_vocab_size(model.config.vocab_size)
    if min(batch_size, max_new_tokens, piece) < 1:
        raise ValueError(
            f"batch_size={batch_size}, max_new_tokens={max_new_tokens}, piece={piece}: give at least one each"
        )
    if memory == "shuffled" and batch_size < 2:
        raise ValueError("memory='shuffled' needs a neighbour to read from: give batch_size of 2 or more")
    piece = max(1, min(piece, PIECE_LOGITS // (model.config.vocab_size * batch_size)))
    return _answers(model, tokenizer, iter(examples), batch_size, max_new_tokens, piece, memory, advance)


def _answers(
    model: LanguageModel,
    tokenizer: Tokenizer,
    examples: Iterator[Example],
    batch_size: int,
    max_new_tokens: int,
    piece: int,
    memory: MemoryMode,
    advance: Advance | None,
) -> Iterator[str]:
    while batch := list(islice(examples, batch_size)):
        rows = [prompt_ids(tokenizer, example) for example in batch]
        logits_BV, state = read(model, rows, size=piece, memory=memory, advance=advance)
        written = _write(model, tokenizer, logits_BV, state, max_new_tokens, memory)
        yield from map(tokenizer.decode, written)


def prompt_ids(tokenizer: Tokenizer, example: Example) -> Iterator[int]:
    """Tokens of a prompt, the document token first; each piece is encoded by itself."""
    return encode_parts(tokenizer, chain((Special("document"),), example.pieces))


def _write(
    model: LanguageModel,
    tokenizer: Tokenizer,
    logits_BV: Tensor,
    state: StreamState,
    max_new_tokens: int,
    memory: MemoryMode,
) -> list[list[int]]:
    """The likeliest token again and again, until all rows have ended."""
    ends = torch.tensor([tokenizer.special_id(name) for name in END_TOKENS], device=logits_BV.device)
    written: list[list[int]] = [[] for _ in range(logits_BV.shape[0])]
    open_B = torch.ones(len(written), dtype=torch.bool, device=logits_BV.device)
    for _ in range(max_new_tokens):
        token_B = logits_BV.argmax(-1)
        open_B = open_B & ~torch.isin(token_B, ends)
        if not bool(open_B.any()):
            break
        drawn = [
            [token] if is_open else []
            for token, is_open in zip(token_B.tolist(), open_B.tolist(), strict=True)
        ]
        for row, ids in zip(written, drawn, strict=True):
            row += ids
        logits_BV, state = read(model, drawn, state, memory=memory)
    return written
