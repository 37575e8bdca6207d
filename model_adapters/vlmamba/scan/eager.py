"""The eager backend: PyTorch operators in place, block of tokens by block, never a tensor [b, l, n, d].

A block's decays are computed at once into a work buffer, and the scan then turns them into the block's states where
they stand: two in-place operators a token, one batched product with C a block. The working set stays near the caches.
Measured against parallel scans, this sequential form wins on a CPU: a step is n x d wide already, and a parallel scan
streams [b, l, n, d] through memory several times.

Two details decide the speed. exp2 is several times faster than exp, which PyTorch may hand to MKL: A is scaled by
log2(e) once. And two buffers take turns, so that the last state of a block survives the next block's decays uncopied.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmamba_eval.model_adapters.vlmamba.scan.layout import WHOLE, Layout
from vlmamba_eval.model_adapters.vlmamba.scan.reference import initial, last_inputs, padding, settle

LOG2E = math.log2(math.e)

# Elements of a work buffer, 4 MB in float32. Measured at 1 to 64 rows of 1536 channels: from a quarter of it to
# twice as many differ by 15 % at most.
BLOCK = 1 << 20

# Tokens from one kept state to the next, for a backward pass that will want them.
CHECKPOINT = 16


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
    checkpoints: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`checkpoints` [b, ceil(l / 16), n, d], if given, receives the state before every 16th token."""
    (b, length, d), n = x.shape, A.shape[0]
    work, dtype = torch.promote_types(x.dtype, torch.float32), x.dtype
    pad = padding(layout.lengths, length)
    x, B, C, A, D = (t.to(work) for t in (x, B, C, A, D))
    dt = step_size(dt.to(work), dt_bias, pad)  # [b, l, d]
    dtx = dt * x  # [b, l, d]
    if pad is not None:  # 0 x NaN is NaN: what stands in the padding must go itself
        dtx, B = clear(dtx, pad), B.masked_fill(pad, 0)
    h = initial(state, layout.sources, b, (n, d), work, x.device)  # [b, n, d]
    if length == 0:
        return torch.empty_like(x, dtype=dtype), settle(h, out)

    # Time first, so that a step's slice is contiguous; the views of all steps are made at once.
    A2 = A * LOG2E
    dt_t = dt.transpose(0, 1)[:, :, None]  # [l, b, 1, d]
    dtx_t = dtx.transpose(0, 1)[:, :, None].unbind(0)  # l x [b, 1, d]
    B_t = B.transpose(0, 1)[..., None].unbind(0)  # l x [b, n, 1]
    C_t = C.transpose(0, 1).reshape(length * b, 1, n)
    y_t = x.new_empty(length * b, 1, d)
    block = max(1, min(length, BLOCK // (b * n * d)))
    if checkpoints is not None:  # a chunk begins where a block begins
        block = next(size for size in (CHECKPOINT, 8, 4, 2, 1) if size <= block)
    buffers = x.new_empty(2 if block < length else 1, block, b, n, d)
    for start in range(0, length, block):
        size = min(block, length - start)
        states = buffers[start // block % 2, :size]  # [t, b, n, d]
        if checkpoints is not None and start % CHECKPOINT == 0:
            checkpoints[:, start // CHECKPOINT] = h
        torch.mul(dt_t[start : start + size], A2, out=states)
        states.exp2_()  # the decays; the states from here on
        for t, decay in enumerate(states.unbind(0), start):
            h = decay.mul_(h).addcmul_(B_t[t], dtx_t[t])  # [b, n, d]
        tokens = slice(start * b, (start + size) * b)
        torch.bmm(C_t[tokens], states.view(size * b, n, d), out=y_t[tokens])

    y = torch.empty_like(x)
    torch.addcmul(y_t.view(length, b, d).transpose(0, 1), x, D, out=y)
    if z is not None:
        y.mul_(F.silu(z.to(work)))
    if pad is not None:
        clear(y, pad)
    # A single step's buffer is the new state and nothing else: no copy.
    return y.to(dtype), h if length == 1 and out is None else settle(h, out)


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    tail: Tensor | None = None,
    layout: Layout = WHOLE,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    (b, length, d), k = x.shape, weight.shape[1]
    work, dtype = torch.promote_types(x.dtype, torch.float32), x.dtype
    inputs = torch.cat([initial(tail, layout.sources, b, (k - 1, d), dtype, x.device), x], dim=1)  # [b, k-1+l, d]
    new_tail = settle(last_inputs(inputs, k - 1, layout.lengths), out)
    inputs, taps = inputs.to(work), weight.to(work).t().contiguous()  # [k, d]
    y = inputs[:, :length] * taps[0] if bias is None else torch.addcmul(bias.to(work), inputs[:, :length], taps[0])
    for j in range(1, k):
        y.addcmul_(inputs[:, j : j + length], taps[j])
    F.silu(y, inplace=True)
    pad = padding(layout.lengths, length)
    if pad is not None:
        clear(y, pad)
    return y.to(dtype), new_tail


def step_size(dt: Tensor, dt_bias: Tensor | None, pad: Tensor | None) -> Tensor:
    """softplus(dt + dt_bias), and 0 at padding, so that a state rests there exactly."""
    dt = F.softplus(dt if dt_bias is None else dt + dt_bias)
    return dt if pad is None else clear(dt, pad)


def clear(tensor: Tensor, pad: Tensor) -> Tensor:
    """0 in place at the padding tokens of a contiguous [b, l, d]: ten times as fast as `masked_fill_`."""
    tensor.view(-1, tensor.shape[2]).index_fill_(0, pad.flatten().nonzero()[:, 0], 0)
    return tensor


def scan_backward(
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
    """Gradients of x, dt, A, B, C, D, z and of each row's initial state [b, n, d].

    With a_t = exp(dt_t A) and g_t the gradient of h_t:

        g_t = C_t dy_t + a_(t+1) g_(t+1)        dC_t = sum_d dy_t h_t        dB_t = sum_d g_t dt_t x_t
        q_t = g_t a_t h_(t-1)                   dA = sum_t q_t dt_t          d(dt_t) = sum_n q_t A + x_t sum_n g_t B_t
    """
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
    group = max(1, BLOCK // (CHECKPOINT * n * d))
    buffers = x.new_empty(3, (CHECKPOINT + 1) * min(group, b) * n * d)
    for first in range(0, b, group):
        g = slice(first, first + group)
        _rows_backward(
            dskip[g], dh[g], step[g], dtx[g], A, B[g], C[g], checkpoints[g], buffers,
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

    for chunk in reversed(range(checkpoints.shape[1])):
        start = chunk * CHECKPOINT
        size = min(CHECKPOINT, length - start)
        decay, states, grads = (buf[: (size + 1) * b * n * d].view(size + 1, b, n, d) for buf in buffers)
        torch.mul(step[start : start + size, :, None], A2, out=decay[:size]).exp2_()
        states[0] = checkpoints[:, chunk]
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
