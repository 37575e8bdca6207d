"""Mamba-2's scan on the GPU, in Triton: one kernel that reads, one that steps. No gradients.

A program of the reading kernel takes one row, one head and a block of its channels through time, chunk by chunk, with
the head's state [p, n] in registers: four matrix products a chunk, nothing written but outputs and the last state. It
starts from the saved state that the row's index names and stops at the row's own length. Rows and heads fill the
device; if there are too few of them, channels are divided further. Exponents are split as in `ssd.chunked`.
"""

# Triton's language is not Python's: a kernel takes launch options besides its parameters.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmamba_eval.model_adapters.vlmamba.scan.layout import WHOLE, Layout
from vlmamba_eval.model_adapters.vlmamba.scan.reference import settle
from vlmamba_eval.model_adapters.vlmamba.scan.triton import _softplus  # pyright: ignore[reportPrivateUsage]
from vlmamba_eval.model_adapters.vlmamba.ssd import NO_LIMIT
from vlmamba_eval.model_adapters.vlmamba.ssd.reference import initial
from vlmamba_eval.types import UsageError

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["length"])
def _read_kernel(
    x, dt, A, B, C, D, bias, state, rows, lengths, y, new_state,
    length, p, n, heads_per_group, least, greatest,
    x_b, x_l, x_h, dt_b, dt_l, dt_h, B_b, B_l, B_g, C_b, C_l, C_g, y_b, y_l, y_h, state_s,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LIMIT: tl.constexpr, HAS_STATE: tl.constexpr,
    HAS_ROWS: tl.constexpr, HAS_LENGTHS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One row, one head, a block of channels."""
    ps = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    head = tl.program_id(1)
    row = tl.cast(tl.program_id(2), tl.int64)
    group = head // heads_per_group
    ns, ts = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_T)
    in_p, in_n = ps < p, ns < n
    tile, in_tile = ps[:, None] * n + ns[None, :], in_p[:, None] & in_n[None, :]
    before = ts[:, None] >= ts[None, :]  # token j acts on token i

    rate = tl.load(A + head).to(tl.float32) * _LOG2E
    offset, skip = 0.0, 0.0
    if HAS_BIAS:
        offset = tl.load(bias + head).to(tl.float32)
    if HAS_D:
        skip = tl.load(D + head).to(tl.float32)
    stop = length
    if HAS_LENGTHS:
        stop = tl.minimum(length, tl.load(lengths + row).to(tl.int32))
    s = tl.zeros([BLOCK_P, BLOCK_N], tl.float32)
    if HAS_STATE:
        source = row
        if HAS_ROWS:
            source = tl.cast(tl.load(rows + row), tl.int64)
        saved = (ps < tl.where(source >= 0, p, 0))[:, None] & in_n[None, :]
        s = tl.load(state + source * state_s + head * p * n + tile, mask=saved, other=0.0).to(tl.float32)

    x += row * x_b + head * x_h
    dt += row * dt_b + head * dt_h
    B += row * B_b + group * B_g
    C += row * C_b + group * C_g
    y += row * y_b + head * y_h
    for start in tl.range(0, stop, BLOCK_T, num_stages=STAGES):
        t = tl.cast(start + ts, tl.int64)
        in_t = t < stop
        raw = tl.load(dt + t * dt_l, mask=in_t, other=0.0).to(tl.float32)
        step = _softplus(raw + offset)  # [t]
        if HAS_LIMIT:
            step = tl.minimum(tl.maximum(step, least), greatest)
        step = tl.where(in_t, step, 0.0)
        in_tp, in_tn = in_t[:, None] & in_p[None, :], in_t[:, None] & in_n[None, :]
        xs = tl.load(x + t[:, None] * x_l + ps[None, :], mask=in_tp, other=0.0)  # [t, p]
        Bs = tl.load(B + t[:, None] * B_l + ns[None, :], mask=in_tn, other=0.0)  # [t, n]
        Cs = tl.load(C + t[:, None] * C_l + ns[None, :], mask=in_tn, other=0.0)  # [t, n]

        exponent = step * rate
        whole = tl.floor(exponent + 0.5)
        part = exponent - whole
        sums, parts = tl.cumsum(whole, 0), tl.cumsum(part, 0)
        between = (sums[:, None] - sums[None, :]) + (parts[:, None] - parts[None, :])
        near = tl.exp2(tl.where(before, between, -float("inf"))) * step[None, :]  # [t, t]
        near *= tl.dot(Cs, tl.trans(Bs), input_precision=PRECISION)
        out = tl.dot(Cs, tl.trans(s).to(Cs.dtype), input_precision=PRECISION)  # [t, p]
        out *= tl.exp2(sums + parts)[:, None]
        out += tl.dot(near.to(xs.dtype), xs, input_precision=PRECISION)
        if HAS_D:
            out += skip * xs.to(tl.float32)
        tl.store(y + t[:, None] * y_l + ps[None, :], out.to(y.dtype.element_ty), mask=in_tp)

        all_sums, all_parts = tl.sum(whole, 0), tl.sum(part, 0)
        weight = tl.exp2((all_sums - sums) + (all_parts - parts)) * step  # [t]
        moved = (xs.to(tl.float32) * weight[:, None]).to(xs.dtype)  # [t, p]
        s = s * tl.exp2(all_sums + all_parts) + tl.dot(tl.trans(moved), Bs, input_precision=PRECISION)
    tl.store(new_state + row * tl.num_programs(1) * p * n + head * p * n + tile, s, mask=in_tile)


@triton.jit
def _step_kernel(
    x, dt, A, B, C, D, bias, state, rows, lengths, y, new_state,
    p, n, heads_per_group, least, greatest,
    x_b, x_h, dt_b, dt_h, B_b, B_g, C_b, C_g, y_b, y_h, state_s,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LIMIT: tl.constexpr, HAS_STATE: tl.constexpr,
    HAS_ROWS: tl.constexpr, HAS_LENGTHS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One token of one row, one head, a block of channels; the new state may be written over the old one."""
    ps = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    head = tl.program_id(1)
    row = tl.cast(tl.program_id(2), tl.int64)
    group = head // heads_per_group
    ns = tl.arange(0, BLOCK_N)
    in_p, in_n = ps < p, ns < n
    tile, in_tile = ps[:, None] * n + ns[None, :], in_p[:, None] & in_n[None, :]
    s = tl.zeros([BLOCK_P, BLOCK_N], tl.float32)
    if HAS_STATE:
        source = row
        if HAS_ROWS:
            source = tl.cast(tl.load(rows + row), tl.int64)
        saved = (ps < tl.where(source >= 0, p, 0))[:, None] & in_n[None, :]
        s = tl.load(state + source * state_s + head * p * n + tile, mask=saved, other=0.0).to(tl.float32)
        tl.debug_barrier()
    live = tl.full([], 1, tl.int32)
    if HAS_LENGTHS:
        live = tl.minimum(1, tl.load(lengths + row).to(tl.int32))
    raw = tl.load(dt + row * dt_b + head * dt_h).to(tl.float32)
    if HAS_BIAS:
        raw += tl.load(bias + head).to(tl.float32)
    step = _softplus(raw)
    if HAS_LIMIT:
        step = tl.minimum(tl.maximum(step, least), greatest)
    step = tl.where(live > 0, step, 0.0)
    live_p, live_n = ps < tl.where(live > 0, p, 0), ns < tl.where(live > 0, n, 0)
    xs = tl.load(x + row * x_b + head * x_h + ps, mask=live_p, other=0.0).to(tl.float32)
    Bs = tl.load(B + row * B_b + group * B_g + ns, mask=live_n, other=0.0).to(tl.float32)
    Cs = tl.load(C + row * C_b + group * C_g + ns, mask=live_n, other=0.0).to(tl.float32)
    s = s * tl.exp2(step * tl.load(A + head).to(tl.float32) * _LOG2E) + (step * xs)[:, None] * Bs[None, :]
    out = tl.sum(s * Cs[None, :], 1)
    if HAS_D:
        out += tl.load(D + head).to(tl.float32) * xs
    tl.store(y + row * y_b + head * y_h + ps, out.to(y.dtype.element_ty), mask=in_p)
    tl.store(new_state + row * tl.num_programs(1) * p * n + head * p * n + tile, s, mask=in_tile)


@triton.jit
def _gated_norm_kernel(
    y, z, weight, out, width, eps, y_s, z_s, out_s, weight_s, GATE_FIRST: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One row, one part of its channels."""
    row, part = tl.cast(tl.program_id(0), tl.int64), tl.program_id(1)
    channels = tl.arange(0, BLOCK)
    mask = channels < width
    at = part * width + channels
    v = tl.load(y + row * y_s + at, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(z + row * z_s + at, mask=mask, other=0.0).to(tl.float32)
    gate = g / (1.0 + tl.exp2(-g * _LOG2E))
    if GATE_FIRST:
        v *= gate
    v *= tl.rsqrt(tl.sum(v * v, 0) / width + eps)
    v *= tl.load(weight + part * weight_s + channels, mask=mask, other=0.0).to(tl.float32)
    if not GATE_FIRST:
        v *= gate
    tl.store(out + row * out_s + at, v.to(out.dtype.element_ty), mask=mask)


# =============================================================================
# The backend
# =============================================================================

# Tokens of a chunk, warps and stages of the reading kernel; `tests/gpu/ssd_on_gpu.py` times others.
_CHUNK = 32
_WARPS = 4
_STAGES = 2

# Channels of a program: as many as hold a state of this many numbers in registers.
_STATE = 64 * 128

# A grid of fewer programs than this times the multiprocessors divides channels further, down to 16.
_ENOUGH = 1


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
    _check_inputs(x)
    if x.dtype == torch.bfloat16 and not isinstance(_read_kernel, triton.JITFunction):
        # Triton's interpreter multiplies the bits of bfloat16 matrices as if they were integers.
        exact = (t.float() for t in (x, dt, A, B, C))
        more = {"dt_bias": dt_bias, "dt_limit": dt_limit, "state": state, "layout": layout, "out": out}
        y, new = state_space_dual(*exact, D, **more)
        return y.to(x.dtype), new
    sources, lengths = layout.sources, layout.lengths
    # The kernel visits valid tokens only.
    y = (torch.empty if lengths is None else torch.zeros)(b, length, h, p, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y, settle(initial(state, sources, b, (h, p, n), torch.float32, x.device), out)
    fits = out is not None and out.is_contiguous() and out.dtype == torch.float32
    new = out if out is not None and fits else torch.empty(b, h, p, n, dtype=torch.float32, device=x.device)
    B, C = (t if t.dtype == x.dtype else t.to(x.dtype) for t in (B, C))
    x, B, C, A = _dense(x), _dense(B), _dense(C), A.contiguous()
    D, dt_bias = (t if t is None else t.contiguous() for t in (D, dt_bias))
    if state is not None and not state[0].is_contiguous():
        state = state.contiguous()
    state_s = 0 if state is None or (state.shape[0] == 1 and sources is None) else state.stride(0)
    block_n = max(16, triton.next_power_of_2(n))
    block_p = max(16, min(triton.next_power_of_2(p), _STATE // block_n))
    flags = {
        "HAS_D": D is not None, "HAS_BIAS": dt_bias is not None, "HAS_LIMIT": dt_limit != NO_LIMIT,
        "HAS_STATE": state is not None, "HAS_ROWS": sources is not None, "HAS_LENGTHS": lengths is not None,
    }  # fmt: skip
    if length == 1:
        _step_kernel[(triton.cdiv(p, block_p), h, b)](
            x, dt, A, B, C, D, dt_bias, state, sources, lengths, y, new,
            p, n, h // g, *dt_limit,
            x.stride(0), x.stride(2), dt.stride(0), dt.stride(2), B.stride(0), B.stride(2), C.stride(0), C.stride(2),
            y.stride(0), y.stride(2), state_s,
            **flags, BLOCK_P=block_p, BLOCK_N=block_n, num_warps=_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    else:
        while block_p > 16 and triton.cdiv(p, block_p) * h * b < _ENOUGH * _multiprocessors(x.device):
            block_p //= 2
        block_t = min(_CHUNK, max(16, triton.next_power_of_2(length)))
        _read_kernel[(triton.cdiv(p, block_p), h, b)](
            x, dt, A, B, C, D, dt_bias, state, sources, lengths, y, new,
            length, p, n, h // g, *dt_limit,
            *x.stride()[:3], *dt.stride(), *B.stride()[:3], *C.stride()[:3], *y.stride()[:3], state_s,
            **flags, PRECISION="tf32x3" if x.dtype == torch.float32 else "tf32",
            BLOCK_T=block_t, BLOCK_P=block_p, BLOCK_N=block_n, STAGES=_STAGES,
            num_warps=_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return y, new if out is None or out is new else out.copy_(new)


def gated_norm(
    y: Tensor, z: Tensor, weight: Tensor, eps: float, *, gate_first: bool, dtype: torch.dtype, width: int
) -> Tensor:
    """`ssd.gated_norm.gated_norm` documents the arguments."""
    shape, channels = y.shape, y.shape[-1]
    y, z = _dense(y.reshape(-1, channels)), _dense(z.reshape(-1, channels))
    out = torch.empty(y.shape, dtype=dtype, device=y.device)
    if out.numel():
        block = triton.next_power_of_2(width)
        _gated_norm_kernel[(len(y), channels // width)](
            y, z, weight.contiguous(), out, width, eps, y.stride(0), z.stride(0), out.stride(0),
            0 if len(weight) == width else width,
            GATE_FIRST=gate_first, BLOCK=block, num_warps=max(1, min(16, block // 256)), enable_fp_fusion=True,
        )  # fmt: skip
    return out.view(shape)


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _dense(tensor: Tensor) -> Tensor:
    """Neighbouring channels in neighbouring places, the other strides as they are."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _check_inputs(x: Tensor) -> None:
    if x.dtype == torch.float64:
        raise UsageError("the triton Mamba-2 backend computes in float32: for float64 take chunked or reference")
    if x.device.type != "cuda" and isinstance(_read_kernel, triton.JITFunction):
        raise UsageError(f"the triton Mamba-2 backend needs a CUDA device, not {x.device} (or TRITON_INTERPRET=1)")
