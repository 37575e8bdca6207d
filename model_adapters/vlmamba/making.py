"""Models made without memory, and then filled from files or drawn at random, part by part in their own precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from vlmamba_eval.model_adapters.shared.device import without_memory

from .language_model import keeps_float32

M = TypeVar("M", bound=nn.Module)


def empty(make: Callable[[], M], dtype: torch.dtype) -> M:
    """A model without memory (on the meta device), its parameters of the precision that they will have."""
    with without_memory():
        model = make()
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if keeps_float32(name) else dtype)
    return model


def filled(model: M, parameters: Iterable[tuple[str, Tensor]], device: torch.device, dtype: torch.dtype) -> M:
    """The empty model with parameters, each copied to the device in its precision, one at a time.

    A copy even if nothing changes: a file that is overwritten under a mapped tensor ends the process.
    """
    placed = {
        name: tensor.to(device, torch.float32 if keeps_float32(name) else dtype, copy=True)
        for name, tensor in parameters
    }
    model.load_state_dict(placed, assign=True)
    return model


def drawn(model: M, seed: int, device: torch.device) -> M:
    """The empty model with random parameters, drawn on the device. The global random state is left as it was."""
    model = model.to_empty(device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        cast(Any, model).reset_parameters()
    return model
