"""Folders of made-up books and stories, a small vocabulary, and the length of an example."""

import json
from functools import cache
from pathlib import Path

import numpy as np

from rmat.data.tokenizer import Tokenizer, byte_tokenizer, train_bpe
from rmat.tasks.haystack import NOISE_LINE
from rmat.tasks.task import Example

WORDS = ("wind", "stone", "walked", "slowly", "past", "nine", "houses", "of", "grey", "slate", "and", "moss")


def book(mark: str, sentences: int, seed: int = 0) -> str:
    """Paragraphs of sentences that all begin with `mark` and their number."""
    random = np.random.default_rng(seed)
    text = ""
    for number in range(sentences):
        words = " ".join(random.choice(WORDS, size=random.integers(3, 20)))
        text += f"{mark}{number} {words}.{'  ' if number % 7 else chr(10) * 2}"
    return text


def write_books(root: Path, count: int = 3, sentences: int = 60) -> Path:
    """A folder with splits of its own; every sentence of a split begins with its name."""
    for split in ("train", "valid", "test"):
        (root / split).mkdir(parents=True)
        for number in range(count):
            (root / split / f"{number}.txt").write_text(book(split.capitalize(), sentences, number))
    return root


def write_dialogues(root: Path, count: int = 3, turns: int = 42) -> Path:
    """A folder of JSONL files with splits of its own; every turn says its split, dialogue and place, also one of Ann's."""
    root.mkdir(parents=True)
    for split in ("train", "valid", "test"):
        with (root / f"{split}.jsonl").open("w") as file:
            for number in range(count):
                said = [
                    (("user", "assistant", "Ann")[turn % 3], f"{split} {number} {turn}.")
                    for turn in range(turns)
                ]
                record = {"turns": [{"role": role, "text": text} for role, text in said]}
                file.write(json.dumps(record) + "\n")
    return root


STORY = (
    ("Mary moved to the bathroom.", None),
    ("John went to the hallway.", None),
    ("Where is Mary?", "bathroom"),
    ("John moved to the office.", None),
    ("Where is John?", "office"),
    ("Mary went back to the garden.", None),
    ("Where is Mary?", "garden"),
)


def write_babi(folder: Path, kind: str, stories: int, task: int = 1, mark: str = "") -> Path:
    """A bAbI file; the statements of story s begin with `mark` and s, so that they can be told apart."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for story in range(stories):
        for number, (text, answer) in enumerate(STORY, start=1):
            lines.append(f"{number} {text} \t{answer}\t1" if answer else f"{number} {mark}{story} {text}")
    (folder / f"qa{task}_any-name_{kind}.txt").write_text("\n".join(lines) + "\n")
    return folder


@cache
def small_bpe() -> Tokenizer:
    """A BPE that merges common words of the noise and the books, and some digits."""
    return train_bpe(
        [*NOISE_LINE * 50, book("Train", 200), "One of the special magic numbers 12 123 45"], 420
    )


TOKENIZERS = {"bytes": byte_tokenizer, "bpe": small_bpe}


def length_of(example: Example, tokenizer: Tokenizer) -> int:
    """Tokens of document token, prompt, answer and end token."""
    return 2 + sum(len(tokenizer.encode(text)) for text in (*example.pieces, example.answer))
