"""Lines of held-out code: what is asked never stands in the prompt, answers are those of `complete`, scores
are right."""

import dataclasses
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from rmat.data.documents import Document, code_document, text_document
from rmat.data.sources import split_documents
from rmat.data.store import TokenStore
from rmat.data.tokenizer import load_tokenizer
from rmat.evaluation.completion import (
    CompletionResult,
    Condition,
    completion,
    conditions_of,
    context_ids,
    donor_of,
    is_right,
    prompts_of,
    similarity,
    tokens_to_read,
)
from rmat.evaluation.next_line import LEAST_PREFIX, CodeFile, Line, choose_files, choose_lines
from rmat.generation.completion import complete
from rmat.machine import spread
from rmat.model import LanguageModel
from tests.makers.stores import tiny_model
from tests.makers.texts import make_store
from tests.makers.together import together

TOKENIZER = load_tokenizer("bytes")
CONDITIONS = [
    Condition(p, c, m) for p in ("prefix", "fim") for c in (False, True) for m in ("on", "zeroed", "shuffled")
]  # type: ignore[arg-type]


def unique(name: str, count: int = 40) -> str:
    """Text of a file no line of which stands anywhere else."""
    return "".join(f"    {name}_{n} = compute({n} + {n * n})\n" for n in range(count))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenStore, TokenStore]:
    """A train and a test split."""
    folder = tmp_path_factory.mktemp("stores")
    train: list[Document | str] = [
        code_document("p/a.py", "A" * 300 + "\n"),
        code_document("p/b.py", "B" * 200 + "\n"),
        code_document("q/c.py", "C\n"),
        code_document("q/kept.py", "another source has a file of this name\n"),
        text_document("p/readme", "no code"),
    ]
    test: list[Document | str] = [
        code_document("p/held.py", "import b\n" + unique("held")),
        code_document("q/kept.py", unique("kept")),
        code_document("p/short.py", "x = 1\n"),
        text_document("p/text", unique("text")),
    ]
    return make_store(folder / "train", train), make_store(folder / "test", test)


@pytest.fixture(scope="module")
def files(stores: tuple[TokenStore, TokenStore]) -> list[CodeFile]:
    return choose_files(*stores, TOKENIZER, samples=6, per_file=3, max_prompt_bytes=250)


def model_of(variant: str = "recommended", **fields: object) -> LanguageModel:
    return tiny_model(variant, vocab_size=TOKENIZER.vocab_size, **fields)


def completed(files: list[CodeFile]) -> tuple[CompletionResult, int]:
    """The result, and the tokens that this process has read for it."""
    read: list[int] = []
    with spread():
        found = completion(model_of(), TOKENIZER, files, max_new_tokens=4, batch_size=2, advance=read.append)
    return found, sum(read)


@pytest.mark.slow
def test_processes_share_the_lines(files: list[CodeFile]) -> None:
    alone, n_tokens = completed(files)
    both = together(2, completed, files)
    assert [found.to_dict() for found, _ in both] == [alone.to_dict()] * 2
    assert sum(read for _, read in both) == n_tokens and min(read for _, read in both) > 0


class TestScores:
    @pytest.mark.parametrize(
        ("answer", "target", "right"),
        [
            ("    return x", "    return x", True),
            ("    return x  ", "    return x\t", True),
            ("  return x", "    return x", False),
            ("    return X", "    return x", False),
            ("    return x + 1", "    return x", False),
            ("", "    return x", False),
        ],
    )
    def test_exact_but_for_blanks_at_the_end(self, answer: str, target: str, right: bool) -> None:
        assert is_right(answer, target) is right

    @pytest.mark.parametrize(
        ("answer", "target", "expected"),
        [
            ("abcd", "abcd  ", 1.0),
            ("", " ", 1.0),
            ("abcd", "", 0.0),
            ("abcd", "wxyz", 0.0),
            ("ab", "abcd", 4 / 6),
            ("axbycz", "abc", 6 / 9),
            ("abc", "cba", 2 / 6),
        ],
    )
    def test_edit_similarity(self, answer: str, target: str, expected: float) -> None:
        assert similarity(answer, target) == similarity(target, answer) == pytest.approx(expected)


