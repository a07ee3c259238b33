"""The GPU check at toy scale on a CPU, and how it treats a part that fails."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.py"


def run_script(*arguments: str, limit: int = 280) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=limit
    )


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu_check as module

    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_gpu_says_so_in_one_sentence(gpu_check: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("There is no GPU") and said.err.count("\n") == 1
    assert said.out == ""


def test_cpu_at_full_scale_is_refused(gpu_check: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        gpu_check.main(["--device", "cpu"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and "add --quick" in said and "Traceback" not in said


def test_one_part_writes_the_report_and_prints_it_last(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "gpu_check.json"
    done = run_script("--device", "cpu", "--quick", "--parts", "parity_float32", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert report == json.loads(done.stdout.splitlines()[-1])
    assert report["passed"] and list(report["parts"]) == ["parity_float32"]
    errors = report["parts"]["parity_float32"]["relative_error"]
    assert {"recommended", "paper", "local", "xl", "full"} <= errors.keys()
    assert all(0 < error < 1e-4 for row in errors.values() for error in row.values())
    assert "command line" in report["skipped"]


def test_failing_part_is_recorded_and_the_rest_runs(gpu_check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = {
        "first": subprocess.CompletedProcess([], 0, '{"ok": true, "summary": "fine"}\n', ""),
        "second": subprocess.CompletedProcess([], 1, "", "Traceback ...\nRuntimeError: no kernel\n"),
        "third": subprocess.TimeoutExpired([], 5, stderr=b"working"),
        "fourth": subprocess.CompletedProcess([], -6, "", ""),
        "fifth": subprocess.CompletedProcess([], 0, "not JSON\n", ""),
        "sixth": subprocess.CompletedProcess([], 0, 'noise\n{"ok": false, "summary": "too far off"}\n', ""),
    }

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        outcome = outcomes[command[command.index("--single") + 1]]
        if isinstance(outcome, subprocess.TimeoutExpired):
            raise outcome
        return outcome

    part = gpu_check.parts.Part(run=lambda device, quick: {}, limit=5)
    monkeypatch.setattr(gpu_check.parts, "PARTS", dict.fromkeys(outcomes, part))
    monkeypatch.setattr(gpu_check.subprocess, "run", run)
    report = gpu_check.check(list(outcomes), "cpu", True)
    found = report["parts"]
    assert not report["passed"]
    assert [found[name]["ok"] for name in outcomes] == [True, False, False, False, False, False]
    assert found["second"]["error"] == "RuntimeError: no kernel"
    assert "still running" in found["third"]["error"] and found["third"]["log"] == "working"
    assert "exit status -6" in found["fourth"]["error"]
    assert "no result" in found["fifth"]["error"]


def test_parts_left_when_time_is_up_are_not_run(gpu_check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "BUDGET_SECONDS", 0)
    report = gpu_check.check(["environment"], "cpu", True)
    assert not report["passed"] and "not run" in report["parts"]["environment"]["error"]


def test_failure_in_a_part_is_exit_status_1(
    tmp_path: Path, gpu_check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "isolated", lambda *_: {"ok": False, "error": "broken"})
    out = tmp_path / "report.json"
    assert gpu_check.main(["--device", "cpu", "--quick", "--out", str(out)]) == 1
    report = json.loads(out.read_text())
    assert list(report["parts"]) == list(gpu_check.parts.PARTS)


def test_parity_fails_for_other_numbers(gpu_check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose results are off by a thousandth does not pass in float32."""
    import gpu_check_parity as parity

    outputs = parity._outputs

    def off(model: Any, device: str, dtype: str) -> dict[str, torch.Tensor]:
        found = outputs(model, device, dtype)
        return {name: value * 1.001 for name, value in found.items()} if dtype == "float32" else found

    monkeypatch.setattr(parity, "PARITY", {"local": {"variant": "local"}})
    assert parity.parity_float32("cpu", True)["ok"]
    monkeypatch.setattr(parity, "_outputs", off)
    assert not parity.parity_float32("cpu", True)["ok"]


def test_relative_error_sees_what_is_not_finite(gpu_check: Any) -> None:
    import gpu_check_parity as parity

    one = torch.tensor([3.0, 4.0])
    assert parity.relative_error(one + torch.tensor([0.0, 0.5]), one) == pytest.approx(0.1)
    assert parity.relative_error(torch.tensor([3.0, torch.nan]), one) == torch.inf


def test_make_runs_a_script_that_exists() -> None:
    recipe = re.search(r"^gpu-check:.*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    path = next(word for word in recipe[1].split() if word.endswith("gpu_check.py"))
    assert (ROOT / path).is_file()


@pytest.mark.slow
def test_all_parts_pass_at_toy_scale(tmp_path: Path) -> None:
    done = run_script("--device", "cpu", "--quick", "--out", str(tmp_path / "gpu_check.json"))
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, {name: part for name, part in report["parts"].items() if not part["ok"]}
    assert report["parts"]["training"]["last_loss"] < report["parts"]["training"]["first_loss"]
    assert len(report["parts"]["decoding"]["state_bytes"]) == 1
