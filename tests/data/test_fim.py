"""Fill-in-the-middle keeps every byte and cuts between characters, also inside tokens."""

import numpy as np
import pytest

from rmat.data.documents import code_document, dialogue_document, encode_documents, text_document
from rmat.data.fim import rearrange
from rmat.data.tokenizer import load_tokenizer, train_bpe

TEXT = "def f(x):\n    return x + 1  # 加一 😀\n" * 5
TOKENIZERS = {"bytes": load_tokenizer("bytes"), "bpe": train_bpe([TEXT * 20], 300)}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_prefix_middle_and_suffix_join_to_the_text(kind):
    tok = TOKENIZERS[kind]
    (encoded,) = encode_documents(tok, [code_document("f.py", TEXT)])
    marks = [tok.special_id(f"fim_{name}") for name in ("suffix", "prefix", "middle")]
    inside = 0
    for seed in range(60):
        tokens = rearrange(encoded.tokens, encoded.n_header, tok, np.random.default_rng(seed)).tolist()
        assert tokens[: encoded.n_header] == encoded.tokens[: encoded.n_header].tolist()
        first, second, third = (tokens.index(mark) for mark in marks)
        assert first == encoded.n_header < second < third
        pieces = [tokens[first + 1 : second], tokens[second + 1 : third], tokens[third + 1 :]]
        suffix, prefix, middle = (tok.decode_bytes(piece).decode() for piece in pieces)
        assert prefix + middle + suffix == TEXT
        inside += len(tokens) > len(encoded.tokens) + 3
    assert kind == "bytes" or inside > 10, "cuts inside tokens should be common"


def test_the_same_draw_gives_the_same_arrangement():
    tok = TOKENIZERS["bpe"]
    (encoded,) = encode_documents(tok, [text_document("t", TEXT)])
    one, two, other = (rearrange(encoded.tokens, 1, tok, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_a_dialogue_stays_as_it_is():
    tok = TOKENIZERS["bpe"]
    (encoded,) = encode_documents(tok, [dialogue_document("d", [("user", TEXT), ("assistant", TEXT)])])
    assert np.array_equal(rearrange(encoded.tokens, 1, tok, np.random.default_rng(0)), encoded.tokens)


def test_a_document_without_text_stays_as_it_is():
    tok = TOKENIZERS["bytes"]
    (encoded,) = encode_documents(tok, [dialogue_document("d", [("user", "")])])
    assert np.array_equal(rearrange(encoded.tokens, 1, tok, np.random.default_rng(0)), encoded.tokens)
