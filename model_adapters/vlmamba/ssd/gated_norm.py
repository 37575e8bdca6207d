"""The gated root mean square norm behind Mamba-2's scan: one pass over memory on a GPU, PyTorch elsewhere."""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor


def gated_norm(
    y: Tensor, z: Tensor, weight: Tensor, eps: float, *, gate_first: bool, dtype: torch.dtype, width: int
) -> Tensor:
    """norm(y silu(z)) weight if `gate_first`, else norm(y) weight silu(z), over each `width` channels.

    y, z [..., channels]; weight [channels], or [width] for all parts alike. Computed in float32, returned in `dtype`.
    """
    fused = y.device.type == "cuda" and find_spec("triton") is not None and y.dtype != torch.float64
    if fused and not (torch.is_grad_enabled() and (y.requires_grad or z.requires_grad or weight.requires_grad)):
        from .triton import gated_norm as kernel

        return kernel(y, z, weight, eps, gate_first=gate_first, dtype=dtype, width=width)
    work = torch.promote_types(y.dtype, torch.float32)
    value, gate = y.to(work), F.silu(z.to(work))
    if gate_first:
        value = value * gate
    value = F.rms_norm(value.unflatten(-1, (-1, width)), (width,), eps=eps)
    value = (value * weight.to(work).view(-1, width)).flatten(-2)
    return (value if gate_first else value * gate).to(dtype)
