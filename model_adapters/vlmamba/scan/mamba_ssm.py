"""The authors' kernel (the mamba-ssm package), continued from a state by an exact correction.

Their `selective_scan_fn` always starts from zero: the kernel seeds its first chunk with it
(state-spaces/mamba@e9594ce:csrc/selective_scan/selective_scan_fwd_kernel.cuh:244). The recurrence is linear in the
state, so that a start h_0 adds to the scan from zero

    y_t += C_t exp(A S_t) h_0        h_l += exp(A S_l) h_0        S_t = dt_1 + ... + dt_t

before the gate. A is negative: the exponentials can only underflow.

Gradients run through y, for all inputs and the initial state. Their kernel gives none for the last state, so that the
new state is detached here.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmamba_eval.model_adapters.vlmamba.scan import autograd
from vlmamba_eval.model_adapters.vlmamba.scan.layout import WHOLE, Layout
from vlmamba_eval.model_adapters.vlmamba.scan.reference import initial, padding, settle
from vlmamba_eval.types import UsageError

# A raw step whose softplus is exactly 0, whatever the bias: at a padding token the state rests. It fits float16.
_NO_STEP = -1e4

# Tokens of a slice of the correction, which would be a tensor [b, l, n, d].
_SLICE = 64


@cache
def _found() -> tuple[Any, str]:
    """Their function, or None and why it cannot run here.

    Found by attribute: the release needs its CUDA extension to be imported at all, while later versions import without
    it and fail when called. Nothing is imported on a machine without a GPU.
    """
    if not torch.cuda.is_available():
        return None, "there is no CUDA device"
    if find_spec("mamba_ssm") is None:
        return None, "mamba-ssm is not installed"
    try:
        from mamba_ssm.ops import selective_scan_interface  # pyright: ignore[reportMissingImports]
    except Exception as error:  # noqa: BLE001 - it imports all of its package, and what that needs may fail in any way
        return None, f"mamba-ssm is installed but cannot be imported ({type(error).__name__}: {error})"
    if getattr(selective_scan_interface, "selective_scan_cuda", None) is None:
        return None, "mamba-ssm is installed without its CUDA extension"
    return selective_scan_interface.selective_scan_fn, ""


def selective_scan_fn() -> Any:
    """Their function, or None if it cannot run."""
    return _found()[0]


def why_not() -> str:
    """Why their function cannot run here; empty if it can."""
    return _found()[1]


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
    kernel = selective_scan_fn()
    if kernel is None:
        raise UsageError(
            f"the mamba_ssm backend needs a GPU and the mamba-ssm package with its CUDA extension: {why_not()}"
        )
    (b, length, d), n = x.shape, A.shape[0]
    start = None if state is None else initial(state, layout.sources, b, (n, d), torch.float32, x.device)  # [b, n, d]
    if length == 0:
        return x.clone(), settle(x.new_zeros(b, n, d, dtype=torch.float32) if start is None else start.detach(), out)
    pad = padding(layout.lengths, length)
    with torch.autocast(x.device.type, enabled=False):
        A, D, bias = A.float(), D.float(), None if dt_bias is None else dt_bias.float()
        u, dt, B, C = x, dt.to(x.dtype), B.to(x.dtype), C.to(x.dtype)
        if pad is not None:
            u, B, C = (t.masked_fill(pad, 0) for t in (u, B, C))
            dt = dt.masked_fill(pad, _NO_STEP)
            z = None if z is None else z.masked_fill(pad, 0)  # 0 times a NaN would be one in the backward pass
        gate = None if z is None or start is not None else z.to(x.dtype).mT.contiguous()
        y, last = kernel(
            u.mT.contiguous(), dt.mT.contiguous(), A.mT.contiguous(), B.mT.contiguous(), C.mT.contiguous(), D,
            z=gate, delta_bias=bias, delta_softplus=True, return_last_state=True,
        )  # [b, d, l], [b, d, n]  # fmt: skip
        y, h = y.mT, last.detach().mT
        if start is not None:
            step = F.softplus(dt.float() if bias is None else dt.float() + bias)  # [b, l, d]
            total = step.cumsum(1)
            parts = []
            for t in range(0, length, _SLICE):
                decay = torch.exp(total[:, t : t + _SLICE, None] * A)  # [b, t, n, d]
                parts.append(torch.einsum("btn,btnd,bnd->btd", C[:, t : t + _SLICE].float(), decay, start))
            y = y.float() + torch.cat(parts, 1)
            h = h + (torch.exp(total[:, -1, None] * A) * start).detach()
            if z is not None:
                y = y * F.silu(z.float())
        if pad is not None:
            y = y.masked_fill(pad, 0)
    return y.to(x.dtype), settle(h, out)


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    tail: Tensor | None = None,
    layout: Layout = WHOLE,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Ours: causal-conv1d takes no row index and wants strides that are multiples of 8."""
    return autograd.causal_conv(x, weight, bias, tail=tail, layout=layout, out=out)
