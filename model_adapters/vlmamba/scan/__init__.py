"""Mamba-1's selective scan and causal convolution, both continued from a state.

    h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t        dt = softplus(raw dt + dt_bias)
    y_t = (C_t h_t + D x_t) * silu(z_t)

(Mamba, arXiv 2312.00752, Algorithm 2; state-spaces/mamba@e9594ce:mamba_ssm/ops/selective_scan_interface.py:165.)

Glossary:

    b   rows (sequences)
    l   tokens of the longest row; the rows are padded on the right
    d   channels (d_inner; `D` in the paper)
    n   state size (d_state; `N` in the paper)
    k   width of the convolution (d_conv)
    s   saved states to start from

A state is [s, n, d], channels last, float32 whatever the inputs are. A `Layout` says which saved state each row starts
from and how many of its tokens are valid. States and tails are never changed; the new ones are returned. Rows may also
be packed one after another, so that nothing is padded: only the numba backend takes them so.

Padding is exact: a token at or beyond its row's length changes neither state nor tail by a bit, whatever it holds, and
its output is 0. A row of length 0 carries its state.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from vlmamba_eval.model_adapters.vlmamba.scan.layout import WHOLE, Layout
from vlmamba_eval.types import UsageError

BACKENDS = {
    "reference": "the definition in plain PyTorch, in float64 if the inputs are",
    "eager": "PyTorch operators in place, block by block; runs on every device; no gradients",
    "numba": "our fused CPU kernels, compiled by Numba; no gradients",
    "autograd": "with gradients, recomputing states in the backward pass; eager on CPUs, Triton on GPUs",
    "triton": "our GPU kernels; no gradients",
    "mamba_ssm": "the authors' GPU kernels if installed, an initial state by an exact correction; with gradients",
}

__all__ = [
    "BACKENDS",
    "WHOLE",
    "Layout",
    "causal_conv",
    "causal_conv_step",
    "choose_backend",
    "selective_scan",
    "selective_step",
    "takes_packed_rows",
]


def choose_backend(device: torch.device | str, requires_grad: bool = False) -> str:
    """The name of the backend that `backend="auto"` takes: what a manifest records."""
    if torch.device(device).type != "cuda":
        if requires_grad:
            return "autograd"
        return "numba" if torch.device(device).type == "cpu" and _numba_runs() else "eager"
    if (
        find_spec("triton") is not None
    ):  # faster than the authors' kernels in both: results/bench/README.md, recipes/README.md
        return "autograd" if requires_grad else "triton"
    if _mamba_ssm_runs():
        return "mamba_ssm"
    return "autograd" if requires_grad else "eager"


def _numba_runs() -> bool:
    # Elsewhere Numba's threads are not PyTorch's, and a second OpenMP in one process can end it.
    return sys.platform == "linux" and find_spec("numba") is not None


def _mamba_ssm_runs() -> bool:
    from vlmamba_eval.model_adapters.vlmamba.scan import mamba_ssm

    return mamba_ssm.selective_scan_fn() is not None


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    state: Tensor | None = None,
    layout: Layout = WHOLE,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run the selective scan over `l` tokens of `b` rows.

    Args:
        x: [b, l, d], after convolution and SiLU.
        dt: [b, l, d], the raw step, before bias and softplus.
        A: [n, d], negative, float32: the transpose of -exp(A_log).
        B, C: [b, l, n].
        D: [d], the skip.
        z: [b, l, d], the gate before SiLU, or None.
        dt_bias: [d], or None.
        state: [s, n, d] float32, or None: the zero state.
        layout: where the rows' tokens stand and which saved states they start from.

    Returns:
        y [b, l, d] in x's dtype, and the new states [b, n, d] in float32 (float64 if x is).
    """
    _check_scan(x, dt, A, B, C, D, z, dt_bias, state, layout)
    module = _backend(backend, layout, x, dt, A, B, C, D, z, dt_bias, state)
    return module.selective_scan(x, dt, A, B, C, D, z, dt_bias=dt_bias, state=state, layout=layout)


def selective_step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    state: Tensor | None = None,
    layout: Layout = WHOLE,
    out: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`selective_scan` of a decoding step: l is 1, no gradients, and the new states may have a given home.

    `out` [b, n, d], if given, receives the new states and is returned. Without `sources` it may be `state` itself,
    which is then updated in place: the static buffers that a CUDA graph replays over. Rows that have finished may
    stay: with length 0 their state rests.
    """
    _check_scan(x, dt, A, B, C, D, z, dt_bias, state, layout)
    _check_step(x, (x.shape[0], A.shape[0], x.shape[2]), state, layout, out)
    with torch.no_grad():
        module = _backend(backend, layout, x)
        return module.selective_scan(x, dt, A, B, C, D, z, dt_bias=dt_bias, state=state, layout=layout, out=out)


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    tail: Tensor | None = None,
    layout: Layout = WHOLE,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The depthwise causal convolution of width k, then SiLU, over `l` tokens of `b` rows.

    Args:
        x: [b, l, d].
        weight: [d, k]; the last column meets the newest token.
        bias: [d], or None.
        tail: [s, k-1, d], the inputs before the first token, oldest first; None: zeros.
        layout: as in `selective_scan`.

    Returns:
        silu(conv(x)) [b, l, d] and the new tails [b, k-1, d], both in x's dtype: a tail holds inputs, so that nothing
        is lost. A row shorter than k-1 tokens keeps the newer part of its old tail.
    """
    _check_conv(x, weight, bias, tail, layout)
    module = _backend(backend, layout, x, weight, bias, tail)
    return module.causal_conv(x, weight, bias, tail=tail, layout=layout)


