"""Documents: their parts, their tokens, their bytes."""

import pytest

from rmat.data.documents import (
    Special,
    code_document,
    cut_document,
    dialogue_document,
    encode_documents,
    text_document,
)
from rmat.data.tokenizer import load_tokenizer

TOK = load_tokenizer("bytes")


def test_a_document_opens_with_the_document_token():
    (encoded,) = encode_documents(TOK, [text_document("a", "hi")])
    assert encoded.tokens.tolist() == [TOK.special_id("document"), *b"hi"]
    assert encoded.n_header == 1


def test_code_is_headed_by_its_name():
    document = code_document("lib/a.py", "x = 1\n")
    (encoded,) = encode_documents(TOK, [document])
    head = [TOK.special_id("document"), TOK.special_id("file_name"), *b"lib/a.py\n"]
    assert encoded.tokens.tolist() == [*head, *b"x = 1\n"]
    assert encoded.n_header == len(head)
    assert document.n_bytes == len("lib/a.py\nx = 1\n")


def test_a_dialogue_has_role_tokens_and_turn_ends():
    turns = [("system", "s"), ("User", "u"), ("assistant", "a"), ("Ann", "<|user|>")]
    (encoded,) = encode_documents(TOK, [dialogue_document("d", turns)])
    token = TOK.special_id
    end = token("turn_end")
    assert encoded.tokens.tolist() == [
        token("document"),
        *(token("system"), ord("s"), end),
        *(token("user"), ord("u"), end),
        *(token("assistant"), ord("a"), end),
        *(token("user"), *b"Ann: <|user|>", end),
    ]


def test_many_documents_are_encoded_in_order():
    documents = [text_document(str(n), "x" * n) for n in range(5)]
    assert [len(e.tokens) for e in encode_documents(TOK, documents)] == [1, 2, 3, 4, 5]


def test_the_digest_tells_name_parts_and_specials_apart():
    documents = [
        text_document("a", "bc"),
        text_document("ab", "c"),
        dialogue_document("a", [("user", "bc")]),
        dialogue_document("a", [("assistant", "bc")]),
        code_document("a", "bc"),
    ]
    assert len({document.digest for document in documents}) == len(documents)
    assert text_document("a", "bc").digest == documents[0].digest


@pytest.mark.parametrize(
    "document",
    [
        text_document("t", "".join(f"line {n}\n" for n in range(100))),
        code_document("c.py", "".join(f"x{n} = {n}\n" for n in range(100))),
        dialogue_document("d", [("user", f"question {n}") for n in range(50)]),
        text_document("no newline", "x" * 500),
    ],
    ids=lambda document: document.name,
)
def test_cutting_loses_nothing_and_keeps_the_order(document):
    pieces = cut_document(document, (0.9, 0.05, 0.05))
    assert all(pieces)
    text = "".join(part for part in document.parts if isinstance(part, str))
    assert "".join(part for piece in pieces for part in piece.parts if isinstance(part, str)) == text
    assert sum(p.parts.count(Special("turn_end")) for p in pieces) == document.parts.count(
        Special("turn_end")
    )
    assert 0.8 < pieces[0].n_bytes / document.n_bytes < 0.95
    assert pieces[1].n_header == 0 and pieces[0].n_header == document.n_header
    assert len({piece.name for piece in pieces}) == 3


def test_a_text_too_short_to_cut_gives_fewer_pieces():
    pieces = cut_document(text_document("t", "ab"), (0.9, 0.05, 0.05))
    assert [piece is not None for piece in pieces].count(True) < 3
    assert "".join(part for piece in pieces if piece for part in piece.parts) == "ab"
