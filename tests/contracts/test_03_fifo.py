"""Contract 3: the bank holds exactly what was pushed last, in order; what is evicted is the oldest, or the oldest of the weakest.

Identity is carried in the values: the model below writes token t as the number t (its embedding is one-hot, its value
projection reads off the number, its write score is a table by token), and the expectation is a list of numbers.
"""

import math
import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rmat.model import LanguageModel, ModelConfig, StreamState
from tests.makers.models import bank_positions, make_config, schedules_of, split_points, stream

WIDTH = 32
SCORES = [((7 * token) % 13 - 5) / 4 + 0.5 / 256 for token in range(WIDTH)]  # about 40 % are refused
RANDOM = settings(max_examples=8, deadline=None, derandomize=True)


def numbering_model(**fields: object) -> LanguageModel:
    """A model of one layer whose memory values are the numbers of the tokens that were written."""
    config = make_config(
        {
            "streams": ("memory",),
            "n_layers": 1,
            "d_model": WIDTH,
            "vocab_size": WIDTH,
            "conv_width": 0,
            **fields,
        },
        norm="rmsnorm",
        write_from="input",
        n_heads=2,
        n_kv_heads=2,
    )
    model = LanguageModel(config).double().eval()
    length = (1 / WIDTH + 1e-6) ** 0.5  # RMSNorm makes a one-hot vector 1 / length
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embedding.weight.copy_(torch.eye(WIDTH))
        model.get_parameter("blocks.0.norm.weight").fill_(1.0)
        model.get_parameter("blocks.0.memory.value.weight")[0] = (
            torch.arange(WIDTH, dtype=torch.float64) * length
        )
        if config.scores_writes:
            weight = model.get_parameter("blocks.0.memory.writer.score.weight")
            weight[0] = torch.tensor(SCORES, dtype=torch.float64) * length
    return model


def held_numbers(state: StreamState) -> list[float]:
    """Numbers in the filled slots of the only row, oldest first."""
    tensors = state.tensors()
    count = min(int(tensors["layers.0.pushed"]), tensors["layers.0.slot_value"].shape[1])
    values = tensors["layers.0.slot_value"][0, :, 0, 0].tolist()
    return [round(value, 6) for value in values[len(values) - count :]]


def expected_writes(config: ModelConfig, tokens: Sequence[int]) -> list[tuple[float, int]]:
    """(number, source position) of everything that entered the bank, in order."""
    size, writes = config.segment_len, []
    for start in range(0, len(tokens) - len(tokens) % size, size):
        segment = [(tokens[p], p) for p in range(start, start + size)]
        if config.writer == "mean":
            writes.append((round(sum(token for token, _ in segment) / size, 6), start + size - 1))
            continue
        if config.writer == "select":
            best = sorted(segment, key=lambda each: (-SCORES[each[0]], each[1]))[: config.writes_per_segment]
            segment = sorted(best, key=lambda each: each[1])
        if config.gate == "push":
            segment = [each for each in segment if SCORES[each[0]] > 0]
        writes += [(float(token), p) for token, p in segment]
    return writes


WRITERS = {
    "all": {"writer": "all", "gate": "none", "n_slots": 9},
    "all_one_segment": {"writer": "all", "gate": "none", "n_slots": 6},
    "all_refusing": {"writer": "all", "gate": "push", "n_slots": 8},
    "select": {"writer": "select", "gate": "none", "n_slots": 7, "writes_per_segment": 3},
    "select_refusing": {"writer": "select", "gate": "push", "n_slots": 5, "writes_per_segment": 4},
    "select_one": {"writer": "select", "gate": "push", "n_slots": 1, "writes_per_segment": 1},
    "mean": {"writer": "mean", "gate": "none", "n_slots": 3},
    "weakest_all": {"writer": "all", "gate": "push", "n_slots": 8, "eviction": "weakest"},
    "weakest_select": {"writer": "select", "gate": "push", "n_slots": 5, "eviction": "weakest"},
    "weakest_never_refusing": {"writer": "select", "gate": "none", "n_slots": 7, "eviction": "weakest"},
    "weakest_fading": {"writer": "all", "gate": "push", "n_slots": 8, "eviction": "weakest", "fade": 30.0},
    "weakest_fading_slowly": {
        "writer": "select",
        "gate": "none",
        "n_slots": 7,
        "eviction": "weakest",
        "fade": 0.7,
    },
    "weakest_but_for_the_newest": {
        "writer": "all",
        "gate": "push",
        "n_slots": 8,
        "eviction": "weakest",
        "fade": 3.0,
        "newest_share": 0.4,
    },
    "weakest_and_all_are_newest": {
        "writer": "all",
        "gate": "push",
        "n_slots": 8,
        "eviction": "weakest",
        "newest_share": 1.0,
    },
}


