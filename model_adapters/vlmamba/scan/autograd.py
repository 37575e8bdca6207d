"""The scan and the convolution with gradients, for training.

The forward pass keeps the state before every 16th token: with 16 states a channel that is as much as one tensor
[b, l, d]. The backward pass computes the states of 16 tokens again from each of these, last chunk first. No gradient
passes through a padding token.

Backward of the recurrence, with a_t = exp(dt_t A) and g_t the gradient of h_t:

    g_t = C_t dy_t + a_(t+1) g_(t+1)        dC_t = sum_d dy_t h_t        dB_t = sum_d g_t dt_t x_t
    q_t = g_t a_t h_(t-1)                   dA = sum_t q_t dt_t          d(dt_t) = sum_n q_t A + x_t sum_n g_t B_t

On a CPU this is eager PyTorch; on a GPU our Triton kernels do the same.
"""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model_adapters.vlmamba.scan import cpu, reference
from model_adapters.vlmamba.scan.cpu import CHECKPOINT, LOG2E
from model_adapters.vlmamba.scan.reference import padding, settle


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
    rows: Tensor | None = None,
    lengths: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    kernels = triton_kernels(x.device)
    scan = _EagerScan if kernels is None else kernels.Scan
    y, h = scan.apply(x, dt, A, B, C, D, z, dt_bias, state, rows, lengths)
    return y, h if out is None else settle(h, out)


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    tail: Tensor | None = None,
    rows: Tensor | None = None,
    lengths: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    kernels = triton_kernels(x.device)
    if kernels is None:  # autograd keeps the inputs and the sums before SiLU, nothing else: that is lean enough
        return reference.causal_conv(x, weight, bias, tail=tail, rows=rows, lengths=lengths, out=out)
    y, new_tail = kernels.Conv.apply(x, weight, bias, tail, rows, lengths)
    return y, new_tail if out is None else settle(new_tail, out)


def triton_kernels(device: torch.device) -> ModuleType | None:
    """The Triton backend where it runs on this device, else None: eager PyTorch."""
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    from model_adapters.vlmamba.scan import triton

    return triton


