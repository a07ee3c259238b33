"""What the assistant says, in our form of dialogues and in the words of chat templates."""

from pathlib import Path

import numpy as np
import pytest

import rmat
from rmat.data.documents import (
    Document,
    dialogue_document,
    encode_documents,
    said_by_assistant,
    text_document,
)
from rmat.data.lanes import Lanes
from rmat.data.tokenizer import Tokenizer
from tests.makers.pretrained import LLAMA3, source_folder
from tests.makers.texts import make_store

TURNS = [
    ("system", "Be brief."),
    ("user", "Who? <|assistant|>"),
    ("assistant", "I."),
    ("user", "\n"),
    ("assistant", ""),
    ("assistant", "\nYou and me"),
]


def scored(tokenizer: Tokenizer, document: Document) -> tuple[list[int], np.ndarray]:
    (encoded,) = encode_documents(tokenizer, [document])
    return encoded.tokens.tolist(), said_by_assistant(tokenizer, encoded.tokens)


def test_the_answers_and_their_ends_are_scored() -> None:
    tokenizer = rmat.load_tokenizer("bytes")
    ids, mask = scored(tokenizer, dialogue_document("talk", TURNS))
    end = tokenizer.special_id("turn_end")
    expected = [*tokenizer.encode("I."), end, end, *tokenizer.encode("\nYou and me"), end]
    assert [token for token, told in zip(ids, mask, strict=True) if told] == expected
    assert scored(tokenizer, text_document("text", "plain"))[1].all()
    assert not scored(tokenizer, dialogue_document("asked", TURNS[:2]))[1].any()


@pytest.mark.parametrize("template", ["chatml", LLAMA3])
def test_answers_in_the_words_of_a_template(template: str, tmp_path: Path) -> None:
    options = {}
    if template != "chatml":  # with the tokens that the maker's vocabulary has
        template = template.replace("eot_id", "im_end").replace("start_header_id", "im_start")
        options = {"template": template.replace("<|end_header_id|>", "<|endoftext|>")}
    _, tokenizer = rmat.from_pretrained(source_folder(tmp_path / "source", **options))
    ids, mask = scored(tokenizer, dialogue_document("talk", TURNS))
    said = [token for token, told in zip(ids, mask, strict=True) if told]
    assert tokenizer.decode(said).split() == ["I.", "You", "and", "me"]
    assert said.count(tokenizer.special_id("turn_end")) == 3
    assert scored(tokenizer, text_document("text", "plain"))[1].all()


def test_a_template_without_an_opening_is_refused(tmp_path: Path) -> None:
    plain = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    _, tokenizer = rmat.from_pretrained(source_folder(tmp_path / "source", template=plain))
    store = make_store(tmp_path / "store", ["text"], tokenizer)
    with pytest.raises(ValueError, match="no token of its own"):
        Lanes(store, 1, 8, seed=0, assistant_only_loss=True, tokenizer=tokenizer)
