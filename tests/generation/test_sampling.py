import math

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
        ("seed", 1.5),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{field} is {value!r}: give"):
        SamplingConfig(**{field: value})  # type: ignore[arg-type]
