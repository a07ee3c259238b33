import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rmat.data.tokenizer import load_tokenizer
from rmat.model import LanguageModel, ModelConfig, StreamState
from rmat.storage import read_config
from tests.cli.conftest import Rmat, in_new_process
from tests.makers.engines import small_model

SHORT = ("--max-new-tokens", "12", "--seed", "5")
GREEDY = ("--temperature", "0", "--json")


def test_text_goes_to_standard_output_exactly(rmat: Rmat, run_folder: Path) -> None:
    outcome = rmat("generate", run_folder, "the text", *SHORT)
    assert outcome.status == 0
    assert outcome.out == rmat("generate", run_folder, "the text", *SHORT, "--json").json["text"]


def test_same_seed_same_text(rmat: Rmat, run_folder: Path) -> None:
    def text(*options: str) -> str:
        return str(
            rmat("generate", run_folder, "the text", "--max-new-tokens", "30", "--json", *options).json[
                "text"
            ]
        )

    assert text("--seed", "1") == text("--seed", "1") != text("--seed", "2")


def test_the_prompt_may_come_from_three_places(run_folder: Path, tmp_path: Path, rmat: Rmat) -> None:
    (tmp_path / "prompt.txt").write_text("the tëxt\n")
    options = ["--max-new-tokens", "12", *GREEDY]
    expected = rmat("generate", run_folder, "the tëxt\n", *options).json
    assert expected["prompt_tokens"] == 1 + len("the tëxt\n".encode())
    from_file = rmat("generate", run_folder, "--file", tmp_path / "prompt.txt", *options).json
    piped = in_new_process(["generate", run_folder, *options], cwd=tmp_path, stdin="the tëxt\n".encode()).json
    assert from_file["text"] == piped["text"] == expected["text"]


def test_the_prompt_may_stand_anywhere(rmat: Rmat, run_folder: Path) -> None:
    """An optional positional argument of argparse is only found next to the one before it."""
    expected = rmat("generate", run_folder, "the text", *SHORT).out
    assert rmat("generate", run_folder, *SHORT, "the text").out == expected
    assert rmat("generate", *SHORT, run_folder, "the text").out == expected
    assert rmat("generate", run_folder, *SHORT, "--", "the text").out == expected


@pytest.mark.parametrize("words", [["--", "--json"], ["- a list"]])
def test_a_prompt_may_begin_with_a_dash(rmat: Rmat, run_folder: Path, words: list[str]) -> None:
    result = rmat("generate", run_folder, "--max-new-tokens", "0", "--json", *words).json
    assert result["prompt_tokens"] == 1 + len(words[-1])


