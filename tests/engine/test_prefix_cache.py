import itertools

import numpy as np
import pytest
import torch

from rmat.data.tokenizer import Tokenizer
from rmat.engine.prefix_cache import PrefixCache, cuts, first_call, prefix_keys
from rmat.model import LanguageModel, StreamState
from tests.makers.engines import small_model


@pytest.fixture
def states(model: LanguageModel) -> list[StreamState]:
    return [model.initial_state(batch_size=1) for _ in range(6)]


def key(number: int) -> bytes:
    return bytes([number]) * 32


class TestCuts:
    @pytest.mark.parametrize(("segment", "most"), [(16, 512), (48, 512), (128, 1000), (256, 512), (300, 128)])
    def test_they_depend_on_the_position_alone(self, segment: int, most: int) -> None:
        long = list(cuts(40_000, segment, most))
        for n_tokens in (0, 1, 17, 128, 129, 500, 5_000, 20_001):
            assert list(cuts(n_tokens, segment, most)) == [end for end in long if end < n_tokens]

    @pytest.mark.parametrize(("segment", "most"), [(16, 512), (48, 512), (128, 1000), (256, 512)])
    def test_calls_are_whole_segments_and_bounded(self, segment: int, most: int) -> None:
        ends = [0, *cuts(40_000, segment, most)]
        assert all(end % segment == 0 for end in ends)
        assert all(0 < after - before <= most for before, after in itertools.pairwise(ends))

    def test_segments_longer_than_a_slice_are_cut(self) -> None:
        assert list(cuts(300, 16_384, 128)) == [128, 256]
        assert first_call(16, 10) == 10 and first_call(16, 20) == 16

    def test_a_common_beginning_is_mostly_found_again(self) -> None:
        ends = list(cuts(100_000, 16, 512))
        for shared in range(8 * 128, 90_000, 777):
            assert max(end for end in ends if end <= shared) >= shared * 7 / 8


class TestKeys:
    IDS = np.arange(100, dtype=np.int64)

    def test_they_stand_for_the_whole_beginning(self) -> None:
        ends = [10, 20, 50]
        keys = prefix_keys("", self.IDS, ends)
        assert len(set(keys)) == 3
        for place in (0, 9, 10, 19, 20, 49):
            changed = self.IDS.copy()
            changed[place] += 1
            same = [a == b for a, b in zip(keys, prefix_keys("", changed, ends), strict=True)]
            assert same == [end <= place for end in ends]

    def test_they_do_not_depend_on_where_else_keys_are_taken(self) -> None:
        assert prefix_keys("", self.IDS, [10, 20, 50])[2] == prefix_keys("", self.IDS, [50])[0]

    def test_scopes_share_nothing(self) -> None:
        first, second = (prefix_keys(scope, self.IDS, [10, 20]) for scope in ("", "key"))
        assert not set(first) & set(second)


class TestBudget:
    def test_bytes_are_counted_exactly_and_never_above_the_budget(self, states: list[StreamState]) -> None:
        size = states[0].nbytes
        cache = PrefixCache(3 * size + size // 2)
        for number, state in enumerate(states):
            cache.put(key(number), state)
            assert cache.nbytes == len(cache) * size <= cache.budget
        assert len(cache) == 3

    def test_the_longest_unused_goes_first(self, states: list[StreamState]) -> None:
        cache = PrefixCache(3 * states[0].nbytes)
        for number in range(3):
            cache.put(key(number), states[number])
        kept = cache.get(key(0))
        assert kept is not None
        assert all(torch.equal(x, states[0].tensors()[name]) for name, x in kept.tensors().items())
        cache.put(key(3), states[3])
        assert [cache.get(key(number)) is not None for number in range(4)] == [True, False, True, True]

    def test_what_is_too_large_is_not_kept(self, states: list[StreamState]) -> None:
        for budget in (0, states[0].nbytes - 1):
            cache = PrefixCache(budget)
            cache.put(key(0), states[0])
            assert len(cache) == 0 == cache.nbytes and cache.get(key(0)) is None

    def test_a_prompt_keeps_at_most_its_share(self) -> None:
        cache = PrefixCache(4_000)
        assert [cache.stride(n_cuts, 100) for n_cuts in (0, 1, 10, 11, 20, 21, 1_000)] == [
            1,
            1,
            1,
            2,
            2,
            4,
            128,
        ]
        assert PrefixCache(0).stride(5, 100) == 8


@pytest.mark.parametrize("variant", ["recommended", "paper", "xl", "local", "full"])
def test_states_hold_no_memory_but_their_own(variant: str, tokenizer: Tokenizer) -> None:
    """Else `nbytes` would not be what the cache takes: a view keeps the tensor alive that it is a part of."""
    model = small_model(variant, tokenizer)
    state = model.initial_state(batch_size=1)
    with torch.no_grad():
        for length in (32, 32, 48, 7, 1, 64):
            _, state = model.hidden(torch.randint(0, 200, (1, length)), state)
            storages = {
                t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                for t in state.clone().tensors().values()
            }
            assert sum(storages.values()) == state.nbytes
