"""Triton's kernel of `add_norm`: one row per program, which reads and writes its numbers once."""

# Triton's decorator hides what a kernel takes.
# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _kernel(x, y, weight, out, width, eps, HAS_Y: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    kept = tl.load(x + row + columns, mask=inside, other=0.0)
    if HAS_Y:
        kept += tl.load(y + row + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(x + row + columns, kept, mask=inside)
    scale = tl.rsqrt(tl.sum(kept * kept, axis=0) / width + eps)
    by = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + columns, (kept * scale * by).to(out.dtype.element_ty), mask=inside)


def add_norm(x: Tensor, y: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """As `vlmamba.add_norm.add_norm`."""
    if not x.is_contiguous() or x.dtype != torch.float32:
        raise ValueError(f"x is changed in place: contiguous float32, not {x.dtype} with strides {x.stride()}")
    width = x.shape[-1]
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    block = triton.next_power_of_2(width)
    _kernel[(x.numel() // width,)](
        x, x if y is None else y.contiguous(), weight, out, width, eps,
        HAS_Y=y is not None, BLOCK=block, num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return out
