"""A function of the model as CUDA graphs: thousands of small kernels, whose launches take longer than their work."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")


class Captured(Generic[_T]):
    """A function of one tensor, captured for each shape when it is first called with it, and replayed from then on.

    What it returns is static memory: it holds until the next call with a tensor of that shape. All else that the
    function reads must stay where it is. Without CUDA, or unless `wanted`, the function itself is called; and if a
    capture fails, which is said once, naming `what`.
    """

    def __init__(self, function: Callable[[Tensor], _T], what: str, *, wanted: bool = True):
        self._function = function
        self._what = what
        self._wanted = wanted
        self._graphs: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor, _T]] = {}

    def __call__(self, x: Tensor) -> _T:
        if not self._wanted or x.device.type != "cuda":
            return self._function(x)
        shape = tuple(x.shape)
        if shape in self._graphs:
            graph, given, found = self._graphs[shape]
            if given.data_ptr() != x.data_ptr():
                given.copy_(x)
            graph.replay()
            return found
        # The first call of a shape runs as it is, which also warms up what a capture must not: a capture runs nothing.
        found = self._function(x)
        self._capture(shape, x)
        return found

    def _capture(self, shape: tuple[int, ...], x: Tensor) -> None:
        graph = torch.cuda.CUDAGraph()
        shared = next((graph.pool() for graph, *_ in self._graphs.values()), None)
        try:
            with torch.cuda.graph(graph, pool=shared):
                found = self._function(x)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            warnings.warn(
                f"{self._what} goes on without CUDA graphs, which could not be captured: {error}", stacklevel=3
            )
            self._wanted = False
            self._graphs.clear()
            return
        self._graphs[shape] = graph, x, found
