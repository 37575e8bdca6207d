"""Our GPU kernels, in Triton: the scan and the convolution, forward and backward.

The scan is sequential in time. One program takes one row and a block of channels, one warp for every 32 channels, so
that a thread holds all n states of its channels in registers and the sum over n needs no other thread. It starts from
the saved state that the row's index names, stops at the row's own length, and fuses softplus, bias, skip and gate.

Where rows and channels are too few to fill the device (the prefix of one image), time is cut into segments: each is
scanned from zero for its last state alone, the segments' states are chained with their total decays (exact: the
exponents are negative sums, which can only underflow), and each is scanned again from its true start.

The backward kernel goes through the chunks of 16 tokens in reverse, computing each one's states again from the state
that the forward pass kept.
"""

# Triton's language is not Python's: tuples grow by `+`, and a kernel takes launch options besides its parameters.
# ruff: noqa: RUF005
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmamba_eval.model_adapters.vlmamba.scan.eager import CHECKPOINT
from vlmamba_eval.model_adapters.vlmamba.scan.layout import WHOLE, Layout
from vlmamba_eval.model_adapters.vlmamba.scan.reference import initial, settle
from vlmamba_eval.types import UsageError

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _softplus(v):
    # max(v, 0) + log(1 + u). The plain logarithm of a rounded 1 + u loses the digits of small u, and small steps are
    # the rule; this is u P(u) with the minimax polynomial of log(1 + u) / u on [0, 1], relative error 3e-8.
    u = tl.exp2(-tl.abs(v) * _LOG2E)
    p = 0.0052326940931379795 * u - 0.029505237936973572
    p = p * u + 0.07822594791650772
    p = p * u - 0.13663245737552643
    p = p * u + 0.19106006622314453
    p = p * u - 0.2484298199415207
    p = p * u + 0.3331909775733948
    p = p * u - 0.4999949336051941
    p = p * u + 0.9999999403953552
    return tl.maximum(v, 0.0) + u * p


@triton.jit
def _sigmoid(v):
    return 1.0 / (1.0 + tl.exp2(-v * _LOG2E))


@triton.jit
def _load(pointers, mask, MASKED: tl.constexpr):
    """A load in float32; if no lane can be out of bounds, without the mask."""
    if MASKED:
        return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    return tl.load(pointers).to(tl.float32)


@triton.jit
def _tokens(
    h, total, x, dt, z, B, C, y, x_l, dt_l, z_l, B_l, C_l, y_l, A2, D, bias,
    channels, in_d, ns, in_n,
    COUNT: tl.constexpr, HAS_Z: tl.constexpr, SOLVE: tl.constexpr, MASKED_D: tl.constexpr, MASKED_N: tl.constexpr,
):  # fmt: skip
    """Advance the state h [n, d] by the COUNT tokens that the pointers stand at.

    All loads stand before the stores: a store could alias a load, so that the compiler would not move it. Strides are
    64-bit: no offset overflows.
    """
    xs, dts, zs, Bs, Cs, ys = (), (), (), (), (), ()
    for u in tl.static_range(COUNT):
        xs = xs + (_load(x + u * x_l + channels, in_d, MASKED_D),)
        dts = dts + (_load(dt + u * dt_l + channels, in_d, MASKED_D),)
        Bs = Bs + (_load(B + u * B_l + ns, in_n, MASKED_N),)
        if SOLVE:
            Cs = Cs + (_load(C + u * C_l + ns, in_n, MASKED_N),)
            if HAS_Z:
                zs = zs + (_load(z + u * z_l + channels, in_d, MASKED_D),)
    for u in tl.static_range(COUNT):
        step = _softplus(dts[u] + bias)  # [d]
        h = tl.exp2(step[None, :] * A2) * h + Bs[u][:, None] * (step * xs[u])[None, :]  # [n, d]
        if SOLVE:
            out = tl.sum(h * Cs[u][:, None], 0) + D * xs[u]  # [d]
            if HAS_Z:
                out = out * zs[u] * _sigmoid(zs[u])
            ys = ys + (out,)
        else:
            total += step
    if SOLVE:
        for u in tl.static_range(COUNT):
            tl.store(y + u * y_l + channels, ys[u].to(y.dtype.element_ty), mask=in_d)
    return h, total


