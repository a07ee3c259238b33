"""`rmat eval mqar | passkey | needle | babilong | facts | dialogue` on models that know nothing: what is
printed, written, refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rmat.data.tokenizer import Tokenizer, byte_tokenizer
from rmat.model import LanguageModel, ModelConfig
from rmat.tasks.babilong import BabilongQuestions
from rmat.tasks.needle import NEEDLE_TASKS, NeedleQuestions
from rmat.tasks.numbered import numbered_tokenizer
from rmat.tasks.passkey import PasskeyQuestions
from tests.cli.conftest import Outcome, Rmat
from tests.makers.sources import write_babi, write_books
from tests.makers.texts import write_jsonl

CELL = {"task", "length", "depth", "samples", "accuracy", "low", "high"}
MEASUREMENTS = ("mqar", "passkey", "needle", "babilong", "facts", "dialogue")


def save(folder: Path, tokenizer: Tokenizer | None, size: int, **fields: Any) -> Path:
    torch.manual_seed(0)
    small = {"d_model": 16, "n_layers": 1, "n_heads": 2, "segment_len": 16, "n_slots": 16, "vocab_size": size}
    LanguageModel(ModelConfig.preset("tiny", **{**small, **fields})).save(folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, a bAbI folder, books and meetings."""
    root = tmp_path_factory.mktemp("tasks")
    text, numbers = byte_tokenizer(), numbered_tokenizer(32)
    save(root / "text", text, text.vocab_size)
    save(root / "numbers", numbers, numbers.vocab_size)
    save(root / "ranks", text, text.vocab_size, memory_position="rank")
    save(root / "mute", None, 40)
    write_babi(root / "babi", "test", 3)
    write_books(root / "books", count=2, sentences=30)
    turns = [{"role": "user", "text": "we meet"}, {"role": "Ann", "text": "the remote is red"}]
    records = [
        {"turns": turns, "queries": [{"query": f"what is {n}?", "answer": "red", "spans": [[1, 1]]}]}
        for n in range(3)
    ]
    write_jsonl(root / "talk.jsonl", records)
    write_jsonl(root / "mute.jsonl", [{"turns": turns}])
    return root


def asked(place: Path, measurement: str) -> list[str | Path]:
    """The shortest question of each kind."""
    return {
        "mqar": ["mqar", place / "numbers", "--vocabulary", "32", "--set", "16,2", "--samples", "5"],
        "passkey": ["passkey", place / "text", "--length", "150", "--samples", "2"],
        "needle": [
            *("needle", place / "text", "--task", "single_1", "--task", "tracking"),
            *("--length", "700", "--haystack", place / "books", "--samples", "2"),
        ],
        "babilong": [
            *("babilong", place / "text", "--facts", place / "babi", "--filler", "noise", "--task", "1"),
            *("--length", "300", "--samples", "2"),
        ],
        "facts": ["facts", place / "text", "--turns", "3", "--turns", "12", "--samples", "2"],
        "dialogue": ["dialogue", place / "text", "--data", place / "talk.jsonl"],
    }[measurement]  # type: ignore[return-value]


def run(rmat: Rmat, place: Path, measurement: str, *more: str | Path) -> Outcome:
    outcome = rmat("eval", *asked(place, measurement), *more)
    assert outcome.status == 0, outcome.err
    return outcome


@pytest.mark.parametrize(
    ("measurement", "cells"),
    [
        ("mqar", [("mqar", 16, None, 5)]),
        ("passkey", [("passkey", 150, depth, 2) for depth in (0.0, 0.5, 1.0)]),
        ("needle", [("single_1", 700, None, 2), ("tracking", 700, None, 2)]),
        ("babilong", [("qa1", 300, None, 2)]),
    ],
)
def test_json_is_one_object_with_a_cell_for_each_question(
    rmat: Rmat, place: Path, measurement: str, cells: list[tuple[Any, ...]]
) -> None:
    found = run(rmat, place, measurement, "--json").json
    assert [(c["task"], c["length"], c["depth"], c["samples"]) for c in found["cells"]] == cells
    for cell in found["cells"]:
        assert cell.keys() >= CELL and 0 <= cell["low"] <= cell["accuracy"] <= cell["high"] <= 1
    assert found["state_bytes"] > 0 and (found["memory"], found["seed"]) == ("on", 0)


def test_json_of_dialogue_has_a_score_for_each_use_of_the_memory(rmat: Rmat, place: Path) -> None:
    found = run(rmat, place, "dialogue", "--json").json
    assert found["modes"] == ["on", "zeroed", "frozen", "shuffled"]
    for mode in found["modes"]:
        assert found[mode]["low"] <= found[mode]["bits_per_byte"] <= found[mode]["high"]
        gap = found[mode]["bits_per_byte"] - found["on"]["bits_per_byte"]
        assert found[mode]["minus_on"]["bits_per_byte"] == pytest.approx(gap, abs=1e-9)
    assert (found["samples"], found["meetings"]) == (3, 3) and found["state_bytes"] > 0
    first = run(rmat, place, "dialogue", "--max-meetings", "1", "--json").json
    assert first["meetings"] == 1 and "shuffled" not in first["modes"]


