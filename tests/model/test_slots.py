"""`with_slots`: the same weights with banks of another size, and what a larger bank still knows."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rmat.model import LanguageModel, ModelConfig

SEGMENT = 4


def build(variant: str = "recommended", **fields: Any) -> LanguageModel:
    """A float64 model of one layer with scrambled weights that writes all tokens but of "paper"."""
    torch.manual_seed(0)
    small = {
        "vocab_size": 29,
        "d_model": 16,
        "n_layers": 1,
        "n_heads": 2,
        "segment_len": SEGMENT,
        "n_slots": 8,
    }
    if variant == "recommended":
        small |= {"writer": "all", "gate": "none", "writes_per_segment": SEGMENT}
    model = LanguageModel(ModelConfig.preset("tiny", variant=variant, **{**small, **fields})).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


def tokens(length: int) -> Tensor:
    return torch.randint(0, 29, (2, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", ["recommended", "paper"])
@pytest.mark.parametrize("n_slots", [8, 9, 40])
def test_a_bank_that_never_fills_gives_the_same_logits(variant: str, n_slots: int) -> None:
    model = build(variant)
    other = model.with_slots(n_slots)
    assert other.config.n_slots == n_slots and model.config.n_slots == 8
    read = tokens(8 + SEGMENT)  # the last segment is not closed before its end
    with torch.no_grad():
        torch.testing.assert_close(other(read)[0], model(read)[0], rtol=1e-12, atol=1e-12)


def reach(model: LanguageModel, length: int = 41) -> int:
    """How far back from its end a change of one token is felt."""
    read = tokens(length)
    with torch.no_grad():
        last = model(read)[0][:, -1]
        for place in range(length):
            other = read.clone()
            other[:, place] = (other[:, place] + 1) % 29
            if not torch.allclose(model(other)[0][:, -1], last, rtol=0, atol=1e-12):
                return length - 1 - place
    return 0


def test_more_slots_remember_more() -> None:
    """One layer without convolution that writes every token: it reaches so many slots behind the last closed segment,
    which ends right before the last token."""
    model = build(conv_width=0)
    assert [reach(model.with_slots(n)) for n in (4, 8, 16, 32)] == [4, 8, 16, 32]


def test_the_weights_are_copied_and_independent() -> None:
    model = build()
    other = model.with_slots(16)
    for name, weight in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight), name
    with torch.no_grad():
        other.embedding.weight.zero_()
    assert float(model.embedding.weight.detach().abs().max()) > 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_training_mode_and_type_are_kept(training: bool, dtype: torch.dtype) -> None:
    other = build().to(dtype).train(training).with_slots(16)
    assert other.training == training == other.blocks[0].training
    assert {weight.dtype for weight in other.parameters()} == {dtype}
    assert other.initial_state(1).layers[0].memory.slots.key.shape[1] == 16


def test_random_numbers_of_the_program_are_not_touched() -> None:
    model = build()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model.with_slots(16)
    assert torch.equal(torch.rand(3), expected)


def test_learned_places_refuse_another_number() -> None:
    model = build(memory_position="rank")
    with pytest.raises(
        ValueError, match=r"n_slots=9 is not possible: memory_position='rank' has learned 8 places"
    ):
        model.with_slots(9)
    assert model.with_slots(8).config == model.config
    assert build(memory_position="age").with_slots(9).config.n_slots == 9


@pytest.mark.parametrize("n_slots", [0, -1, 3, 2.0])
def test_an_impossible_number_is_refused_by_the_configuration(n_slots: Any) -> None:
    """Three slots do not hold the four writes of a segment."""
    with pytest.raises(ValueError, match=r"ModelConfig.(n_slots|writes_per_segment)=.* is not possible"):
        build().with_slots(n_slots)


def test_what_a_full_bank_gives_up_is_changed_alone() -> None:
    model = build(writer="select", gate="push")
    other = model.with_slots(eviction="weakest")
    assert (other.config.eviction, other.config.n_slots) == ("weakest", 8)
    assert other.with_slots(9).config.eviction == "weakest"
    read = tokens(41)
    with torch.no_grad():
        few, many = read[:, :8], read
        assert torch.equal(other(few)[0], model(few)[0])
        assert not torch.allclose(other(many)[0], model(many)[0])
    with pytest.raises(
        ValueError, match="eviction='weakest' is not possible: it needs a score for every write"
    ):
        build().with_slots(eviction="weakest")


def test_fading_and_the_share_of_the_newest_are_chosen_with_the_eviction() -> None:
    faded = build(gate="push").with_slots(eviction="weakest", fade=3, newest_share=0.5)
    assert (faded.config.eviction, faded.config.fade, faded.config.newest_share) == ("weakest", 3, 0.5)
    assert (faded.with_slots(9).config.fade, faded.with_slots(9).config.n_newest) == (3, 4)
    oldest = faded.with_slots(eviction="oldest").config
    assert (oldest.fade, oldest.newest_share) == (0, 0)
    for field in ("newest_share", "fade"):
        with pytest.raises(ValueError, match=f"{field}=.*strength decides only with"):
            build().with_slots(**{field: 0.5})
    with pytest.raises(ValueError, match=r"newest_share=1\.5"):
        faded.with_slots(newest_share=1.5)


def test_a_model_without_memory_stays_what_it_is() -> None:
    model = build("local", memory_position="rank")
    read = tokens(20)
    with torch.no_grad():
        assert torch.equal(model.with_slots(99)(read)[0], model(read)[0])
