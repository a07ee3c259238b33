"""An imported model gives its source's logits: every architecture, every form that sees the whole text."""

from pathlib import Path

import pytest
import torch

from rmat.pretrained.model import from_pretrained
from tests.makers.pretrained import SOURCES, source_folder, source_model

LENGTH = 600
TOLERANCE = 1e-4
FORMS = {
    "without a bank": {"window": 4096},
    "admitting all": {"window": 64, "n_slots": 700},
    "admitting all, no sinks": {"window": 62, "n_slots": 600, "n_sinks": 0},
}


@pytest.fixture(scope="module", params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    name: str = request.param
    return name, source_folder(tmp_path_factory.mktemp(name), name)


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_the_sources(source: tuple[str, Path], form: str) -> None:
    name, folder = source
    theirs = source_model(name)
    model, _ = from_pretrained(folder, **FORMS[form])
    tokens = torch.randint(0, 320, (2, LENGTH))
    with torch.no_grad():
        expected = theirs(tokens).logits
        whole, _ = model(tokens)
        assert float((whole - expected).abs().max()) < TOLERANCE
        state, pieces = None, []
        for part in tokens.split([1, 70, 1, 1, 300, 227], dim=1):  # decoding from a carried state
            logits, state = model(part, state)
            pieces.append(logits)
        assert float((torch.cat(pieces, 1) - expected).abs().max()) < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_rows_padded_on_the_left_are_the_sources(source: tuple[str, Path], form: str) -> None:
    name, folder = source
    theirs = source_model(name)
    model, _ = from_pretrained(folder, **FORMS[form])
    tokens = torch.randint(0, 320, (3, 150))
    real = torch.arange(150) >= torch.tensor([[0], [1], [97]])
    with torch.no_grad():
        place = (real.cumsum(1) - 1).clamp(min=0)
        expected = theirs(tokens, attention_mask=real.long(), position_ids=place).logits
        logits, state = model(tokens, valid=real)
        assert float((logits - expected)[real].abs().max()) < TOLERANCE
        following = torch.randint(0, 320, (3, 1))
        whole = torch.cat([tokens, following], 1)
        mask = torch.cat([real, torch.ones(3, 1, dtype=torch.bool)], 1)
        place = (mask.cumsum(1) - 1).clamp(min=0)
        expected = theirs(whole, attention_mask=mask.long(), position_ids=place).logits[:, -1]
        assert float((model(following, state)[0][:, 0] - expected).abs().max()) < TOLERANCE


def test_greedy_text_is_the_sources(source: tuple[str, Path]) -> None:
    name, folder = source
    theirs = source_model(name)
    model, _ = from_pretrained(folder, window=32, n_slots=200)
    tokens = torch.randint(0, 320, (1, 40))
    found, state = [], None
    with torch.no_grad():
        expected = theirs.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=60,
            min_new_tokens=60,
            do_sample=False,
            eos_token_id=[],
            pad_token_id=0,
        )[0, 40:]
        part = tokens
        for _ in range(60):
            logits, state = model(part, state)
            part = logits[:, -1:].argmax(2)
            found.append(int(part))
    assert found == expected.tolist()


def test_a_bank_that_is_full_or_closed_is_not_the_source(source: tuple[str, Path]) -> None:
    """The equality above is no accident: with fewer slots, or a gate that refuses, tokens are missed."""
    name, folder = source
    theirs = source_model(name)
    tokens = torch.randint(0, 320, (1, 300))
    with torch.no_grad():
        expected = theirs(tokens).logits
        model, _ = from_pretrained(folder, window=64, n_slots=100)
        assert float((model(tokens)[0] - expected)[:, -1].abs().max()) > 1e-3
        model, _ = from_pretrained(folder, window=64, n_slots=300)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("score.bias"):
                parameter.fill_(-40.0)
        assert float((model(tokens)[0] - expected)[:, -1].abs().max()) > 1e-3
