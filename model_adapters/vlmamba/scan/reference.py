"""The definition of the selective scan and the causal convolution: plain PyTorch, token by token.

Slow and obvious. It works in float64 if its inputs are float64, autograd runs through it, and every other backend is
tested against it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmamba_eval.model_adapters.vlmamba.scan.layout import WHOLE, Layout


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
    (b, length, d), n = x.shape, A.shape[0]
    work, dtype = torch.promote_types(x.dtype, torch.float32), x.dtype
    pad = padding(layout.lengths, length)
    x, dt, B, C, A, D = (t.to(work) for t in (x, dt, B, C, A, D))
    if pad is not None:  # whatever a padding token holds, NaN included, goes no further
        x, dt, B, C = (t.masked_fill(pad, 0) for t in (x, dt, B, C))
    dt = F.softplus(dt if dt_bias is None else dt + dt_bias)  # [b, l, d]
    if pad is not None:  # after softplus: exp(0 A) = 1 and 0 B x = 0, so that the state rests exactly
        dt = dt.masked_fill(pad, 0)
    h = initial(state, layout.sources, b, (n, d), work, x.device)  # [b, n, d]
    outputs = []
    for t in range(length):
        decay = torch.exp(dt[:, t, None] * A)  # [b, n, d]
        h = decay * h + B[:, t, :, None] * (dt[:, t] * x[:, t])[:, None]  # [b, n, d]
        outputs.append((C[:, t, :, None] * h).sum(1) + D * x[:, t])  # [b, d]
    y = torch.stack(outputs, 1) if outputs else torch.empty_like(x)  # [b, l, d]
    if z is not None:
        z = z.to(work) if pad is None else z.to(work).masked_fill(pad, 0)
        y = y * F.silu(z)
    return y.to(dtype), settle(h, out)


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
    pad = padding(layout.lengths, length)
    if pad is not None:
        x = x.masked_fill(pad, 0)
    inputs = torch.cat([initial(tail, layout.sources, b, (k - 1, d), dtype, x.device), x], dim=1)  # [b, k-1+l, d]
    y = torch.zeros(b, length, d, dtype=work, device=x.device) if bias is None else bias.to(work)
    for j in range(k):
        y = y + weight[:, j].to(work) * inputs[:, j : j + length].to(work)  # [b, l, d]
    y = F.silu(y)
    if pad is not None:
        y = y.masked_fill(pad, 0)
    return y.to(dtype), settle(last_inputs(inputs, k - 1, layout.lengths), out)


def padding(lengths: Tensor | None, length: int) -> Tensor | None:
    """True [b, l, 1] at the tokens that are none; None if there are none of these."""
    if lengths is None:
        return None
    return (torch.arange(length, device=lengths.device) >= lengths[:, None])[..., None]


def initial(
    state: Tensor | None,
    sources: Tensor | None,
    b: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The state [b, *shape] that each row starts from. It may be the caller's own or an expanded view: don't write."""
    if state is None:
        return torch.zeros(b, *shape, dtype=dtype, device=device)
    state = state.to(dtype)
    if sources is None:
        return state.expand(b, *shape)
    return state[sources.clamp(min=0)].masked_fill((sources < 0)[:, None, None], 0)


def last_inputs(inputs: Tensor, count: int, lengths: Tensor | None) -> Tensor:
    """The `count` newest of `inputs` [b, count + l, d]: those up to each row's last valid token, so also old ones."""
    if lengths is None:
        return inputs[:, inputs.shape[1] - count :]
    index = lengths[:, None] + torch.arange(count, device=inputs.device)  # [b, count]
    return inputs.gather(1, index[..., None].expand(-1, -1, inputs.shape[2]))


def settle(state: Tensor, out: Tensor | None) -> Tensor:
    """The new state as a tensor of its own, in `out` if that is given."""
    return state.clone() if out is None else out.copy_(state)
