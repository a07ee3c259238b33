"""Fill-in-the-middle: a document told as suffix, prefix, middle, so that a model learns to fill gaps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmat.data.tokenizer import Tokenizer


def rearrange(
    tokens: NDArray[Any], n_header: int, tokenizer: Tokenizer, generator: np.random.Generator
) -> NDArray[np.int64]:
    """`header <|fim_suffix|> suffix <|fim_prefix|> prefix <|fim_middle|> middle` of a document.

    The suffix comes first, so that the prefix's end is next to the middle and within reach of local
    attention; what the suffix says must come through the memory. A dialogue, which has role tokens in it,
    stays as it is.

    The two cuts are drawn uniformly over the content's bytes and fall between characters, also inside a
    token, whose halves are then encoded anew: a person stops typing anywhere, not only where a token ends.
    (Both orders and character-level cuts: Bavarian et al., arXiv 2207.14255.)

    Args:
        tokens: (tokens,) integer, the document token first.
        n_header: tokens that stay in front.
        tokenizer: the one that made the tokens.
        generator: draws the cuts.

    Returns:
        (about tokens + 3,) int64; the tokens as they were if there is no text to cut or a special token in
        it.
    """
    header, content = tokens[:n_header].astype(np.int64), tokens[n_header:].astype(np.int64)
    roles = [tokenizer.special_id(role) for role in ("system", "user", "assistant", "turn_end")]
    total = int(tokenizer.byte_lengths[content].sum())
    if total == 0 or np.isin(content, roles).any():
        return np.concatenate((header, content))
    first, second = sorted(generator.integers(0, total, size=2, endpoint=True).tolist())
    rest, suffix = _cut(content, second, tokenizer)
    prefix, middle = _cut(rest, first, tokenizer)
    marks = [np.array([tokenizer.special_id(f"fim_{name}")]) for name in ("suffix", "prefix", "middle")]
    return np.concatenate((header, marks[0], suffix, marks[1], prefix, marks[2], middle))


def _cut(
    tokens: NDArray[np.int64], place: int, tokenizer: Tokenizer
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The tokens before and after byte `place`, or before and after the nearest place in front where a cut
    can be."""
    ends = np.cumsum(tokenizer.byte_lengths[tokens])
    while True:
        index = int(np.searchsorted(ends, place, side="right"))
        if index == len(tokens):
            return tokens, tokens[:0]
        raw = tokenizer.decode_bytes([int(tokens[index])])
        inside = place - (int(ends[index - 1]) if index else 0)
        if place and raw[inside] & 0xC0 == 0x80:  # in the middle of a character
            place -= 1
            continue
        if not inside:
            return tokens[:index], tokens[index:]
        try:
            left, right = (np.array(tokenizer.encode(half.decode())) for half in (raw[:inside], raw[inside:]))
        except UnicodeDecodeError:  # the token begins or ends in the middle of a character
            place -= inside
            continue
        return np.concatenate((tokens[:index], left)), np.concatenate((right, tokens[index + 1 :]))