def expected_bank(config: ModelConfig, writes: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """What is left of these writes: the last ones, or the last few and of the others those whose scores, less
    what age takes of them, are best; of equals the later ones."""
    if config.eviction == "oldest":
        return writes[-config.n_slots :]
    older = writes[: max(len(writes) - math.floor(config.newest_share * config.n_slots), 0)]
    newest = writes[len(older) :]

    def remaining(write: tuple[float, int]) -> tuple[float, int]:
        number, position = write
        return math.floor(SCORES[int(number)] * 256) / 256 + config.fade * position / 1024, position

    best = sorted(older, key=remaining)[max(len(writes) - config.n_slots, 0) :]
    return sorted([*best, *newest], key=lambda each: each[1])


@pytest.mark.parametrize("name", WRITERS)
@given(seed=st.integers(0, 10**6))
@RANDOM
def test_what_is_held_in_which_order(name: str, seed: int) -> None:
    rng = random.Random(seed)
    model = numbering_model(**WRITERS[name])
    numbers = [rng.randrange(WIDTH) for _ in range(rng.randint(1, 45))]
    tokens = torch.tensor([numbers])
    writes = expected_writes(model.config, numbers)
    kept = expected_bank(model.config, writes)
    ends = split_points(len(numbers), rng, 5)
    states = [model(tokens, schedule=schedule)[1] for schedule in schedules_of(model.config)]
    states.append(stream(model, tokens, ends)[1])
    for state in states:
        assert held_numbers(state) == [number for number, _ in kept]
        assert bank_positions(state, 0, model.config.segment_len) == [[position for _, position in kept]]
        assert int(state.tensors()["layers.0.pushed"]) == len(writes)
        assert float(state.openness()) == pytest.approx(len(writes) / len(numbers))


def test_the_oldest_is_evicted_first_one_by_one() -> None:
    """Counting up: after every segment the bank is the last nine numbers of the segments that are complete."""
    model = numbering_model(writer="all", gate="none", n_slots=9)
    state = None
    for t in range(30):
        _, state = model(torch.tensor([[t]]), state)
        complete = (t + 1) // 6 * 6
        assert held_numbers(state) == [float(number) for number in range(max(0, complete - 9), complete)]


def test_equal_scores_go_to_the_earlier_token() -> None:
    """Scores within one step of 1/256 are equal: rounding must not choose among repeated tokens."""
    model = numbering_model(writer="select", gate="none", n_slots=4, writes_per_segment=2)
    with torch.no_grad():
        scorer = model.get_parameter("blocks.0.memory.writer.score.weight")
        scorer[0] = (0.5 + 1e-7 * torch.arange(WIDTH)) * (1 / WIDTH + 1e-6) ** 0.5
    tokens = torch.tensor([[3, 30, 31, 7, 9, 11]])
    for state in (model(tokens)[1], stream(model, tokens, list(range(1, 7)))[1]):
        assert held_numbers(state) == [3.0, 30.0]


def test_a_slot_carries_the_log_of_its_gate() -> None:
    model = numbering_model(writer="select", gate="push", n_slots=4, writes_per_segment=2)
    _, state = model(torch.tensor([[0, 1, 2, 3, 4, 5]]))
    held = [int(number) for number in held_numbers(state)]
    assert held
    expected = torch.tensor([SCORES[token] for token in held], dtype=torch.float64).sigmoid().log()
    found = state.tensors()["layers.0.slot_log_gate"][0, -len(held) :]
    assert torch.allclose(found, expected, atol=1e-12)


def test_a_new_document_starts_with_an_empty_bank() -> None:
    model = numbering_model(writer="all", gate="none", n_slots=9)
    resets = torch.zeros(1, 20, dtype=torch.bool)
    resets[0, 8] = True
    _, state = model(torch.arange(20)[None], resets=resets)
    assert held_numbers(state) == [float(number) for number in range(11, 20)]
    _, state = model(torch.arange(13)[None], resets=resets[:, :13])
    assert held_numbers(state) == []


def test_a_new_document_takes_slots_from_strong_ones_of_the_old() -> None:
    """The strongest numbers are all in the first document: nothing of them counts in the second."""
    model = numbering_model(writer="all", gate="push", n_slots=6, eviction="weakest")
    strong = max(range(WIDTH), key=lambda number: SCORES[number])
    weak = min((number for number in range(WIDTH) if SCORES[number] > 0), key=lambda number: SCORES[number])
    for first in (12, 9):
        tokens = torch.tensor([[strong] * first + [weak] * 15])
        assert held_numbers(model(tokens)[1])[:6] == [float(strong)] * 6
        resets = torch.zeros(tokens.shape, dtype=torch.bool)
        resets[0, first] = True
        _, whole = model(tokens, resets=resets)
        _, second = model(tokens[:, first:], model(tokens[:, :first])[1], resets=resets[:, first:])
        assert held_numbers(whole) == held_numbers(second) == [float(weak)] * 6
