import math
import re

import numpy as np
import pytest
import torch

from rmat.generation.sampling import Sampler, SamplingConfig, keep_likeliest, penalise


def kept(logits: torch.Tensor) -> list[int]:
    return torch.isfinite(logits).nonzero().flatten().tolist()


def shares(config: SamplingConfig, logits: torch.Tensor, draws: int = 4000) -> torch.Tensor:
    """How often each token is drawn."""
    sampler = Sampler(config, len(logits))
    return (
        torch.bincount(torch.tensor([sampler.draw(logits) for _ in range(draws)]), minlength=len(logits))
        / draws
    )


PROBABILITIES = torch.tensor([0.1, 0.4, 0.2, 0.3])
LOGITS = PROBABILITIES.log()


def test_top_k_keeps_the_likeliest() -> None:
    assert kept(keep_likeliest(LOGITS, 2, None)) == [1, 3]
    assert kept(keep_likeliest(LOGITS, 99, None)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.01, [1]), (0.39, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.71, [1, 2, 3]), (1.0, [0, 1, 2, 3])],
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, expected: list[int]) -> None:
    assert kept(keep_likeliest(LOGITS, None, top_p)) == expected


def test_top_p_is_of_what_top_k_leaves() -> None:
    """Among the two likeliest, 0.4 and 0.3, the first alone has 0.571 of the probability."""
    assert kept(keep_likeliest(LOGITS, 2, 0.57)) == [1]
    assert kept(keep_likeliest(LOGITS, 2, 0.58)) == [1, 3]


@pytest.mark.parametrize(
    ("min_p", "expected"),
    [(0.0, [0, 1, 2, 3]), (0.24, [0, 1, 2, 3]), (0.3, [1, 2, 3]), (0.51, [1, 3]), (1.0, [1])],
)
def test_min_p_is_a_share_of_the_best_probability(min_p: float, expected: list[int]) -> None:
    assert kept(keep_likeliest(LOGITS, None, None, min_p)) == expected


def test_min_p_is_of_what_the_temperature_makes() -> None:
    """At temperature 0.5 the probabilities are as 1 : 16 : 4 : 9."""
    assert shares(SamplingConfig(temperature=0.5, min_p=0.3, seed=0), LOGITS, draws=200)[2] == 0
    assert shares(SamplingConfig(temperature=1.0, min_p=0.3, seed=0), LOGITS, draws=200)[2] > 0


def test_draws_follow_the_distribution() -> None:
    found = shares(SamplingConfig(temperature=1.0, seed=0), LOGITS)
    torch.testing.assert_close(found, PROBABILITIES, atol=0.03, rtol=0)


def test_temperature_sharpens_the_distribution() -> None:
    found = shares(SamplingConfig(temperature=0.5, seed=0), LOGITS)
    torch.testing.assert_close(found, PROBABILITIES**2 / (PROBABILITIES**2).sum(), atol=0.03, rtol=0)


def test_temperature_zero_takes_the_likeliest() -> None:
    assert shares(SamplingConfig(temperature=0), LOGITS, draws=20).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("temperature", [1e-30, 1e-45, 5e-324])
def test_a_tiny_temperature_is_not_a_division_error(temperature: float) -> None:
    found = shares(SamplingConfig(temperature=temperature, seed=0), 10 + LOGITS, draws=20)
    assert found.tolist() == [0, 1, 0, 0]


def test_penalty_lowers_drawn_tokens_whatever_their_sign() -> None:
    logits = torch.tensor([2.0, -2.0, 2.0, -2.0])
    drawn = torch.tensor([True, True, False, False])
    assert penalise(logits, drawn, 2.0).tolist() == [1.0, -4.0, 2.0, -2.0]
    assert torch.equal(penalise(logits, drawn, 1.0), logits)


def test_penalty_makes_a_greedy_sampler_move_on() -> None:
    sampler = Sampler(SamplingConfig(temperature=0, repetition_penalty=10.0), 3)
    assert [sampler.draw(torch.tensor([3.0, 2.0, 1.0])) for _ in range(3)] == [0, 1, 2]


