"""A stand-in for mamba-ssm's `selective_scan_fn`, as strict as the CUDA kernel about what it is given.

Its semantics are those that the package documents: channels before time, no initial state, no lengths, the gate after
the skip, no gradient through the last state. Its checks are those of
state-spaces/mamba@e9594ce:csrc/selective_scan/selective_scan.cpp (dtypes, shapes, states, last stride).
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlmamba_eval.model_adapters.vlmamba.scan import mamba_ssm


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        _check(*inputs)
        ctx.save_for_backward(*inputs)
        return _recurrence(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dout, _ = grad_outputs  # the gradient of the last state is not considered
        u = ctx.saved_tensors[0]
        assert dout.dtype == u.dtype
        assert dout.shape == u.shape
        with torch.enable_grad():
            leaves = [None if t is None else t.detach().requires_grad_() for t in ctx.saved_tensors]
            out, _ = _recurrence(*leaves)
        found = iter(torch.autograd.grad(out, [leaf for leaf in leaves if leaf is not None], dout))
        return tuple(None if leaf is None else next(found) for leaf in leaves)


def _check(*inputs: Tensor | None) -> None:
    u, delta, A, B, C, D, z, delta_bias = inputs
    assert u is not None
    assert A is not None
    (b, d, length), n = u.shape, A.shape[1]
    assert length > 0, "the kernel's number of chunks would be 0"
    assert n <= 256
    assert u.dtype in (torch.float32, torch.float16, torch.bfloat16)
    assert A.dtype == torch.float32
    assert A.shape == (d, n)
    for tensor, shape in ((u, (b, d, length)), (delta, (b, d, length)), (B, (b, n, length)), (C, (b, n, length)),
                          (z, (b, d, length))):  # fmt: skip
        if tensor is not None:
            assert tensor.shape == shape
            assert tensor.dtype == u.dtype
            assert tensor.stride(-1) == 1 or tensor.shape[-1] == 1
    for tensor in (D, delta_bias):
        if tensor is not None:
            assert tensor.shape == (d,)
            assert tensor.dtype == torch.float32
            assert tensor.stride(-1) == 1 or d == 1


def _recurrence(*inputs: Tensor | None) -> tuple[Tensor, Tensor]:
    """Computed in float32 whatever the inputs are, the output in u's precision."""
    given, dtype = [None if t is None else t.float() for t in inputs], inputs[0].dtype  # pyright: ignore[reportOptionalMemberAccess]
    u, delta, A, B, C, D, z, delta_bias = given
    assert u is not None
    assert delta is not None
    assert A is not None
    assert B is not None
    assert C is not None
    step = F.softplus(delta if delta_bias is None else delta + delta_bias[:, None])  # [b, d, l]
    h = u.new_zeros(u.shape[0], *A.shape)  # [b, d, n]
    columns = []
    for t in range(u.shape[2]):
        h = torch.exp(step[:, :, t, None] * A) * h + (step[:, :, t] * u[:, :, t])[..., None] * B[:, None, :, t]
        columns.append((h * C[:, None, :, t]).sum(-1))  # [b, d]
    y = torch.stack(columns, 2)  # [b, d, l]
    if D is not None:
        y = y + D[:, None] * u
    if z is not None:
        y = y * F.silu(z)
    return y.to(dtype), h


class Kernel:
    """`selective_scan_fn` that counts its calls and remembers the precision of each."""

    def __init__(self) -> None:
        self.dtypes: list[torch.dtype] = []

    def __call__(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
        z: Tensor | None = None, delta_bias: Tensor | None = None, delta_softplus: bool = False,
        return_last_state: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        assert delta_softplus
        assert return_last_state
        self.dtypes.append(u.dtype)
        return _Scan.apply(u, delta, A, B, C, D, z, delta_bias)  # type: ignore[no-any-return]


def install(monkeypatch: pytest.MonkeyPatch, **attributes: Any) -> Kernel:
    """A `mamba_ssm` package with the stand-in, and a machine that says it has a GPU.

    `attributes` replace those of its module `selective_scan_interface`.
    """
    kernel = Kernel()
    package, ops = ModuleType("mamba_ssm"), ModuleType("mamba_ssm.ops")
    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    vars(interface).update({"selective_scan_fn": kernel, "selective_scan_cuda": object(), **attributes})
    vars(ops)["selective_scan_interface"] = interface
    monkeypatch.setitem(sys.modules, "mamba_ssm", package)
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops", ops)
    monkeypatch.setattr(mamba_ssm, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    mamba_ssm._found.cache_clear()
    return kernel
