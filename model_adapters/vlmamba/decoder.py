"""Decoding: a pool of rows of many images that all take one step at a time.

On a GPU a step is a few thousand small kernels, whose launches take longer than their work. The pool is therefore
static memory, and a step over its first rows is captured once for each of a few batch sizes and replayed as one CUDA
graph. The CPU needs none of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .captured import Captured
from .language_model import LanguageModel, State

# Batch sizes that have a graph; a step runs the smallest that holds its rows.
_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


class Decoder:
    """Rows under way, in the first places of a pool of states.

    `vocabulary` is the number of tokens that can be said. `graphs` turns capturing off if it is False; without a
    CUDA device there is nothing to turn off.
    """

    def __init__(self, language_model: LanguageModel, vocabulary: int, capacity: int, *, graphs: bool = True):
        self.language_model = language_model
        self.vocabulary = vocabulary
        self.pool: State = language_model.new_state(capacity)
        device = self.pool.states[0].device
        self._ids = torch.zeros(capacity, dtype=torch.long, device=device)
        self._step = Captured(self._eager, "decoding", wanted=graphs)

    def __len__(self) -> int:
        """How many rows there is room for."""
        return len(self.pool)

    def next_tokens(self, x: Tensor) -> Tensor:
        """The likeliest token after each row of the residual stream [b, d_model] -> int64 [b]."""
        return self.language_model.logits(x)[:, : self.vocabulary].argmax(-1)

    def add(self, place: int, state: State) -> None:
        """Let the rows of `state` take the places from `place` on."""
        self.pool.put(place, state)

    def close_ranks(self, n: int, going: list[int]) -> list[int]:
        """Keep the rows at the places `going` of the first `n`: those at the end take the places of the others.

        Returns, for each of the first len(going) places, where its row stood.
        """
        kept = set(going)
        movers = [place for place in going if place >= len(going)]
        holes = [place for place in range(len(going)) if place not in kept]
        if movers:
            self.pool.move(movers, holes)
        order = list(range(len(going)))
        for mover, hole in zip(movers, holes, strict=True):
            order[hole] = mover
        return order

    def step(self, ids: list[int]) -> list[int]:
        """Let the first len(ids) rows read one token each; returns the next token of each."""
        n = len(ids)
        if self._ids.device.type != "cuda":
            return self._eager(torch.tensor(ids)).tolist()
        size = next((bucket for bucket in _BUCKETS if n <= bucket <= len(self)), n)
        # Rows beyond the n-th step as well; nobody reads them, and a row that takes their place overwrites them.
        self._ids[:n].copy_(torch.tensor(ids))
        return self._step(self._ids[:size])[:n].tolist()

    def _eager(self, ids: Tensor) -> Tensor:
        return self.next_tokens(self.language_model.step(ids, self.pool.view(len(ids))))