def causal_conv_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    tail: Tensor | None = None,
    layout: Layout = WHOLE,
    out: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`causal_conv` of a decoding step: l is 1, no gradients; `out` [b, k-1, d] as in `selective_step`."""
    _check_conv(x, weight, bias, tail, layout)
    _check_step(x, (x.shape[0], weight.shape[1] - 1, x.shape[2]), tail, layout, out)
    with torch.no_grad():
        return _backend(backend, layout, x).causal_conv(x, weight, bias, tail=tail, layout=layout, out=out)


def _backend(name: str, layout: Layout, *inputs: Tensor | None) -> ModuleType:
    grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    if name == "auto":
        name = choose_backend(inputs[0].device if inputs[0] is not None else "cpu", grad)
        if name == "numba" and inputs[0] is not None and inputs[0].dtype == torch.float64:
            name = "eager"  # the definition is checked in float64; Numba's kernels are float32
    elif name not in BACKENDS:
        raise UsageError(f"unknown scan backend {name!r}: there are {', '.join(BACKENDS)}, and auto")
    elif grad and name in ("eager", "numba", "triton"):
        raise UsageError(f"the {name} scan backend has no gradients: take autograd, or run under torch.no_grad()")
    if name == "triton" and find_spec("triton") is None:
        raise UsageError("the triton scan backend needs the triton package: pip install 'vlmamba-eval[cuda]'")
    if name == "numba" and inputs[0] is not None and inputs[0].device.type != "cpu":
        raise UsageError(f"the numba scan backend runs on CPUs, not on {inputs[0].device}")
    if layout.starts is not None and not takes_packed_rows(name):
        raise UsageError(f"the {name} scan backend takes padded rows, not packed ones: take numba, or pad them")
    return importlib.import_module(f"{__name__}.{name}")


def takes_packed_rows(backend: str) -> bool:
    """Whether the backend of that name reads rows that are packed one after another, with `starts`."""
    return backend == "numba"


def _check(name: str, tensor: Tensor | None, *shape: int | None) -> None:
    if tensor is not None and not (
        tensor.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, tensor.shape, strict=True))
    ):
        want = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have the shape [{want}], not {list(tensor.shape)}")


def _check_start(name: str, state: Tensor | None, b: int, inner: int, d: int, layout: Layout) -> None:
    b = layout.rows(b)
    _check("lengths", layout.lengths, b)
    _check(name, state, None, inner, d)
    _check("sources", layout.sources, b)
    if layout.sources is not None and state is None:
        raise ValueError(f"sources names saved states, but there is no {name}")
    if state is not None and layout.sources is None and state.shape[0] not in (1, b):
        raise ValueError(f"{name} holds {state.shape[0]} states for {b} rows: `sources` must say which row takes which")


def _check_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor | None,
    layout: Layout,
) -> None:
    _check("x", x, None, None, None)
    _check("A", A, None, x.shape[2])
    (b, length, d), n = x.shape, A.shape[0]
    _check("dt", dt, b, length, d)
    _check("B", B, b, length, n)
    _check("C", C, b, length, n)
    _check("D", D, d)
    _check("z", z, b, length, d)
    _check("dt_bias", dt_bias, d)
    _check_start("state", state, b, n, d, layout)


def _check_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tail: Tensor | None,
    layout: Layout,
) -> None:
    _check("x", x, None, None, None)
    b, _, d = x.shape
    _check("weight", weight, d, None)
    _check("bias", bias, d)
    _check_start("tail", tail, b, weight.shape[1] - 1, d, layout)


def _check_step(
    x: Tensor, shape: tuple[int, int, int], state: Tensor | None, layout: Layout, out: Tensor | None
) -> None:
    if x.shape[1] != 1:
        raise ValueError(f"a step takes one token per row, not {x.shape[1]}")
    _check("out", out, *shape)
    if out is not None and state is not None and out.data_ptr() == state.data_ptr():
        if layout.sources is not None:
            raise ValueError("with `sources`, out must not be the states: another row may still read them")
        if out.shape != state.shape:
            raise ValueError(f"out {list(out.shape)} lies over the states {list(state.shape)}, which rows share")
