import random
from collections.abc import Sequence

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from rmat.data.tokenizer import Tokenizer
from rmat.generation import reader
from rmat.generation.completion import complete
from rmat.generation.cursor import CursorRow
from rmat.generation.reader import NotFiniteError, piece_length, read_row
from rmat.generation.sampling import Sampler, SamplingConfig
from rmat.generation.stream import Generation, generate
from rmat.model import LanguageModel, ModelConfig


class Script:
    """A stand-in for a model that writes given tokens, whatever it reads."""

    def __init__(self, model: LanguageModel, tokens: Sequence[int]) -> None:
        self.model, self.tokens = model, list(tokens)

    def __enter__(self) -> None:
        self.original = Sampler.draw
        script = iter(self.tokens)
        Sampler.draw = lambda sampler, logits: next(script)  # type: ignore[method-assign]

    def __exit__(self, *error: object) -> None:
        Sampler.draw = self.original  # type: ignore[method-assign]


def write(model: LanguageModel, tokenizer: Tokenizer, prompt: str = "once", **options: object) -> Generation:
    """A finished generation of 40 tokens."""
    settings: dict[str, object] = {"max_new_tokens": 40, "seed": 0, **options}
    writing = generate(model, tokenizer, prompt, **settings)  # type: ignore[arg-type]
    pieces = list(writing)
    assert "".join(pieces) == writing.text
    assert all(pieces), "no piece is empty"
    return writing


def test_same_seed_same_text(model: LanguageModel, tokenizer: Tokenizer) -> None:
    first = write(model, tokenizer, seed=7)
    torch.manual_seed(123)
    assert write(model, tokenizer, seed=7).tokens == first.tokens
    assert write(model, tokenizer, seed=8).tokens != first.tokens
    assert len(first.tokens) == 40 and first.finish == "length"


def test_greedy_takes_the_likeliest_token_of_the_model(model: LanguageModel, tokenizer: Tokenizer) -> None:
    """Token by token from the state must give what one call over the whole text gives."""
    found = write(model, tokenizer, "once upon a time there was a memory", temperature=0)
    prompt = [tokenizer.special_id("document"), *tokenizer.encode("once upon a time there was a memory")]
    with torch.no_grad():
        logits, _ = model(torch.tensor([prompt + found.tokens]))
    assert logits[0, len(prompt) - 1 : -1].argmax(-1).tolist() == found.tokens


