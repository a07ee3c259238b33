"""A block compiles as one graph, forward and backward, and computes the same."""

import pytest
import torch

from rmat.model.call import Call
from rmat.model.layout import Layout
from tests.makers.models import assert_close, make_model, make_tokens


@pytest.mark.slow
@pytest.mark.parametrize("case", ["recommended", "local", "full", "admitted", "admitted_of_heads"])
def test_a_block_has_no_graph_break(case: str) -> None:
    model = make_model(case, dtype=torch.float64)
    tokens = make_tokens(2, 21)
    _, state = model(make_tokens(2, 9, seed=1))
    layout = Layout.of(model.config, state.position, 21, tokens.device)
    call = Call.of(model.config, layout, torch.float64, "on", training=False)
    block, found = model.blocks[0], []
    # Compiled first: what the plain block computes once would be there already.
    for each in (torch.compile(block, fullgraph=True, backend="aot_eager"), block):
        hidden_BTE = model.embedding(tokens).detach().requires_grad_()
        out_BTE, after = each(hidden_BTE, state.layers[0], call)
        (gradient_BTE,) = torch.autograd.grad(out_BTE.square().sum(), [hidden_BTE])
        found.append([out_BTE, gradient_BTE, *after.tensors().values()])
    for actual, expected in zip(*found, strict=True):
        assert_close(actual, expected, case, tolerance=1e-10)
