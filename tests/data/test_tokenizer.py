"""Tokenizers: exact round trips, special tokens that no text can forge, files that load anywhere."""

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from rmat.data import tokenizer as module
from rmat.data.tokenizer import SPECIAL_TOKENS, Tokenizer, load_tokenizer, train_bpe

TEXTS = [
    "",
    "plain text",
    "Здравствуй, мир! 你好，世界。 مرحبا بالعالم नमस्ते こんにちは",
    "emoji 👩‍👩‍👧‍👦 🏳️‍🌈 and e\u0301 against \u00e9",
    "NUL \0 inside, \x01\x7f",
    "\ufeffbyte-order mark, non-breaking\u00a0blank, \u2028 line, \u3000 wide",
    "lone \r CR, \r\n CRLF, \n\n\t\t  tabs  and trailing   ",
    "    indented\n        code():\n\treturn  1",
    " ".join(SPECIAL_TOKENS),
    "\U0010ffff\uffff\ufffd",
]

BYTES = load_tokenizer("bytes")
BPE = train_bpe(["def hello(world):\n    return 'hello world'\n" * 20, "你好 мир " * 20], 320)


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request) -> Tokenizer:
    return {"bytes": BYTES, "bpe": BPE}[request.param]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_round_trip_is_exact(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_round_trip_is_exact_for_any_text(text):
    for tokenizer in (BYTES, BPE):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_byte_ids_are_the_byte_values():
    assert BYTES.encode("aé\0") == [97, 0xC3, 0xA9, 0]
    assert BYTES.vocab_size == 256 + len(SPECIAL_TOKENS)
    assert [BYTES.special_id(token[2:-2]) for token in SPECIAL_TOKENS] == list(range(256, 265))


def test_special_tokens_come_after_the_base_vocabulary():
    ids = [BPE.special_id(token[2:-2]) for token in SPECIAL_TOKENS]
    assert ids == list(range(BPE.vocab_size - len(SPECIAL_TOKENS), BPE.vocab_size))
    assert 265 < BPE.vocab_size <= 320


def test_text_that_spells_a_special_token_is_text(tokenizer):
    special = {tokenizer.special_id(token[2:-2]) for token in SPECIAL_TOKENS}
    for token in SPECIAL_TOKENS:
        for text in (token, f"a{token}b", f" {token}\n"):
            ids = tokenizer.encode(text)
            assert not special & set(ids)
            assert tokenizer.decode(ids) == text


def test_special_tokens_decode_to_nothing(tokenizer):
    ids = [tokenizer.special_id("user"), *tokenizer.encode("hi"), tokenizer.special_id("turn_end")]
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode_bytes(ids) == b"hi"


def test_decode_bytes_of_a_part_is_a_part_of_the_bytes(tokenizer):
    text = "naïve 😀 你"
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.decode_bytes([i]) for i in ids) == text.encode()
    emoji = tokenizer.encode("😀")
    assert "😀".encode().startswith(tokenizer.decode_bytes(emoji[:-1]))
    assert tokenizer.decode(emoji[:-1]) != "😀"


def test_byte_lengths_count_the_text_of_each_id(tokenizer):
    ids = tokenizer.encode("hello wörld")
    assert tokenizer.byte_lengths[ids].sum() == len("hello wörld".encode())
    assert tokenizer.byte_lengths[tokenizer.special_id("document")] == 0


