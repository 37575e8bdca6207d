"""The elementwise parts of LLaMA's layers as Triton kernels, each of which reads and writes its numbers once.

Transformers computes RMSNorm, the rotation of queries and keys, and SwiGLU in some thirty small kernels per layer,
which move more memory than the matrix products do. Here every intermediate is rounded as there, so that only the order
of a sum differs. `Fused` puts them in place while it is entered, for models of these classes; others stay as they are.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import partial
from types import ModuleType, TracebackType
from typing import Any

import torch
from torch import nn

_NORMS = ("LlamaRMSNorm", "MistralRMSNorm")
_MLPS = ("LlamaMLP", "MistralMLP")
_SILUS = ("SiLU", "SiLUActivation")
_ATTENTIONS = ("LlamaAttention", "MistralAttention")


def available(device: torch.device) -> bool:
    """Whether the kernels run on a device: Triton on CUDA, or its interpreter anywhere."""
    return importlib.util.find_spec("triton") is not None and (
        device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    )


class Fused:
    """A context in which the language model's forwards use the kernels; `name` is `triton`, or `transformers`."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._modules: list[tuple[nn.Module, Any]] = []
        self._rotations: list[tuple[ModuleType, Any, Any]] = []
        if available(device):
            self._find(model)
        self.name = "triton" if self._modules else "transformers"

    def __enter__(self) -> None:
        for module, forward in self._modules:
            module.forward = forward
        for home, _, rotate in self._rotations:
            home.__dict__["apply_rotary_pos_emb"] = rotate

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for module, _ in self._modules:
            del module.forward
        for home, own, _ in self._rotations:
            home.__dict__["apply_rotary_pos_emb"] = own

    def _find(self, model: nn.Module) -> None:
        from . import fused_kernels as kernels

        homes: dict[str, ModuleType] = {}
        for module in model.modules():
            name = type(module).__name__
            if name in _NORMS:
                self._modules.append((module, partial(kernels.norm, module)))
            elif name in _MLPS and type(module.act_fn).__name__ in _SILUS:
                self._modules.append((module, partial(kernels.mlp, module)))
            elif name in _ATTENTIONS:
                homes[type(module).__module__] = sys.modules[type(module).__module__]
        self._rotations = [(home, home.apply_rotary_pos_emb, kernels.rotate) for home in homes.values()]