def test_a_long_prompt_leaves_a_state_of_the_same_size(rmat: Rmat, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("the text goes on. " * 3000)
    short = rmat("generate", run_folder, "the", *SHORT, "--json").json
    long = rmat("generate", run_folder, "--file", tmp_path / "long.txt", *SHORT, "--json").json
    assert long["prompt_tokens"] == 54_001 and long["state_bytes"] == short["state_bytes"]


def test_two_parts_through_a_state_file_are_one_text(rmat: Rmat, run_folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "place.safetensors"
    whole = rmat("generate", run_folder, "the text", "--max-new-tokens", "20", *GREEDY).json
    first = rmat(
        "generate", run_folder, "the text", "--max-new-tokens", "8", "--state-out", place, *GREEDY
    ).json
    second = rmat("generate", run_folder, "", "--max-new-tokens", "12", "--state-in", place, *GREEDY).json
    assert first["text"] + second["text"] == whole["text"]


def test_two_prompts_through_a_state_file_are_one_prompt(
    rmat: Rmat, run_folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place.safetensors"
    whole = rmat("generate", run_folder, "the text says", "--max-new-tokens", "20", *GREEDY).json
    rmat("generate", run_folder, "the text", "--max-new-tokens", "0", "--state-out", place)
    second = rmat(
        "generate", run_folder, " says", "--max-new-tokens", "20", "--state-in", place, *GREEDY
    ).json
    assert second["text"] == whole["text"]
    assert StreamState.load(place, read_config(run_folder / "model")).position.tolist() == [
        1 + len("the text")
    ]


def test_stop_strings(rmat: Rmat, run_folder: Path) -> None:
    text = str(rmat("generate", run_folder, "the text", "--max-new-tokens", "20", *GREEDY).json["text"])
    stop = text[4:6]
    found = rmat("generate", run_folder, "the text", "--max-new-tokens", "20", "--stop", stop, *GREEDY).json
    assert found["text"] == text[: text.index(stop)] and found["finish"] == "stop"


def test_json_by_a_schema(rmat: Rmat, run_folder: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": [{"a": [1, 2]}, {"b": null}]}')
    text = rmat("generate", run_folder, "the text", "--json-schema", schema, "--seed", "1").out
    assert json.loads(text) in ({"a": [1, 2]}, {"b": None})
    schema.write_text("{")
    assert "schema.json is no JSON" in rmat("generate", run_folder, "x", "--json-schema", schema).refused()


def test_a_reader_that_leaves_ends_it_quietly(endless: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "rmat", "generate", endless, "x", "--max-new-tokens", "4000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={**os.environ},
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere", "x"], "no model at nowhere"),
        (["MODEL", "x", "--temperature", "-1"], "temperature=-1.0"),
        (["MODEL", "x", "--temperature", "warm"], "--temperature"),
        (["MODEL", "x", "--top-p", "2"], "top_p=2.0"),
        (["MODEL", "x", "--top_p", "0.5"], "did you mean '--top-p'"),
        (["MODEL", "x", "--max-new-tokens", "-3"], "max_new_tokens=-3"),
        (["MODEL", "x", "--stop", ""], "empty string"),
        (["MODEL", "x", "--file", "y"], "given twice"),
        (["MODEL", "--file", "no/such/file"], "no/such/file: No such file"),
        (["MODEL", "--file", "."], "Is a directory"),
        (["MODEL", "x", "--state-in", "no/such/file"], "no/such/file"),
        (["MODEL", "x", "--state-in", "LATIN"], "safetensors"),
        (["MODEL", "x", "--state-out", "no/such/folder/state"], "no/such/folder"),
        (["MODEL", "--file", "LATIN"], "not valid UTF-8 at byte offset 1"),
        (["MODEL", "x", "y"], "one argument too many: 'y'"),
    ],
)
def test_mistakes_are_one_sentence(
    rmat: Rmat, run_folder: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "latin").write_bytes("bé".encode("latin-1"))
    places = {"MODEL": str(run_folder), "LATIN": str(tmp_path / "latin")}
    words = [places.get(word, word) for word in arguments]
    assert (
        sentence
        in rmat(
            "generate", *words, *(() if "--max-new-tokens" in words else ("--max-new-tokens", "0"))
        ).refused()
    )


def test_the_state_of_another_model_is_refused(rmat: Rmat, run_folder: Path, tmp_path: Path) -> None:
    other = LanguageModel(ModelConfig.preset("tiny", n_layers=1, d_model=8, vocab_size=265))
    other.initial_state(batch_size=1).save(tmp_path / "state")
    assert (
        "another configuration"
        in rmat("generate", run_folder, "x", "--state-in", tmp_path / "state").refused()
    )


def test_a_place_that_cannot_be_kept_is_refused_before_writing(rmat: Rmat, run_folder: Path) -> None:
    arguments = ["x", "--state-out", "no/such/folder/state", "--max-new-tokens", "9"]
    assert "no/such/folder" in rmat("generate", run_folder, *arguments).refused()


def test_a_model_without_tokenizer_is_refused(rmat: Rmat, tmp_path: Path) -> None:
    LanguageModel(ModelConfig.preset("tiny", n_layers=1, d_model=8, vocab_size=265)).save(tmp_path)
    assert "without a tokenizer" in rmat("generate", tmp_path, "x").refused()


def test_a_damaged_model_is_refused(rmat: Rmat, tmp_path: Path) -> None:
    model = LanguageModel(ModelConfig.preset("tiny", n_layers=1, d_model=8, vocab_size=265))
    model.save(tmp_path, tokenizer=load_tokenizer("bytes"))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "damaged" in rmat("generate", tmp_path, "x").refused()


@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_numbers_that_are_not_finite_end_it(rmat: Rmat, tmp_path: Path, temperature: str) -> None:
    tokenizer = load_tokenizer("bytes")
    model = small_model("recommended", tokenizer)
    torch.nn.init.constant_(model.norm.weight, float("nan"))
    model.save(tmp_path / "bad", tokenizer=tokenizer)
    (tmp_path / "a.py").write_text("x = 1\n")
    for command in (
        ["generate", tmp_path / "bad", "hello"],
        ["complete", tmp_path / "bad", tmp_path / "a.py"],
    ):
        outcome = rmat(*command, "--temperature", temperature)
        assert outcome.status == 1 and not outcome.out
        assert (
            outcome.err.startswith("rmat: the model's output is not finite")
            and len(outcome.err.splitlines()) == 1
        )


def test_what_is_no_regular_file_is_not_replaced(rmat: Rmat, endless: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "state")
    command = ("generate", endless, "x", *SHORT, "--state-out")
    assert "no regular file" in rmat(*command, tmp_path / "pipe").refused()
    assert "no regular file" in rmat(*command, "/dev/null").refused()
    assert rmat(*command, tmp_path / "link").status == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "state").is_file()