@pytest.mark.parametrize(
    ("measurement", "words"),
    [
        ("mqar", ("task", "tokens", "pairs", "samples are rows", "mean accuracy")),
        ("passkey", ("depth", "accuracy", "samples", "0.5")),
        ("needle", ("single_1", "tracking", "700")),
        ("babilong", ("qa1", "300")),
        ("dialogue", ("bits per byte", "minus on", "shuffled", "3 answers on 3 meetings")),
    ],
)
def test_tables_for_people(rmat: Rmat, place: Path, measurement: str, words: tuple[str, ...]) -> None:
    outcome = run(rmat, place, measurement)
    for word in (*words, "95 % interval", "the state of one stream is"):
        assert word in outcome.out
    assert "{" not in outcome.out


@pytest.mark.parametrize("measurement", MEASUREMENTS)
def test_out_holds_the_result_a_table_and_a_picture(
    rmat: Rmat, place: Path, tmp_path: Path, measurement: str
) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra `plots`")
    out = tmp_path / "deep" / measurement
    outcome = run(rmat, place, measurement, "--seed", "4", "--json", "--out", out)
    printed = outcome.json
    record = json.loads((out / "result.json").read_text())
    assert {name: record[name] for name in printed} == printed
    assert record["measurement"] == measurement and record["options"]["seed"] == 4
    assert ModelConfig.from_dict(record["config"]).d_model == 16 and record["parameters"] > 1000
    assert record["environment"]
    with (out / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    files = {"result.json", "table.csv"}
    if measurement == "dialogue":
        assert [row["memory"] for row in table] == printed["modes"]
        numbers = [float(row["minus_on.bits_per_byte"]) for row in table]
        assert numbers == [printed[mode]["minus_on"]["bits_per_byte"] for mode in printed["modes"]]
    else:
        files |= {"accuracy.png", "accuracy.svg"}
        assert [float(row["accuracy"]) for row in table] == [c["accuracy"] for c in printed["cells"]]
        assert table[0].keys() >= CELL
        assert (out / "accuracy.png").read_bytes()[:4] == b"\x89PNG"
        assert measurement in (out / "accuracy.svg").read_text()
    assert {path.name for path in out.iterdir()} == files
    for name in files:
        assert f"wrote {out / name}" in outcome.err


@pytest.mark.parametrize("measurement", ["mqar", "babilong", "dialogue"])
def test_slots_make_the_state_larger(rmat: Rmat, place: Path, measurement: str) -> None:
    plain = run(rmat, place, measurement, "--json").json
    same = run(rmat, place, measurement, "--slots", "16", "--json").json
    more = run(rmat, place, measurement, "--slots", "64", "--json").json
    assert same == plain and more["state_bytes"] > plain["state_bytes"]


def test_eviction_reaches_the_model(rmat: Rmat, place: Path, tmp_path: Path) -> None:
    for choice in ("oldest", "weakest"):
        run(rmat, place, "facts", "--eviction", choice, "--out", tmp_path / choice)
        assert json.loads((tmp_path / choice / "result.json").read_text())["config"]["eviction"] == choice


@pytest.mark.parametrize("measurement", ["mqar", "passkey", "facts"])
def test_memory_and_seed_reach_the_measurement(rmat: Rmat, place: Path, measurement: str) -> None:
    found = run(rmat, place, measurement, "--memory", "zeroed", "--seed", "3", "--json").json
    assert (found["memory"], found["seed"]) == ("zeroed", 3)
    run(rmat, place, measurement, "--memory", "shuffled", "--samples", "3", "--batch-size", "2", "--json")


def test_passkey_by_length_depth_filler_and_digits(rmat: Rmat, place: Path) -> None:
    more = [
        "--length",
        "200",
        "--depth",
        "0.25",
        "--filler",
        "noise",
        "--filler",
        place / "books",
        "--digits",
        "3",
    ]
    found = run(rmat, place, "passkey", *more, "--json").json
    assert [(cell["length"], cell["depth"]) for cell in found["cells"]] == [(150, 0.25), (200, 0.25)]
    assert all(len(example["reference"]) == 4 for example in found["examples"]), "a blank and three digits"


def test_mqar_with_sets_and_changes(rmat: Rmat, place: Path) -> None:
    found = run(rmat, place, "mqar", "--set", "40,5", "--changes", "3", "--json").json
    assert [(cell["length"], cell["pairs"]) for cell in found["cells"]] == [(16, 2), (40, 5)]
    mean = sum(cell["accuracy"] for cell in found["cells"]) / 2
    assert found["mean"] == pytest.approx(mean)


def test_babilong_scored_by_labels_and_without_filler(rmat: Rmat, place: Path) -> None:
    found = run(rmat, place, "babilong", "--scorer", "labels", "--length", "0", "--json").json
    assert [cell["length"] for cell in found["cells"]] == [300, 0]


@pytest.mark.parametrize(
    ("measurement", "more", "sentence"),
    [
        ("mqar", ["--set", "64"], "--set '64' is no test set: write LENGTH,PAIRS"),
        ("mqar", ["--set", "64,many"], "--set '64,many' is no test set"),
        ("mqar", ["--set", "9,4"], "4 pairs and questions do not fit 9 tokens: give at least 16"),
        ("mqar", ["--set", "64,20"], "mqar.pairs is 20 with 32 tokens: give 1 to 15"),
        ("mqar", ["--samples", "-1"], "rows=-1"),
        ("mqar", ["--batch-size", "0"], "batch_size=0"),
        ("mqar", ["--changes", "-1"], "mqar.changes is -1"),
        ("mqar", ["--vocabulary", "8192"], "the task needs 8192 tokens, the model has 42: ask a model trained on the task"),
        ("mqar", ["--memory", "of"], "did you mean 'on'"),
        ("mqar", ["--slots", "0"], "ModelConfig.n_slots=0 is not possible"),
        ("mqar", ["--eviction", "weak"], "did you mean 'weakest'"),
        ("mqar", ["--sample", "3"], "did you mean '--samples'"),
        ("passkey", ["--samples", "-1"], "samples=-1: ask at least one"),
        ("passkey", ["--samples", "0"], "samples=0: ask at least one"),
        ("passkey", ["--memory", "shuffled", "--samples", "1"], 'memory="shuffled" needs at least two prompts'),
        ("passkey", ["--length", "20"], "the least length is 105"),
        ("passkey", ["--length", "long"], "invalid int value: 'long'"),
        ("passkey", ["--depth", "2"], "depth must lie in 0..1, got 2.0"),
        ("passkey", ["--digits", "0"], "digits must lie in 1..18, got 0"),
        ("passkey", ["--filler", "nowhere"], "nowhere"),
        ("needle", ["--task", "single_9"], "task='single_9' is not possible; choose one of single_1"),
        ("needle", ["--task", "multivalue", "--haystack", "nowhere"], "nowhere"),
        ("babilong", ["--facts", "nowhere"], "nowhere"),
        ("babilong", ["--task", "11"], "tasks must be of 1..10"),
        ("babilong", ["--task", "2"], "qa2"),
        ("babilong", ["--scorer", "label"], "did you mean 'labels'"),
        ("dialogue", ["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        ("dialogue", ["--max-meetings", "0"], "max_meetings=0: give at least 1"),
        ("dialogue", ["--memory", "on"], "there is no option '--memory'"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_sentence(
    rmat: Rmat, place: Path, measurement: str, more: list[str], sentence: str
) -> None:
    assert sentence in rmat("eval", *asked(place, measurement), *more).refused()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["passkey", "mute"], "was saved without a tokenizer: save it with model.save"),
        (["mqar", "mute"], "was saved without a tokenizer"),
        (["passkey", "nowhere"], "no model at"),
        (["passkey", "ranks", "--slots", "99"], "memory_position='rank' has learned 16 places"),
        (["babilong", "text"], "--facts"),
        (["dialogue", "text"], "--data"),
        (["needle"], "MODEL"),
        (["dialogue", "text", "--data", "mute.jsonl"], "has no conversation with questions"),
        (["mqar", "text", "--vocabulary", "266"], "the task needs 266 tokens, the model has 265"),
        (["passkeys", "text"], "did you mean 'passkey'"),
    ],
)
def test_wrong_models_and_missing_arguments_are_one_sentence(
    rmat: Rmat, place: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(place)
    assert sentence in rmat("eval", *arguments).refused()


def test_out_is_a_folder(rmat: Rmat, place: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    outcome = rmat("eval", *asked(place, "mqar"), "--out", tmp_path / "taken")
    assert "taken" in outcome.refused() and (tmp_path / "taken").read_text() == ""


def asked_of(
    rmat: Rmat, monkeypatch: pytest.MonkeyPatch, measurement: str, *arguments: str | Path
) -> dict[str, Any]:
    """What `rmat eval` asks a model, and how."""
    given: dict[str, Any] = {}

    def spy(model: Any, tokenizer: Any, questions: Any, *, advance: Any, **options: Any) -> None:
        given.update(questions=questions, **options)
        raise ValueError("enough")

    monkeypatch.setattr("rmat.evaluation.asking.ask", spy)
    assert "enough" in rmat("eval", measurement, *arguments).refused()
    return given


def test_what_is_asked_by_default(rmat: Rmat, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    babi, books = str(place / "babi"), str(place / "books")
    for name, more, questions in (
        ("passkey", [], PasskeyQuestions(length=(1280,), depth=(0.0, 0.5, 1.0), filler=("noise",), digits=5)),
        (
            "needle",
            ["--haystack", books],
            NeedleQuestions(length=(2048,), task=NEEDLE_TASKS, haystack=books),
        ),
        (
            "babilong",
            ["--facts", babi],
            BabilongQuestions(facts=babi, length=(1024,), task=(1, 2, 3, 4, 5), scorer="exact"),
        ),
    ):
        given = asked_of(rmat, monkeypatch, name, place / "text", *more)
        assert given.pop("questions") == questions
        assert given == {"samples": 100, "batch_size": 8, "seed": 0, "memory": "on"}
    assert NeedleQuestions().haystack == BabilongQuestions(facts=babi).filler == "python-stdlib"
