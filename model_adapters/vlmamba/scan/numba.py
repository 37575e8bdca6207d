"""The CPU backend: fused kernels that Numba compiles when they are first called, and keeps on the disk.

One program takes one row and a block of channels, and goes through the row's tokens with its state in the nearest
cache. Softplus, the decays, the skip and the gate are computed on the way, so that nothing but inputs and outputs
passes through memory. A row ends at its own length: padding costs nothing and is never read. To the kernels, padded
rows and packed ones are the same: tokens one after another, and the places where rows begin.

The inner loops run over channels, without branches and without calls, which is what lets LLVM write them as vector
instructions: exp2 and log1p are therefore polynomials of ours, accurate to 2e-7 of their value.

The kernels run on PyTorch's threads, whose OpenMP they share on Linux: two pools would wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange
from numba.core import config
from torch import Tensor

from vlmamba_eval.model_adapters.vlmamba.scan.eager import LOG2E
from vlmamba_eval.model_adapters.vlmamba.scan.layout import WHOLE, Layout
from vlmamba_eval.types import UsageError

# Channels of a block. Of the scan 128: their 16 states in float32 are 8 KB, and a token's inputs stay beside them.
# Where there are no states, or a row is a single token, a program should have more to do.
BLOCK, WIDE = 128, 768

config.THREADING_LAYER = "omp"  # pyright: ignore[reportAttributeAccessIssue]

# A product and a sum may become one instruction. Nothing else is relaxed: sums keep their order, NaN stays NaN.
_OPTIONS: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}


def _kernel(function: Callable[..., Any]) -> Any:
    """A function whose `prange` runs on all threads, compiled once for this machine."""
    try:
        return njit(parallel=True, cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder for the cache can be written: it is compiled anew in each process
        return njit(parallel=True, **_OPTIONS)(function)


# =============================================================================
# What the package calls
# =============================================================================


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
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    d, n = x.shape[2], A.shape[0]
    spans = _spans(x, layout)
    b = len(spans[0])
    y, new = torch.empty(x.shape, dtype=torch.float32), _home(out, b, n, d)
    bias = torch.zeros(d, dtype=torch.float32) if dt_bias is None else dt_bias
    _share_threads()
    _scan(
        *_tokens(x), *_tokens(dt), *_tokens(B), *_tokens(C), *_tokens(x if z is None else z), z is not None,
        _array(A), _array(D), _array(bias), *_start(state, layout, b, n, d), *spans,
        y.view(-1, d).numpy(), _array(new), _block(b, d, WIDE if x.shape[1] == 1 else BLOCK),
    )  # fmt: skip
    return y.to(x.dtype), new if out is None or new is out else out.copy_(new)


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    tail: Tensor | None = None,
    layout: Layout = WHOLE,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    d, k = weight.shape
    spans = _spans(x, layout)
    b = len(spans[0])
    y, new = torch.empty(x.shape, dtype=torch.float32), _home(out, b, k - 1, d)
    bias = torch.zeros(d, dtype=torch.float32) if bias is None else bias
    _share_threads()
    _conv(
        *_tokens(x), _array(weight.T), _array(bias), *_start(tail, layout, b, k - 1, d), *spans,
        y.view(-1, d).numpy(), _array(new), _block(b, d, WIDE),
    )  # fmt: skip
    # A tail holds inputs of x's precision, which widening and narrowing leave as they are.
    return y.to(x.dtype), new.to(x.dtype) if out is None or new is out else out.copy_(new)


# =============================================================================
# Tensors as the kernels take them: float32 arrays whose last dimension is contiguous
# =============================================================================


def _array(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.float64:
        raise UsageError("the numba scan backend computes in float32: for float64 take eager or reference")
    return tensor.detach().to(torch.float32).contiguous().numpy()


def _tokens(tensor: Tensor) -> tuple[np.ndarray, int]:
    """[b, l, c], often some columns of something wider, as its memory and the way from one token to the next."""
    b, length, width = tensor.shape
    if (
        tensor.dtype != torch.float32
        or tensor.stride(2) != 1
        or (b > 1 and tensor.stride(0) != length * tensor.stride(1))
    ):
        return _array(tensor).reshape(-1), width
    span = (b * length - 1) * tensor.stride(1) + width if tensor.numel() else 0
    return tensor.detach().as_strided((span,), (1,)).numpy(), tensor.stride(1)


def _spans(x: Tensor, layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each row's tokens begin, where the valid ones end, and where its padding ends, among all tokens."""
    (b, length), lengths = x.shape[:2], layout.lengths
    if layout.starts is not None and lengths is not None:
        first = layout.starts.numpy()
        last = first + lengths.numpy()
        return first, last, last
    first = np.arange(b) * length
    last = first + length
    return first, last if lengths is None else first + lengths.clamp(0, length).numpy(), last


