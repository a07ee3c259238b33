import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rmat.training.config import RunConfig
from tests.cli.conftest import TOY, Outcome, Rmat


def test_the_last_line_is_the_result(trained: Outcome, run_folder: Path) -> None:
    result = trained.json
    assert result["run"] == str(run_folder)
    assert result["steps"] == 6 and result["tokens"] == 6 * 2 * 32
    for key in ("valid_bits_per_byte", "valid_bits_per_byte_memory_zeroed", "tokens_per_second"):
        assert result[key] > 0
    assert trained.out.count("\n") == 1, "progress goes to standard error"


def test_the_run_folder_records_what_was_asked(run_folder: Path) -> None:
    config = json.loads((run_folder / "config.json").read_text())
    assert config["model"]["d_model"] == 16 and config["train"]["steps"] == 6
    assert {path.name for path in (run_folder / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }


def test_files_options_and_settings_count_in_this_order(rmat: Rmat, tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(
        "preset: small\nvariant: paper\ntrain:\n  lr: 1e-3\n  steps: 7\n  window: 64\nmodel: {n_layers: 3}\n"
    )
    second.write_text("train: {steps: 8}\n")
    outcome = rmat(
        *("train", "train.window=128", "--config", first, "--preset", "tiny", "model.d_model=64"),
        *("--config", second, "--data", "a", "--data", "b", "--print-config"),
    )
    config = RunConfig.from_dict(yaml.safe_load(outcome.out))
    assert (config.preset, config.variant) == ("tiny", "paper")
    assert (config.train.lr, config.train.steps, config.train.window) == (1e-3, 8, 128)
    assert config.model == {"n_layers": 3, "d_model": 64}
    assert config.data.specs == ("a", "b")


def test_the_printed_config_is_complete_and_explained(rmat: Rmat) -> None:
    printed = rmat("train", "--print-config", "model.streams=full,memory", "train.max_minutes=1.5").out
    config = RunConfig.from_dict(yaml.safe_load(printed))
    assert config.to_dict() == yaml.safe_load(printed)
    assert config.model["streams"] == ("full", "memory") and config.train.max_minutes == 1.5
    assert "# Peak learning rate." in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train.stepz=3"], "'train.steps'"),
        (["steps=3"], "'train.steps'"),
        (["model.d_modle=3"], "'model.d_model'"),
        (["train.steps=many"], "train.steps='many'"),
        (["train.steps=0"], "train.steps=0"),
        (["model.chunk_len=7"], "chunk_len"),
        (["steps"], "field=value"),
        (["--preset", "tinny"], "'tiny'"),
        (["--presett", "tiny"], "'--preset'"),
        (["--data", "no/such/folder"], "nothing at 'no/such/folder'"),
        (["--config", "no.yaml"], "no.yaml: No such file"),
        (["--resume", "no/such/run"], "not the folder of a training run"),
        (["--resume", "run", "--preset", "tiny"], "leave out --preset"),
        (["train.device=cuda"], "no GPU"),
        (["--out", __file__], "is a file"),
    ],
)
def test_mistakes_are_one_sentence(
    rmat: Rmat, arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sentence in rmat("train", *arguments).refused()
    assert not list(tmp_path.iterdir()), "nothing was made"


@pytest.mark.parametrize("content", ["train: [", "- a\n- b\n", "1: 2\n", "a: " + "9" * 5000, "[" * 3000])
def test_a_bad_config_file_is_one_sentence(rmat: Rmat, content: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    assert "bad.yaml" in rmat("train", "--config", tmp_path / "bad.yaml").refused()


def test_a_run_is_not_overwritten(rmat: Rmat, run_folder: Path, workplace: Path) -> None:
    sentence = rmat("train", "--data", workplace / "texts", "--out", run_folder, *TOY).refused()
    assert "already holds a run" in sentence and "--resume" in sentence


def test_a_resumed_run_takes_more_steps(rmat: Rmat, run_folder: Path, workplace: Path) -> None:
    arguments = ["train", "--data", workplace / "texts", "--out", workplace / "longer", *TOY]
    assert rmat(*arguments).status == 0
    outcome = rmat("train", "--resume", workplace / "longer", "train.steps=9", "--json")
    assert outcome.json["steps"] == 9
    rows = [json.loads(line) for line in (workplace / "longer" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "eval"] == sorted(
        {row["step"] for row in rows if row["kind"] == "eval"}
    )
    assert "train.lr" in rmat("train", "--resume", workplace / "longer", "train.lr=1").refused()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--lr", "3"], "there is no option '--lr': did you mean the setting train.lr=3?"),
        (["--lr=3"], "there is no option '--lr': did you mean the setting train.lr=3?"),
        (["--steps", "3"], "did you mean the setting train.steps=3?"),
        (["--batch-size", "--json"], "did you mean the setting train.batch_size=VALUE?"),
        (["--n_slots", "9"], "did you mean the setting model.n_slots=9?"),
        (["--presett", "tiny"], "did you mean '--preset'?"),
        (["--pre", "tiny"], "did you mean '--preset'?"),
        (["lr=3"], "unknown setting 'lr': did you mean 'train.lr'?"),
    ],
)
def test_a_setting_written_as_an_option_is_named(rmat: Rmat, words: list[str], sentence: str) -> None:
    assert sentence in rmat("train", *words).refused()


def test_ctrl_c_saves_and_the_run_can_go_on(rmat: Rmat, workplace: Path) -> None:
    folder = workplace / "interrupted"
    arguments = [
        "train",
        "--data",
        workplace / "texts",
        "--out",
        folder,
        "--json",
        *TOY,
        "train.steps=100000",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "rmat", *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )
    deadline = time.monotonic() + 100
    while not (folder / "metrics.jsonl").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and not out and "Traceback" not in err, err
    assert f"--resume {folder}" in err
    assert f"--resume {folder}" in rmat("generate", folder, "x").refused()
    steps = int(max(path.name for path in (folder / "checkpoints").iterdir()).removeprefix("step-"))
    outcome = rmat("train", "--resume", folder, "--json", f"train.steps={steps + 2}")
    assert outcome.status == 0 and outcome.json["steps"] == steps + 2


def test_broken_numbers_end_with_status_1(rmat: Rmat, workplace: Path) -> None:
    arguments = ["train", "--data", workplace / "texts", "--out", workplace / "broken", *TOY]
    outcome = rmat(
        *arguments,
        "train.lr=1e30",
        "train.clip=0",
        "train.max_nonfinite=0",
        "train.steps=50",
        "train.eval_every=0",
    )
    assert outcome.status == 1
    assert outcome.err.splitlines()[-1].startswith("rmat: ") and "train.max_nonfinite=0" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_setting_that_stands_twice_in_a_config_file_is_refused(rmat: Rmat, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("train:\n  lr: 1\n  steps: 3\n  lr: 2\n")
    assert (
        "line 2 has 'lr', which stands there twice"
        in rmat("train", "--config", tmp_path / "bad.yaml").refused()
    )