@triton.jit
def _checkpoint(checkpoints, h, t, d, n, tile, in_n, channels, CHUNK: tl.constexpr):
    """Write the state before token t if t begins a chunk."""
    limit = tl.where(t % CHUNK == 0, d, 0)
    pointers = checkpoints + tl.cast(t // CHUNK, tl.int64) * n * d + tile
    tl.store(pointers, h, mask=in_n[:, None] & (channels < limit)[None, :])


@triton.jit(do_not_specialize=["pairs", "length", "segment"])
def _scan_kernel(
    x, dt, z, A, B, C, D, bias, state, rows, lengths, y, new_state, totals, checkpoints,
    length, pairs, n, segment,
    x_b, x_l, dt_b, dt_l, z_b, z_l, B_b, B_l, C_b, C_l, y_b, y_l, state_s,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr, HAS_ROWS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, SOLVE: tl.constexpr, KEEP: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, VEC: tl.constexpr, MASKED_D: tl.constexpr, MASKED_N: tl.constexpr,
    UNROLL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One row, one segment of time, one block of channels.

    SOLVE: write y. KEEP: write the last state (to slot row * segments + segment) and, without SOLVE, the sum of the
    steps. CHUNK > 0: write the state before every CHUNK-th token.
    """
    d = pairs * VEC
    channels = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    part = tl.program_id(1)
    row = tl.cast(tl.program_id(2), tl.int64)
    slot = row * tl.num_programs(1) + part
    ns = tl.arange(0, BLOCK_N)
    in_d, in_n = channels < d, ns < n
    tile, in_tile = ns[:, None] * d + channels[None, :], in_n[:, None] & in_d[None, :]
    x_l, dt_l, z_l = tl.cast(x_l, tl.int64), tl.cast(dt_l, tl.int64), tl.cast(z_l, tl.int64)
    B_l, C_l, y_l = tl.cast(B_l, tl.int64), tl.cast(C_l, tl.int64), tl.cast(y_l, tl.int64)

    A2 = tl.load(A + tile, mask=in_tile, other=0.0).to(tl.float32) * _LOG2E  # [n, d]
    skip = tl.load(D + channels, mask=in_d, other=0.0).to(tl.float32)  # [d]
    offset = tl.zeros([BLOCK_D], tl.float32)
    if HAS_BIAS:
        offset = tl.load(bias + channels, mask=in_d, other=0.0).to(tl.float32)
    h = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if HAS_STATE:
        source = slot
        if HAS_ROWS:
            source = tl.cast(tl.load(rows + row), tl.int64)
        saved = in_n[:, None] & (channels < tl.where(source >= 0, d, 0))[None, :]
        h = tl.load(state + source * state_s + tile, mask=saved, other=0.0)
        tl.debug_barrier()  # the new state may be written over this one

    start = part * segment
    end = tl.minimum(start + segment, length)
    stop = end
    if HAS_LENGTHS:
        stop = tl.minimum(end, tl.load(lengths + row).to(tl.int32))
    y_row = y + row * y_b
    if CHUNK > 0:
        checkpoints += row * tl.cdiv(length, CHUNK) * n * d
    x, dt, z = x + row * x_b + start * x_l, dt + row * dt_b + start * dt_l, z + row * z_b + start * z_l
    B, C, y = B + row * B_b + start * B_l, C + row * C_b + start * C_l, y_row + start * y_l
    total = tl.zeros([BLOCK_D], tl.float32)
    count = tl.maximum(stop - start, 0)
    # The loads of the next iterations are under way while one computes.
    for i in tl.range(count // UNROLL, num_stages=STAGES):
        if CHUNK > 0:
            _checkpoint(checkpoints, h, start + i * UNROLL, d, n, tile, in_n, channels, CHUNK)
        h, total = _tokens(
            h, total, x, dt, z, B, C, y, x_l, dt_l, z_l, B_l, C_l, y_l, A2, skip, offset,
            channels, in_d, ns, in_n, UNROLL, HAS_Z, SOLVE, MASKED_D, MASKED_N,
        )  # fmt: skip
        x, dt, z = x + UNROLL * x_l, dt + UNROLL * dt_l, z + UNROLL * z_l
        B, C, y = B + UNROLL * B_l, C + UNROLL * C_l, y + UNROLL * y_l
    for i in range(count % UNROLL):
        if CHUNK > 0:
            _checkpoint(checkpoints, h, start + count // UNROLL * UNROLL + i, d, n, tile, in_n, channels, CHUNK)
        h, total = _tokens(
            h, total, x, dt, z, B, C, y, x_l, dt_l, z_l, B_l, C_l, y_l, A2, skip, offset,
            channels, in_d, ns, in_n, 1, HAS_Z, SOLVE, MASKED_D, MASKED_N,
        )  # fmt: skip
        x, dt, z = x + x_l, dt + dt_l, z + z_l
        B, C, y = B + B_l, C + C_l, y + y_l
    if SOLVE and HAS_LENGTHS:
        for t in range(tl.maximum(start, stop), end):
            tl.store(y_row + t * y_l + channels, tl.zeros([BLOCK_D], y.dtype.element_ty), mask=in_d)
    if KEEP:
        tl.store(new_state + slot * n * d + tile, h, mask=in_tile)
        if not SOLVE:
            tl.store(totals + slot * d + channels, total, mask=in_d)


@triton.jit(do_not_specialize=["pairs", "segments"])
def _chain_kernel(
    A, state, rows, ends, totals, new_state,
    pairs, n, segments, state_s,
    HAS_STATE: tl.constexpr, HAS_ROWS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Turn each segment's last state, scanned from zero, into the state that the segment truly starts from."""
    d = pairs * VEC
    channels = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    row = tl.cast(tl.program_id(1), tl.int64)
    ns = tl.arange(0, BLOCK_N)
    in_d, in_n = channels < d, ns < n
    tile, in_tile = ns[:, None] * d + channels[None, :], in_n[:, None] & in_d[None, :]
    A2 = tl.load(A + tile, mask=in_tile, other=0.0).to(tl.float32) * _LOG2E
    h = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if HAS_STATE:
        source = row
        if HAS_ROWS:
            source = tl.cast(tl.load(rows + row), tl.int64)
        saved = in_n[:, None] & (channels < tl.where(source >= 0, d, 0))[None, :]
        h = tl.load(state + source * state_s + tile, mask=saved, other=0.0)
        tl.debug_barrier()
    for part in range(segments):
        slot = row * segments + part
        end = tl.load(ends + slot * n * d + tile, mask=in_tile, other=0.0)
        total = tl.load(totals + slot * d + channels, mask=in_d, other=0.0)
        tl.debug_barrier()
        tl.store(ends + slot * n * d + tile, h, mask=in_tile)
        h = tl.exp2(total[None, :] * A2) * h + end
    tl.store(new_state + row * n * d + tile, h, mask=in_tile)


@triton.jit(do_not_specialize=["d", "length"])
def _scan_backward_kernel(
    x, dt, z, A, B, C, D, bias, lengths, checkpoints, scratch, dy, dh,
    dx, ddt, dz, dA, dB, dC, dD, dstart,
    length, d, n,
    x_b, x_l, dt_b, dt_l, z_b, z_l, B_b, B_l, C_b, C_l, dy_b, dy_l,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED_D: tl.constexpr, MASKED_N: tl.constexpr,
):  # fmt: skip
    """One row and one block of channels. dA, dD: sums over the row's tokens. dB, dC: sums over the block's channels."""
    block = tl.program_id(0)
    row = tl.cast(tl.program_id(1), tl.int64)
    channels = block * BLOCK_D + tl.arange(0, BLOCK_D)
    ns = tl.arange(0, BLOCK_N)
    in_d, in_n = channels < d, ns < n
    tile, in_tile = ns[:, None] * d + channels[None, :], in_n[:, None] & in_d[None, :]
    x_l, dt_l, z_l = tl.cast(x_l, tl.int64), tl.cast(dt_l, tl.int64), tl.cast(z_l, tl.int64)
    B_l, C_l, dy_l = tl.cast(B_l, tl.int64), tl.cast(C_l, tl.int64), tl.cast(dy_l, tl.int64)
    x, dt, z, B, C, dy = x + row * x_b, dt + row * dt_b, z + row * z_b, B + row * B_b, C + row * C_b, dy + row * dy_b
    dx, ddt, dz = dx + row * length * d, ddt + row * length * d, dz + row * length * d
    partial = (block * tl.num_programs(1) + row) * length * n
    dB, dC = dB + partial, dC + partial
    chunks = tl.cdiv(length, CHUNK)
    checkpoints += row * chunks * n * d
    # Each program has a scratch of its own, laid out as its tiles are.
    scratch += (row * tl.num_programs(0) + block) * CHUNK * BLOCK_N * BLOCK_D
    local = ns[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]

    A2 = tl.load(A + tile, mask=in_tile, other=0.0).to(tl.float32) * _LOG2E  # [n, d]
    skip = tl.load(D + channels, mask=in_d, other=0.0).to(tl.float32)  # [d]
    offset = tl.zeros([BLOCK_D], tl.float32)
    if HAS_BIAS:
        offset = tl.load(bias + channels, mask=in_d, other=0.0).to(tl.float32)
    stop = length
    if HAS_LENGTHS:
        stop = tl.minimum(length, tl.load(lengths + row).to(tl.int32))

    g = tl.load(dh + row * n * d + tile, mask=in_tile, other=0.0)  # a_(t+1) g_(t+1)
    sum_A = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    sum_D = tl.zeros([BLOCK_D], tl.float32)
    used = tl.cdiv(stop, CHUNK)
    for i in range(used):
        chunk = used - 1 - i
        first = chunk * CHUNK
        last = tl.minimum(first + CHUNK, stop)
        h = tl.load(checkpoints + tl.cast(chunk, tl.int64) * n * d + tile, mask=in_tile, other=0.0)
        for t in range(first, last):
            tl.store(scratch + (t - first) * BLOCK_N * BLOCK_D + local, h)
            xt = _load(x + t * x_l + channels, in_d, MASKED_D)
            step = _softplus(_load(dt + t * dt_l + channels, in_d, MASKED_D) + offset)
            Bt = _load(B + t * B_l + ns, in_n, MASKED_N)
            h = tl.exp2(step[None, :] * A2) * h + Bt[:, None] * (step * xt)[None, :]
        tl.debug_barrier()
        for back in range(last - first):
            t = last - 1 - back
            before = tl.load(scratch + (t - first) * BLOCK_N * BLOCK_D + local)  # h_(t-1)
            xt = _load(x + t * x_l + channels, in_d, MASKED_D)
            raw = _load(dt + t * dt_l + channels, in_d, MASKED_D) + offset
            Bt = _load(B + t * B_l + ns, in_n, MASKED_N)
            Ct = _load(C + t * C_l + ns, in_n, MASKED_N)
            grad = _load(dy + t * dy_l + channels, in_d, MASKED_D)
            step = _softplus(raw)
            decay = tl.exp2(step[None, :] * A2)
            kept = decay * before
            h = kept + Bt[:, None] * (step * xt)[None, :]
            if HAS_Z:
                zt = _load(z + t * z_l + channels, in_d, MASKED_D)
                out = tl.sum(h * Ct[:, None], 0) + skip * xt
                gate = _sigmoid(zt)
                dzt = grad * out * gate * (1.0 + zt * (1.0 - gate))
                tl.store(dz + tl.cast(t, tl.int64) * d + channels, dzt.to(dz.dtype.element_ty), mask=in_d)
                grad = grad * zt * gate
            g += Ct[:, None] * grad[None, :]
            tl.store(dC + t * n + ns, tl.sum(h * grad[None, :], 1), mask=in_n)
            tl.store(dB + t * n + ns, tl.sum(g * (step * xt)[None, :], 1), mask=in_n)
            dinput = tl.sum(g * Bt[:, None], 0)  # [d], the gradient of step * x
            q = g * kept
            sum_A += q * step[None, :]
            sum_D += grad * xt
            dxt = grad * skip + dinput * step
            draw = (tl.sum(q * A2, 0) / _LOG2E + dinput * xt) * _sigmoid(raw)
            tl.store(dx + tl.cast(t, tl.int64) * d + channels, dxt.to(dx.dtype.element_ty), mask=in_d)
            tl.store(ddt + tl.cast(t, tl.int64) * d + channels, draw.to(ddt.dtype.element_ty), mask=in_d)
            g = decay * g
        tl.debug_barrier()
    tl.store(dstart + row * n * d + tile, g, mask=in_tile)
    tl.store(dA + row * n * d + tile, sum_A, mask=in_tile)
    tl.store(dD + row * d + channels, sum_D, mask=in_d)


@triton.jit(do_not_specialize=["length"])
def _conv_kernel(
    x, weight, bias, tail, rows, lengths, y, new_tail,
    length, d, x_b, x_l, w_d, w_k, tail_s,
    HAS_BIAS: tl.constexpr, HAS_TAIL: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One row, a block of tokens, a block of channels. The row's first block also writes the new tail."""
    channels = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d = channels < d
    row = tl.cast(tl.program_id(2), tl.int64)
    base = tl.program_id(1) * BLOCK_T
    stop = length
    if HAS_LENGTHS:
        stop = tl.minimum(length, tl.load(lengths + row).to(tl.int32))
    source = row
    if HAS_ROWS:
        source = tl.cast(tl.load(rows + row), tl.int64)
    x += row * x_b
    if HAS_TAIL:
        tail += source * tail_s

    start = tl.zeros([BLOCK_D], tl.float32)
    if HAS_BIAS:
        start = tl.load(bias + channels, mask=in_d, other=0.0).to(tl.float32)
    taps, read = (), ()
    for j in tl.static_range(WIDTH):
        taps = taps + (tl.load(weight + channels * w_d + j * w_k, mask=in_d, other=0.0).to(tl.float32),)
    # Every input is read once, and all are under way before the first is used.
    for i in tl.static_range(BLOCK_T + WIDTH - 1):
        t = base + (i - (WIDTH - 1))
        limit = tl.where((t >= 0) & (t < stop), d, 0)
        v = tl.load(x + tl.cast(t, tl.int64) * x_l + channels, mask=channels < limit, other=0.0)
        if HAS_TAIL and i < WIDTH - 1:  # one of the two is masked
            limit = tl.where((t < 0) & (source >= 0), d, 0)
            old = tl.load(tail + (t + WIDTH - 1) * d + channels, mask=channels < limit, other=0.0)
            v += old.to(v.dtype)
        read = read + (v,)
    y += (row * length + base) * d
    for i in tl.static_range(BLOCK_T):
        acc = start
        for j in tl.static_range(WIDTH):
            acc += read[i + j].to(tl.float32) * taps[j]
        out = tl.where(base + i < stop, acc * _sigmoid(acc), 0.0)
        limit = tl.where(base + i < length, d, 0)
        tl.store(y + i * d + channels, out.to(y.dtype.element_ty), mask=channels < limit)

    if base == 0:
        # All loads before the first store: the new tail may be written over the old one.
        kept = ()
        for j in tl.static_range(WIDTH - 1):
            place = stop - (WIDTH - 1) + j
            new_limit, old_limit = tl.where(place >= 0, d, 0), tl.where((place < 0) & (source >= 0), d, 0)
            last = tl.load(x + tl.cast(place, tl.int64) * x_l + channels, mask=channels < new_limit, other=0.0)
            if HAS_TAIL:  # one of the two is masked
                old = tl.load(tail + (place + WIDTH - 1) * d + channels, mask=channels < old_limit, other=0.0)
                last += old.to(last.dtype)
            kept = kept + (last,)
        tl.debug_barrier()
        for j in tl.static_range(WIDTH - 1):
            tl.store(new_tail + (row * (WIDTH - 1) + j) * d + channels, kept[j], mask=in_d)


@triton.jit
def _conv_input(x, tail, t, stop, channels, in_d, saved, x_l, d, HAS_TAIL: tl.constexpr, WIDTH: tl.constexpr):
    """The convolution's inputs [t, d] at tokens t >= -(WIDTH - 1): the row's, or the saved tail's before them."""
    in_x = ((t >= 0) & (t < stop))[:, None] & in_d[None, :]
    v = tl.load(x + tl.cast(t, tl.int64)[:, None] * x_l + channels[None, :], mask=in_x, other=0.0).to(tl.float32)
    if HAS_TAIL:
        in_tail = ((t < 0) & (t > -WIDTH))[:, None] & saved[None, :]
        v += tl.load(tail + (t + WIDTH - 1)[:, None] * d + channels[None, :], mask=in_tail, other=0.0).to(tl.float32)
    return v


@triton.jit(do_not_specialize=["length"])
def _conv_backward_kernel(
    x, weight, bias, tail, rows, lengths, dy, dinput, dweight, dbias,
    length, d, x_b, x_l, w_d, w_k, tail_s, dy_b, dy_l,
    HAS_BIAS: tl.constexpr, HAS_TAIL: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One row, a block of inputs, a block of channels.

    `dinput` [b, k-1+l, d] receives the gradients of tail and tokens, `dweight` [b, blocks, k, d] and `dbias`
    [b, blocks, d] the block's sums.
    """
    channels = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d = channels < d
    row = tl.cast(tl.program_id(2), tl.int64)
    part = row * tl.num_programs(1) + tl.program_id(1)
    ps = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)  # positions in cat([tail, x])
    stop = length
    if HAS_LENGTHS:
        stop = tl.minimum(length, tl.load(lengths + row).to(tl.int32))
    source = row
    if HAS_ROWS:
        source = tl.cast(tl.load(rows + row), tl.int64)
    x += row * x_b
    saved = channels < tl.where(source >= 0, d, 0)
    if HAS_TAIL:
        tail += source * tail_s
    dy += row * dy_b
    offset = tl.zeros([BLOCK_D], tl.float32)
    if HAS_BIAS:
        offset = tl.load(bias + channels, mask=in_d, other=0.0).to(tl.float32)

    grad = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for o in tl.static_range(WIDTH):
        t = ps - o  # the outputs that the input at ps reaches through tap o
        acc = tl.zeros([BLOCK_T, BLOCK_D], tl.float32) + offset[None, :]
        for j in tl.static_range(WIDTH):
            v = _conv_input(x, tail, t + (j - (WIDTH - 1)), stop, channels, in_d, saved, x_l, d, HAS_TAIL, WIDTH)
            acc += v * tl.load(weight + channels * w_d + j * w_k, mask=in_d, other=0.0).to(tl.float32)[None, :]
        gate = _sigmoid(acc)
        mask = ((t >= 0) & (t < stop))[:, None] & in_d[None, :]
        dout = tl.load(dy + tl.cast(t, tl.int64)[:, None] * dy_l + channels[None, :], mask=mask, other=0.0)
        ds = dout.to(tl.float32) * gate * (1.0 + acc * (1.0 - gate))  # [t, d]
        grad += ds * tl.load(weight + channels * w_d + o * w_k, mask=in_d, other=0.0).to(tl.float32)[None, :]
        if o == 0:
            for j in tl.static_range(WIDTH):
                v = _conv_input(x, tail, t + (j - (WIDTH - 1)), stop, channels, in_d, saved, x_l, d, HAS_TAIL, WIDTH)
                tl.store(dweight + (part * WIDTH + j) * d + channels, tl.sum(ds * v, 0), mask=in_d)
            tl.store(dbias + part * d + channels, tl.sum(ds, 0), mask=in_d)
    dinput += row * (length + WIDTH - 1) * d
    tl.store(dinput + tl.cast(ps, tl.int64)[:, None] * d + channels[None, :], grad.to(dinput.dtype.element_ty),
             mask=(ps < length + WIDTH - 1)[:, None] & in_d[None, :])  # fmt: skip


# =============================================================================
# The backend
# =============================================================================

# Measured on an H100 at 5120 channels in bfloat16 (tests/gpu/scan_on_gpu.py).
#
# Channels that a thread holds: two halve the loads of B and C, and fill a 32-bit load of bfloat16.
_CHANNELS_PER_THREAD = 2
_UNROLL = 4
_STAGES = 3

# With fewer warps on a multiprocessor than the first number, time is cut into segments for as many as the second. Rows
# of 729 tokens, ms in one piece and cut: 1 row 0.27 and 0.07, 4 rows 0.27 and 0.24, 6 rows 0.27 and 0.35.
_FEW_WARPS, _ENOUGH_WARPS = 3, 16
_SHORTEST_SEGMENT = 48

# The convolution's tokens, channels and warps a program.
_CONV = (8, 128, 1)

# The backward kernels' channels and warps a program; the convolution's also has a number of tokens.
_BACKWARD = (32, 1)
_CONV_BACKWARD = (32, 64, 4)

# Elements of the partial sums of dB and dC that a backward pass holds at a time: 1 GiB.
_PARTIAL_SUMS = 1 << 28


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
    segments: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`checkpoints` [b, ceil(l / 16), n, d], if given, receives the state before every 16th token.

    `segments` cuts time into at most so many pieces; None: as many as fill the device. A cut changes results by float32
    rounding alone.
    """
    (b, length, d), n = x.shape, A.shape[0]
    _check_inputs(x)
    y = torch.empty(b, length, d, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y, settle(initial(state, layout.sources, b, (n, d), torch.float32, x.device), out)
    new_state = out if out is not None and out.is_contiguous() else y.new_empty(b, n, d, dtype=torch.float32)
    x, dt, B, C, A, D = _dense(x), _dense(dt), _dense(B), _dense(C), A.contiguous(), D.contiguous()
    z, dt_bias, state = _optional(_dense, z), _optional(_dense, dt_bias), _optional(_states, state)

    vec, block_d, block_n = _tile(d, n)
    blocks, unroll = triton.cdiv(d, block_d), _UNROLL if length >= _UNROLL else 1
    if segments is None:
        segments = _segments(x.device, b * blocks, length)
    segment = triton.cdiv(triton.cdiv(length, segments), CHECKPOINT) * CHECKPOINT
    segments = triton.cdiv(length, segment)

    def scan(
        start: Tensor | None, sources: Tensor | None, end: Tensor | None, totals: Tensor | None, solve: bool
    ) -> None:
        gate = z if solve else None
        keep = checkpoints if solve else None
        _scan_kernel[(blocks, segments, b)](
            x, dt, x if gate is None else gate, A, B, C, D, dt_bias, start, sources, layout.lengths, y, end, totals,
            keep, length, d // vec, n, segment,
            *x.stride()[:2], *dt.stride()[:2], *((0, 0) if gate is None else gate.stride()[:2]),
            *B.stride()[:2], *C.stride()[:2], *y.stride()[:2], _row_stride(start, sources),
            HAS_Z=gate is not None, HAS_BIAS=dt_bias is not None, HAS_STATE=start is not None,
            HAS_ROWS=sources is not None, HAS_LENGTHS=layout.lengths is not None,
            SOLVE=solve, KEEP=end is not None, CHUNK=0 if keep is None else CHECKPOINT,
            BLOCK_D=block_d, BLOCK_N=block_n, VEC=vec, MASKED_D=d % block_d != 0, MASKED_N=n != block_n,
            UNROLL=unroll, STAGES=_STAGES if length > 2 * unroll else 1, num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip

    if segments == 1:
        scan(state, layout.sources, new_state, None, True)
    else:
        states = torch.empty(b * segments, n, d, device=x.device)
        totals = torch.empty(b * segments, d, device=x.device)
        scan(None, None, states, totals, False)
        _chain_kernel[(blocks, b)](
            A, state, layout.sources, states, totals, new_state, d // vec, n, segments,
            _row_stride(state, layout.sources), HAS_STATE=state is not None, HAS_ROWS=layout.sources is not None,
            BLOCK_D=block_d, BLOCK_N=block_n, VEC=vec, num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip
        scan(states, None, None, None, True)
    return y, new_state if out is None or out is new_state else out.copy_(new_state)


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
    """Gradients of x, dt, A, B, C, D, z and of each row's initial state [b, n, d]."""
    (b, length, d), n = x.shape, A.shape[0]
    x, dt, B, C, dy = _dense(x), _dense(dt), _dense(B), _dense(C), _dense(dy)
    A, D, dh = A.contiguous(), D.contiguous(), dh.contiguous()
    z, dt_bias = _optional(_dense, z), _optional(_dense, dt_bias)
    (block_d, warps), block_n = _BACKWARD, triton.next_power_of_2(n)
    blocks = triton.cdiv(d, block_d)
    # The kernel visits valid tokens only.
    new = torch.empty if lengths is None else torch.zeros
    dx, ddt = (new(b, length, d, dtype=t.dtype, device=x.device) for t in (x, dt))
    dz = None if z is None else new(b, length, d, dtype=z.dtype, device=x.device)
    dA, dstart = (torch.empty(b, n, d, device=x.device) for _ in range(2))
    dD = torch.empty(b, d, device=x.device)
    dB, dC = (torch.empty(b, length, n, device=x.device) for _ in range(2))
    group = max(1, min(b, _PARTIAL_SUMS // max(1, 2 * blocks * length * n)))
    scratch = torch.empty(group * blocks * CHECKPOINT * block_n * block_d, device=x.device)
    for first in range(0, b, group):
        r = slice(first, min(b, first + group))
        count = r.stop - first
        sums_B, sums_C = (new(blocks, count, length, n, dtype=torch.float32, device=x.device) for _ in range(2))
        _scan_backward_kernel[(blocks, count)](
            x[r], dt[r], x if z is None else z[r], A, B[r], C[r], D, dt_bias, None if lengths is None else lengths[r],
            checkpoints[r], scratch, dy[r], dh[r],
            dx[r], ddt[r], dx if dz is None else dz[r], dA[r], sums_B, sums_C, dD[r], dstart[r],
            length, d, n,
            *x.stride()[:2], *dt.stride()[:2], *((0, 0) if z is None else z.stride()[:2]),
            *B.stride()[:2], *C.stride()[:2], *dy.stride()[:2],
            HAS_Z=z is not None, HAS_BIAS=dt_bias is not None, HAS_LENGTHS=lengths is not None,
            CHUNK=CHECKPOINT, BLOCK_D=block_d, BLOCK_N=block_n,
            MASKED_D=d % block_d != 0, MASKED_N=n != block_n,
            num_warps=warps, enable_fp_fusion=True,
        )  # fmt: skip
        torch.sum(sums_B, 0, out=dB[r])
        torch.sum(sums_C, 0, out=dC[r])
    return dx, ddt, dA.sum(0), dB, dC, dD.sum(0), dz, dstart


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
    _check_inputs(x)
    y = torch.empty(b, length, d, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y, settle(initial(tail, layout.sources, b, (k - 1, d), x.dtype, x.device), out)
    fits = out is not None and out.is_contiguous() and out.dtype == x.dtype
    new_tail = out if out is not None and fits else y.new_empty(b, k - 1, d)
    x, bias, tail = _dense(x), _optional(_dense, bias), _optional(_states, tail)
    block_t, block_d, warps = _CONV
    block_t = min(block_t, triton.next_power_of_2(length))
    _conv_kernel[(triton.cdiv(d, block_d), triton.cdiv(length, block_t), b)](
        x, weight, bias, tail, layout.sources, layout.lengths, y, new_tail,
        length, d, *x.stride()[:2], *weight.stride(), _row_stride(tail, layout.sources),
        HAS_BIAS=bias is not None, HAS_TAIL=tail is not None, HAS_ROWS=layout.sources is not None,
        HAS_LENGTHS=layout.lengths is not None, WIDTH=k, BLOCK_T=block_t, BLOCK_D=block_d,
        num_warps=warps, enable_fp_fusion=True,
    )  # fmt: skip
    return y, new_tail if out is None or out is new_tail else out.copy_(new_tail)


def conv_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tail: Tensor | None,
    layout: Layout,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the inputs, cat([tail, x]) [b, k-1+l, d], of the weight [d, k] and of the bias [d]."""
    (b, length, d), k = x.shape, weight.shape[1]
    x, dy, bias, tail = _dense(x), _dense(dy), _optional(_dense, bias), _optional(_states, tail)
    dinput = torch.empty(b, k - 1 + length, d, dtype=torch.float32, device=x.device)
    block_t, block_d, warps = _CONV_BACKWARD
    parts = triton.cdiv(k - 1 + length, block_t)
    dweight = torch.empty(b, parts, k, d, device=x.device)
    dbias = torch.empty(b, parts, d, device=x.device)
    _conv_backward_kernel[(triton.cdiv(d, block_d), parts, b)](
        x, weight, bias, tail, layout.sources, layout.lengths, dy, dinput, dweight, dbias,
        length, d, *x.stride()[:2], *weight.stride(), _row_stride(tail, layout.sources), *dy.stride()[:2],
        HAS_BIAS=bias is not None, HAS_TAIL=tail is not None, HAS_ROWS=layout.sources is not None,
        HAS_LENGTHS=layout.lengths is not None, WIDTH=k, BLOCK_T=block_t, BLOCK_D=block_d,
        num_warps=warps, enable_fp_fusion=True,
    )  # fmt: skip
    return dinput, dweight.sum((0, 1)).t(), dbias.sum((0, 1))


def _tile(d: int, n: int) -> tuple[int, int, int]:
    """Channels a thread, channels a program, states a program."""
    vec = _CHANNELS_PER_THREAD if d % _CHANNELS_PER_THREAD == 0 and d > 32 else 1
    return vec, 32 * vec, triton.next_power_of_2(n)


def _segments(device: torch.device, warps: int, length: int) -> int:
    if device.type != "cuda":
        return 1
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    if warps >= _FEW_WARPS * multiprocessors:
        return 1
    return max(1, min(_ENOUGH_WARPS * multiprocessors // warps, length // _SHORTEST_SEGMENT))


def _dense(tensor: Tensor) -> Tensor:
    """Neighbouring channels in neighbouring places, the other strides as they are."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _states(tensor: Tensor) -> Tensor:
    """Each saved state in one piece; the states themselves may lie anywhere."""
    return tensor if tensor[0].is_contiguous() else tensor.contiguous()


def _optional(f: Callable[[Tensor], Tensor], tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else f(tensor)


def _row_stride(state: Tensor | None, sources: Tensor | None) -> int:
    """Elements from one saved state to the next; 0 if all rows start from one."""
    return 0 if state is None or (state.shape[0] == 1 and sources is None) else state.stride(0)


def _check_inputs(x: Tensor) -> None:
    if x.dtype == torch.float64:
        raise UsageError("the triton scan backend computes in float32: for float64 take eager or reference")
    if x.device.type != "cuda" and isinstance(_scan_kernel, triton.JITFunction):
        raise UsageError(f"the triton scan backend needs a CUDA device, not {x.device} (or TRITON_INTERPRET=1)")
