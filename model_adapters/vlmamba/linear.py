"""Linear layers for inference on a CPU: weights laid out once as oneDNN wants them.

PyTorch's float32 linear layer goes through BLAS, which on some CPUs runs at less than half the rate of oneDNN. oneDNN
is reached through two operators of PyTorch that are not public, so they are tried, checked against the ordinary layer,
and left alone wherever anything is unexpected.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """A linear layer that holds a packed copy of its weights in place of the weights.

    It can be neither trained nor saved: the original is freed, so that there is one copy in memory.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self._bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")


def pack(layer: nn.Module) -> nn.Module:
    """The layer in packed form if that is possible (float32 on a CPU with oneDNN), otherwise the layer itself."""
    if type(layer) is not nn.Linear or layer.weight.device.type != "cpu" or layer.weight.dtype != torch.float32:
        return layer
    return PackedLinear(layer.weight, layer.bias) if onednn_works() else layer


def linear_of(weight: Tensor) -> nn.Linear:
    """A linear layer over a given matrix, which is not copied."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return layer


def pack_all(module: nn.Module) -> None:
    """Replace every linear layer inside `module` by its packed form; children that know how prepare themselves."""
    for name, child in module.named_children():
        prepare = getattr(child, "prepare_for_inference", None)
        if prepare is not None:
            prepare()
            continue
        packed = pack(child)
        if packed is not child:
            setattr(module, name, packed)
        else:
            pack_all(child)


@functools.cache
def onednn_works() -> bool:
    """Whether packed layers run here and agree with the ordinary one, for one row and for many."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(80, 96, generator=generator), torch.randn(80, generator=generator)
    try:
        with torch.no_grad():
            packed = PackedLinear(weight, bias)
            for shape in ((1, 96), (3, 40, 96)):
                x = torch.randn(shape, generator=generator)
                expected = F.linear(x.double(), weight.double(), bias.double())
                # 1e-5 of a sum of 96 products separates float32 from bfloat16 arithmetic, which some CPUs would use.
                if not torch.allclose(packed(x).double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max())):
                    return False
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False
    return True