class TestChoice:
    def lines(self, text: str, count: int, seed: int = 0, most: int = 10**6) -> tuple[Line, ...]:
        return choose_lines(text, count, max_prompt_bytes=most, random=np.random.default_rng(seed))

    def test_a_line_and_what_stands_around_it_are_the_file(self) -> None:
        text = "# é\n" * 60 + unique("x").replace("\n", "\r\n", 20) + "\x0c\n\n  # end\n  \nlast = 1\n\n"
        found = self.lines(text, 12)
        assert len(found) == 12
        for line in found:
            assert line.prefix + line.target + line.suffix == text
            assert line.prefix.count("\n") == line.number - 1 and line.prefix.endswith("\n")
            assert line.suffix.startswith(("\n", "\r\n")) and line.suffix.strip()
            assert line.target.strip() and not line.target.lstrip().startswith("#")
            assert len(line.prefix) >= LEAST_PREFIX

    def test_they_are_spread_and_depend_on_the_seed_only(self) -> None:
        text = unique("x", 400)
        numbers = [line.number for line in self.lines(text, 4)]
        assert all(low < number <= low + 110 for number, low in zip(numbers, (0, 100, 200, 300), strict=True))
        assert self.lines(text, 4) == self.lines(text, 4) != self.lines(text, 4, seed=1)

    def test_prompts_are_whole_lines_within_the_limit(self) -> None:
        text = unique("é", 100)
        for line in self.lines(text, 9, most=200):
            assert (
                line.prefix in text and line.suffix in text and line.target not in line.prefix + line.suffix
            )
            assert 100 < len(line.prefix.encode()) <= 200 and len(line.suffix.encode()) <= 200
            assert line.prefix.startswith("    é_") and line.suffix.startswith("\n    é_")
            assert f"{line.prefix}{line.target}" in text

    def test_a_file_with_nothing_to_ask_for(self) -> None:
        assert self.lines("# comment\n" * 100 + "\n", 3) == () == self.lines("x = 1\n", 3)

    def test_context_is_training_files_of_the_folder(self, files: list[CodeFile]) -> None:
        found = {file.name: file for file in files}
        assert set(found) == {"p/held.py", "q/kept.py"}
        assert [name for name, _ in found["p/held.py"].context] == ["p/a.py", "p/b.py"], "b is imported"
        assert found["q/kept.py"].context == (("q/c.py", "C\n"),)
        assert [len(file.lines) for file in files] == [3, 3]

    def test_limits(self, stores: tuple[TokenStore, TokenStore]) -> None:
        options = {"samples": 4, "per_file": 3, "max_context_bytes": 250}
        found = choose_files(*stores, TOKENIZER, **options)
        assert [len(file.lines) for file in found] == [3, 1]
        assert {name for file in found for name, _ in file.context} <= {"p/b.py", "q/c.py"}
        assert found == choose_files(*stores, TOKENIZER, **options)

    def test_mistakes(self, stores: tuple[TokenStore, TokenStore]) -> None:
        with pytest.raises(ValueError, match="samples=0"):
            choose_files(*stores, TOKENIZER, samples=0)
        with pytest.raises(ValueError, match="max_context_bytes=-1"):
            choose_files(*stores, TOKENIZER, samples=1, max_context_bytes=-1)
        with pytest.raises(ValueError, match="no held-out file of code"):
            choose_files(stores[1], stores[0], TOKENIZER, samples=1)


