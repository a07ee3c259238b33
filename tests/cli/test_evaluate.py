from pathlib import Path

import pytest

from rmat.model import LanguageModel, ModelConfig
from rmat.tasks.numbered import numbered_tokenizer
from rmat.tasks.recall import RecallTask
from tests.cli.conftest import TOY, Rmat


def test_perplexity(rmat: Rmat, run_folder: Path) -> None:
    result = rmat("eval", "perplexity", run_folder, "--json").json
    assert {
        "bits_per_byte",
        "nats_per_token",
        "tokens",
        "bytes",
        "by_position",
        "state_bytes",
        "memory",
    } <= set(result)
    assert result["memory"] == "on" and 0 < result["bits_per_byte"] < 10
    assert all({"from", "to", "bits_per_byte"} <= set(bucket) for bucket in result["by_position"])
    zeroed = rmat("eval", "perplexity", run_folder, "--memory", "zeroed", "--json").json
    assert zeroed["memory"] == "zeroed" and zeroed["bits_per_byte"] != result["bits_per_byte"]


def test_ablation_agrees_with_perplexity(rmat: Rmat, run_folder: Path) -> None:
    result = rmat("eval", "ablation", run_folder, "--json").json
    alone = rmat("eval", "perplexity", run_folder, "--json").json
    assert result["on"]["bits_per_byte"] == pytest.approx(alone["bits_per_byte"])
    for mode in ("on", "zeroed", "frozen", "shuffled"):
        assert result[mode]["low"] <= result[mode]["bits_per_byte"] <= result[mode]["high"]


def test_ablation_of_one_document_leaves_out_shuffled(rmat: Rmat, run_folder: Path, workplace: Path) -> None:
    result = rmat(
        "eval", "ablation", run_folder, "--data", workplace / "texts" / "1.txt", "--split", "all", "--json"
    ).json
    assert result["shuffled"] is None and result["zeroed"]["bits_per_byte"] > 0


def test_ablation_of_one_mode(rmat: Rmat, run_folder: Path) -> None:
    result = rmat("eval", "ablation", run_folder, "--mode", "zeroed", "--json").json
    assert result["frozen"] is None and result["shuffled"] is None
    gap = result["zeroed"]["bits_per_byte"] - result["on"]["bits_per_byte"]
    assert result["zeroed"]["minus_on"]["bits_per_byte"] == pytest.approx(gap)


@pytest.mark.parametrize("measurement", ["perplexity", "ablation", "recall", "completion"])
def test_every_measurement_takes_other_banks(
    rmat: Rmat, run_folder: Path, measurement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int | None, str | None]] = []

    def spy(self: LanguageModel, n_slots: int | None = None, eviction: str | None = None) -> LanguageModel:
        asked.append((n_slots, eviction))
        raise ValueError("enough")

    monkeypatch.setattr(LanguageModel, "with_slots", spy)
    outcome = rmat("eval", measurement, run_folder, "--slots", "77", "--eviction", "weakest")
    assert "enough" in outcome.refused() and asked == [(77, "weakest")]


def test_all_takes_every_part_of_a_source_with_parts_of_its_own(
    rmat: Rmat, run_folder: Path, tmp_path: Path
) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "text.txt").write_text(f"some text to {split} on\n")
    arguments = ["--data", tmp_path, "--split", "all", "--json"]
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.txt"))
    assert rmat("eval", "perplexity", run_folder, *arguments).json["bytes"] == size


def test_all_of_a_run_without_held_out_text(rmat: Rmat, workplace: Path) -> None:
    data = workplace / "texts" / "1.txt"
    arguments = ["--data", data, "--out", workplace / "unheld", *TOY, "data.valid_share=0", "train.steps=1"]
    assert rmat("train", *arguments).status == 0
    result = rmat("eval", "perplexity", workplace / "unheld", "--split", "all", "--json").json
    assert result["bytes"] == data.stat().st_size


