"""Files behind others of their folder: what stands before them, and that nothing else changes."""

import itertools

import numpy as np
import pytest
import torch

from rmat.data.documents import code_document, dialogue_document, text_document
from rmat.data.lanes import MOST_NEIGHBOURS, Lanes, Neighbours
from rmat.data.tokenizer import load_tokenizer
from tests.makers.texts import make_store

TOK = load_tokenizer("bytes")
DOC, FILE = TOK.special_id("document"), TOK.special_id("file_name")


@pytest.fixture
def store(tmp_path):
    files = [code_document(f"{folder}/{n}.py", f"{folder} {n}\n") for folder in ("a", "b") for n in range(6)]
    others = [
        code_document("lone.py", "x\n"),
        text_document("a/t.txt", "text"),
        dialogue_document("a/d", [("user", "hi")]),
    ]
    return make_store(tmp_path / "s", [*files, *others])


def test_other_files_of_the_folder_stand_before_a_file(store):
    neighbours, counts = Neighbours(store), set()
    for index in range(12):
        before = neighbours.before(index, store[index], np.random.default_rng(index))
        assert before[0] == DOC and (before[1:] != DOC).all()
        names = TOK.decode([t if t != FILE else ord("|") for t in before.tolist()[1:]]).split("|")[1:]
        own, folder = store.name(index), store.name(index)[0]
        assert names[-1].startswith(own), "the file itself is last"
        assert all(text.startswith(f"{folder}/") and not text.startswith(own) for text in names[:-1])
        assert len(set(names)) == len(names), "no file twice"
        counts.add(len(names) - 1)
    assert counts == set(range(1, MOST_NEIGHBOURS + 1))


@pytest.mark.parametrize("index", [12, 13, 14])
def test_lone_files_text_and_dialogues_stay_as_they_are(store, index):
    assert np.array_equal(
        Neighbours(store).before(index, store[index], np.random.default_rng(0)), store[index]
    )


def test_lanes_give_that_share_of_files_neighbours_and_resume(store):
    def lanes():
        return Lanes(store, 2, 50, seed=4, context_rate=0.5, fim_rate=0.3, tokenizer=TOK)

    batches = list(itertools.islice(lanes().batches(), 60))
    after = list(itertools.islice(lanes().batches(batches[29][1]), 30))
    for (one, _), (two, _) in zip(batches[30:], after, strict=True):
        assert torch.equal(one.tokens, two.tokens)
    row = torch.cat([batch.tokens[0] for batch, _ in batches])
    starts = (row == DOC).nonzero()[:, 0].tolist()
    files = [int((row[a:b] == FILE).sum()) for a, b in itertools.pairwise(starts)]
    several, code = sum(n > 1 for n in files), sum(n > 0 for n in files)
    assert 0.3 < several / code < 0.65
