"""The table of initial distributions against what a fresh model really holds."""

from fnmatch import fnmatch

import pytest
import torch

from rmat.model import LanguageModel, ModelConfig
from rmat.model.initialization import table

VARIANTS = ("recommended", "paper", "xl")


def fresh(variant: str, **more: object) -> LanguageModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "d_model": 128, "n_layers": 3, "n_heads": 4, "segment_len": 16, "n_slots": 32}
    return LanguageModel(ModelConfig.preset("tiny", variant=variant, **{**sizes, **more}))


def models() -> list[LanguageModel]:
    everything = {
        "gate": "both",
        "memory_position": "age",
        "fusion": "token",
        "tie_embeddings": False,
        "writer": "pool",
    }
    newest = fresh("recommended", memory_read="stick_breaking")
    return [*(fresh(variant) for variant in VARIANTS), fresh("recommended", **everything), newest]


@pytest.mark.parametrize("index", range(5))
def test_measured_mean_and_deviation_are_those_of_the_table(index: int) -> None:
    model = models()[index]
    rows = table(model.config)
    for name, parameter in model.named_parameters():
        mean, deviation = next((mean, std) for pattern, mean, std in rows if fnmatch(name, pattern))
        values = parameter.detach().double()
        if name.endswith("convolution.weight"):
            assert bool((values[0] == 1).all())
            values = values[1:]
        if deviation == 0:
            assert bool((values == torch.tensor(mean).double()).all()), name
            continue
        count = values.numel()
        assert abs(float(values.mean()) - mean) < 5 * deviation / count**0.5, name
        assert abs(float(values.std()) / deviation - 1) < 5 / count**0.5, name


def test_every_parameter_is_in_the_table_and_every_row_is_used() -> None:
    used = set()
    for model in models():
        patterns = [pattern for pattern, _, _ in table(model.config)]
        for name, _ in model.named_parameters():
            matching = [pattern for pattern in patterns if fnmatch(name, pattern)]
            assert matching, name
            used.add(matching[0])
    assert used == set(patterns)


def test_projections_into_the_residual_stream_shrink_with_depth() -> None:
    shallow, deep = fresh("recommended", n_layers=1), fresh("recommended", n_layers=9)
    for name in ("output.weight", "feedforward.down.weight"):
        ratio = shallow.get_parameter(f"blocks.0.{name}").std() / deep.get_parameter(f"blocks.0.{name}").std()
        assert float(ratio.detach()) == pytest.approx(3.0, rel=0.05), name


@pytest.mark.parametrize("variant", ["recommended", "xl", "paper"])
def test_write_gates_start_open(variant: str) -> None:
    """What the first segments offer enters the bank: nothing that is refused can learn to be wanted."""
    model = fresh(variant)
    _, state = model(torch.randint(0, 300, (2, 64)))
    expected = 64 / model.config.segment_len * model.config.writes_per_segment
    for layer in range(model.config.n_layers):
        pushed = state.tensors()[f"layers.{layer}.pushed"]
        assert float(pushed.double().mean()) > 0.9 * expected


@pytest.mark.parametrize("variant", ["recommended", "paper", "xl", "local"])
def test_a_fresh_model_is_near_the_uniform_guess(variant: str) -> None:
    model = fresh(variant)
    tokens = torch.randint(0, 300, (4, 40))
    logits, _ = model(tokens)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(0, 300, (160,)))
    assert abs(float(loss.detach()) - float(torch.tensor(300.0).log())) < 1.0


def test_the_seed_decides() -> None:
    first, second = fresh("recommended"), fresh("recommended")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
