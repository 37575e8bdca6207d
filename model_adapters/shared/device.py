"""Devices and precisions by their names, and modules without memory, for every family that runs here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from vlmamba_eval.types import UsageError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """The device and precision meant; `auto` takes CUDA if it is there, with bfloat16, float32 on a CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"unknown device {device!r}: expected cpu, cuda, cuda:N or auto") from error
    if where.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {device}: models run on cpu and on cuda (cuda, cuda:N) here, not on {where.type}")
    if where.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no CUDA device here; run with --device cpu")
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"--device {device}: PyTorch sees {count} CUDA {'device' if count == 1 else 'devices'} here")
    if dtype == "auto":
        dtype = "float32" if where.type == "cpu" else "bfloat16"
    if dtype not in _DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}: expected {', '.join(_DTYPES)} or auto")
    return where, _DTYPES[dtype]


class _WithoutDrawing(TorchFunctionMode):
    """Leaves out the initial values of parameters: without memory there is nothing to fill."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules that are made inside have shapes alone (on the meta device).

    PyTorch would draw their initial values in a way that imports its compiler, which takes longer than a first answer.
    """
    with torch.device("meta"), _WithoutDrawing():
        yield
