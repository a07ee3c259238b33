"""Contract 9: softmax, gates, rotary angles and recurrent state in at least float32; float64 stays float64."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.makers.models import CASES, WITH_MEMORY, make_model, make_tokens, schedules_of

PRECISE = (
    "softmax",
    "sigmoid",
    "logsumexp",
    "logaddexp",
    "exp",
    "exp2",
    "log",
    "cos",
    "sin",
    "cumsum",
    "pow",
    "softplus",
)
"""Operations that a model in a narrow type must still do in float32; silu and gelu are activations and may be narrow."""


class Watch(TorchDispatchMode):
    """Notes the operations of PRECISE that gave a result in a type narrower than float32."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow: list[str] = []
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if any(part in name.strip("_").split("_") or part == name.strip("_") for part in PRECISE):
            first = result[0] if isinstance(result, (tuple, list)) else result
            if first.is_floating_point():
                self.seen.add(name)
                if first.dtype in (torch.bfloat16, torch.float16):
                    self.narrow.append(f"{name} in {first.dtype}")
        return result


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_float64_is_float64_throughout(name: str) -> None:
    model = make_model(name)
    for schedule in schedules_of(model.config):
        logits, state = model(make_tokens(2, 21), schedule=schedule)
        assert logits.dtype == torch.float64
        for key, tensor in state.tensors().items():
            assert tensor.dtype in (torch.float64, torch.int64), f"{key} is {tensor.dtype}"


class WatchAll(TorchDispatchMode):
    """Notes every operation whose floating result is not float64; choosing between two constants is none."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("scalar_tensor", "where"):
            return result
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, torch.Tensor) and each.is_floating_point() and each.dtype != torch.float64:
                self.narrow.add(func.overloadpacket.__name__)
        return result


@pytest.mark.parametrize("name", CASES)
def test_no_step_of_a_float64_model_is_narrower(name: str) -> None:
    model = make_model(name)
    state = None
    with WatchAll() as watch, torch.no_grad():
        for schedule in schedules_of(model.config):
            for length in (20, 1, 7):
                _, state = model(make_tokens(2, length), state, schedule=schedule)
    assert not watch.narrow, sorted(watch.narrow)


@pytest.mark.parametrize("name", CASES)
def test_delicate_operations_are_never_narrow(name: str) -> None:
    model = make_model(name, dtype=torch.bfloat16)
    state = None
    with Watch() as watch, torch.no_grad():
        for schedule in schedules_of(model.config):
            for length in (20, 1, 7):
                _, state = model(make_tokens(2, length), state, schedule=schedule)
    assert not watch.narrow, sorted(set(watch.narrow))
    assert {"cos", "sin"} <= watch.seen or model.config.streams == ("memory",), watch.seen


@pytest.mark.parametrize("name", WITH_MEMORY)
@torch.no_grad()
def test_gates_and_recurrent_state_are_kept_in_float32(name: str) -> None:
    model = make_model(name, dtype=torch.bfloat16)
    _, state = model(make_tokens(2, 20))
    for key, tensor in state.tensors().items():
        if key.endswith(("slot_log_gate", "recurrent", "pending_score")):
            assert tensor.dtype == torch.float32, f"{key} is {tensor.dtype}"


@pytest.mark.parametrize("name", ["recommended", "paper", "xl", "joint_both_gates", "pool_gru_token"])
def test_bfloat16_stays_near_float32(name: str) -> None:
    narrow = make_model(name, dtype=torch.bfloat16)
    wide = make_model(name, dtype=torch.float32)
    with torch.no_grad():
        for left, right in zip(wide.parameters(), narrow.parameters(), strict=True):
            left.copy_(right)
        tokens = make_tokens(2, 2 * narrow.config.segment_len - 1)
        found, _ = narrow(tokens)
        expected, _ = wide(tokens)
    error = (found.float() - expected).norm() / expected.norm()
    assert float(error) < 0.05, f"relative error {float(error):.3f}"


@pytest.mark.parametrize("name", ["recommended", "paper"])
def test_autocast_gives_finite_gradients_and_wide_gates(name: str) -> None:
    model = make_model(name, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logits, state = model(make_tokens(2, 20))
        logits, state = model(make_tokens(2, 9), state)
    logits.float().square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    for key, tensor in state.tensors().items():
        if tensor.is_floating_point():
            assert tensor.dtype == torch.float32, f"{key} is {tensor.dtype}: the state keeps the model's type"
