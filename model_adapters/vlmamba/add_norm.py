"""Between two blocks: the residual stream takes up what a block says, and is normed for the next one.

One pass over memory on a GPU, PyTorch elsewhere. Both work in place, so that neither can be differentiated.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor


def add_norm(x: Tensor, y: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Add `y` to `x` [..., width] in place; the root mean square norm of the sum, computed in float32, in `dtype`.

    x is float32 and contiguous; y has any precision; weight is [width]. Without y only the norm is computed.
    """
    if x.device.type == "cuda" and find_spec("triton") is not None:
        from .add_norm_kernel import add_norm as kernel

        return kernel(x, y, weight, eps, dtype)
    if y is not None:
        x.add_(y)
    return F.rms_norm(x, (x.shape[-1],), weight.float(), eps).to(dtype)
