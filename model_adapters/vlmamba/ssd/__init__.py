"""Mamba-2's scan, continued from a state: the selective scan with one decay per head.

    h_t = exp(dt_t A) h_(t-1) + dt_t x_t B_t^T        dt = clamp(softplus(raw dt + dt_bias))
    y_t = h_t C_t + D x_t

(Mamba-2, arXiv 2405.21060, sections 2 and 6; state-spaces/mamba@e9594ce:mamba_ssm/modules/ssd_minimal.py.) Since a
head's channels decay alike, the tokens of a chunk act on each other through one triangular matrix, and the scan is
made of matrix products: the paper's "state-space dual" form.

Glossary, beside that of `scan`:

    h   heads
    p   channels of a head (headdim; `P` in the paper)
    n   state size (d_state; `N`)
    g   groups of heads that share B and C (ngroups)
    q   tokens of a chunk

A state is [s, h, p, n], float32 whatever the inputs are. The layout of rows and the promises about padding are those of
`scan`: a token beyond its row's length changes no state by a bit, its output is 0, and no saved state is ever changed.
Every backend takes packed rows. The convolution before the scan is `scan.causal_conv`.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from vlmamba_eval.model_adapters.vlmamba.scan.layout import WHOLE, Layout
from vlmamba_eval.model_adapters.vlmamba.ssd.rows import PackedRows
from vlmamba_eval.types import UsageError

BACKENDS = {
    "reference": "the definition in plain PyTorch, token by token, in float64 if the inputs are",
    "chunked": "matrix products of PyTorch, chunk by chunk; runs on every device; with gradients",
    "triton": "our GPU kernels; no gradients",
}

NO_LIMIT = (0.0, float("inf"))

__all__ = ["BACKENDS", "NO_LIMIT", "PackedRows", "choose_backend", "state_space_dual", "state_space_dual_step"]


def choose_backend(device: torch.device | str, requires_grad: bool = False) -> str:
    """The name of the backend that `backend="auto"` takes: what a manifest records."""
    on_gpu = torch.device(device).type == "cuda" and find_spec("triton") is not None
    return "triton" if on_gpu and not requires_grad else "chunked"


def state_space_dual(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    dt_limit: tuple[float, float] = NO_LIMIT,
    state: Tensor | None = None,
    layout: Layout = WHOLE,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run Mamba-2's scan over `l` tokens of `b` rows.

    Args:
        x: [b, l, h, p], after convolution and SiLU.
        dt: [b, l, h], the raw step, before bias and softplus.
        A: [h], negative: -exp(A_log).
        B, C: [b, l, g, n]; head i belongs to group i // (h / g).
        D: [h], the skip, or None.
        dt_bias: [h], or None.
        dt_limit: least and greatest step after softplus.
        state: [s, h, p, n] float32, or None: the zero state.
        layout: where the rows' tokens stand and which saved states they start from.

    Returns:
        y [b, l, h, p] in x's dtype, and the new states [b, h, p, n] in float32 (float64 if x is).
    """
    packed = None
    if layout.starts is not None:
        _shape("x", x, None, None, None, None)
        packed = PackedRows(layout, *x.shape[:2])
        x, dt, B, C = (packed.pad(t) for t in (x, dt, B, C))
        layout = Layout(layout.sources, layout.lengths)
    _check(x, dt, A, B, C, D, dt_bias, state, layout)
    module = _backend(backend, x, dt, A, B, C, D, dt_bias, state)
    y, after = module.state_space_dual(
        x, dt, A, B, C, D, dt_bias=dt_bias, dt_limit=dt_limit, state=state, layout=layout
    )
    return (y if packed is None else packed.pack(y)), after


def state_space_dual_step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    dt_limit: tuple[float, float] = NO_LIMIT,
    state: Tensor | None = None,
    layout: Layout = WHOLE,
    out: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`state_space_dual` of a decoding step: l is 1, no gradients, and the new states may have a given home.

    `out` [b, h, p, n], if given, receives the new states and is returned. Without `sources` it may be `state` itself,
    which is then updated in place. Rows that have finished may stay: with length 0 their state rests.
    """
    _check(x, dt, A, B, C, D, dt_bias, state, layout)
    if x.shape[1] != 1:
        raise ValueError(f"a step takes one token per row, not {x.shape[1]}")
    b, _, h, p = x.shape
    if out is not None:
        _shape("out", out, b, h, p, B.shape[3])
        if state is not None and out.data_ptr() == state.data_ptr():
            if layout.sources is not None:
                raise ValueError("with `sources`, out must not be the states: another row may still read them")
            if out.shape != state.shape:
                raise ValueError(f"out {list(out.shape)} lies over the states {list(state.shape)}, which rows share")
    with torch.no_grad():
        return _backend(backend, x).state_space_dual(
            x, dt, A, B, C, D, dt_bias=dt_bias, dt_limit=dt_limit, state=state, layout=layout, out=out
        )


def _backend(name: str, *inputs: Tensor | None) -> ModuleType:
    grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    first = inputs[0]
    assert first is not None  # noqa: S101
    if name == "auto":
        name = choose_backend(first.device, grad)
        if name == "triton" and first.dtype == torch.float64:
            name = "chunked"
    elif name not in BACKENDS:
        raise UsageError(f"unknown Mamba-2 backend {name!r}: there are {', '.join(BACKENDS)}, and auto")
    elif grad and name == "triton":
        raise UsageError("the triton Mamba-2 backend has no gradients: take chunked, or run under torch.no_grad()")
    if name == "triton" and find_spec("triton") is None:
        raise UsageError("the triton Mamba-2 backend needs the triton package: pip install 'vlmamba-eval[cuda]'")
    return importlib.import_module(f"{__name__}.{name}")


def _shape(name: str, tensor: Tensor | None, *shape: int | None) -> None:
    if tensor is not None and not (
        tensor.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, tensor.shape, strict=True))
    ):
        want = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have the shape [{want}], not {list(tensor.shape)}")


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor | None,
    layout: Layout,
) -> None:
    _shape("x", x, None, None, None, None)
    b, length, h, p = x.shape
    _shape("dt", dt, b, length, h)
    _shape("A", A, h)
    _shape("B", B, b, length, None, None)
    _shape("C", C, *B.shape)
    if B.shape[2] == 0 or h % B.shape[2]:
        raise ValueError(f"{h} heads cannot be divided into {B.shape[2]} groups of equal size")
    _shape("D", D, h)
    _shape("dt_bias", dt_bias, h)
    _shape("lengths", layout.lengths, b)
    _shape("state", state, None, h, p, B.shape[3])
    _shape("sources", layout.sources, b)
    if layout.sources is not None and state is None:
        raise ValueError("sources names saved states, but there is no state")
    if state is not None and layout.sources is None and state.shape[0] not in (1, b):
        raise ValueError(f"state holds {state.shape[0]} states for {b} rows: `sources` must say which row takes which")
