"""Keys and values in memory that is taken beforehand: a decoding step writes its few tokens and copies nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class RoomLayer(DynamicLayer):
    """One layer's keys and values, [b, heads, tokens, width], with free room behind them.

    `keys` and `values` are views of what is filled, as transformers' attention expects them. The room doubles when it
    is full. `place` puts a prefix into some rows before the first `update`.
    """

    def __init__(self, rows: int, capacity: int, filled: int) -> None:
        super().__init__()
        self._rows, self._capacity, self._filled = rows, capacity, filled
        self._held: tuple[Tensor, Tensor] | None = None

    def place(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Let `rows` [n] begin with keys and values [n, heads, prefix, width]."""
        held = self._take(keys, values)
        for target, source in zip(held, (keys, values), strict=True):
            target[rows, :, : source.shape[-2]] = source
        self._show()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [b, heads, l, width] to every row; returns all keys and values."""
        held = self._take(key_states, value_states)
        end = self._filled + key_states.shape[-2]
        if end > self._capacity:
            self._capacity = max(end, 2 * self._capacity)
            old, self._held = held, None
            held = self._take(key_states, value_states)
            for target, source in zip(held, old, strict=True):
                target[:, :, : self._filled] = source[:, :, : self._filled]
        for target, source in zip(held, (key_states, value_states), strict=True):
            target[:, :, self._filled : end] = source
        self._filled = end
        return self._show()

    def keep(self, rows: Tensor) -> None:
        """Give up all rows but these."""
        self._rows = len(rows)
        if self._held is not None:
            self._held = (self._held[0][rows], self._held[1][rows])
            self._show()

    def _take(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self._held is None:
            # Zeros, not whatever was there: what no mask lets through is still multiplied with zero, and NaN is not.
            self._held = (
                keys.new_zeros(self._rows, keys.shape[1], self._capacity, keys.shape[3]),
                values.new_zeros(self._rows, values.shape[1], self._capacity, values.shape[3]),
            )
            self.device = keys.device
            self.is_initialized = True
        return self._held

    def _show(self) -> tuple[Tensor, Tensor]:
        assert self._held is not None  # noqa: S101
        self.keys, self.values = (held[:, :, : self._filled] for held in self._held)
        return self.keys, self.values


def new_room(layers: int, rows: int, capacity: int, filled: int) -> tuple[Cache, list[RoomLayer]]:
    """A cache for `rows` rows of which the first `filled` places are taken by prefixes, and its layers."""
    made = [RoomLayer(rows, capacity, filled) for _ in range(layers)]
    return Cache(layers=list(made)), made


def is_plain(cache: Cache) -> bool:
    """Whether a cache holds keys and values alone, all of them: no sliding window, no recurrent state."""
    return bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)


def as_rows(cache: Cache, index: Tensor) -> Cache:
    """A copy of a cache of any kind, whose row i is row index[i]."""
    import copy

    with torch.inference_mode():
        forked = copy.deepcopy(cache)
        forked.reorder_cache(index)
    return forked