class _EagerScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        z: Tensor | None,
        dt_bias: Tensor | None,
        state: Tensor | None,
        rows: Tensor | None,
        lengths: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        (b, length, d), n = x.shape, A.shape[0]
        work = torch.promote_types(x.dtype, torch.float32)
        checkpoints = x.new_empty(-(-length // CHECKPOINT), b, n, d, dtype=work)
        with torch.autocast(x.device.type, enabled=False):
            y, h = cpu.selective_scan(
                x, dt, A, B, C, D, z,
                dt_bias=dt_bias, state=state, rows=rows, lengths=lengths, checkpoints=checkpoints,
            )  # fmt: skip
        ctx.save_for_backward(x, dt, A, B, C, D, z, dt_bias, state, rows, lengths, checkpoints)
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, D, z, dt_bias, state, rows, lengths, checkpoints = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            dx, ddt, dA, dB, dC, dD, dz, dh = _scan_backward(
                *grads, x, dt, A, B, C, D, z, dt_bias, lengths, checkpoints
            )
        ddt_bias = None if dt_bias is None else ddt.sum((0, 1)).to(dt_bias.dtype)
        return (
            dx.to(x.dtype), ddt.to(dt.dtype), dA.to(A.dtype), dB.to(B.dtype), dC.to(C.dtype), dD.to(D.dtype),
            None if dz is None or z is None else dz.to(z.dtype), ddt_bias, state_gradient(dh, state, rows), None, None,
        )  # fmt: skip


def state_gradient(dh: Tensor, state: Tensor | None, rows: Tensor | None) -> Tensor | None:
    """From the gradients [b, n, d] of each row's start to those of the saved states [s, n, d]."""
    if state is None:
        return None
    if rows is None:
        return dh.sum_to_size(state.shape).to(state.dtype)
    started = (rows >= 0)[:, None, None]
    grad = torch.zeros(state.shape, dtype=dh.dtype, device=dh.device)
    return grad.index_add_(0, rows.clamp(min=0), dh.masked_fill(~started, 0)).to(state.dtype)


def _scan_backward(
    dy: Tensor,
    dh: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    dt_bias: Tensor | None,
    lengths: Tensor | None,
    checkpoints: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Gradients of x, dt, A, B, C, D, z and the initial state of each row [b, n, d], in the working precision."""
    (b, length, d), n = x.shape, A.shape[0]
    work = checkpoints.dtype
    pad = padding(lengths, length)
    dy, x, A, B, C, D = (t.to(work) for t in (dy, x, A, B, C, D))
    raw = dt.to(work) if dt_bias is None else dt.to(work) + dt_bias.to(work)  # [b, l, d]
    if pad is not None:
        dy, x, B, C, raw = (t.masked_fill(pad, 0) for t in (dy, x, B, C, raw))
    step = F.softplus(raw)  # [b, l, d]
    if pad is not None:
        step.masked_fill_(pad, 0)
    dtx = step * x  # [b, l, d]

    if z is None:
        dskip, silu_slope = dy, None
    else:
        z = z.to(work) if pad is None else z.to(work).masked_fill(pad, 0)
        sigmoid = torch.sigmoid(z)
        silu_slope = sigmoid * (1 + z * (1 - sigmoid))
        dskip = dy * z * sigmoid  # [b, l, d], the gradient before the gate

    y, dstep, ddtx = (torch.empty_like(x) for _ in range(3))  # [b, l, d]
    dB, dC = torch.empty_like(B), torch.empty_like(C)  # [b, l, n]
    dA, dh = torch.zeros_like(A), dh.to(work).clone()  # [n, d], [b, n, d]
    group = max(1, cpu.BLOCK // (CHECKPOINT * n * d))
    buffers = x.new_empty(3, (CHECKPOINT + 1) * min(group, b) * n * d)
    for first in range(0, b, group):
        g = slice(first, first + group)
        _rows_backward(
            dskip[g], dh[g], step[g], dtx[g], A, B[g], C[g], checkpoints[:, g], buffers,
            y[g], dstep[g], ddtx[g], dB[g], dC[g], dA,
        )  # fmt: skip

    dz = None if silu_slope is None else dy * silu_slope * torch.addcmul(y, x, D)
    dx = torch.addcmul(dskip * D, ddtx, step)
    ddt = dstep.addcmul_(ddtx, x).mul_(torch.sigmoid(raw))
    if pad is not None:
        ddt.masked_fill_(pad, 0)
    return dx, ddt, dA, dB, dC, (dskip * x).sum((0, 1)), dz, dh


def _rows_backward(
    dy: Tensor,
    dh: Tensor,
    step: Tensor,
    dtx: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    checkpoints: Tensor,
    buffers: Tensor,
    y: Tensor,
    dstep: Tensor,
    ddtx: Tensor,
    dB: Tensor,
    dC: Tensor,
    dA: Tensor,
) -> None:
    """The recurrence's backward for some rows; the last six arguments and `dh` receive the results."""
    (b, length, d), n = step.shape, A.shape[0]
    A2 = A * LOG2E
    step, dtx, dy, B, C = (t.transpose(0, 1).contiguous() for t in (step, dtx, dy, B, C))  # [l, b, ...]
    dtx_t, dy_t = dtx[:, :, None].unbind(0), dy[:, :, None].unbind(0)  # l x [b, 1, d]
    B_t, C_t = B[..., None].unbind(0), C[..., None].unbind(0)  # l x [b, n, 1]

    def batched(tensor: Tensor, start: int, size: int, *shape: int) -> Tensor:
        return tensor[start : start + size].view(size * b, *shape)

    for chunk in reversed(range(checkpoints.shape[0])):
        start = chunk * CHECKPOINT
        size = min(CHECKPOINT, length - start)
        decay, states, grads = (buf[: (size + 1) * b * n * d].view(size + 1, b, n, d) for buf in buffers)
        torch.mul(step[start : start + size, :, None], A2, out=decay[:size]).exp2_()
        states[0] = checkpoints[chunk]
        for t in range(size):
            torch.mul(decay[t], states[t], out=states[t + 1]).addcmul_(B_t[start + t], dtx_t[start + t])
        carry = dh
        for t in reversed(range(size)):
            torch.addcmul(carry, C_t[start + t], dy_t[start + t], out=grads[t])
            carry = decay[t].mul_(grads[t])  # a_t g_t
        dh.copy_(carry)

        span = slice(start, start + size)
        after, g = states[1:].view(size * b, n, d), grads[:size].view(size * b, n, d)
        y[:, span] = torch.bmm(batched(C, start, size, 1, n), after).view(size, b, d).transpose(0, 1)
        # A row vector on the left: the same products as matrix times column take MKL twelve times as long.
        dC[:, span] = torch.bmm(batched(dy, start, size, 1, d), after.mT).view(size, b, n).transpose(0, 1)
        dB[:, span] = torch.bmm(batched(dtx, start, size, 1, d), g.mT).view(size, b, n).transpose(0, 1)
        ddtx[:, span] = torch.bmm(batched(B, start, size, 1, n), g).view(size, b, d).transpose(0, 1)
        q = decay[:size].mul_(states[:size])  # [t, b, n, d]
        dstep[:, span] = torch.mul(q, A, out=grads[:size]).sum(2).transpose(0, 1)
        dA += torch.mul(q, step[span, :, None], out=grads[:size]).sum((0, 1))
