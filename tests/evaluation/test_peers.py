"""The comparison with other systems: every adapter reads as its model computes, failures do not end a run."""

import importlib
import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import speed as speed_functions

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = (
    *("admitted", "recommended", "paper", "local", "full"),
    *("llama", "mistral", "block-recurrent", "rmt", "rmt-plain", "infini", "titans"),
)
SHARED = {
    "vocab_size": 128,
    "d_model": 64,
    "n_layers": 2,
    "n_heads": 4,
    "segment_len": 16,
}


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, as if it were run from its folder."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("peers")


def system(peers: ModuleType, name: str) -> Any:
    """A small system; skips the test where its package is not installed."""
    try:
        return peers.SYSTEMS[name](peers.Size(preset="tiny", shared=SHARED, length=64, compute=False))
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", NAMES)
def test_a_system_reads_token_by_token_as_at_once(peers: ModuleType, name: str) -> None:
    made = system(peers, name)
    tokens = torch.randint(128, (2, 40), generator=torch.Generator().manual_seed(1))
    made.model.eval()
    with torch.no_grad():
        whole = made.logits(tokens)
        assert whole.shape == (2, 40, 128)
        for start in (31, 32):
            context = made.read(tokens[:, :start])
            assert made.state_bytes(context) > 0
            state = made.fork(context)
            for place in range(start, 40):
                logits, state = made.step(tokens[:, place : place + 1], state)
                assert logits.shape == (2, 128)
                if name != "titans":  # its cache does not continue a prompt beyond the first segment
                    torch.testing.assert_close(logits, whole[:, place], rtol=1e-3, atol=1e-4)
            again, _ = made.step(tokens[:, start : start + 1], context)
            if name != "titans":
                torch.testing.assert_close(again, whole[:, start], rtol=1e-3, atol=1e-4)
            made.decode(made.fork(made.read(tokens[:, :start])), 3)


@pytest.mark.parametrize("name", NAMES)
def test_a_system_learns_and_is_no_smaller_than_ours(peers: ModuleType, name: str) -> None:
    made = system(peers, name)
    ours = system(peers, "recommended")
    assert made.parameters["blocks"] > 0.9 * ours.parameters["blocks"]
    assert made.versions()
    json.dumps(made.config)
    tokens = torch.randint(128, (2, 65), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(made.model.parameters(), lr=3e-3)

    def loss() -> float:
        with torch.no_grad():
            logits = made.logits(tokens[:, :-1])
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))

    before = loss()
    for _ in range(3):
        optimizer.zero_grad()
        made.backward(tokens)
        optimizer.step()
    assert loss() < before


def test_preset_sizes_agree_in_all_parameters(peers: ModuleType) -> None:
    counts = []
    for name in ("recommended", "paper", "local", "full"):
        size = peers.Size(preset="tiny", shared={"vocab_size": 1024}, length=256, compute=True)
        counts.append(peers.SYSTEMS[name](size).parameters["all"])
    assert max(counts) < 1.1 * min(counts)


def test_no_tensor_is_counted_twice(peers: ModuleType) -> None:
    x = torch.zeros(3, dtype=torch.float64)
    systems = importlib.import_module("systems")
    assert [y.numel() for y in systems.tensors([x, {"a": (x, None, torch.zeros(2))}, 5])] == [3, 2]


class Broken:
    """A system that cannot be made."""

    def __init__(self, *_: Any) -> None:
        raise RuntimeError("it broke\nsecond line")


class Absent:
    """A system whose package is not installed."""

    def __init__(self, *_: Any) -> None:
        raise ImportError("No module named 'absent'")


