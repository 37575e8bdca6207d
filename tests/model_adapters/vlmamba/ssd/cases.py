"""Drawn inputs of Mamba-2's scan: states, forks, lengths, strides, groups, sizes that fit no block."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from vlmamba_eval.model_adapters.vlmamba.scan import Layout

PER_TOKEN = ("x", "dt", "B", "C")


@dataclass(frozen=True)
class Case:
    """`inputs` by the names of `state_space_dual`; `limit` is its dt_limit."""

    inputs: dict[str, Tensor]
    rows: Tensor | None
    lengths: Tensor | None
    limit: tuple[float, float]

    @property
    def b(self) -> int:
        return self.inputs["x"].shape[0]

    @property
    def length(self) -> int:
        return self.inputs["x"].shape[1]

    def arguments(self) -> dict[str, Any]:
        return {**self.inputs, "layout": Layout(self.rows, self.lengths), "dt_limit": self.limit}

    def to(self, dtype: torch.dtype) -> Case:
        return replace(self, inputs={name: t.detach().to(dtype) for name, t in self.inputs.items()})

    def tokens(self, start: int, stop: int) -> Case:
        """The tokens from `start` to `stop` alone, with the start of the whole."""
        cut = {n: t[:, start:stop] if n in PER_TOKEN else t for n, t in self.inputs.items()}
        lengths = None if self.lengths is None else (self.lengths - start).clamp(0, stop - start)
        return replace(self, inputs=cut, lengths=lengths)

    def valid(self) -> Tensor:
        """[b, l], True at the tokens that are no padding."""
        lengths = torch.full((self.b,), self.length) if self.lengths is None else self.lengths
        return torch.arange(self.length) < lengths[:, None]


@st.composite
def duals(draw: Any, longest: int) -> Case:
    b, g, r = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 3]))
    p, n = draw(st.sampled_from([1, 8, 20])), draw(st.sampled_from([4, 16, 24]))
    h, length = g * r, draw(st.one_of(st.integers(1, 4), st.integers(1, longest)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    wide = normal(b, length, h * p + 2 * g * n + 3)  # slices of one tensor, as the convolution hands them over
    x, B, C, _ = wide.split([h * p, g * n, g * n, 3], dim=-1)
    inputs = {
        "x": x.unflatten(-1, (h, p)),
        # From steps of 1e-4, where a careless log(1 + exp(.)) loses its digits, to steps of 8 beside small ones.
        "dt": normal(b, length, h) * draw(st.sampled_from([1.0, 6.0])) + draw(st.sampled_from([-9.0, -4.0, 0.0, 8.0])),
        "A": -torch.rand(h, generator=generator, dtype=torch.float64) * 16 - 0.01,
        "B": B.unflatten(-1, (g, n)),
        "C": C.unflatten(-1, (g, n)),
    }
    if draw(st.booleans()):
        inputs["D"] = normal(h)
    if draw(st.booleans()):
        inputs["dt_bias"] = normal(h)
    rows, start = None, draw(st.sampled_from(["none", "own", "shared", "index"]))
    if start != "none":
        s = {"own": b, "shared": 1}.get(start) or draw(st.integers(1, 3))
        inputs["state"] = normal(s, h, p, n)
        if start == "index":
            rows = torch.tensor(draw(st.lists(st.integers(-1, s - 1), min_size=b, max_size=b)))
    lengths = torch.tensor(draw(st.lists(st.integers(0, length), min_size=b, max_size=b)))
    limit = draw(st.sampled_from([(0.0, float("inf")), (1e-3, float("inf")), (1e-3, 0.1)]))
    # What is representable in float32 is the same number for every backend.
    inputs = {name: t.float().double() for name, t in inputs.items()}
    return Case(inputs, rows, lengths if draw(st.booleans()) else None, limit)


def positive(case: Case) -> Case:
    """The case with every product of its sums positive: sums may cancel, but they are rounded at the size of this."""
    signed = ("x", "B", "C", "D", "state")
    return replace(case, inputs={n: t.abs() if n in signed else t for n, t in case.inputs.items()})