class TestNothingLeaks:
    def test_the_line_never_stands_in_what_is_read_before_it(self, files: list[CodeFile]) -> None:
        for file in files:
            for condition in CONDITIONS:
                before = TOKENIZER.decode(context_ids(TOKENIZER, file, condition.context))
                for line, prompt in zip(file.lines, prompts_of(TOKENIZER, [file], condition), strict=True):
                    read = before + TOKENIZER.decode(prompt.ids)
                    assert line.target not in read and line.target.strip() not in read
                    assert line.prefix in read, "the lines before it do"
                    assert (line.suffix in read) is (condition.prompt == "fim")
                    assert (file.context[0][1] in read) is condition.context

    def test_a_copy_of_a_training_file_is_not_asked_for(self, stores: tuple[TokenStore, TokenStore]) -> None:
        train, _ = stores
        both = [code_document("p/copy.py", unique("held", 90)), code_document("p/own.py", unique("own"))]
        with TemporaryDirectory() as folder:
            held = make_store(Path(folder) / "test", both)
            known = make_store(Path(folder) / "train", [code_document("z.py", unique("held", 90))])
            assert {file.name for file in choose_files(known, held, TOKENIZER, samples=9)} == {"p/own.py"}
            assert len(choose_files(train, held, TOKENIZER, samples=90, per_file=9)) == 2

    def test_held_out_files_of_the_standard_library_are_not_in_training(self) -> None:
        names: dict[str, set[str]] = {"train": set(), "valid": set(), "test": set()}
        texts: dict[str, set[str]] = {"train": set(), "valid": set(), "test": set()}
        for split, document in split_documents("python-stdlib"):
            names[split].add(document.name)
            texts[split].add(str(document.parts[-1]))
        assert len(names["test"]) > 10
        assert not names["test"] & (names["train"] | names["valid"])
        # A line of comment may be a whole file, under two names.
        assert all(len(text) < LEAST_PREFIX for text in texts["test"] & texts["train"])


@pytest.mark.slow  # reads and completes the same lines in many ways
class TestAnswers:
    def test_they_are_those_of_complete(self, files: list[CodeFile]) -> None:
        model = model_of()
        found = completion(model, TOKENIZER, files, max_new_tokens=12, batch_size=4)
        for condition in CONDITIONS:
            if condition.memory != "on":
                continue
            expected = []
            for file in files:
                for line in file.lines:
                    writing = complete(
                        model,
                        TOKENIZER,
                        line.prefix,
                        line.suffix,
                        file_name=file.name,
                        context=file.context if condition.context else (),
                        mode="plain" if condition.prompt == "prefix" else "fim",
                        lines=1,
                        max_new_tokens=12,
                    )
                    expected.append("".join(writing).partition("\n")[0])
            assert list(found.answers[condition]) == expected

    def test_batches_change_nothing(self, files: list[CodeFile], monkeypatch: pytest.MonkeyPatch) -> None:
        one = completion(model_of(), TOKENIZER, files, max_new_tokens=8, batch_size=1)
        monkeypatch.setattr("rmat.generation.reader.PIECE_TOKENS", 100)
        other = completion(model_of(), TOKENIZER, files, max_new_tokens=8, batch_size=32)
        assert one.answers == other.answers and one.tokens == other.tokens

    def test_only_a_memory_knows_the_context(self, files: list[CodeFile]) -> None:
        """What is far behind reaches an answer through the memory alone; a zeroed one lets nothing
        through, a shuffled one what was read before another file."""
        model = model_of(gate="none", n_slots=1024)  # every token is written and none is lost

        def answers(*letters: str) -> dict[Condition, tuple[str, ...]]:
            contexts = [((f"{letter}.py", letter * 200),) for letter in letters]
            changed = [
                dataclasses.replace(file, context=context)
                for file, context in zip(files, contexts, strict=True)
            ]
            return completion(model, TOKENIZER, changed, max_new_tokens=4).answers

        one, other = answers("y", "x"), answers("z", "x")
        differ = {c: [one[c][:3] != other[c][:3], one[c][3:] != other[c][3:]] for c in CONDITIONS}
        for prompt in ("prefix", "fim"):
            assert differ.pop(Condition(prompt, True, "on")) == [True, False]  # type: ignore[arg-type]
            assert differ.pop(Condition(prompt, True, "shuffled")) == [False, True]  # type: ignore[arg-type]
        assert len(differ) == 8 and all(value == [False, False] for value in differ.values())

    def test_a_donor_shares_no_context_where_that_can_be(self, files: list[CodeFile]) -> None:
        def file(name: str, *context: str) -> CodeFile:
            return CodeFile(name=name, lines=files[0].lines, context=tuple((one, "text") for one in context))

        some = [file("a", "x", "y"), file("b", "y"), file("c", "z"), file("d")]
        assert [donor_of(some, place).name for place in range(4)] == ["c", "c", "d", "a"]
        assert donor_of([file("a", "x"), file("b", "x")], 0).name == "b", "else the next"

    def test_without_a_memory_it_is_asked_once(self, files: list[CodeFile]) -> None:
        found = completion(model_of("local"), TOKENIZER, files[:1], max_new_tokens=2)
        assert {condition.memory for condition in found.answers} == {"on"} and len(found.answers) == 4
        assert {c.memory for c in conditions_of(model_of(), files[:1])} == {"on", "zeroed"}, "no other file"
        assert conditions_of(model_of(), files) == CONDITIONS

    def test_progress_and_mode(self, files: list[CodeFile]) -> None:
        model, told = model_of().train(), list[int]()
        found = completion(model, TOKENIZER, files, max_new_tokens=1, advance=told.append)
        written = len(CONDITIONS) * sum(len(file.lines) for file in files)
        planned = tokens_to_read(model, TOKENIZER, files)
        assert planned <= sum(told) <= planned + written and model.training
        assert found.state_bytes == model.initial_state(batch_size=1).nbytes

    def test_mistakes(self, files: list[CodeFile]) -> None:
        with pytest.raises(ValueError, match="max_new_tokens=0"):
            completion(model_of(), TOKENIZER, files, max_new_tokens=0)
        with pytest.raises(ValueError, match="0 files"):
            completion(model_of(), TOKENIZER, [])
        with pytest.raises(ValueError, match="vocabulary mismatch"):
            completion(tiny_model(), TOKENIZER, files)


