"""The learning rate over a run."""

import pytest

from rmat.training.config import TrainConfig
from rmat.training.optimizer import learning_rate_factor, progress


def factor(step: int, config: TrainConfig) -> float:
    return learning_rate_factor(step, progress(step, 0.0, config), config)


def test_cosine_rises_linearly_halves_in_the_middle_and_ends_low() -> None:
    config = TrainConfig(steps=110, warmup_steps=10, min_lr_ratio=0.2)
    assert [factor(step, config) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert factor(10, config) == pytest.approx(1.0)
    assert factor(60, config) == pytest.approx(0.6)
    assert factor(110, config) == pytest.approx(0.2)
    values = [factor(step, config) for step in range(10, 111)]
    assert values == sorted(values, reverse=True)


def test_wsd_holds_then_falls_linearly() -> None:
    config = TrainConfig(steps=100, warmup_steps=5, schedule="wsd", decay_share=0.4, min_lr_ratio=0.0)
    assert [factor(step, config) for step in (5, 30, 60)] == pytest.approx([1.0, 1.0, 1.0])
    assert [factor(step, config) for step in (70, 80, 100)] == pytest.approx([0.75, 0.5, 0.0])


def test_no_warm_up_starts_at_the_peak() -> None:
    assert factor(0, TrainConfig(warmup_steps=0)) == pytest.approx(1.0)


def test_a_warm_up_longer_than_the_run_only_rises() -> None:
    config = TrainConfig(steps=4, warmup_steps=8)
    assert [factor(step, config) for step in range(4)] == pytest.approx([1 / 8, 2 / 8, 3 / 8, 4 / 8])


def test_the_nearer_end_of_steps_and_minutes_decides() -> None:
    config = TrainConfig(steps=100, max_minutes=1.0)
    assert progress(50, 6.0, config) == pytest.approx(0.5)
    assert progress(5, 30.0, config) == pytest.approx(0.5)
    assert progress(5, 90.0, config) == 1.0
    assert progress(5, 90.0, TrainConfig(steps=100)) == pytest.approx(0.05)
