"""Which parameter is treated how, and that an optimiser can be put away and taken out again."""

import pytest
import torch
from torch import Tensor

from rmat.model import LanguageModel, ModelConfig
from rmat.training.config import TrainConfig
from rmat.training.optimizer import (
    build_optimizers,
    optimizer_tensors,
    parameter_groups,
    restore_optimizers,
    set_learning_rate,
)

VARIANTS = [
    ("recommended", {}),
    ("paper", {"tie_embeddings": False}),
    ("recommended", {"writer": "pool", "gate": "both", "fusion": "token", "memory_position": "rank"}),
    ("full", {}),
]


def make_model(variant: str = "recommended", **overrides: object) -> LanguageModel:
    torch.manual_seed(0)
    fields = {"vocab_size": 40, "d_model": 16, "n_layers": 1, "n_heads": 2, "segment_len": 8, "n_slots": 8}
    return LanguageModel(ModelConfig.preset("tiny", variant, **{**fields, **overrides}))


def give_gradients(model: LanguageModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(("variant", "overrides"), VARIANTS)
def test_every_parameter_is_in_one_group_and_only_matrices_decay(
    variant: str, overrides: dict[str, object]
) -> None:
    model = make_model(variant, **overrides)
    groups = parameter_groups(model)
    names = [*groups.hidden_matrices, *groups.other_matrices, *groups.undecayed]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    decayed = groups.hidden_matrices | groups.other_matrices
    assert all(parameter.dim() == 2 and min(parameter.shape) > 1 for parameter in decayed.values())
    assert not [name for name in decayed if "norm" in name or "bias" in name or "embedding" in name]
    assert not [
        name for name in groups.undecayed if name.endswith(("query.weight", "value.weight", "up.weight"))
    ]
    assert set(groups.other_matrices) == ({"head.weight"} if not model.config.tie_embeddings else set())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weight_decay_moves_matrices_only(optimizer: str) -> None:
    def after_one_update(weight_decay: float) -> dict[str, Tensor]:
        model = make_model()
        config = TrainConfig(optimizer=optimizer, weight_decay=weight_decay, lr=0.1)  # type: ignore[arg-type]
        give_gradients(model, seed=1)
        for one in build_optimizers(model, config):
            one.step()
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    without, with_decay = after_one_update(0.0), after_one_update(0.5)
    moved = {name for name in without if not torch.equal(without[name], with_decay[name])}
    assert moved == set(parameter_groups(make_model()).hidden_matrices)


def test_muon_has_the_hidden_matrices_and_adamw_the_rest() -> None:
    model = make_model(tie_embeddings=False)
    muon, adamw = build_optimizers(model, TrainConfig(optimizer="muon"))
    held = {id(parameter) for group in muon.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in parameter_groups(model).hidden_matrices.values()}
    rest = {id(parameter) for group in adamw.param_groups for parameter in group["params"]}
    assert held | rest == {id(parameter) for parameter in model.parameters()}
    assert not held & rest


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_put_away_and_taken_out_it_goes_on_bit_for_bit(optimizer: str) -> None:
    config = TrainConfig(optimizer=optimizer)  # type: ignore[arg-type]
    model = make_model()
    optimizers = build_optimizers(model, config)
    for seed in range(2):
        give_gradients(model, seed)
        for one in optimizers:
            one.step()

    copy = make_model()
    copy.load_state_dict(model.state_dict())
    copied = build_optimizers(copy, config)
    restore_optimizers(copy, copied, {k: v.clone() for k, v in optimizer_tensors(model, optimizers).items()})
    for which, steps in ((model, optimizers), (copy, copied)):
        give_gradients(which, seed=7)
        set_learning_rate(steps, 0.02)
        for one in steps:
            one.step()
    for (name, left), right in zip(model.named_parameters(), copy.parameters(), strict=True):
        assert torch.equal(left, right), name
    assert optimizer_tensors(model, optimizers).keys() == optimizer_tensors(copy, copied).keys()