def test_speed_reports_failures_and_goes_on(
    peers: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = peers.SYSTEMS["local"]
    decodes = iter([True, False])

    class Late(late):  # type: ignore[misc,valid-type]
        """A system that fails in the first round."""

        def decode(self, state: Any, tokens: int) -> None:
            if not next(decodes):
                raise ValueError("too late")

    systems = {"recommended": peers.SYSTEMS["recommended"], "full": peers.SYSTEMS["full"]}
    monkeypatch.setattr(peers, "SYSTEMS", {**systems, "broken": Broken, "absent": Absent, "late": Late})
    monkeypatch.setattr(peers.speed, "isolated", lambda work, *given, **_: work(*given))
    out = tmp_path / "new" / "peers.json"
    words = (
        "--size tiny --segment-len 16 --lengths 48 --tokens 96 --decode-tokens 2 --rounds 2 --vocab-size 64"
    )
    peers.main([*words.split(), "--device", "cpu", "--out", str(out)])
    result = json.loads(out.read_text())
    (found,) = result["lengths"]
    assert (found["length"], found["rows"]) == (48, 2)
    assert found["systems"]["broken"] == {"failed": "RuntimeError: it broke"}
    assert found["systems"]["absent"]["failed"].startswith("not installed: No module named 'absent'")
    assert found["systems"]["late"] == {"failed": "ValueError: too late"}
    assert set(found["ratios"]) == {"recommended/full"}
    for name in ("recommended", "full"):
        one = found["systems"][name]
        assert set(one["tokens_per_second"]) == {"train", "prefill", "decode"}
        assert all(low <= high for low, high in one["tokens_per_second_range"].values())
        assert min(one["state_bytes"], one["train_peak_bytes"] + 1, one["parameters"]["all"]) > 0
        assert one["versions"]["rmat"]
    assert result["settings"]["seed"] == 0 and result["environment"]["versions"]["torch"]
    shown = capsys.readouterr().out
    assert "broken RuntimeError: it broke" in shown
    assert json.loads(shown.splitlines()[-1]) == result


def test_quality_trains_and_asks(
    peers: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "SYSTEMS", {"full": peers.SYSTEMS["full"], "absent": Absent})
    out = tmp_path / "quality.json"
    words = "--quality --updates 12 --batch-size 2 --rows 3 --ask 64 128 --device cpu"
    peers.main([*words.split(), "--out", str(out)])
    full_recall, absent, full_mqar, _ = json.loads(out.read_text())["measured"]
    assert absent["failed"].startswith("not installed")
    assert (full_recall["task"], full_mqar["task"]) == ("recall", "mqar")
    assert [cell["length"] for cell in full_recall["cells"]] == [64, 128]
    assert [cell["length"] for cell in full_mqar["cells"]] == [64, 64, 64, 128, 256, 512, 1024]
    for cell in (*full_recall["cells"], *full_mqar["cells"], full_mqar["mean"]):
        assert 0 <= cell["low"] <= cell["accuracy"] <= cell["high"] <= 1
    assert full_mqar["mean"]["samples"] == 7 * 3
    for found in (full_recall, full_mqar):
        assert found["train"]["steps"] == 12
        assert len(found["losses"]) == 10 and min(found["losses"][5:]) < found["losses"][0]
    assert "recall, seed 0, full: 64 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--rounds", "0"], "--rounds is 0: give at least 1"),
        (["--lengths", "1"], "1 is no length"),
        (["--systems", "nobody"], "invalid choice: 'nobody'"),
        (["--size", "tinny"], "did you mean 'tiny'"),
        (["--segment-len", "0"], "--segment-len is 0"),
    ],
)
def test_wrong_arguments(
    peers: ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        peers.parse([*words, "--device", "cpu"])
    assert sentence in capsys.readouterr().err


def test_a_process_of_its_own() -> None:
    """Its result, its error, and an end to one that takes too long."""
    assert speed_functions.isolated(abs, -3, device="cpu") == 3
    with pytest.raises(ValueError, match="invalid literal"):
        speed_functions.isolated(int, "x", device="cpu")
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        speed_functions.isolated(time.sleep, 200, device="cpu", limit=1)
    assert time.monotonic() - start < 100