def test_presence_counts_once_and_frequency_each_time() -> None:
    logits, written = torch.tensor([1.0, -1.0, 0.5]), torch.tensor([3, 1, 0])
    assert penalise(logits, written, 1.0, presence=0.5).tolist() == [0.5, -1.5, 0.5]
    assert penalise(logits, written, 1.0, frequency=0.5).tolist() == [-0.5, -1.5, 0.5]
    assert penalise(logits, written, 2.0, presence=0.25, frequency=0.5).tolist() == [-1.25, -2.75, 0.5]


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [({"presence_penalty": 0.5}, [0, 0, 0, 0]), ({"frequency_penalty": 0.5}, [0, 0, 0, 1])],
)
def test_penalties_look_at_what_was_drawn(penalty: dict[str, float], expected: list[int]) -> None:
    sampler = Sampler(SamplingConfig(temperature=0, **penalty), 2)
    assert [sampler.draw(torch.tensor([2.25, 1.0])) for _ in range(4)] == expected


def test_a_bias_is_added_to_its_token() -> None:
    assert shares(SamplingConfig(temperature=0, logit_bias={2: 5}), LOGITS, draws=5).tolist() == [0, 0, 1, 0]
    forbidden = SamplingConfig(temperature=1.0, seed=0, logit_bias={1: -100, 3: -100})
    assert kept(shares(forbidden, LOGITS, draws=200).log()) == [0, 2]
    logits = LOGITS.clone()
    Sampler(SamplingConfig(logit_bias={0: 1}), 4).draw(logits)
    assert torch.equal(logits, LOGITS), "the caller's logits stay as they are"
    with pytest.raises(ValueError, match="token ids must be below 4"):
        Sampler(SamplingConfig(logit_bias={4: 1}), 4)


def test_a_text_does_not_end_before_its_least_length() -> None:
    sampler = Sampler(SamplingConfig(temperature=0, min_tokens=3), 4, ends=(1, 3))
    assert [sampler.draw(LOGITS) for _ in range(5)] == [2, 2, 2, 1, 1]


def test_numbers_of_numpy_are_numbers() -> None:
    config = SamplingConfig(
        temperature=np.float32(1),
        top_k=np.int64(2),
        seed=np.int64(5),
        logit_bias={np.int64(1): np.float64(2)},
    )
    assert config == SamplingConfig(temperature=1.0, top_k=2, seed=5, logit_bias={1: 2.0})
    assert [type(config.top_k), type(config.seed), type(config.temperature)] == [int, int, float]
    Sampler(config, 4).draw(LOGITS)


def test_the_default_device_changes_nothing() -> None:
    config = SamplingConfig(
        temperature=1.0, seed=0, logit_bias={0: 1}, presence_penalty=0.5, top_k=3, top_p=0.9
    )
    usual = [Sampler(config, 4).draw(LOGITS) for _ in range(5)]
    with torch.device("meta"):  # stands for "cuda", where the model is on another device
        assert [Sampler(config, 4).draw(LOGITS) for _ in range(5)] == usual


def test_logits_without_a_token_are_never_drawn() -> None:
    """A model may have more rows in its embedding than its tokenizer has tokens."""
    assert shares(SamplingConfig(temperature=1.0, seed=0), torch.tensor([0.0, 0.0, 50.0]), draws=50)[2] > 0
    sampler = Sampler(SamplingConfig(temperature=1.0, seed=0), 2)
    assert {sampler.draw(torch.tensor([0.0, 0.0, 50.0])) for _ in range(50)} == {0, 1}


def test_seeds() -> None:
    def draws(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingConfig(temperature=1.0, seed=seed), 4)
        return [sampler.draw(LOGITS) for _ in range(30)]

    torch.manual_seed(5)
    assert draws(3) == draws(3)
    assert draws(3) != draws(4)
    assert draws(None) != draws(None)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1) == after, "drawing must leave the global generator alone"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("temperature", None),
        ("temperature", "warm"),
        ("top_k", 2.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-40),
        ("seed", -1),
        ("seed", True),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("presence_penalty", 2.1),
        ("frequency_penalty", math.nan),
        ("logit_bias", 3),
        ("min_tokens", -1),
        ("min_tokens", None),
        ("seed", 1.5),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{field}={value!r} is not possible: give")):
        SamplingConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("biases", "odd"), [({-1: 0}, -1), ({1: 101}, 101), ({"a": 1}, "a"), ({1: True}, True)]
)
def test_biases_out_of_range_are_refused(biases: dict[int, float], odd: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"logit_bias={odd!r} is not possible: give token ids")):
        SamplingConfig(logit_bias=biases)