def test_saving_and_loading_keeps_everything(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    for spec in (tmp_path / "tokenizer.json", str(tmp_path)):
        loaded = load_tokenizer(spec)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.vocab_size == tokenizer.vocab_size
        assert loaded.encode("hello <|user|> мир") == tokenizer.encode("hello <|user|> мир")


def test_fingerprints_differ_between_tokenizers():
    other = train_bpe(["quite another text " * 20], 300)
    assert len({BYTES.fingerprint, BPE.fingerprint, other.fingerprint}) == 3


def test_training_twice_gives_the_same_tokenizer():
    texts = ["one two three two three " * 10]
    assert train_bpe(texts, 280).fingerprint == train_bpe(iter(texts), 280).fingerprint


def test_long_texts_are_cut_without_a_change_of_tokens(monkeypatch):
    text = "\n\n".join(f"word{n} слово-{n}, it's {n}  (x)" for n in range(300))
    whole = BPE.encode(text)
    monkeypatch.setattr(module, "CHUNK_CHARACTERS", 97)
    assert BPE.encode(text) == whole


def test_a_text_without_a_place_to_cut_keeps_its_bytes(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_CHARACTERS", 64)
    text = "你" * 1000 + "(" * 1000 + "\n" * 1000
    assert BPE.decode(BPE.encode(text)) == text


def test_encode_many_keeps_the_order(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_CHARACTERS", 16)
    texts = ["one two " * 10, "", "three", "", "four five six " * 20]
    assert [ids.tolist() for ids in BPE.encode_many(texts)] == [BPE.encode(text) for text in texts]
    assert [BPE.decode(ids.tolist()) for ids in BPE.encode_many(texts)] == texts


def test_a_third_party_file_gets_the_special_tokens_it_lacks(tmp_path):
    """Others save truncation, padding and a template that adds tokens; none of it may touch our texts."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["one two three " * 20], trainer)
    size = backend.get_vocab_size()
    backend.add_special_tokens(["<s>"])
    backend.add_tokens([AddedToken("<|user|>", special=False)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", size)])
    backend.enable_truncation(4)
    backend.enable_padding(length=64, pad_id=size, pad_token="<s>")
    backend.save(str(tmp_path / "tokenizer.json"))

    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.special_id("user") == size + 1, "one that is there already keeps its place"
    ids = {tokenizer.special_id(token[2:-2]) for token in SPECIAL_TOKENS}
    assert len(ids) == len(SPECIAL_TOKENS) and max(ids) == tokenizer.vocab_size - 1
    text = "one longer than <|user|> its truncation <s>"
    assert not {size, *ids} & set(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_tokenizer_that_text_could_forge_is_refused(tmp_path):
    backend = tokenizers.Tokenizer(models.WordLevel({"<|user|>": 0, "a": 1, "[UNK]": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"'<\|user\|>'.*byte-level"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_with_byte_fallback_streams(tmp_path):
    llama_like().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("a a😀")
    assert tokenizer.decode(ids) == "a a😀"
    assert b"".join(tokenizer.decode_bytes([i]) for i in ids) == " a a😀".encode()


def sentencepiece(**how) -> tokenizers.Tokenizer:
    pieces = [("<unk>", 0.0), ("\u2581hello", -1.0), ("\u2581world", -1.0), ("\u2581", -2.0)]
    backend = tokenizers.Tokenizer(
        models.Unigram(pieces + [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"], unk_id=0)
    )
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(**how), decoders.Metaspace(**how)
    return backend


def word_pieces() -> tokenizers.Tokenizer:
    words = ["[UNK]", "hello", "##ing", "play", "world", "##s", "."]
    backend = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return backend


def llama_like() -> tokenizers.Tokenizer:
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {"\u2581": 256, "a": 257, "\u2581a": 258, "[UNK]": 259}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=[("\u2581", "a")], byte_fallback=True, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


def byte_level_with_prefix() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["hello world " * 20], trainer)
    return backend


def words_alone() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel({"hello": 0, "world": 1, "[UNK]": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


@pytest.mark.parametrize(
    ("backend", "text"),
    [
        (word_pieces(), "playing hello worlds. hello"),
        (sentencepiece(), "hello world helloworld"),
        (sentencepiece(prepend_scheme="first"), "hello world a"),
        (sentencepiece(prepend_scheme="never"), "hello world a"),
        (llama_like(), "  a aé 😀a  "),
        (byte_level_with_prefix(), "hello naïve 😀 world"),
        (words_alone(), "hello world hello"),
    ],
    ids=["word pieces", "always", "first", "never", "byte fallback", "prefix", "no decoder"],
)
def test_any_tokenizer_streams_what_it_decodes_and_counts_its_bytes(backend, text):
    tokenizer = Tokenizer(backend)
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids) == text
    turn = [tokenizer.special_id("user"), *ids, tokenizer.special_id("turn_end")]
    counts = tokenizer.byte_counts([*turn, *turn])
    assert counts.sum() == 2 * len(text.encode()) and counts[0] == counts[-1] == 0
    assert tokenizer.decode([*turn, *turn]) == text * 2
    joined = b"".join(tokenizer.decode_bytes([i]) for i in ids)
    assert joined == tokenizer.decode_bytes(ids) and joined.endswith(text.encode())
    if tokenizer.concatenates:
        assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
    else:
        with pytest.raises(ValueError, match="other bytes at the beginning"):
            _ = tokenizer.byte_lengths


LLAMA_LIKE = Tokenizer(llama_like())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 259 + len(SPECIAL_TOKENS)), max_size=12))
def test_streams_equal_decoding_for_any_ids(ids):
    for tokenizer in (LLAMA_LIKE, BYTES):
        known = [i for i in ids if i < tokenizer.vocab_size]
        stream = tokenizer.stream()
        assert "".join([*map(stream.push, known), stream.flush()]) == tokenizer.decode(known)


def test_part_of_a_character_is_held_back_and_told_at_the_end(tokenizer):
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in tokenizer.encode("é😀")[:-1]]
    assert "".join(pieces) == "é"
    assert stream.flush() == "\ufffd"


def test_a_decoder_that_does_not_spell_token_by_token_is_refused():
    backend = words_alone()
    for decoder in (decoders.CTC(pad_token="[UNK]"), decoders.BPEDecoder(suffix="lo")):
        backend.decoder = decoder
        with pytest.raises(ValueError, match="cannot be shown while it is written"):
            Tokenizer(backend)


def test_dropout_is_off():
    backend = tokenizers.Tokenizer.from_str(BPE._backend.to_str())
    backend.model.dropout = 0.9
    tokenizer = Tokenizer(backend)
    assert {tuple(tokenizer.encode("hello world hello world")) for _ in range(10)} == {
        tuple(BPE.encode("hello world hello world"))
    }


def test_a_vocabulary_that_does_not_fit_is_named():
    BYTES.require_vocab_size(265)
    with pytest.raises(
        ValueError, match="vocabulary mismatch: the tokenizer has 265 entries and the model 512"
    ):
        BYTES.require_vocab_size(512)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: train_bpe(["a"], 100), "at least 265 entries.*got 100"),
        (lambda: BYTES.special_id("pad"), "no special token is named 'pad'.*document"),
        (lambda: BYTES.decode([999]), "token id 999 is outside the vocabulary 0..264"),
        (lambda: BYTES.decode_bytes([-1]), "token id -1"),
        (lambda: BYTES.encode("bad \ud800"), "lone surrogate.*position 4"),
        (lambda: BPE.encode("bad \ud800"), "lone surrogate.*position 4"),
        (lambda: load_tokenizer("/no/such/place"), "no tokenizer at '/no/such/place'"),
    ],
)
def test_a_wrong_use_gets_one_sentence(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    for content in ("{", json.dumps({"version": "1.0"})):
        path.write_text(content)
        with pytest.raises(ValueError, match=f"{path} is no tokenizer.json"):
            load_tokenizer(path)
