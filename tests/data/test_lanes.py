"""Lanes: rows that go on, documents that are whole, and a state from which everything follows again."""

import itertools
import json
from collections import Counter

import pytest
import torch

from rmat.data.documents import code_document, dialogue_document
from rmat.data.lanes import IGNORED, Lanes, LaneState
from rmat.data.tokenizer import load_tokenizer, train_bpe
from tests.makers.texts import make_store

TOK = load_tokenizer("bytes")
DOC = TOK.special_id("document")


@pytest.fixture
def store(tmp_path):
    """Documents of 1 to 40 tokens, each of its own letter."""
    return make_store(tmp_path / "s", [chr(65 + n) * (3 * n % 40) for n in range(26)])


def take(lanes, n, state=None):
    return list(itertools.islice(lanes.batches(state), n))


def joined(batches, field="tokens"):
    return torch.cat([getattr(batch, field) for batch, _ in batches], 1)


def documents_of(row, resets):
    """The documents of a row, the last one perhaps unfinished."""
    starts = resets.nonzero()[:, 0].tolist()
    return [tuple(row[a:b].tolist()) for a, b in itertools.pairwise([*starts, len(row)])]


@pytest.mark.parametrize(("rows", "window"), [(1, 7), (3, 16), (5, 1), (2, 100)])
def test_rows_continue_and_documents_stay_whole(store, rows, window):
    batches = take(Lanes(store, rows, window, seed=1), 400 // window + 2)
    tokens, targets, resets = joined(batches), joined(batches, "targets"), joined(batches, "resets")
    assert batches[0][0].tokens.shape == (rows, window)
    assert tokens.dtype == targets.dtype == torch.int64 and resets.dtype == torch.bool
    assert torch.equal(resets, tokens == DOC) and resets[:, 0].all()
    assert torch.equal(targets[:, :-1], tokens[:, 1:]), (
        "the target of a token is the row's next token, over all edges"
    )
    known = {tuple(document.tolist()) for document in store}
    for row, starts in zip(tokens, resets, strict=True):
        assert set(documents_of(row, starts)[:-1]) <= known


def test_an_epoch_deals_every_document_once(store):
    tokens = joined(take(Lanes(store, 1, store.n_tokens, seed=3), 2))
    for epoch in tokens[0].split(store.n_tokens):
        dealt = documents_of(epoch, epoch == DOC)
        assert Counter(dealt) == Counter(tuple(document.tolist()) for document in store)
    assert not torch.equal(tokens[0, : store.n_tokens], tokens[0, store.n_tokens :]), "epochs differ in order"


def test_the_target_at_the_end_of_a_document_is_the_document_token(tmp_path):
    store = make_store(tmp_path / "s", ["abc"])
    ((batch, _),) = take(Lanes(store, 1, 4, seed=0), 1)
    assert batch.tokens.tolist() == [[DOC, 97, 98, 99]]
    assert batch.targets.tolist() == [[97, 98, 99, DOC]]


def test_seeds_decide_the_order(store):
    one, same, other = (joined(take(Lanes(store, 2, 50, seed=seed), 3)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("fim_rate", [0.0, 0.5])
@pytest.mark.parametrize("weights", [None, (1.0, 3.0)])
def test_resuming_continues_exactly_over_the_edges_of_epochs(tmp_path, fim_rate, weights):
    documents = [chr(65 + n) * (n % 9 + 1) for n in range(12)]
    store = make_store(tmp_path / "s", documents, parts=[n % 2 for n in range(12)])

    def lanes():
        return Lanes(store, 3, 11, seed=5, weights=weights, fim_rate=fim_rate, tokenizer=TOK)

    whole = take(lanes(), 30)
    assert whole[-1][1].dealt[0][0] > 2 * 12, "several epochs are crossed"
    for cut in range(30):
        state = LaneState.from_dict(json.loads(json.dumps(whole[cut][1].to_dict())))
        assert state == whole[cut][1]
        again = take(lanes(), min(4, 29 - cut), state)
        for (batch, after), (expected, expected_after) in zip(again, whole[cut + 1 :], strict=False):
            assert after == expected_after
            for field in ("tokens", "targets", "resets"):
                assert torch.equal(getattr(batch, field), getattr(expected, field))


def test_a_state_outlives_the_iterator_it_came_from(store):
    lanes = Lanes(store, 2, 13, seed=0)
    iterator = lanes.batches()
    _, state = next(iterator)
    kept = json.dumps(state.to_dict())
    second, _ = next(iterator)
    assert json.dumps(state.to_dict()) == kept
    assert torch.equal(take(lanes, 1, state)[0][0].tokens, second.tokens)


def test_the_state_is_small_however_much_there_is(tmp_path):
    store = make_store(tmp_path / "s", ["x"] * 3000)
    _, state = take(Lanes(store, 4, 500, seed=0), 20)[-1]
    assert len(json.dumps(state.to_dict())) < 300


def test_the_window_may_change_on_resuming(store):
    batches = take(Lanes(store, 2, 10, seed=0), 8)
    longer = take(Lanes(store, 2, 30, seed=0), 1, batches[0][1])
    first = longer[0][0].tokens[:, :10]
    assert torch.equal(first, batches[1][0].tokens)


def test_weights_are_shares_of_tokens(tmp_path):
    documents = ["a" * 50] * 20 + ["b" * 5] * 20
    store = make_store(tmp_path / "s", documents, parts=[0] * 20 + [1] * 20)
    tokens = joined(take(Lanes(store, 2, 200, seed=0, weights=(1, 3)), 50))
    of_b = sum(len(d) for row in tokens for d in documents_of(row, row == DOC) if d[1] == ord("b"))
    assert 0.72 < of_b / tokens.numel() < 0.78
    unweighted = joined(take(Lanes(store, 1, store.n_tokens, seed=0), 1))
    assert (unweighted == ord("b")).sum() == 100


def test_several_stores_are_read_together(tmp_path):
    stores = [make_store(tmp_path / "a", ["a" * 9] * 10), make_store(tmp_path / "b", ["b" * 9] * 30)]
    tokens = joined(take(Lanes(stores, 1, 400, seed=0), 1))
    assert (tokens == ord("a")).sum() == 90 and (tokens == ord("b")).sum() == 270
    tokens = joined(take(Lanes(stores, 1, 400, seed=0, weights=(1, 1)), 1))
    assert (tokens == ord("a")).sum() == (tokens == ord("b")).sum() == 180


def test_that_share_of_documents_is_rearranged(tmp_path):
    store = make_store(tmp_path / "s", [code_document(f"{n}.py", f"x = {n}\n" * 4) for n in range(200)])
    tokens = joined(take(Lanes(store, 1, store.n_tokens, seed=0, fim_rate=0.3, tokenizer=TOK), 2))
    documents = documents_of(tokens[0], tokens[0] == DOC)[:-1]
    middle, suffix = TOK.special_id("fim_middle"), TOK.special_id("fim_suffix")
    moved = [d for d in documents if middle in d]
    assert 0.2 < len(moved) / len(documents) < 0.4
    assert all(
        d[1] == TOK.special_id("file_name") and d.index(suffix) == d.index(ord("\n")) + 1 for d in moved
    )
    whole = joined(take(Lanes(store, 1, 500, seed=0, fim_rate=1.0, tokenizer=TOK), 1))
    assert all(suffix in d for d in documents_of(whole[0], whole[0] == DOC)[:-1])


def test_another_epoch_rearranges_otherwise(tmp_path):
    store = make_store(tmp_path / "s", ["abcdefghijklmnopqrstuvwxyz"])
    tokens = joined(take(Lanes(store, 1, 30 * 5, seed=0, fim_rate=1.0, tokenizer=TOK), 1))
    assert len(set(documents_of(tokens[0], tokens[0] == DOC)[:-1])) > 2


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 9},
        {"batch_size": 3},
        {"fim_rate": 0.5},
        {"context_rate": 0.5},
        {"weights": (1.0,)},
        {"other": True},
    ],
)
def test_the_state_of_other_lanes_is_refused(store, tmp_path, change):
    arguments = {"batch_size": 2, "window": 10, "seed": 0, "tokenizer": TOK}
    _, state = take(Lanes(store, **arguments), 1)[0]
    if change.pop("other", False):
        store = make_store(tmp_path / "o", ["other"])
    changed = Lanes(store, **{**arguments, **change})
    if "weights" in change:
        assert take(changed, 1, state), "one weight for one source changes nothing"
    else:
        with pytest.raises(ValueError, match=r"belongs to lanes .*resume with those of the run"):
            changed.batches(state)


