"""What the speed functions do (not how fast): the right work, the right counts."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import speed
from tests.makers.stores import VOCAB, tiny_model

ROOT = Path(__file__).parents[2]


def test_training_step_moves_the_weights_and_returns_the_loss() -> None:
    model = tiny_model().float()
    before = [parameter.clone() for parameter in model.parameters()]
    tokens = torch.randint(VOCAB, (2, 33), generator=torch.Generator().manual_seed(0))
    step = speed.trainer(model, device="cpu")
    losses = [float(step(tokens)) for _ in range(3)]
    assert losses[2] < losses[0]
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_prefill_in_pieces_reads_everything() -> None:
    model = tiny_model()
    tokens = torch.randint(VOCAB, (2, 50))
    with torch.no_grad():
        _, expected = model(tokens)
    for piece in (7, None):
        state = speed.prefill(model, tokens, device="cpu", piece=piece)
        assert state.position.tolist() == [50, 50]
        for name, tensor in state.tensors().items():
            torch.testing.assert_close(tensor, expected.tensors()[name], rtol=1e-9, atol=1e-9)


def test_decode_asks_for_one_token_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    state = speed.prefill(model, torch.zeros(3, 10, dtype=torch.int64), device="cpu")
    shapes = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda tokens, state: shapes.append(tokens.shape) or forward(tokens, state)
    )
    speed.decode(model, state, tokens=4, device="cpu")
    assert shapes == [(3, 1)] * 4
    assert state.position.tolist() == [10] * 3


def test_matmul_rate_is_a_plain_number() -> None:
    assert speed.matmul_rate("cpu", size=64, repeats=2) > 1e6


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count the peak since the process began")
def test_peak_of_a_child_is_its_own() -> None:
    """`getrusage` would report the parent's peak in the child, which exec does not clear."""
    ballast = bytearray(400_000_000)
    code = (
        "import torch\nfrom benchmarks.speed import peak_memory\n"
        "print(peak_memory(lambda: torch.ones(25_000_000).sum(), 'cpu'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
    )
    assert len(ballast) and 90e6 < int(done.stdout) < 160e6