def test_a_prompt_is_read_the_same_in_pieces(
    model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = "a long prompt, " * 40
    whole = write(model, tokenizer, prompt, temperature=0)
    monkeypatch.setattr(reader, "PIECE_TOKENS", 50)
    assert piece_length(model) == 48, "whole segments"
    assert write(model, tokenizer, prompt, temperature=0).tokens == whole.tokens


def test_calls_of_the_model_are_bounded(
    model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    hidden = model.hidden

    def recording(tokens: torch.Tensor, *rest: object, **options: object) -> object:
        lengths.append(tokens.shape[1])
        return hidden(tokens, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "hidden", recording)
    write(model, tokenizer, "x" * 10_000, max_new_tokens=3)
    assert lengths == [4096, 4096, 10_001 - 2 * 4096, 1, 1, 1]


def test_the_prompt_can_be_read_ahead(model: LanguageModel, tokenizer: Tokenizer) -> None:
    expected = write(model, tokenizer, "x" * 5000, temperature=0)
    writing = generate(model, tokenizer, "x" * 5000, max_new_tokens=40, temperature=0)
    told: list[int] = []
    writing.read(told.append)
    assert told == [4096, 5001 - 4096] and writing.tokens == []
    writing.read(told.append)
    assert "".join(writing) == expected.text and sum(told) == writing.prompt_tokens


def test_pieces_are_whole_segments() -> None:
    """Whatever the vocabulary: the head is computed at the last token alone. Those of a wide model are
    shorter."""

    def length(vocab_size: int, segment_len: int, d_ff: int = 32) -> int:
        config = ModelConfig.preset(
            "tiny", n_layers=1, d_model=8, vocab_size=vocab_size, segment_len=segment_len, d_ff=d_ff
        )
        return piece_length(LanguageModel(config))

    assert length(50_000, 128) == length(300, 128) == reader.PIECE_TOKENS
    assert length(300, 3 * reader.PIECE_TOKENS) == reader.PIECE_TOKENS
    assert length(300, 96) == reader.PIECE_TOKENS // 96 * 96
    assert length(300, 128, 2048) == 1024 and length(300, 512, 2**13) == 512


class TestState:
    def test_a_second_part_goes_on_as_one_text(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        whole = write(model, tokenizer, temperature=0)
        first = write(model, tokenizer, temperature=0, max_new_tokens=13)
        second = write(
            model,
            tokenizer,
            "",
            temperature=0,
            max_new_tokens=27,
            state=first.state,
            next_logits=first.next_logits,
        )
        assert first.tokens + second.tokens == whole.tokens

    def test_a_prompt_in_two_parts_is_one_prompt(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        whole = write(model, tokenizer, "first part, second part", temperature=0)
        read_only = write(model, tokenizer, "first part,", max_new_tokens=0)
        assert read_only.text == "" and read_only.finish == "length"
        assert (
            write(model, tokenizer, " second part", temperature=0, state=read_only.state).tokens
            == whole.tokens
        )

    def test_it_has_read_all_tokens_and_stays_valid(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        before = write(model, tokenizer, "abc", max_new_tokens=0).state
        assert before is not None
        kept = {name: tensor.clone() for name, tensor in before.tensors().items()}
        after = write(model, tokenizer, "d", state=before).state
        assert after is not None
        assert before.position.tolist() == [4] and after.position.tolist() == [4 + 1 + 40]
        assert after.nbytes == before.nbytes
        assert all(torch.equal(tensor, kept[name]) for name, tensor in before.tensors().items())

    def test_it_is_there_only_at_the_end(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        writing = generate(model, tokenizer, "abc", max_new_tokens=5, seed=0)
        next(writing)
        assert writing.state is None and writing.finish is None and len(writing.text) == 1

    def test_it_can_enter_training(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        """Tensors made under inference_mode would refuse to be saved for the backward pass."""
        state = write(model, tokenizer).state
        assert state is not None and not any(tensor.is_inference() for tensor in state.tensors().values())
        logits, _ = model(torch.tensor([[65, 66, 67]]), state)
        logits.sum().backward()
        model.zero_grad()


class TestCharacters:
    def test_split_characters_are_held_back_until_whole(
        self, model: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        with Script(model, "a€😀é".encode()):
            pieces = list(generate(model, tokenizer, "x", max_new_tokens=1 + 3 + 4 + 2))
        assert pieces == ["a", "€", "😀", "é"]

    def test_half_a_character_at_the_end_reads_as_the_tokenizer_reads_it(
        self, model: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        tokens = list("a€".encode())[:-1]
        with Script(model, tokens):
            pieces = list(generate(model, tokenizer, "x", max_new_tokens=len(tokens)))
        assert pieces == ["a", "\ufffd"]
        assert "".join(pieces) == tokenizer.decode(tokens)

    def test_broken_bytes_do_not_block_what_follows(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        with Script(model, b"\xe2ab"):
            assert "".join(generate(model, tokenizer, "x", max_new_tokens=3)) == "\ufffdab"


class TestAnyTokenizer:
    """What is shown while it is written is what the tokenizer decodes."""

    WORDS = ("[UNK]", "hello", "##ing", "play", "world", "##s", ",")
    PIECES = ("<unk>", "\u2581hello", "\u2581world", "\u2581", *"abcdefghijklmnopqrstuvwxyz")

    def word_pieces(self) -> Tokenizer:
        backend = tokenizers.Tokenizer(
            models.WordPiece({word: i for i, word in enumerate(self.WORDS)}, unk_token="[UNK]")
        )
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        return Tokenizer(backend)

    def metaspace(self) -> Tokenizer:
        backend = tokenizers.Tokenizer(
            models.Unigram([(p, -float(i)) for i, p in enumerate(self.PIECES)], unk_id=0)
        )
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        return Tokenizer(backend)

    @pytest.mark.parametrize("kind", ["word_pieces", "metaspace"])
    def test_pieces_joined_are_the_decoded_tokens(self, model: LanguageModel, kind: str) -> None:
        tokenizer = getattr(self, kind)()
        size = len(self.WORDS if kind == "word_pieces" else self.PIECES)
        draw = random.Random(0)
        for _ in range(20):
            tokens = [draw.randrange(size) for _ in range(8)]
            with Script(model, tokens):
                writing = generate(model, tokenizer, "hello", max_new_tokens=8)
                pieces = list(writing)
            assert "".join(pieces) == tokenizer.decode(tokens) == writing.text and all(pieces)

    def test_stop_strings_are_found_across_pieces(self, model: LanguageModel) -> None:
        tokens = [self.WORDS.index(word) for word in ("play", "##ing", "hello", "world", "##s")]
        with Script(model, tokens):
            writing = generate(model, self.word_pieces(), "hello", max_new_tokens=5, stop=["ng hel"])
            assert "".join(writing) == "playi" and writing.finish == "stop"

    def test_a_completion_goes_on_inside_the_text(self, model: LanguageModel) -> None:
        """The blank in front of a first word is written where a text goes on, and only there."""
        tokenizer, hello = self.metaspace(), self.PIECES.index("\u2581hello")
        with Script(model, [hello]):
            assert "".join(generate(model, tokenizer, "world", max_new_tokens=1)) == "hello"
        with Script(model, [hello]):
            row = CursorRow(
                tokenizer,
                removed=b" he",
                line="world he",
                lines=0,
                max_new_tokens=1,
                sampling=SamplingConfig(),
                stop=(),
            )
            assert row.show(row.draw(torch.zeros(tokenizer.vocab_size)) or 0) == "llo"


def test_numbers_of_numpy_are_whole_numbers(model: LanguageModel, tokenizer: Tokenizer) -> None:
    expected = write(model, tokenizer, max_new_tokens=5, seed=5, top_k=3).text
    assert (
        write(model, tokenizer, max_new_tokens=np.int64(5), seed=np.int64(5), top_k=np.int32(3)).text
        == expected
    )


def test_a_default_device_is_none_of_its_business(model: LanguageModel, tokenizer: Tokenizer) -> None:
    expected = write(model, tokenizer).text
    completed = "".join(complete(model, tokenizer, "def ma", "\n", max_new_tokens=9))
    with torch.device("meta"):
        assert write(model, tokenizer).text == expected
        assert "".join(complete(model, tokenizer, "def ma", "\n", max_new_tokens=9)) == completed


class TestStops:
    def test_a_stop_string_across_tokens(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        with Script(model, b"say STOP and more"):
            writing = generate(model, tokenizer, "x", max_new_tokens=50, stop=["STOP"])
            assert "".join(writing) == "say "
        assert writing.finish == "stop"
        assert bytes(writing.tokens) == b"say STOP"
        assert writing.state is not None and writing.state.position.tolist() == [2 + 8]

    def test_held_text_is_shown_when_the_tokens_run_out(
        self, model: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        with Script(model, b"say STO"):
            writing = generate(model, tokenizer, "x", max_new_tokens=7, stop=["STOP"])
            assert "".join(writing) == "say STO"
        assert writing.finish == "length"

    @pytest.mark.parametrize(("name", "read_it"), [("document", False), ("turn_end", True)])
    def test_special_tokens_end_the_text(
        self, model: LanguageModel, tokenizer: Tokenizer, name: str, read_it: bool
    ) -> None:
        with Script(model, [*b"hi", tokenizer.special_id(name), *b"never"]):
            writing = generate(model, tokenizer, "x", max_new_tokens=50)
            assert "".join(writing) == "hi"
        assert writing.finish == "end"
        assert writing.state is not None and writing.state.position.tolist() == [2 + 2 + read_it]

    def test_least_length(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        """Neither the likeliest end nor a stop string ends a text before `min_tokens`."""
        ends = {tokenizer.special_id(name): 100.0 for name in ("document", "turn_end")}
        assert write(model, tokenizer, logit_bias=ends).finish == "end"
        writing = write(model, tokenizer, logit_bias=ends, min_tokens=7)
        assert writing.finish == "end" and len(writing.tokens) in (7, 8)
        with Script(model, b"aSTOPaSTOP"):
            writing = generate(model, tokenizer, "x", min_tokens=5, stop=["STOP"])
            assert "".join(writing) == "aSTOPa"
        with pytest.raises(
            ValueError, match="min_tokens=5 is not possible: at most max_new_tokens=4 are written"
        ):
            generate(model, tokenizer, "x", min_tokens=5, max_new_tokens=4)


def test_a_model_whose_numbers_broke(tokenizer: Tokenizer) -> None:
    model = LanguageModel(ModelConfig.preset("tiny", n_layers=1, d_model=8, vocab_size=tokenizer.vocab_size))
    torch.nn.init.constant_(model.norm.weight, float("nan"))
    for temperature in (0.0, 0.8):
        with pytest.raises(ValueError, match="output is not finite"):
            list(generate(model, tokenizer, "x", temperature=temperature))
        logits = torch.zeros(model.config.vocab_size).index_fill(0, torch.tensor([5]), float("inf"))
        with pytest.raises(NotFiniteError):
            list(generate(model, tokenizer, state=model.initial_state(1), next_logits=logits))


def test_whole_numbers_of_numpy(model: LanguageModel, tokenizer: Tokenizer) -> None:
    usual = write(model, tokenizer, max_new_tokens=3, seed=5, top_k=5)
    numpy = write(model, tokenizer, max_new_tokens=np.int64(3), seed=np.int64(5), top_k=np.int32(5))
    assert numpy.text == usual.text and len(numpy.tokens) == 3


def test_training_mode_and_gradients_are_left_as_they_were(
    model: LanguageModel, tokenizer: Tokenizer
) -> None:
    """Also between pieces, and when the iteration is given up."""
    model.train()
    try:
        writing = generate(model, tokenizer, "x", max_new_tokens=2, seed=0)
        next(writing)
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert model.training and all(block.training for block in model.blocks)
    finally:
        model.eval()


def test_dropout_is_off(tokenizer: Tokenizer) -> None:
    config = ModelConfig.preset("tiny", n_layers=1, d_model=8, vocab_size=tokenizer.vocab_size, dropout=0.9)
    model = LanguageModel(config).train()
    first, _ = read_row(model, [65, 66, 67], None)
    torch.testing.assert_close(read_row(model, [65, 66, 67], None)[0], first)


def test_a_prompt_of_ids_is_taken_as_it_is(model: LanguageModel, tokenizer: Tokenizer) -> None:
    ids = [tokenizer.special_id("document"), *tokenizer.encode("once")]
    by_ids = generate(model, tokenizer, ids, max_new_tokens=20, temperature=0)
    assert "".join(by_ids) == write(model, tokenizer, "once", max_new_tokens=20, temperature=0).text
    assert by_ids.prompt_tokens == 5


def test_an_empty_prompt_begins_a_document(model: LanguageModel, tokenizer: Tokenizer) -> None:
    assert write(model, tokenizer, "").prompt_tokens == 1


class TestRefusals:
    """All at the call, before anything is read."""

    def test_settings(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        for options in (
            {"max_new_tokens": -1},
            {"max_new_tokens": 2.5},
            {"temperature": -1.0},
            {"stop": [""]},
            {"stop": [1]},
            {"stop": "text"},
            {"next_logits": torch.zeros(3)},
        ):
            with pytest.raises(ValueError, match=r"give|leave"):
                generate(model, tokenizer, "x", **options)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("prompt", "sentence"),
        [
            (b"text", "prompt is bytes"),
            (["text"], "prompt is list"),
            ([1, 265], "token 265"),
            ([-1], "token -1"),
        ],
    )
    def test_a_prompt_that_is_no_text(
        self, model: LanguageModel, tokenizer: Tokenizer, prompt: object, sentence: str
    ) -> None:
        with pytest.raises(ValueError, match=sentence):
            generate(model, tokenizer, prompt)  # type: ignore[arg-type]

    def test_unknown_keywords(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        for write in (generate, complete):
            with pytest.raises(TypeError, match="takes no 'max_tokens': did you mean 'max_new_tokens'"):
                write(model, tokenizer, "x", max_tokens=3)  # type: ignore[operator]

    @pytest.mark.parametrize("prompt", [5, None, b"x", [1.5], ["x"]])
    def test_a_prompt_is_text_or_ids(
        self, model: LanguageModel, tokenizer: Tokenizer, prompt: object
    ) -> None:
        with pytest.raises(ValueError, match="give text, or a list of token ids"):
            generate(model, tokenizer, prompt)  # type: ignore[arg-type]

    def test_no_tokenizer(self, model: LanguageModel) -> None:
        with pytest.raises(ValueError, match="tokenizer is None"):
            generate(model, None, "x")  # type: ignore[arg-type]

    def test_nothing_to_go_on_from(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        with pytest.raises(ValueError, match="prompt is empty"):
            generate(model, tokenizer, "", state=model.initial_state(batch_size=1))
        with pytest.raises(ValueError, match="prompt is empty"):
            generate(model, tokenizer, [])

    def test_a_state_of_two_rows(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        with pytest.raises(ValueError, match="state has 2 rows"):
            generate(model, tokenizer, "x", state=model.initial_state(batch_size=2))

    def test_a_tokenizer_larger_than_the_model(self, tokenizer: Tokenizer) -> None:
        small = LanguageModel(ModelConfig.preset("tiny", n_layers=1, d_model=8, vocab_size=10))
        with pytest.raises(ValueError, match="tokenizer has 265 tokens, the model only 10"):
            generate(small, tokenizer, "x")


def test_read_gives_the_last_logits(model: LanguageModel) -> None:
    logits, state = read_row(model, [65, 66, 67], None)
    with torch.no_grad():
        expected, _ = model(torch.tensor([[65, 66, 67]]))
    torch.testing.assert_close(logits, expected[0, -1])
    assert state.position.tolist() == [3]