def test_splits_hold_different_text(rmat: Rmat, run_folder: Path, workplace: Path) -> None:
    sizes = {
        split: rmat("eval", "perplexity", run_folder, "--split", split, "--json").json["bytes"]
        for split in ("train", "valid", "test", "all")
    }
    assert sizes["all"] == sizes["train"] + sizes["valid"] + sizes["test"]
    assert sizes["all"] == sum(path.stat().st_size for path in (workplace / "texts").iterdir())
    assert rmat("eval", "perplexity", run_folder, "--max-bytes", "100", "--json").json["bytes"] == 100


def test_the_model_folder_alone_needs_its_data_named(rmat: Rmat, run_folder: Path, workplace: Path) -> None:
    """A run knows what it was trained on, its exported model does not."""
    of_run = rmat("eval", "perplexity", run_folder, "--json").json
    of_model = rmat("eval", "perplexity", run_folder / "model", "--data", workplace / "texts", "--json").json
    assert of_model == of_run


def test_recall(rmat: Rmat, tmp_path: Path) -> None:
    tokenizer = numbered_tokenizer(RecallTask(n_pairs=2).vocab_size)
    config = ModelConfig.preset("tiny", vocab_size=tokenizer.vocab_size, d_model=16, segment_len=32)
    LanguageModel(config).save(tmp_path, tokenizer=tokenizer)
    result = rmat(
        *(
            "eval",
            "recall",
            tmp_path,
            "--pairs",
            "2",
            "--rows",
            "4",
            "--length",
            "64",
            "--length",
            "128",
            "--json",
        )
    ).json
    assert [cell["length"] for cell in result["cells"]] == [64, 128]
    assert {"task", "length", "depth", "samples", "accuracy", "low", "high"} <= set(result["cells"][0])
    assert result["state_bytes"] > 0


@pytest.mark.parametrize("task", ["recall", "mqar"])
def test_a_model_never_trained_on_a_task_of_numbers_is_refused(
    rmat: Rmat, run_folder: Path, tmp_path: Path, task: str
) -> None:
    more = [] if task == "recall" else ["--vocabulary", "128", "--set", "16,2"]
    refused = rmat("eval", task, run_folder, *more).refused()
    assert f"the model does not speak in the numbered tokens of {task}" in refused or "task needs" in refused
    other = tmp_path / "other"
    small = ["model.n_layers=1", "model.d_model=16", "model.n_heads=2", "train.steps=1", "train.batch_size=1"]
    known = "mqar:pairs=2,length=32,vocabulary=256" if task == "recall" else "recall"
    more = [*small, "train.eval_every=0", "train.window=64", "train.sample_every=0"]
    assert rmat("train", "--data", known, "--out", other, *more).status == 0
    asked = ["recall"] if task == "recall" else ["mqar", "--vocabulary", "128", "--set", "16,2"]
    assert f"never on {task}" in rmat("eval", asked[0], other, *asked[1:]).refused()


@pytest.mark.parametrize("measurement", ["perplexity", "ablation"])
def test_tables_for_people(rmat: Rmat, run_folder: Path, measurement: str) -> None:
    outcome = rmat("eval", measurement, run_folder)
    assert outcome.status == 0 and "bits per byte" in outcome.out and "95 % interval" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "MEASUREMENT"),
        (["perplexty", "x"], "did you mean 'perplexity'"),
        (["perplexity"], "MODEL"),
        (["perplexity", "nowhere"], "no model at nowhere"),
        (["perplexity", "nowhere", "--memory", "of"], "did you mean 'on'"),
        (["perplexity", "nowhere", "--max-byte", "3"], "did you mean '--max-bytes'"),
        (["perplexity", "nowhere", "extra"], "one argument too many: 'extra'"),
    ],
)
def test_mistakes_are_one_sentence(rmat: Rmat, arguments: list[str], sentence: str) -> None:
    assert sentence in rmat("eval", *arguments).refused()


@pytest.mark.parametrize("option", [["--max-bytes", "0"], ["--batch-size", "0"], ["--data", "nowhere"]])
def test_bad_values_are_one_sentence(rmat: Rmat, run_folder: Path, option: list[str]) -> None:
    rmat("eval", "perplexity", run_folder, *option).refused()
