"""Filler comes from the right documents, is cut to fit, and hides statements where it should."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from rmat.data.config import DataConfig
from rmat.data.corpus import load_corpus
from rmat.data.documents import text_document
from rmat.data.tokenizer import byte_tokenizer
from rmat.tasks.haystack import (
    NOISE_LINE,
    Noise,
    Prose,
    count_tokens,
    fill,
    hide,
    load_filler,
    room_for,
    without,
)
from tests.makers.sources import book, small_bpe, write_books

BYTES = byte_tokenizer()


def some(filler, count: int = 200, seed: int = 0) -> list[str]:
    return list(itertools.islice(filler.sentences(np.random.default_rng(seed)), count))


def test_noise_repeats_one_line_from_any_sentence_on() -> None:
    starts = {some(Noise(), 1, seed)[0] for seed in range(40)}
    assert starts == set(NOISE_LINE)
    text = "".join(some(Noise(), 15))
    assert "".join(NOISE_LINE) in text and text.count(NOISE_LINE[0]) == 3


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_folder_with_splits_gives_sentences_of_one_split_alone(tmp_path: Path, split: str) -> None:
    spec = str(write_books(tmp_path))
    found = some(load_filler(spec, split), 2000)
    marks = {re.match(r"\s*([A-Z][a-z]+)", sentence).group(1) for sentence in found}
    assert marks == {split.capitalize()}


def test_folder_without_splits_is_split_as_a_corpus_is(tmp_path: Path) -> None:
    """No sentence of a document that a corpus holds out ever is train filler, and the other way round."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(120):
        (folder / f"{number}.txt").write_text(
            book(f"Doc{chr(97 + number // 26)}{chr(97 + number % 26)}", 8, number)
        )
    data = DataConfig(specs=(str(folder),), tokenizer="bytes", cache_dir=str(tmp_path / "cache"))
    corpus = load_corpus(data, progress=False)
    for split in ("train", "valid", "test"):
        store = getattr(corpus, split)
        held = {
            re.search(rb"Doc[a-z]{2}", BYTES.decode_bytes(store[i].tolist())).group().decode()
            for i in range(len(store))
        }
        found = {
            re.search(r"Doc[a-z]{2}", sentence).group()
            for sentence in some(load_filler(str(folder), split), 5000)
        }
        assert held == found and found


def test_one_file_is_cut_into_parts_as_a_corpus_does(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text(book("S", 400))
    numbers = {
        split: {int(re.search(r"S(\d+)", s).group(1)) for s in some(load_filler(str(path), split), 2000)}
        for split in ("train", "valid", "test")
    }
    assert max(numbers["train"]) < min(numbers["valid"]) and max(numbers["valid"]) < min(numbers["test"])


def test_sentences_are_whole_pieces_of_the_text(tmp_path: Path) -> None:
    path = write_books(tmp_path)
    texts = [file.read_text() for file in (path / "train").iterdir()]
    found = some(load_filler(str(path), "train"), 30)
    for sentence in found:
        assert re.fullmatch(r"\s*Train\d+ [a-z ]+\.", sentence), sentence
        assert any(sentence in text for text in texts)
    # Neighbours are neighbours in the text, blanks and all, so far as the document goes.
    assert any("".join(found[:3]) in text for text in texts)


def test_titles_do_not_end_a_sentence_and_paragraphs_do() -> None:
    text = "Zero. Then Mr. Fox met Dr. Owl. “Why?” said he! A HEADING\n\nNext one here. No end"
    found = set(some(Prose([text_document("a", text)], "a"), 2000))
    assert found == {" Then Mr. Fox met Dr. Owl.", " “Why?”", " said he!", " A HEADING", "\n\nNext one here."}


def test_the_torn_first_sentence_is_left_out() -> None:
    text = "Aaa bbb. Ccc ddd. Eee fff. Ggg hhh. "
    found = set(some(Prose([text_document("a", text)], "a"), 500))
    assert found == {" Ccc ddd.", " Eee fff.", " Ggg hhh."}


def test_what_is_too_long_for_a_sentence_is_left_out() -> None:
    text = "One here. Two here. " + "x" * 2000 + ". Three here. Four here. "
    found = set(some(Prose([text_document("a", text)], "a"), 5000))
    assert found == {" Two here.", " Three here.", " Four here."}


def test_code_is_cut_at_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("def f(x):\n    return x.y.z  \n\n\n" * 200)
    found = set(some(load_filler(str(path), "train"), 300))
    assert found == {"\n    return x.y.z", "  \n\n\ndef f(x):"}


def test_same_numbers_same_sentences(tmp_path: Path) -> None:
    filler = load_filler(str(write_books(tmp_path)), "train")
    assert some(filler, seed=1) == some(filler, seed=1) != some(filler, seed=2)


def test_documents_are_drawn_evenly(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.txt").write_text(book("Long", 400))
        (tmp_path / split / "b.txt").write_text(book("Short", 400))
    filler = load_filler(str(tmp_path), "train")
    first = [some(filler, 1, seed)[0] for seed in range(300)]
    assert 0.4 < sum("Long" in sentence for sentence in first) / 300 < 0.6


def test_text_too_short_for_filler_and_unknown_split_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Only one sentence here, without an end")
    with pytest.raises(ValueError, match="no document of three sentences in the train part of"):
        load_filler(str(tmp_path), "train")
    with pytest.raises(ValueError, match="split='dev' is not possible; choose one of train, valid, test"):
        load_filler("noise", "dev")


@pytest.mark.parametrize("tokenizer", [BYTES, small_bpe()], ids=["bytes", "bpe"])
def test_fill_fits_closely_and_counts_right(tokenizer) -> None:
    for budget in (0, 1, 5, 40, 41, 42, 43, 44, 1000):
        made = list(fill(some(Noise()), budget, tokenizer))
        text = "".join(sentence for sentence, _ in made)
        used = sum(tokens for _, tokens in made)
        assert used == len(tokenizer.encode(text)) <= budget
        assert budget - used <= 10, "a word of the noise has at most so many bytes"


def test_fill_ends_with_its_sentences() -> None:
    assert list(fill([" ab", " c"], 100, BYTES)) == [(" ab", 3), (" c", 2)]


def test_hidden_statements_stand_at_the_nearest_end_of_a_sentence() -> None:
    sentences = [f" {n}" * 5 for n in range(10)]  # ten tokens each
    found = list(hide([(0.0, "a"), (0.04, "b"), (0.06, "c"), (0.5, "d"), (1.0, "e")], sentences, 100, BYTES))
    order = "".join(text if number is not None else "-" for number, text in found)
    assert order == "ab-c----d-----e"
    assert [number for number, _ in found if number is not None] == [0, 1, 2, 3, 4]


def test_hidden_statements_all_come_where_the_filler_ends_early() -> None:
    found = [text for _, text in hide([(0.1, "a"), (0.9, "b")], [" x"], 100, BYTES)]
    assert sorted(found) == [" x", "a", "b"]
    assert [text for _, text in hide([(0.1, "a"), (0.9, "b")], [], 0, BYTES)] == ["a", "b"]


def test_without_leaves_out_sentences_with_a_word() -> None:
    assert list(without(("ab", "c"), iter([" x", " cab", " b a", " c"]))) == [" x", " b a"]


def test_room_names_the_least_length() -> None:
    assert count_tokens(BYTES, "abc", "é") == 5
    assert room_for(10, ("abc", "de"), BYTES, "it") == 3
    with pytest.raises(
        ValueError, match="it does not fit 6 tokens with this tokenizer; the least length is 7"
    ):
        room_for(6, ("abc", "de"), BYTES, "it")
