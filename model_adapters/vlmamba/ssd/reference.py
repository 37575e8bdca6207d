"""The definition of Mamba-2's scan: plain PyTorch, token by token.

Slow and obvious. It works in float64 if its inputs are float64, autograd runs through it, and every other backend is
tested against it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmamba_eval.model_adapters.vlmamba.scan.layout import WHOLE, Layout
from vlmamba_eval.model_adapters.vlmamba.scan.reference import padding, settle
from vlmamba_eval.model_adapters.vlmamba.ssd import NO_LIMIT


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
    (b, length, h, p), n = x.shape, B.shape[3]
    work, dtype = torch.promote_types(x.dtype, torch.float32), x.dtype
    pad = padding(layout.lengths, length)
    x, B, C, A = (t.to(work) for t in (x, B, C, A))
    step = steps(dt, dt_bias, dt_limit, pad, work)  # [b, l, h]
    if pad is not None:  # whatever a padding token holds, NaN included, goes no further
        x, B, C = (t.masked_fill(pad[..., None], 0) for t in (x, B, C))
    B, C = (t.repeat_interleave(h // t.shape[2], dim=2) for t in (B, C))  # [b, l, h, n]
    now = initial(state, layout.sources, b, (h, p, n), work, x.device)  # [b, h, p, n]
    outputs = []
    for t in range(length):
        decay = torch.exp(step[:, t] * A)  # [b, h]
        moved = (step[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]  # [b, h, p, n]
        now = decay[..., None, None] * now + moved
        y = (now * C[:, t, :, None]).sum(-1)  # [b, h, p]
        outputs.append(y if D is None else y + D.to(work)[:, None] * x[:, t])
    y = torch.stack(outputs, 1) if outputs else torch.empty_like(x)  # [b, l, h, p]
    return y.to(dtype), settle(now, out)


def steps(
    dt: Tensor, dt_bias: Tensor | None, dt_limit: tuple[float, float], pad: Tensor | None, work: torch.dtype
) -> Tensor:
    """The step sizes [b, l, h]; exactly 0 at padding, so that a state rests there: exp(0 A) = 1 and 0 x B = 0."""
    dt = dt.to(work)
    step = F.softplus(dt if dt_bias is None else dt + dt_bias.to(work))
    if dt_limit != NO_LIMIT:
        step = step.clamp(*dt_limit)
    return step if pad is None else step.masked_fill(pad, 0)


def initial(
    state: Tensor | None,
    sources: Tensor | None,
    b: int,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The state [b, h, p, n] that each row starts from. It may be the caller's own or an expanded view: don't write."""
    if state is None:
        return torch.zeros(b, *shape, dtype=dtype, device=device)
    state = state.to(dtype)
    if sources is None:
        return state.expand(b, *shape)
    return state[sources.clamp(min=0)].masked_fill((sources < 0)[:, None, None, None], 0)