def made(right: dict[Condition, list[int]], per_file: int = 2) -> CompletionResult:
    """A result whose lines are right or wrong as told."""
    count = len(next(iter(right.values())))
    lines = [Line(number=n + 1, prefix="", target="line", suffix="") for n in range(count)]
    return CompletionResult(
        files=tuple(
            CodeFile(name=f"{start}.py", lines=tuple(lines[start : start + per_file]), context=(("x", "yy"),))
            for start in range(0, count, per_file)
        ),
        answers={
            condition: tuple("line " if hit else "wrong" for hit in hits) for condition, hits in right.items()
        },
        tokens=dict.fromkeys(right, 10 * count),
        state_bytes=7,
        seed=0,
    )


class TestResult:
    on, off = Condition("fim", True, "on"), Condition("fim", True, "zeroed")

    def test_shares_and_paired_differences(self) -> None:
        found = made({self.on: [1, 1, 1, 0, 0, 1], self.off: [0, 1, 0, 0, 0, 0]})
        told = json.loads(json.dumps(found.to_dict()))
        assert [cell["accuracy"] for cell in told["cells"]] == pytest.approx([4 / 6, 1 / 6])
        (gap,) = told["differences"]
        assert gap["aspect"] == "memory" and gap["accuracy"] == pytest.approx(0.5)
        assert gap["low"] == pytest.approx(0.5) == gap["high"], "in every file one line more"
        assert gap["similarity"] == pytest.approx(0.5 * (1 - similarity("wrong", "line")))
        assert (told["samples"], told["files"], told["state_bytes"]) == (6, 3, 7)
        assert told["context_bytes"] == 2 and told["cells"][0]["length"] == 10

    def test_every_aspect_has_its_differences(self) -> None:
        gaps = made({condition: [1, 0] for condition in CONDITIONS}).to_dict()["differences"]
        assert sorted(gap["aspect"] for gap in gaps) == ["context"] * 6 + ["memory"] * 8 + ["prompt"] * 6
        assert {gap["minus"].rpartition(" ")[2] for gap in gaps if gap["aspect"] == "memory"} == {
            "zeroed",
            "shuffled",
        }
        assert all(gap["accuracy"] == 0 for gap in gaps)

    def test_no_share_is_certain(self) -> None:
        cell = made({self.on: [0] * 20}).accuracy(self.on)
        assert cell.value == 0 == cell.low and cell.high == pytest.approx(0.161, abs=0.001)

    def test_lines_of_one_file_count_less(self) -> None:
        """Ten files, right throughout or wrong throughout, are ten samples rather than a hundred."""
        together = made({self.on: [n // 10 % 2 for n in range(100)]}, per_file=10).accuracy(self.on)
        assert together.high is not None and together.low is not None
        assert together.high - together.low > 0.5
