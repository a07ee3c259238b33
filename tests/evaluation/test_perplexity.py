"""Bits per byte against a computation token by token, and everything that must not change them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rmat.data.config import DataConfig
from rmat.data.corpus import load_corpus
from rmat.evaluation import perplexity as module
from rmat.evaluation.perplexity import perplexity, tokens_to_score
from tests.makers.stores import Store, Widths, random_store, tiny_model

LENGTHS = (30, 1, 17, 64, 5)
WIDTHS = Widths()


def token_nats(model: torch.nn.Module, document: np.ndarray) -> list[float]:
    """Nats of every token after the first, each from a call of its own on one token."""
    state, nats = None, []
    for read, expected in zip(document[:-1].tolist(), document[1:].tolist(), strict=True):
        with torch.no_grad():
            logits, state = model(torch.tensor([[read]]), state)
        nats.append(-float(torch.log_softmax(logits[0, 0], -1)[expected]))
    return nats


@pytest.mark.parametrize("variant", ["recommended", "paper", "full"])
def test_equals_computation_token_by_token(variant: str) -> None:
    model, store = tiny_model(variant), random_store(LENGTHS)
    nats = [token_nats(model, store.view(i)) for i in range(len(store))]
    sizes = [store.document_bytes(i) for i in range(len(store))]
    found = perplexity(model, WIDTHS, store, batch_size=2, window=11)
    np.testing.assert_allclose(found.document_nats, [sum(row) for row in nats], rtol=1e-10)
    np.testing.assert_array_equal(found.document_bytes, sizes)
    assert found.bits_per_byte == pytest.approx(sum(map(sum, nats)) / math.log(2) / sum(sizes), rel=1e-10)
    assert found.nats_per_token == pytest.approx(sum(map(sum, nats)) / sum(LENGTHS), rel=1e-10)
    assert (found.tokens, found.bytes, found.documents) == (sum(LENGTHS), sum(sizes), len(LENGTHS))
    assert found.low is not None and found.high is not None and found.low < found.bits_per_byte < found.high


@pytest.mark.parametrize("memory", ["on", "zeroed", "frozen"])
def test_batch_and_window_change_nothing(memory: str) -> None:
    model, store = tiny_model(), random_store(LENGTHS)
    one = perplexity(model, WIDTHS, store, memory=memory, batch_size=1, window=100)
    for batch_size, window in ((2, 7), (5, 8), (64, 1), (3, None)):
        other = perplexity(model, WIDTHS, store, memory=memory, batch_size=batch_size, window=window)
        np.testing.assert_allclose(other.document_nats, one.document_nats, rtol=1e-9)


@pytest.mark.parametrize("window", [8, 1000])
def test_a_shuffled_document_reads_the_bank_of_another_and_never_its_own(window: int) -> None:
    """In front of it stand a row that reads nothing and the other document, of whatever length."""
    model, store = tiny_model(), random_store((150, 12))
    found = perplexity(model, WIDTHS, store, memory="shuffled", batch_size=1, window=window)
    for scored in range(2):
        rows = [torch.from_numpy(store.view(row).astype(np.int64)) for row in (1 - scored, scored)]
        tokens, valid = torch.zeros(3, 151, dtype=torch.int64), torch.zeros(3, 150, dtype=torch.bool)
        for place, document in enumerate(rows, start=1):
            tokens[place, : len(document)] = document
            valid[place, : len(document) - 1] = True
        with torch.no_grad():
            logits, _ = model(tokens[:, :-1], valid=valid, memory="shuffled")
        nats = -torch.log_softmax(logits, -1).gather(2, tokens[:, 1:, None])[..., 0] * valid
        assert found.document_nats[scored] == pytest.approx(float(nats[2].sum()), rel=1e-9)


def test_numbers_that_are_not_finite_end_with_a_sentence() -> None:
    model = tiny_model()
    torch.nn.init.constant_(model.norm.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="the model's output is not finite"):
        perplexity(model, WIDTHS, random_store((20,)))


def test_what_is_scored_is_known_before() -> None:
    store = random_store(LENGTHS)
    found = perplexity(tiny_model(), WIDTHS, store, max_bytes=100)
    assert tokens_to_score(WIDTHS, store, 100, None) == found.tokens


def test_shuffled_refuses_a_single_document() -> None:
    with pytest.raises(ValueError, match="at least two documents"):
        perplexity(tiny_model(), WIDTHS, random_store((20,)), memory="shuffled")


def test_max_bytes_scores_the_first_bytes_in_order() -> None:
    model, store = tiny_model(), random_store(LENGTHS)
    first, second = store.document_bytes(0), store.document_bytes(1)
    third = store.view(2)[1:]
    cut = perplexity(model, WIDTHS, store, max_bytes=first + second + 10)
    assert cut.documents == 3
    assert first + second + 7 < cut.bytes <= first + second + 10
    kept = int(cut.document_bytes[2])
    n_kept = int(np.searchsorted(np.cumsum(WIDTHS.byte_lengths[third]), kept, side="right"))
    assert cut.document_nats[2] == pytest.approx(
        sum(token_nats(model, store.view(2)[: n_kept + 1])), rel=1e-9
    )
    whole = perplexity(model, WIDTHS, store, max_bytes=10**9)
    assert whole.bytes == sum(store.document_bytes(i) for i in range(len(store)))


def test_empty_documents_are_left_out() -> None:
    found = perplexity(tiny_model(), WIDTHS, Store([[], [1, 2, 3], [], [4, 5]]))
    assert found.documents == 2


@pytest.mark.parametrize(("documents", "max_bytes"), [([], None), ([[]], None), ([[1, 2]], 0)])
def test_nothing_to_score_is_refused(documents: list[list[int]], max_bytes: int | None) -> None:
    with pytest.raises(ValueError, match="no text to score"):
        perplexity(tiny_model(), WIDTHS, Store(documents), max_bytes=max_bytes)


def test_another_tokenizer_is_refused() -> None:
    class Larger(Widths):
        vocab_size = 41

    with pytest.raises(ValueError, match="41 tokens, the model only 40"):
        perplexity(tiny_model(), Larger(), random_store((5,)))


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_model_as_it_was(training: bool) -> None:
    model = tiny_model(dropout=0.5).train(training)
    before = perplexity(model, WIDTHS, random_store((30, 9))).bits_per_byte
    assert model.training is training
    assert perplexity(model, WIDTHS, random_store((30, 9))).bits_per_byte == before


class TestPositions:
    """Buckets of the position in bytes."""

    def test_buckets_hold_the_tokens_that_start_in_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "FIRST_BUCKET_BYTES", 16)
        monkeypatch.setattr(module, "LEAST_BUCKET_DOCUMENTS", 2)
        model, store = tiny_model(), random_store((20, 70, 5, 60))
        found = perplexity(model, WIDTHS, store, batch_size=2, window=9)
        assert [(b.start, b.stop) for b in found.by_position] == [(0, 16), (16, 32), (32, 64)]
        sizes = [store.document_bytes(i) for i in range(4)]
        long = [i for i in range(4) if sizes[i] >= 64]
        assert found.position_documents == len(long) == 2
        for row, index in enumerate(long):
            nats, widths = token_nats(model, store.view(index)), WIDTHS.byte_lengths[store.view(index)[1:]]
            starts = np.cumsum(widths) - widths
            for k, bucket in enumerate(found.by_position):
                inside = (starts >= bucket.start) & (starts < bucket.stop)
                assert found.position_nats[row, k] == pytest.approx(np.array(nats)[inside].sum(), rel=1e-9)
                assert found.position_bytes[row, k] == widths[inside].sum()
        for k, bucket in enumerate(found.by_position):
            expected = found.position_nats[:, k].sum() / math.log(2) / found.position_bytes[:, k].sum()
            assert bucket.score.value == pytest.approx(expected, rel=1e-12)
            assert bucket.score.low <= expected <= bucket.score.high

    def test_first_bucket_ends_at_256_bytes_and_each_next_at_twice_that(self) -> None:
        assert module._edges([5000] * 8).tolist() == [0, 256, 512, 1024, 2048, 4096]

    def test_last_bucket_is_one_that_enough_documents_reach(self) -> None:
        assert module._edges([300] * 6 + [600] * 7).tolist() == [0, 256]
        assert module._edges([300] * 6 + [600] * 8).tolist() == [0, 256, 512]
        assert module._edges([300] * 91 + [600] * 9).tolist() == [0, 256]

    def test_few_documents_are_all_used(self) -> None:
        assert module._edges([600, 300]).tolist() == [0, 256]

    def test_short_documents_have_no_buckets(self) -> None:
        found = perplexity(tiny_model(), WIDTHS, random_store((20, 30)))
        assert found.by_position == () and found.position_documents == 0

    def test_json_has_from_and_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "FIRST_BUCKET_BYTES", 16)
        found = perplexity(tiny_model(), WIDTHS, random_store((20, 30))).to_dict()
        assert found["position_unit"] == "bytes"
        assert found["by_position"][0].keys() == {"from", "to", "bits_per_byte", "low", "high"}
        assert {"bits_per_byte", "nats_per_token", "tokens", "bytes", "state_bytes", "memory"} <= found.keys()


def test_difference_needs_the_same_documents() -> None:
    model = tiny_model()
    one, other = (perplexity(model, WIDTHS, random_store((20, 30), seed=seed)) for seed in (0, 1))
    with pytest.raises(ValueError, match="different documents"):
        one.minus(other)


def test_real_store_and_tokenizer(tmp_path: Path) -> None:
    """A store on disk, tokenised by BPE: every byte of every document is counted once."""
    texts = [f"def f{i}(x):\n    return x + {i}  # größer als {i * i} €\n" * (i + 1) for i in range(30)]
    (tmp_path / "in").mkdir()
    for i, text in enumerate(texts):
        (tmp_path / "in" / f"f{i}.py").write_text(text, encoding="utf-8")
    data = DataConfig(
        specs=(str(tmp_path / "in"),), tokenizer="bpe:300", valid_share=0.2, cache_dir=str(tmp_path / "cache")
    )
    corpus = load_corpus(data, progress=False)
    model = tiny_model(vocab_size=corpus.tokenizer.vocab_size)
    found = perplexity(model, corpus.tokenizer, corpus.valid, batch_size=3, window=50)
    assert found.bytes == corpus.valid.n_bytes and found.documents == len(corpus.valid)
    assert found.tokens == corpus.valid.n_tokens - len(corpus.valid)
    counted = [
        int(corpus.tokenizer.byte_lengths[corpus.valid.view(i)].sum()) for i in range(len(corpus.valid))
    ]
    np.testing.assert_array_equal(found.document_bytes, counted)
