"""Rows read in parts by several processes: as one process reads them, and nothing but the bank is handed over."""

import random
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from rmat.context_parallel import handed_bytes, read_parallel
from rmat.machine import process_group
from rmat.model.state import initial_state
from tests.makers.configurations import sampled_cases
from tests.makers.models import CASES, assert_close, make_model, make_tokens
from tests.makers.together import together

SAMPLED = sampled_cases(12, seed=5)


def makes_parts(name: str) -> bool:
    return make_model(SAMPLED.get(name, name)).resolve_schedule("auto")[0] == "parallel"


def compare(names: list[str], seeds: list[int]) -> None:
    """In every process of a group: logits, state and gradients of its part, and of all parts together."""
    with process_group("cpu"):
        for name in names:
            for seed in seeds:
                compare_one(name, seed)


def compare_one(name: str, seed: int) -> None:
    rng = random.Random(f"{name} {seed}")
    model = make_model(SAMPLED.get(name, name), seed=seed % 5)
    segment = model.config.segment_len
    length = rng.choice([1, segment + 1, rng.randint(2, 6 * segment), rng.randint(6 * segment, 30 * segment)])
    tokens = make_tokens(2, length, seed=seed)
    resets = torch.zeros(2, length, dtype=torch.bool)
    for _ in range(rng.randint(0, 3)):
        resets[rng.randrange(2), rng.randrange(length)] = True
    state = None
    if rng.random() < 0.6:
        state = model(make_tokens(2, rng.randint(1, 15), seed=seed + 1))[1].detach()
    # Generators of the processes may stand at different places; the loss is one.
    same = torch.Generator().manual_seed(seed)
    weights = torch.randn(2, length, model.config.vocab_size, dtype=torch.float64, generator=same)

    logits, end = model(tokens, state, resets=resets)
    parameters = list(model.parameters())
    (logits * weights).sum().backward()
    expected = [parameter.grad for parameter in parameters]
    model.zero_grad(set_to_none=True)

    if rng.random() < 0.5:
        for block in model.blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    part = read_parallel(model, tokens, state, resets=resets)
    own = model.logits(part.hidden)
    row = torch.arange(2)[:, None]
    what = f"{name}, seed {seed}, {length} tokens"
    assert_close(own[part.valid], logits[row, part.index][part.valid], f"logits, {what}")
    for key, x in end.tensors().items():
        assert_close(part.state.tensors()[key], x, f"state {key}, {what}")
    (own * weights[row, part.index])[part.valid].sum().backward()
    for parameter, whole in zip(parameters, expected, strict=True):
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        dist.all_reduce(gradient)
        whole = torch.zeros_like(parameter) if whole is None else whole
        assert_close(gradient, whole, f"gradient of {tuple(parameter.shape)}, {what}")
    counts = part.valid.sum(1)
    dist.all_reduce(counts)
    assert counts.tolist() == [length] * 2


def count_bytes(lengths: list[int]) -> list[tuple[int, int, int]]:
    """What this process sends while it reads rows of these lengths and makes the backward pass: to the next, to
    the one before, and to all at once."""
    sent: list[list[int]] = []
    begin, tell = dist.isend, dist.broadcast
    rank = 0

    def counted(x: torch.Tensor, peer: int, *rest: Any, **more: Any) -> Any:
        assert abs(peer - rank) == 1
        sent[-1][int(peer < rank)] += x.nbytes
        return begin(x, peer, *rest, **more)

    def told(x: torch.Tensor, src: int, *rest: Any, **more: Any) -> Any:
        sent[-1][2] += x.nbytes * (src == rank)
        return tell(x, src, *rest, **more)

    def forbidden(*rest: Any, **more: Any) -> Any:
        raise AssertionError("another way of sending")

    dist.isend, dist.broadcast = counted, told
    for name in ("send", "all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
        setattr(dist, name, forbidden)
    with process_group("cpu"):
        model, rank = make_model("recommended"), dist.get_rank()
        for length in lengths:
            sent.append([0, 0, 0])
            read_parallel(model, make_tokens(1, length)).hidden.sum().backward()
    return [(right, left, everywhere) for right, left, everywhere in sent]


def a_document_first() -> None:
    """A row whose first part hands on old slots alone, which hang on no weight: without look-back and convolution,
    in front of a document that starts before a segment closes."""
    model = make_model({"chunk_lookback": 0, "conv_width": 0})
    state = model(make_tokens(2, 2 * model.config.segment_len))[1].detach()
    resets = torch.tensor([[False, True], [False, True]])
    part = read_parallel(model, make_tokens(2, 2, seed=1), state, resets=resets)
    model.logits(part.hidden)[part.valid].sum().backward()


def compare_quickly(names: list[str]) -> None:
    with process_group("cpu"):
        a_document_first()  # whose gradients are not to reach the next
        compare(names, [0, 1, 2])


def test_two_processes_read_as_one() -> None:
    names = ["recommended", "admitted", "xl", "local", *SAMPLED]
    together(2, compare_quickly, [name for name in names if makes_parts(name)][:10])


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize(("count", "seeds"), [(2, [0, 1, 2, 3, 4, 5]), (3, [6, 7]), (4, [8]), (5, [9])])
def test_many_processes_read_as_one(count: int, seeds: list[int]) -> None:
    """Of more processes than the machine has cores each waits for the others: for them one seed a case."""
    names = [name for name in (*CASES, *SAMPLED) if makes_parts(name)]
    assert len(names) > 15
    together(count, compare, names, seeds, timeout=900)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_what_is_sent_does_not_depend_on_the_length(count: int) -> None:
    config = make_model("recommended").config
    handed = sum(handed_bytes(config, torch.float64))
    integers = config.n_layers * 8 * (config.n_slots + 1)  # ages, and how many were pushed
    flags = config.n_layers * 6  # of slots key, value and gate, of tokens key and value, and the tail
    state = initial_state(config, 1, torch.device("cpu"), torch.float64).nbytes
    lengths = [2 * config.segment_len * count, 480, 1920]
    for rank, sent in enumerate(together(count, count_bytes, lengths)):
        last = rank == count - 1
        expected = (0 if last else handed, handed - integers + flags if rank else 0, state if last else 0)
        assert sent == [expected] * 3


def test_the_bytes_are_bank_lookback_and_tail() -> None:
    config = make_model("recommended").config
    width = 2 * config.n_kv_heads * config.head_dim  # a key and a value
    slots = config.n_slots * (width * 4 + 4 + 8) + 8  # log gate, age; how many were pushed
    lookback = config.lookback * width * 4
    tail = (config.conv_width - 1) * config.d_model * 4
    assert handed_bytes(config) == [slots + lookback + tail] * config.n_layers


def test_what_cannot_be_read_in_parts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"write_from='output' cannot be read in parts"):
        read_parallel(make_model("paper"), make_tokens(1, 20))