def test_what_is_no_state_is_refused():
    for values in ({}, {"lanes": "x", "rows": [[1]], "dealt": []}, {"lanes": "x", "rows": 3, "dealt": []}):
        with pytest.raises(ValueError, match="no state of data lanes"):
            LaneState.from_dict(values)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"window": 0}, "window must be at least 1"),
        ({"fim_rate": 0.5}, "fim_rate 0.5 needs the tokenizer"),
        ({"weights": (1.0, 2.0)}, "source 1 has no document"),
        ({"weights": (-1.0,)}, "must be 1 positive numbers"),
        ({"tokenizer": train_bpe(["one two " * 20], 270)}, "vocabulary mismatch"),
    ],
)
def test_wrong_arguments_get_one_sentence(store, fields, message):
    with pytest.raises(ValueError, match=message):
        Lanes(store, **{"batch_size": 2, "window": 8, "seed": 0, **fields})


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the stores hold no document"):
        Lanes(make_store(tmp_path / "s", []), 2, 8, 0)


def test_stores_of_different_tokenizers_are_refused(tmp_path):
    other = train_bpe(["one two " * 20], 270)
    stores = [make_store(tmp_path / "a", ["a"]), make_store(tmp_path / "b", ["b"], other)]
    with pytest.raises(ValueError, match="different tokenizers"):
        Lanes(stores, 1, 8, 0)


