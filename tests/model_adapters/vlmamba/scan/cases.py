"""Drawn inputs of the scan and of the convolution: states, forks, lengths, strides, sizes that fit no block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from vlmamba_eval.model_adapters.vlmamba.scan import Layout


@dataclass(frozen=True)
class Case:
    """`inputs` are the differentiable ones by name; `rows` and `lengths` are its layout."""

    inputs: dict[str, Tensor]
    rows: Tensor | None
    lengths: Tensor | None

    @property
    def b(self) -> int:
        return self.inputs["x"].shape[0]

    @property
    def length(self) -> int:
        return self.inputs["x"].shape[1]

    def arguments(self) -> dict[str, Any]:
        return {**self.inputs, "layout": Layout(self.rows, self.lengths)}

    def to(self, dtype: torch.dtype) -> Case:
        return replace(self, inputs={name: t.detach().to(dtype) for name, t in self.inputs.items()})

    def leaves(self) -> Case:
        return replace(self, inputs={name: t.detach().clone().requires_grad_() for name, t in self.inputs.items()})

    def tokens(self, start: int, stop: int) -> Case:
        """The tokens from `start` to `stop` alone, with the start of the whole."""
        cut = {n: t[:, start:stop] if n in ("x", "dt", "B", "C", "z") else t for n, t in self.inputs.items()}
        lengths = None if self.lengths is None else (self.lengths - start).clamp(0, stop - start)
        return Case(cut, self.rows, lengths)

    def valid(self) -> Tensor:
        """[b, l], True at the tokens that are no padding."""
        lengths = torch.full((self.b,), self.length) if self.lengths is None else self.lengths
        return torch.arange(self.length) < lengths[:, None]


def _start(draw: Any, b: int) -> tuple[int, Tensor | None]:
    """How many saved states there are (0: none), and the row index."""
    kind = draw(st.sampled_from(["none", "own", "shared", "index"]))
    if kind == "none":
        return 0, None
    if kind == "own":
        return b, None
    if kind == "shared":
        return 1, None
    s = draw(st.integers(1, 3))
    return s, torch.tensor(draw(st.lists(st.integers(-1, s - 1), min_size=b, max_size=b)))


def _lengths(draw: Any, b: int, length: int) -> Tensor | None:
    if not draw(st.booleans()):
        return None
    return torch.tensor(draw(st.lists(st.integers(0, length), min_size=b, max_size=b)))


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Normal numbers as a slice of something wider: the projections of a Mamba layer hand over slices."""
    return torch.randn(*shape[:-1], shape[-1] + 3, generator=generator, dtype=torch.float64)[..., 2:-1]


@st.composite
def scans(draw: Any, longest: int) -> Case:
    b, n = draw(st.integers(1, 4)), draw(st.sampled_from([1, 3, 4, 16]))
    length = draw(st.one_of(st.integers(1, min(4, longest)), st.integers(1, longest)))
    d = draw(st.one_of(st.integers(1, 8), st.sampled_from([31, 32, 33, 64, 66, 96])))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    s, rows = _start(draw, b)
    inputs = {
        "x": _normal(g, b, length, d),
        # From steps of 1e-4, where a careless log(1 + exp(.)) loses its digits, to steps of 8.
        "dt": _normal(g, b, length, d) + draw(st.sampled_from([-9.0, -4.0, 0.0, 8.0])),
        "A": -torch.rand(n, d, generator=g, dtype=torch.float64) * 16 - 0.01,
        "B": _normal(g, b, length, n),
        "C": _normal(g, b, length, n),
        "D": torch.randn(d, generator=g, dtype=torch.float64),
    }
    if draw(st.booleans()):
        inputs["z"] = _normal(g, b, length, d)
    if draw(st.booleans()):
        inputs["dt_bias"] = torch.randn(d, generator=g, dtype=torch.float64)
    if s:
        inputs["state"] = torch.randn(s, n, d, generator=g, dtype=torch.float64)
    # What is representable in float32 is the same number for every backend.
    inputs = {name: t.float().double() for name, t in inputs.items()}
    return Case(inputs, rows, _lengths(draw, b, length))


@st.composite
def convolutions(draw: Any) -> Case:
    b, k = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 4]))
    length = draw(st.one_of(st.integers(1, 4), st.integers(1, 40)))
    d = draw(st.sampled_from([1, 7, 64, 130]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    s, rows = _start(draw, b)
    inputs = {"x": _normal(g, b, length, d), "weight": _normal(g, d, k)}
    inputs["bias"] = torch.randn(d, generator=g, dtype=torch.float64)
    if s:
        inputs["tail"] = torch.randn(s, k - 1, d, generator=g, dtype=torch.float64)
    inputs = {name: t.float().double() for name, t in inputs.items()}
    return Case(inputs, rows, _lengths(draw, b, length))


def positive(case: Case) -> Case:
    """The case with every product of its sums positive.

    Sums may cancel to anything, but they are rounded at the size of their terms: that is what this case measures.
    """
    signed = ("x", "B", "C", "D", "z", "state", "weight", "bias", "tail")
    return replace(case, inputs={n: t.detach().abs() if n in signed else t.detach() for n, t in case.inputs.items()})


def sizes(outputs: Sequence[Tensor]) -> list[float]:
    return [float(o.abs().max()) if o.numel() else 0.0 for o in outputs]


def error(found: Tensor, expected: Tensor, size: float = 0.0) -> float:
    """The largest difference, relative to the largest number or to `size`, where these are above 1."""
    if not expected.numel():
        return 0.0
    difference = (found.double() - expected.double()).abs().max()
    return float(difference / expected.abs().max().clamp(min=max(1.0, size)))
