"""Triton kernels of `fused`, and what stands in for the modules of transformers' LLaMA."""

# Triton's decorator hides what a kernel takes.
# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _norm_kernel(x, weight, out, width, eps, BLOCK: tl.constexpr):
    """out = weight * round(x / rms(x)), one row per program."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    kept = tl.load(x + row * width + columns, mask=inside, other=0.0)
    wide = kept.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)
    normal = (wide * scale).to(kept.dtype).to(tl.float32)
    by = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, (by * normal).to(kept.dtype), mask=inside)


@triton.jit
def _rotate_kernel(x, cos, sin, out, tokens, heads, HALF: tl.constexpr, HEADS: tl.constexpr):
    """One token per program: x [token, heads, 2 HALF], cos and sin [tokens, 2 HALF]."""
    token = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (column < HALF)
    at = token * heads * 2 * HALF + head * 2 * HALF + column
    angle = (token % tokens) * 2 * HALF + column
    first, second = tl.load(x + at, mask=inside), tl.load(x + at + HALF, mask=inside)
    kind = first.dtype
    first, second = first.to(tl.float32), second.to(tl.float32)
    cos_first, cos_second = tl.load(cos + angle).to(tl.float32), tl.load(cos + angle + HALF).to(tl.float32)
    sin_first, sin_second = tl.load(sin + angle).to(tl.float32), tl.load(sin + angle + HALF).to(tl.float32)
    # Each product is rounded before the sum, as transformers rounds it.
    turned = (first * cos_first).to(kind).to(tl.float32) + (-second * sin_first).to(kind).to(tl.float32)
    tl.store(out + at, turned.to(kind), mask=inside)
    turned = (second * cos_second).to(kind).to(tl.float32) + (first * sin_second).to(kind).to(tl.float32)
    tl.store(out + at + HALF, turned.to(kind), mask=inside)


@triton.jit
def _gate_kernel(gate, up, out, count, BLOCK: tl.constexpr):
    """out = round(silu(gate)) * up."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    kept = tl.load(gate + at, mask=inside, other=0.0)
    wide = kept.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(kept.dtype).to(tl.float32)
    tl.store(out + at, (silu * tl.load(up + at, mask=inside, other=0.0).to(tl.float32)).to(kept.dtype), mask=inside)


def norm(module: Any, hidden_states: Tensor) -> Tensor:
    """RMSNorm over the last dimension, as `LlamaRMSNorm.forward`."""
    x = hidden_states.contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    block = triton.next_power_of_2(width)
    warps = min(16, max(1, block // 256))
    _norm_kernel[(x.numel() // width,)](
        x, module.weight, out, width, module.variance_epsilon, BLOCK=block, num_warps=warps
    )
    return out


def mlp(module: Any, x: Tensor) -> Tensor:
    """SwiGLU between its matrices, as `LlamaMLP.forward`."""
    gate, up = module.gate_proj(x), module.up_proj(x)
    out, count = torch.empty_like(gate), gate.numel()
    _gate_kernel[(triton.cdiv(count, 4096),)](gate, up, out, count, BLOCK=4096, num_warps=8)
    return module.down_proj(out)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """q, k [b, heads, l, d] turned by cos, sin [b or 1, l, d], as `apply_rotary_pos_emb`."""
    assert unsqueeze_dim == 1  # noqa: S101 - the modules that are patched ask for nothing else
    cos, sin = cos.contiguous(), sin.contiguous()
    return _rotated(q, cos, sin), _rotated(k, cos, sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x = x.transpose(1, 2).contiguous()  # [b, l, heads, d]: how the projection wrote it
    batch, length, heads, width = x.shape
    out = torch.empty_like(x)
    _rotate_kernel[(batch * length,)](
        x, cos, sin, out, cos.shape[0] * length, heads, HALF=width // 2, HEADS=triton.next_power_of_2(heads)
    )
    return out.transpose(1, 2)
