"""Keys and values in memory that is taken beforehand: new tokens are written to their places and nothing is copied."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer


@dataclass(slots=True)
class _Places:
    """Where the tokens that come next belong, for all layers alike."""

    rows: int
    capacity: int
    filled: int
    flat: Tensor | None = None
    """row * capacity + column of each token [n]."""


class RoomLayer(DynamicLayer):
    """One layer's keys and values, [rows, capacity, heads, width], for tokens that come in one line.

    `keys` and `values` are views of what is filled, [rows, heads, filled, width], as transformers' attention takes
    them.
    """

    def __init__(self, places: _Places) -> None:
        super().__init__()
        self._places = places
        self._held: tuple[Tensor, Tensor] | None = None

    def place(self, rows: Tensor | None, keys: Tensor, values: Tensor) -> None:
        """Let `rows` [n] (None: all of them) begin with keys and values [n, heads, prefix, width]."""
        held = self._take(keys, values)
        for target, source in zip(held, (keys, values), strict=True):
            source = source.transpose(1, 2)  # [n, prefix, heads, width]
            if rows is None:
                target[:, : source.shape[1]] = source
            else:
                target[rows, : source.shape[1]] = source

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write [1, heads, n, width] to the places that the room was aimed at; returns all keys and values."""
        held = self._take(key_states, value_states)
        assert self._places.flat is not None  # noqa: S101 - `Room.aim` comes before every forward
        for target, source in zip(held, (key_states, value_states), strict=True):
            target.flatten(0, 1).index_copy_(0, self._places.flat, source[0].transpose(0, 1))
        self.keys, self.values = (whole[:, : self._places.filled].transpose(1, 2) for whole in held)
        return self.keys, self.values

    def keep(self, rows: Tensor) -> None:
        """Give up all rows but these."""
        if self._held is not None:
            self._held = (self._held[0].index_select(0, rows), self._held[1].index_select(0, rows))

    def grow(self, capacity: int) -> None:
        """Make room for more."""
        if self._held is not None:
            old, self._held = self._held, None
            self._places.capacity = capacity
            for target, source in zip(self._take(*(each.transpose(1, 2) for each in old)), old, strict=True):
                target[:, : source.shape[1]] = source

    def _take(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self._held is None:
            rows, capacity = self._places.rows, self._places.capacity
            # Zeros, not whatever was there: what no mask lets through is still multiplied with zero, and NaN is not.
            self._held = (
                keys.new_zeros(rows, capacity, keys.shape[1], keys.shape[3]),
                values.new_zeros(rows, capacity, values.shape[1], values.shape[3]),
            )
            self.device = keys.device
            self.is_initialized = True
        return self._held


class Room:
    """A cache for `rows` rows of which the first `filled` columns are taken by prefixes."""

    def __init__(self, layers: int, rows: int, capacity: int, filled: int) -> None:
        self._places = _Places(rows, capacity, filled)
        self.layers = [RoomLayer(self._places) for _ in range(layers)]
        self.cache = Cache(layers=list(self.layers))

    @property
    def rows(self) -> int:
        return self._places.rows

    @property
    def filled(self) -> int:
        """Columns that are taken in every row."""
        return self._places.filled

    def aim(self, rows: Tensor, offsets: Tensor, width: int) -> None:
        """Let the next forward's tokens go to `rows` [n], `offsets` [n] behind what is filled; `width` more are."""
        places = self._places
        end = places.filled + width
        if end > places.capacity:
            capacity = max(end, 2 * places.capacity)
            for layer in self.layers:
                layer.grow(capacity)
            places.capacity = capacity
        places.flat = rows * places.capacity + places.filled + offsets
        places.filled = end

    def keep(self, rows: Tensor) -> None:
        """Give up all rows but these."""
        for layer in self.layers:
            layer.keep(rows)
        self._places.rows = len(rows)


class PrefixLayer(DynamicLayer):
    """Keeps what is read first as it comes; transformers' own layer copies it."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [b, heads, l, width]; returns all keys and values."""
        if self.is_initialized:
            return super().update(key_states, value_states, *args, **kwargs)
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states, value_states
        return key_states, value_states


def prefix_cache(config: Any) -> Cache:
    """An empty cache for a language model, in which a prefix is read."""
    cache = DynamicCache(config=config)
    return Cache(layers=[PrefixLayer() for _ in cache.layers]) if is_plain(cache) else cache


def is_plain(cache: Cache) -> bool:
    """Whether a cache holds keys and values alone, all of them: no sliding window, no recurrent state."""
    return bool(cache.layers) and all(type(layer) in (DynamicLayer, PrefixLayer) for layer in cache.layers)


def as_rows(cache: Cache, index: Tensor) -> Cache:
    """A copy of a cache of any kind, whose row i is row index[i]."""
    with torch.inference_mode():
        forked = copy.deepcopy(cache)
        forked.reorder_cache(index)  # type: ignore[arg-type]
    return forked