TALK = [
    ("system", "be"),
    ("user", "a?"),
    ("assistant", "bcd"),
    ("Ann", "e"),
    ("assistant", ""),
    ("user", "f"),
]


def scored_by_hand(row):
    """Of every token of a row whether it is a target with assistant_only_loss, its document known by its
    role tokens."""
    roles = {TOK.special_id(name) for name in ("system", "user", "assistant")}
    wanted, start, plain_before = [], 0, True
    for end in [n for n, token in enumerate(row) if n and token == DOC] + [len(row)]:
        plain = not any(token in roles for token in row[start:end])
        speaker = None
        for token in row[start:end]:
            wanted.append(plain_before if token == DOC else plain or speaker == "assistant")
            if token in roles:
                speaker = "assistant" if token == TOK.special_id("assistant") else "other"
            elif token == TOK.special_id("turn_end"):
                speaker = None
        start, plain_before = end, plain
    return wanted


@pytest.mark.parametrize("window", [1, 5, 31])
def test_of_a_dialogue_only_what_the_assistant_says_is_scored(tmp_path, window):
    texts = [dialogue_document("t", TALK), "plain text", dialogue_document("u", TALK[2:4]), "more"]
    store = make_store(tmp_path / "s", texts)
    lanes = Lanes(store, 1, window, seed=0, assistant_only_loss=True, tokenizer=TOK)
    batches = take(lanes, 2 * store.n_tokens // window + 2)
    tokens, targets = joined(batches)[0].tolist(), joined(batches, "targets")[0].tolist()
    whole = joined(take(Lanes(store, 1, window, seed=0), len(batches)), "targets")[0].tolist()
    last = max(n for n, token in enumerate(tokens) if token == DOC)  # what follows may be cut
    wanted = scored_by_hand(tokens[: last + 1])
    expected = [token if scored else IGNORED for token, scored in zip(whole, wanted[1:], strict=False)]
    assert targets[:last] == expected[:last]
    kept = TOK.decode([token for token in targets[:last] if token != IGNORED])
    assert "bcd" in kept and "plain text" in kept and "a?" not in kept
    resumed, _ = next(lanes.batches(batches[0][1]))
    assert torch.equal(resumed.targets, batches[1][0].targets)


def test_turns_of_a_chat_template_cannot_be_scored_apart(store):
    with pytest.raises(ValueError, match="assistant_only_loss needs the tokenizer"):
        Lanes(store, 1, 4, seed=0, assistant_only_loss=True)
    lanes = Lanes(store, 1, 4, seed=0, assistant_only_loss=True, tokenizer=TOK)
    with pytest.raises(ValueError, match="assistant_only_loss have changed"):
        next(Lanes(store, 1, 4, seed=0).batches(next(lanes.batches())[1]))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"weights": (1.0, 3.0)},
        {"fim_rate": 0.5, "tokenizer": TOK},
        {"assistant_only_loss": True, "tokenizer": TOK},
    ],
)
def test_rows_of_a_batch_can_be_made_one_by_one(tmp_path, fields):
    """As processes share them, each with the places of all rows."""
    documents = [chr(65 + n) * (n % 9 + 1) for n in range(12)]
    store = make_store(tmp_path / "s", documents, parts=[n % 2 for n in range(12)])
    whole = take(Lanes(store, 5, 7, seed=1, **fields), 30)
    for rows in (range(2), range(2, 5)):
        lanes = Lanes(store, 5, 7, seed=1, rows=rows, **fields)
        parts = take(lanes, 10)
        parts += take(lanes, 20, parts[-1][1])
        for (batch, state), (part, behind) in zip(whole, parts, strict=True):
            assert state == behind
            for name in ("tokens", "targets", "resets"):
                assert torch.equal(getattr(batch, name)[rows.start : rows.stop], getattr(part, name))
