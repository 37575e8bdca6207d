"""Decoding: a pool of rows of many images that all take one step at a time.

On a GPU a step is a few thousand small kernels, whose launches take longer than their work. The pool is therefore
static memory, and a step over its first rows is captured once for each of a few batch sizes and replayed as one CUDA
graph. The CPU needs none of it.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

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
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] | None = (
            {} if graphs and device.type == "cuda" else None
        )

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
        size = next((bucket for bucket in _BUCKETS if n <= bucket <= len(self)), n)
        if self._graphs is None:
            return self._eager(torch.tensor(ids)).tolist()
        # Rows beyond the n-th step as well; nobody reads them, and a row that takes their place overwrites them.
        self._ids[:n].copy_(torch.tensor(ids))
        if size in self._graphs:
            graph, tokens = self._graphs[size]
            graph.replay()
            return tokens[:n].tolist()
        # The first step of a size runs as it is, which also warms up what a capture must not: a capture runs nothing.
        found = self._eager(self._ids[:size])[:n].tolist()
        self._capture(size)
        return found

    def _eager(self, ids: Tensor) -> Tensor:
        ids = ids.to(self._ids.device)
        return self.next_tokens(self.language_model.step(ids, self.pool.view(len(ids))))

    def _capture(self, size: int) -> None:
        assert self._graphs is not None  # noqa: S101
        graph = torch.cuda.CUDAGraph()
        shared = next((graph.pool() for graph, _ in self._graphs.values()), None)
        try:
            with torch.cuda.graph(graph, pool=shared):
                tokens = self._eager(self._ids[:size])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            warnings.warn(f"decoding goes on without CUDA graphs, which could not be captured: {error}", stacklevel=2)
            self._graphs = None
            return
        self._graphs[size] = graph, tokens
