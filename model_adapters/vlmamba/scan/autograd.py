"""The scan and the convolution with gradients, for training.

The forward pass keeps the state before every 16th token: with 16 states a channel that is as much as one tensor
[b, l, d]. The backward pass computes the states of 16 tokens again from each of these, last chunk first. No gradient
passes through a padding token.

On a CPU the passes are eager PyTorch (`eager`), on a GPU our kernels (`triton`).
"""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlmamba_eval.model_adapters.vlmamba.scan import eager, reference
from vlmamba_eval.model_adapters.vlmamba.scan.eager import CHECKPOINT
from vlmamba_eval.model_adapters.vlmamba.scan.layout import WHOLE, Layout
from vlmamba_eval.model_adapters.vlmamba.scan.reference import settle


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
    kernels = kernels_for(x.device)
    y, h = _Scan.apply(kernels, x, dt, A, B, C, D, z, dt_bias, state, layout)
    return y, h if out is None else settle(h, out)


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    tail: Tensor | None = None,
    layout: Layout = WHOLE,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    kernels = kernels_for(x.device)
    if kernels is eager:  # autograd keeps the inputs and the sums before SiLU, nothing else: that is lean enough
        return reference.causal_conv(x, weight, bias, tail=tail, layout=layout, out=out)
    y, new_tail = _Conv.apply(kernels, x, weight, bias, tail, layout)
    return y, new_tail if out is None else settle(new_tail, out)


def kernels_for(device: torch.device) -> ModuleType:
    """The module whose forward and backward passes run on this device."""
    if device.type != "cuda" or find_spec("triton") is None:
        return eager
    from vlmamba_eval.model_adapters.vlmamba.scan import triton

    return triton


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: Any,
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
    ) -> tuple[Tensor, Tensor]:
        (b, length, d), n = x.shape, A.shape[0]
        work = torch.promote_types(x.dtype, torch.float32)
        checkpoints = x.new_empty(b, -(-length // CHECKPOINT), n, d, dtype=work)
        with torch.autocast(x.device.type, enabled=False):
            y, h = kernels.selective_scan(
                x, dt, A, B, C, D, z, dt_bias=dt_bias, state=state, layout=layout, checkpoints=checkpoints
            )
        ctx.kernels, ctx.layout = kernels, layout
        ctx.save_for_backward(x, dt, A, B, C, D, z, dt_bias, state, checkpoints)
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dy, dh = grad_outputs
        x, dt, A, B, C, D, z, dt_bias, state, checkpoints = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            dx, ddt, dA, dB, dC, dD, dz, dstart = ctx.kernels.scan_backward(
                dy, dh, x, dt, A, B, C, D, z, dt_bias, ctx.layout.lengths, checkpoints
            )
        return (
            None,
            dx.to(x.dtype),
            ddt.to(dt.dtype),
            dA.to(A.dtype),
            dB.to(B.dtype),
            dC.to(C.dtype),
            dD.to(D.dtype),
            None if z is None else dz.to(z.dtype),
            None if dt_bias is None else ddt.sum((0, 1), dtype=checkpoints.dtype).to(dt_bias.dtype),
            _saved_gradient(dstart, state, ctx.layout.sources),
            None,
        )


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tail: Tensor | None,
        layout: Layout,
    ) -> tuple[Tensor, Tensor]:
        ctx.kernels, ctx.layout = kernels, layout
        ctx.save_for_backward(x, weight, bias, tail)
        return kernels.causal_conv(x, weight, bias, tail=tail, layout=layout)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dy, dnew_tail = grad_outputs
        x, weight, bias, tail = ctx.saved_tensors
        (b, length, d), k, lengths = x.shape, weight.shape[1], ctx.layout.lengths
        dinput, dweight, dbias = ctx.kernels.conv_backward(dy, x, weight, bias, tail, ctx.layout)
        # The new tail is a copy of the inputs that end each row.
        ends = torch.full((b,), length, device=x.device) if lengths is None else lengths
        index = (ends[:, None] + torch.arange(k - 1, device=x.device))[..., None].expand(b, k - 1, d)
        dinput.scatter_add_(1, index, dnew_tail.to(dinput.dtype))
        return (
            None,
            dinput[:, k - 1 :].to(x.dtype),
            dweight.to(weight.dtype),
            None if bias is None else dbias.to(bias.dtype),
            _saved_gradient(dinput[:, : k - 1], tail, ctx.layout.sources),
            None,
        )


def _saved_gradient(dstart: Tensor, saved: Tensor | None, sources: Tensor | None) -> Tensor | None:
    """From the gradient of what each row starts from to that of the saved states [s, ...]."""
    if saved is None:
        return None
    if sources is None:
        return dstart.sum_to_size(saved.shape).to(saved.dtype)
    from_zero = (sources < 0)[:, None, None]
    gradient = torch.zeros(saved.shape, dtype=dstart.dtype, device=dstart.device)
    return gradient.index_add_(0, sources.clamp(min=0), dstart.masked_fill(from_zero, 0)).to(saved.dtype)