def _start(state: Tensor | None, layout: Layout, b: int, inner: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """The saved states [s, inner, d] and the one that each row starts from, -1: zero."""
    if state is None:
        return np.empty((0, inner, d), np.float32), np.full(b, -1)
    if layout.sources is not None:
        return _array(state), layout.sources.numpy()
    return (_array(state), np.arange(b)) if len(state) == b else (_array(state), np.zeros(b, np.int64))


def _home(out: Tensor | None, *shape: int) -> Tensor:
    """Where the new states go: `out` itself if the kernels can write to it."""
    fits = out is not None and out.dtype == torch.float32 and out.is_contiguous()
    return out if out is not None and fits else torch.empty(shape, dtype=torch.float32)


def _block(b: int, d: int, most: int) -> int:
    """Channels of a block: fewer if there are too few rows to keep all threads busy."""
    block = most
    while block > 16 and b * -(-d // block) < 2 * torch.get_num_threads():
        block //= 2
    return block


def _share_threads() -> None:
    """As many threads as PyTorch uses. The first call starts Numba's, which would change PyTorch's number."""
    threads = torch.get_num_threads()
    most: int = config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]
    numba.set_num_threads(min(threads, most))
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


# =============================================================================
# Arithmetic
# =============================================================================

_LOG2E = np.float32(LOG2E)
_ROUND = np.float32(3 << 22)  # a float32 of this size has no room for a fraction: adding it rounds
_ONE, _TWO, _ZERO = np.float32(1), np.float32(2), np.float32(0)
# 2^r for |r| <= 1/2, fitted to its least largest relative error, 1e-8.
_E1, _E2, _E3, _E4, _E5, _E6 = (
    np.float32(c) for c in (0.693147182, 0.240226462, 0.0555032879, 0.00961834099, 0.00133988739, 0.000153533620)
)
# atanh(s) / s in s^2, Taylor's coefficients: 1e-7 at the largest s of use, 1/3.
_T1, _T2, _T3, _T4, _T5, _T6 = (np.float32(1 / c) for c in (3, 5, 7, 9, 11, 13))


@njit(inline="always", **_OPTIONS)
def _exp2(v):
    """2^v for |v| <= 126; smaller v count as -126."""
    v = max(v, np.float32(-126))
    rounded = v + _ROUND
    r = v - (rounded - _ROUND)
    p = ((((((_E6 * r + _E5) * r + _E4) * r + _E3) * r + _E2) * r) + _E1) * r + _ONE
    # The whole part, in the lowest bits of `rounded`, is added to the exponent.
    whole = np.float32(rounded).view(np.int32) << np.int32(23)
    return np.int32(np.float32(p).view(np.int32) + whole).view(np.float32)


@njit(inline="always", **_OPTIONS)
def _softplus(v):
    """log(1 + e^v), exact to the last digits also if it is tiny: log(1 + e) = 2 atanh(e / (2 + e))."""
    e = _exp2(-abs(v) * _LOG2E)
    s = e / (_TWO + e)
    q = s * s
    p = (((((_T6 * q + _T5) * q + _T4) * q + _T3) * q + _T2) * q + _T1) * q + _ONE
    return max(v, _ZERO) + _TWO * s * p


@njit(inline="always", **_OPTIONS)
def _silu(v):
    return v / (_ONE + _exp2(min(-v * _LOG2E, np.float32(126))))


# =============================================================================
# Kernels
# =============================================================================


# Every inner loop runs over slices taken before it: an index that might be negative would keep LLVM from vector
# instructions. Assignments to slices would do the same work and take three times as long to compile.


@njit(**_OPTIONS)
def _copy(source, target):
    for j in range(len(target)):
        target[j] = source[j]


@njit(**_OPTIONS)
def _clear(target):
    for j in range(len(target)):
        target[j] = _ZERO


@_kernel
def _scan(
    x, x_l, dt, dt_l, B, B_l, C, C_l, z, z_l, gated, A, D, bias, states, rows, firsts, lasts, ends, y, new, block
):  # fmt: skip
    d = y.shape[1]
    blocks = -(-d // block)
    for program in prange(len(rows) * blocks):
        i, left = program // blocks, program % blocks * block
        first = firsts[i]
        _scan_block(
            x[first * x_l :], x_l, dt[first * dt_l :], dt_l, B[first * B_l :], B_l, C[first * C_l :], C_l,
            z[first * z_l :], z_l, gated, A, D, bias, states, rows[i], lasts[i] - first, y[first : ends[i]], new[i],
            left, min(left + block, d),
        )  # fmt: skip


@njit(**_OPTIONS)
def _scan_block(
    x, x_l, dt, dt_l, B, B_l, C, C_l, z, z_l, gated, A, D, bias, states, source, length, y, new, left, right
):  # fmt: skip
    """The tokens of one row, for the channels from `left` to `right`."""
    n, width = A.shape[0], right - left
    h, decay = np.empty((n, width), np.float32), np.empty((n, width), np.float32)
    step, inflow, sums = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    for k in range(n):
        A_k, decay_k, h_k = A[k, left:right], decay[k], h[k]
        for j in range(width):
            decay_k[j] = A_k[j] * _LOG2E
        if source >= 0:
            _copy(states[source, k, left:right], h_k)
        else:
            _clear(h_k)
    dt_bias, skip = bias[left:right], D[left:right]
    for t in range(length):
        x_t, dt_t = x[t * x_l + left : t * x_l + right], dt[t * dt_l + left : t * dt_l + right]
        for j in range(width):
            step[j] = _softplus(dt_t[j] + dt_bias[j])
            inflow[j] = step[j] * x_t[j]
            sums[j] = skip[j] * x_t[j]
        for k in range(n):
            h_k, decay_k, B_k, C_k = h[k], decay[k], B[t * B_l + k], C[t * C_l + k]
            for j in range(width):
                h_k[j] = h_k[j] * _exp2(step[j] * decay_k[j]) + inflow[j] * B_k
                sums[j] += h_k[j] * C_k
        y_t = y[t, left:right]
        if gated:
            z_t = z[t * z_l + left : t * z_l + right]
            for j in range(width):
                y_t[j] = sums[j] * _silu(z_t[j])
        else:
            _copy(sums, y_t)
    for t in range(length, len(y)):
        _clear(y[t, left:right])
    for k in range(n):
        _copy(h[k], new[k, left:right])


@_kernel
def _conv(x, x_l, taps, bias, tails, rows, firsts, lasts, ends, y, new, block):
    d = y.shape[1]
    blocks = -(-d // block)
    for program in prange(len(rows) * blocks):
        i, left = program // blocks, program % blocks * block
        first = firsts[i]
        _conv_block(
            x[first * x_l :], x_l, taps, bias, tails, rows[i], lasts[i] - first, y[first : ends[i]], new[i],
            left, min(left + block, d),
        )  # fmt: skip


@njit(**_OPTIONS)
def _conv_block(x, x_l, taps, bias, tails, source, length, y, new, left, right):
    k, width = taps.shape[0], right - left
    tail, sums = np.empty((k - 1, width), np.float32), np.empty(width, np.float32)
    for i in range(k - 1):
        if source >= 0:
            _copy(tails[source, i, left:right], tail[i])
        else:
            _clear(tail[i])
    for t in range(length):
        _copy(bias[left:right], sums)
        for tap in range(k):
            weights, place = taps[tap, left:right], t - (k - 1) + tap
            inputs = x[place * x_l + left : place * x_l + right] if place >= 0 else tail[k - 1 + place]
            for j in range(width):
                sums[j] += inputs[j] * weights[j]
        y_t = y[t, left:right]
        for j in range(width):
            y_t[j] = _silu(sums[j])
    for t in range(length, len(y)):
        _clear(y[t, left:right])
    for i in range(k - 1):
        place = length - (k - 1) + i
        _copy(x[place * x_l + left : place * x_l + right] if place >= 0 else tail[k - 1 + place], new[i, left:right])
