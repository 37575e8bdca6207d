"""Rows under way whose keys and values grow: the pool is a state that rows join and leave."""

from __future__ import annotations

import torch
from torch import Tensor

from .model import HybridModel
from .state import HybridState, join


class GrowingDecoder:
    """`vlmamba.decoder.Decoder` for models with attention layers, whose memory is not of a fixed size."""

    def __init__(self, language_model: HybridModel, vocabulary: int, capacity: int):
        self.language_model, self.vocabulary, self._capacity = language_model, vocabulary, capacity
        self._state: HybridState | None = None
        self._device = next(language_model.parameters()).device

    def __len__(self) -> int:
        """How many rows there is room for."""
        return self._capacity

    def next_tokens(self, x: Tensor) -> Tensor:
        """The likeliest token after each row of the residual stream [b, d_model] -> int64 [b]."""
        return self.language_model.logits(x)[:, : self.vocabulary].argmax(-1)

    def add(self, place: int, state: HybridState) -> None:
        """Let the rows of `state` take the places from `place` on; at place 0 what was there before is over."""
        self._state = state if place == 0 or self._state is None else join([self._state, state])

    def close_ranks(self, n: int, going: list[int]) -> list[int]:
        """Keep the rows at the places `going` of the first `n`; returns where each of them stood."""
        if not going:
            self._state = None
        elif len(going) < n and self._state is not None:
            self._state = self._state.select(torch.tensor(going, device=self._device))
        return going

    def step(self, ids: list[int]) -> list[int]:
        """Let all rows read one token each; returns the next token of each."""
        assert self._state is not None  # noqa: S101
        x = self.language_model.step(torch.tensor(ids, device=self._device), self._state)
        return self.next_tokens(x).tolist()
