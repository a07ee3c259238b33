"""The state of a stream as a cache of transformers: a thin shell around the immutable `StreamState`."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from rmat.model import StreamState


class RmatLayer(CacheLayerMixin):
    """What the whole model carries: a state knows its layers itself."""

    is_sliding = False
    is_compileable = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, state: StreamState | None = None) -> None:
        super().__init__()
        self.state = state
        self.last: Tensor | None = None
        """(B, E) hidden vectors of the rows' last tokens, for logits behind padding."""
        self.seen = 0
        """Columns read through this cache, padding among them: so transformers counts."""

    def __deepcopy__(self, memo: dict[int, Any]) -> RmatLayer:
        """A fork: what is held never changes, so both may hold it."""
        other = RmatLayer(self.state)
        other.last, other.seen = self.last, self.seen
        return other

    def select(self, rows: Tensor) -> None:
        """Keep the given rows in the given order; one may be taken more than once."""
        if self.state is not None:
            self.state = self.state.select(rows.long())
        if self.last is not None:
            self.last = self.last.index_select(0, rows.to(self.last.device))

    def get_seq_length(self) -> int:
        """Columns read: `generate` leaves so many out in front."""
        return self.seen

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    get_max_cache_shape = get_max_length  # its name in transformers 5.23

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of a mask over all that was read, and where it begins."""
        return self.seen + query_length, 0

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.last, self.seen = None, None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """The rows that beam search goes on with."""
        self.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times, one behind the other."""
        if self.state is not None:
            rows = torch.arange(self.state.batch_size, device=self.state.position.device)
            self.select(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """The given rows only."""
        if self.state is not None:  # indices may be a mask
            rows = torch.arange(self.state.batch_size, device=self.state.position.device)
            self.select(rows[indices.to(rows.device)])

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> NoReturn:
        """Not possible: there are no keys and values of a layer to be held."""
        self._refuse("lazy_initialization")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        """Not possible, as `lazy_initialization`."""
        self._refuse("update")

    def crop(self, tokens_to_remove: int) -> NoReturn:
        """Not possible: a state of one size does not know what it was before."""
        self._refuse("crop")

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(
            f"{what} is not possible: the cache of an rmat model is one state of constant size, which cannot "
            "be written into or cut back; keep a copy.deepcopy of the cache to return to"
        )


class RmatCache(Cache):
    """What a model has read. `copy.deepcopy` forks it.

    Args:
        state: to go on from; `generate` then takes the new tokens alone. None for nothing read yet.
    """

    def __init__(self, state: StreamState | None = None) -> None:
        super().__init__(layers=[RmatLayer(state)])

    @property
    def held(self) -> RmatLayer:
        """The one object behind the interface of layers."""
        layer: RmatLayer = self.layers[0]
        return layer

    @property
    def state(self) -> StreamState | None:
        """The state after what was read; None before anything was."""
        return self.held.state

    @property
    def batch_size(self) -> int:
        """Rows; -1 before anything was read."""
        return -1 if self.state is None else self.state.batch_size

    def __repr__(self) -> str:
        return f"RmatCache({self.state!r})"
