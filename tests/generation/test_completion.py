"""Completion at a cursor: what is read, in which form, how a word goes on, where the text ends."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from rmat.data.documents import code_document, encode_documents
from rmat.data.fim import rearrange
from rmat.data.tokenizer import Tokenizer, train_bpe
from rmat.generation.completion import Completion, complete, read_context
from rmat.generation.cursor import CursorMatcher, CursorRow, block_end, cursor_prompt
from rmat.generation.sampling import SamplingConfig
from rmat.generation.stream import generate
from rmat.model import LanguageModel

FILES = [("a.py", "x = 1\n"), ("p/b.py", "def f():\n    return 2\n")]
CODE = "def main(argument):\n    value = argument.main\n    return value\n"


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_bpe([CODE * 20, "é ü main\n" * 20], 330)


def special(tokenizer: Tokenizer, *names: str) -> list[int]:
    return [tokenizer.special_id(name) for name in names]


def finished(completion: Completion) -> Completion:
    assert "".join(completion) == completion.text
    return completion


class TestPrompt:
    @pytest.mark.parametrize("cuts", [(3, 9), (0, 5), (10, 25), (7, 7)])
    def test_it_has_the_form_of_training(self, tokenizer: Tokenizer, cuts: tuple[int, int]) -> None:
        class Draw:
            def integers(self, *bounds: int, **options: object) -> np.ndarray:
                return np.array(cuts)

        text = "one = 1\ntwo = 2\nthree = 3\n"
        (document,) = encode_documents(tokenizer, [code_document("n.py", text)])
        trained = rearrange(document.tokens, document.n_header, tokenizer, Draw()).tolist()  # type: ignore[arg-type]
        prefix, middle, suffix = text[: cuts[0]], text[cuts[0] : cuts[1]], text[cuts[1] :]
        prompt = cursor_prompt(tokenizer, prefix, suffix, file_name="n.py", mode="fim")
        assert special(tokenizer, "document") + prompt.ids + tokenizer.encode(middle) == trained

    def test_plain_leaves_the_suffix_out(self, tokenizer: Tokenizer) -> None:
        header = [*special(tokenizer, "file_name"), *b"n.py\n"]
        assert cursor_prompt(tokenizer, "x =", " 2", file_name="n.py", mode="plain").ids == [*header, *b"x ="]
        assert cursor_prompt(tokenizer, "x =").ids == list(b"x =")

    @pytest.mark.parametrize("suffix", ["", " \n\n", "\nx"])
    def test_auto_takes_what_measures_better(self, tokenizer: Tokenizer, suffix: str) -> None:
        """Fill-in-the-middle wrote worse lines than the prefix alone: docs/results/README.md."""
        found = cursor_prompt(tokenizer, "x =", suffix)
        assert found == cursor_prompt(tokenizer, "x =", suffix, mode="plain") and found.mode == "plain"
        assert cursor_prompt(tokenizer, "x =", suffix, mode="fim").mode == "fim"

    def test_unknown_modes_are_refused(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(ValueError, match="mode is 'infill': choose auto, fim or plain"):
            cursor_prompt(tokenizer, "x", mode="infill")  # type: ignore[arg-type]


class TestHealing:
    @pytest.mark.parametrize(
        "prefix", ["def ma", "def main(argument):\n    ", "value = é", "", "x\n\n", "def "]
    )
    def test_prompt_and_what_is_taken_off_are_the_prefix(self, words: Tokenizer, prefix: str) -> None:
        prompt = cursor_prompt(words, prefix)
        assert words.decode_bytes(prompt.ids) + prompt.removed == prefix.encode()
        prompt.removed.decode()

    def row(self, words: Tokenizer, removed: bytes) -> CursorRow:
        return CursorRow(
            words,
            removed=removed,
            line="",
            lines=0,
            max_new_tokens=9,
            sampling=SamplingConfig(temperature=0.0),
            stop=(),
        )

    def test_the_word_goes_on(self, words: Tokenizer) -> None:
        (main,) = words.encode(" main")
        prompt = cursor_prompt(words, "def ma")
        assert prompt.removed and main not in prompt.ids
        row = self.row(words, b" ma")
        logits = torch.zeros(words.vocab_size)
        logits[words.encode("x")[0]] = 9  # likelier, but it disagrees
        logits[main] = 5
        assert row.draw(logits) == main
        assert row.show(main) == "in", "what stands before the cursor is not shown again"
        assert row.draw(logits) == words.encode("x")[0], "nothing is left to agree with"

    def test_it_may_take_several_tokens(self, words: Tokenizer) -> None:
        row, wanted = self.row(words, b" ma"), [words.encode(piece)[0] for piece in (" ", "m", "a", "x")]
        shown = ""
        for token in wanted:
            logits = torch.zeros(words.vocab_size)
            logits[token] = 1
            assert row.draw(logits) == token
            shown += row.show(token)
        assert shown == "x"

    def test_blanks_before_a_word_are_part_of_the_choice(self, words: Tokenizer) -> None:
        """The model knows a newline and three blanks as one token; the fourth blank belongs to the word."""
        prompt = cursor_prompt(words, "def main(argument):\n    ")
        together = words.encode("def main(argument):\n    return")
        assert prompt.ids == together[: len(prompt.ids)]

    def test_bytes_have_nothing_to_heal(self, tokenizer: Tokenizer) -> None:
        assert cursor_prompt(tokenizer, "def ma").removed == b""


class TestComplete:
    def test_without_name_and_suffix_it_is_generation(
        self, model: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        expected = generate(model, tokenizer, "once upon", max_new_tokens=30, temperature=0)
        found = finished(complete(model, tokenizer, "once upon", lines=0, max_new_tokens=30))
        assert found.text == "".join(expected) and found.tokens == expected.tokens
        assert found.finish == "length" and found.state is not None and expected.state is not None
        assert int(found.state.position[0]) == int(expected.state.position[0])

    def test_context_is_the_files_in_one_stream(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        """Read file by file, before or with the completion, or all at once: the same text."""
        ids = special(tokenizer, "document")
        for name, text in FILES:
            ids += [*special(tokenizer, "file_name"), *tokenizer.encode(f"{name}\n{text}")]
        prompt = cursor_prompt(tokenizer, "y = ", "\nz", file_name="c.py").ids
        expected = generate(model, tokenizer, [*ids, *prompt], max_new_tokens=20, temperature=0)
        list(expected)
        options = {"file_name": "c.py", "lines": 0, "max_new_tokens": 20}
        told: list[int] = []
        _, state = read_context(model, tokenizer, FILES, advance=told.append)
        assert sum(told) == sum(len(text) for _, text in FILES)
        for more in ({"context": iter(FILES)}, {"state": state}, {"state": state}):
            found = finished(complete(model, tokenizer, "y = ", "\nz", **options, **more))  # type: ignore[arg-type]
            assert found.tokens == expected.tokens
            assert found.prompt_tokens == len(prompt)

    def test_the_files_line_ends_are_kept(
        self, model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The model reads newlines, as in training; what it writes has the file's own."""

        def written(prefix: str, suffix: str, script: bytes) -> Completion:
            drawn = iter(script)
            monkeypatch.setattr("rmat.generation.sampling.Sampler.draw", lambda sampler, logits: next(drawn))
            options: dict[str, Any] = {"lines": 0, "max_new_tokens": len(script), "mode": "fim"}
            return finished(complete(model, tokenizer, prefix, suffix, **options))

        dos = written("x = 1\r\n", "\r\nz\r\n", b"a\nb\r\n")
        assert dos.text == "a\r\nb\r\n" and dos.newline == "\r\n"
        assert dos.prompt_tokens == len("x = 1\n\nz\n") + 3
        unix = written("x = 1\n", "\n\nz\r\n", b"a\nb\r\n")
        assert unix.text == "a\nb\r\n" and unix.prompt_tokens == len("x = 1\n\n\nz\r\n") + 3

    def test_context_matters(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        alone = finished(complete(model, tokenizer, "y = ", lines=0, max_new_tokens=30))
        behind = finished(complete(model, tokenizer, "y = ", context=FILES, lines=0, max_new_tokens=30))
        assert alone.text != behind.text

    def test_nothing_is_read_for_nothing(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        logits, state = read_context(model, tokenizer, [])
        assert logits is not None and int(state.position[0]) == 1
        assert read_context(model, tokenizer, [], state=state) == (None, state)

    def test_no_new_tokens_reads_all_of_the_prefix(self, model: LanguageModel, words: Tokenizer) -> None:
        wide = LanguageModel(
            model.config.__class__(**{**model.config.to_dict(), "vocab_size": words.vocab_size})
        )
        found = finished(complete(wide, words, "def ma", max_new_tokens=0))
        assert found.text == "" and found.state is not None
        assert int(found.state.position[0]) == 1 + len(words.encode("def ma"))

    def test_the_next_file_ends_this_one(
        self, model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn = iter([*b"ab", tokenizer.special_id("file_name"), *b"cd"])
        monkeypatch.setattr("rmat.generation.sampling.Sampler.draw", lambda sampler, logits: next(drawn))
        found = finished(complete(model, tokenizer, "x", lines=0))
        assert (found.text, found.finish) == ("ab", "end")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lines": -1}, "lines=-1 is not possible"),
            ({"max_new_tokens": -1}, "max_new_tokens=-1"),
            ({"temperature": -1}, "temperature=-1"),
            ({"mode": "middle"}, "mode is 'middle'"),
            ({"prefix": ""}, "the prompt is empty"),
            ({"prefix": None}, "prefix=None is not possible: give text"),
            ({"prefix": b"x"}, "prefix=b'x' is not possible: give text"),
            ({"suffix": 5}, "suffix=5 is not possible: give text"),
            ({"file_name": 5}, "file_name=5 is not possible: give text"),
            ({"stop": None}, "stop is None: give a list of strings"),
            ({"state": 5}, "state is int"),
            ({"stop": ("",)}, "stop holds an empty string"),
        ],
    )
    def test_mistakes_are_told_at_the_call(
        self, model: LanguageModel, tokenizer: Tokenizer, options: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            complete(model, tokenizer, **{"prefix": "x", **options})  # type: ignore[arg-type]


STATEMENT = "    x = f("
BODY = "\n    a = 1\n\n    if a:\n        b = 2\n"


class TestEnd:
    @pytest.mark.parametrize(
        ("line", "text", "kept"),
        [
            (STATEMENT, "1)\n    y = 2\n", "1)"),
            (STATEMENT, "1,\n        2)\n    y", "1,\n        2)"),
            (STATEMENT, "\n        1,\n    )\n    y", "\n        1,\n    )"),
            ("    ", "    a = 1\n    b", "    a = 1"),
            ("x = [", "1,\n  2\n]\ny", "1,\n  2\n]"),
            ("def f():", f"{BODY}\ndef g():", BODY.rstrip("\n")),
            ("    ", "a = 1\n    b = 2\n\n\nc = 3", "a = 1\n    b = 2"),
            ("    ", "a = 1\n  ", None),
            ("", "a = 1\n\ndef f():\n    pass\nb = 2\n", None),
            ("\t", "a\n\tb\nc", "a\n\tb"),
            ("x = 1", "\ny = 2\nz = 3\n", None),
            ("x", " \n\n", None),
            ("if x:  ", "y\nz", "y"),
        ],
    )
    def test_a_statement_or_a_block(self, line: str, text: str, kept: str | None) -> None:
        end = block_end(line, text)
        assert (None if end is None else text[:end]) == (None if kept == text else kept)

    def written(self, pieces: Sequence[str], line: str = "", lines: int | None = None, skip: int = 0) -> str:
        matcher, text = CursorMatcher([], skip=skip, line=line, lines=lines), ""
        for piece in pieces:
            shown, stopped = matcher.push(piece)
            text += shown
            if stopped:
                return text + "|"
        return text + matcher.flush()

    @pytest.mark.parametrize("size", [1, 2, 5, 100])
    def test_however_the_pieces_are_cut(self, size: int) -> None:
        def cut(text: str) -> list[str]:
            return [text[start : start + size] for start in range(0, len(text), size)]

        text = f"{BODY}\n\ndef g():\n    pass\n"
        assert self.written(cut(text), "def f():") == BODY.rstrip("\n") + "|"
        assert self.written(cut(BODY + "\n\n"), "def f():") == BODY + "\n\n", "nothing is lost at the end"
        assert self.written(cut(text), lines=1) == "\n    a = 1|"
        assert self.written(cut(text), lines=2) == "\n    a = 1\n|"
        assert self.written(cut(text), lines=0) == text
        assert self.written(cut("main\n" + text), lines=1, skip=2) == "in|"
