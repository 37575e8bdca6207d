"""Mamba-2's scan as matrix products of PyTorch, chunk by chunk, with autograd through it.

Inside a chunk of q tokens, with s_i the sum of dt A up to token i, and S the state before the chunk:

    y_i = sum over j <= i of (C_i . B_j) exp(s_i - s_j) dt_j x_j  +  exp(s_i) S C_i
    S  <- exp(s_q) S + sum over j of exp(s_q - s_j) dt_j x_j B_j^T

All exponents are at most 0, so that nothing overflows. But differences of long sums lose digits if large steps stand
beside small ones. Each dt A log2(e) is therefore split into a whole number and a part of at most one half: sums of
whole numbers are exact, and sums of the parts stay small.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlmamba_eval.model_adapters.vlmamba.scan.layout import WHOLE, Layout
from vlmamba_eval.model_adapters.vlmamba.scan.reference import padding, settle
from vlmamba_eval.model_adapters.vlmamba.ssd import NO_LIMIT
from vlmamba_eval.model_adapters.vlmamba.ssd.reference import initial, steps

LOG2E = math.log2(math.e)

# Tokens of a chunk. The work within a chunk grows with it, the work on states shrinks.
CHUNK = 64


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
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    (b, length, h, p), (g, n) = x.shape, B.shape[2:]
    work, dtype = torch.promote_types(x.dtype, torch.float32), x.dtype
    now = initial(state, layout.sources, b, (h, p, n), work, x.device)  # [b, h, p, n]
    if length == 0:
        return torch.empty_like(x), settle(now, out)
    pad = padding(layout.lengths, length)
    step = steps(dt, dt_bias, dt_limit, pad, work)  # [b, l, h]
    x, B, C = (t.to(work) for t in (x, B, C))
    if pad is not None:  # 0 x NaN is NaN: what stands in the padding must go itself
        x, B, C = (t.masked_fill(pad[..., None], 0) for t in (x, B, C))
    exponents = step * (A.to(work) * LOG2E)  # [b, l, h]

    if length == 1:
        decay = torch.exp2(exponents[:, 0])[..., None, None]  # [b, h, 1, 1]
        moved = (step[:, 0, :, None] * x[:, 0]).view(b, g, h // g, p, 1) * B[:, 0, :, None, None]  # [b, g, r, p, n]
        now = torch.addcmul(moved.view(b, h, p, n), decay, now)
        y = (now.view(b, g, h // g * p, n) @ C[:, 0, :, :, None]).view(b, 1, h, p)
        new = now if out is None else out.copy_(now)
    else:
        y, now = _chunks(x, step, exponents, B, C, now)
        new = settle(now, out)
    if D is not None:
        y = torch.addcmul(y, D.to(work)[:, None], x)
    return y.to(dtype), new


def _chunks(x: Tensor, step: Tensor, exponents: Tensor, B: Tensor, C: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
    """y [b, l, h, p] without the skip, and the last state [b, h, p, n]."""
    (b, length, h, p), (g, n) = x.shape, B.shape[2:]
    r = h // g  # heads of a group
    whole = exponents.detach().round()
    # Time before the last dimension, heads by groups.
    whole, part = whole.mT, (exponents - whole).mT  # [b, h, l]
    dtx = (step[..., None] * x).transpose(1, 2)  # [b, h, l, p]
    B, C = B.transpose(1, 2), C.transpose(1, 2)  # [b, g, l, n]
    below = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=x.device).tril()
    outputs = []
    for start in range(0, length, CHUNK):
        span = slice(start, min(length, start + CHUNK))
        q = span.stop - start
        sums, parts = whole[..., span].cumsum(-1), part[..., span].cumsum(-1)  # [b, h, q]
        between = (sums[..., :, None] - sums[..., None, :]) + (parts[..., :, None] - parts[..., None, :])
        decay = torch.exp2(between.masked_fill(~below[:q, :q], -torch.inf))  # [b, h, q, q]
        from_start = torch.exp2(sums + parts)[..., None]  # [b, h, q, 1]
        to_end = decay[..., -1, :, None]  # [b, h, q, 1]
        B_q, C_q, dtx_q = B[:, :, span], C[:, :, span], dtx[:, :, span]
        near = (C_q @ B_q.mT)[:, :, None] * decay.view(b, g, r, q, q)  # [b, g, r, q, q]
        far = C_q[:, :, None] @ now.view(b, g, r, p, n).mT  # [b, g, r, q, p]
        y = torch.addcmul(near.view(b, h, q, q) @ dtx_q, from_start, far.view(b, h, q, p))
        outputs.append(y)  # [b, h, q, p]
        moved = (to_end * dtx_q).mT.reshape(b, g, r * p, q) @ B_q  # [b, g, r p, n]
        now = torch.addcmul(moved.view(b, h, p, n), from_start[:, :, -1:], now)
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)  # [b, h, l, p]
    return y.transpose(1, 2), now
