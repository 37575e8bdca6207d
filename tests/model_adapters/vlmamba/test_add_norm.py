"""What stands between two blocks: the sum in place and its norm, by PyTorch and by the kernel, against float64."""

from __future__ import annotations

import os

import pytest
import torch

from tests.model_adapters.interpreted import under_the_interpreter
from vlmamba_eval.model_adapters.vlmamba.add_norm import add_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def ways():
    found = [add_norm]
    if INTERPRETED or DEVICE == "cuda":
        from vlmamba_eval.model_adapters.vlmamba.add_norm_kernel import add_norm as kernel

        found.append(kernel)
    return found


@pytest.mark.parametrize("way", ways(), ids=lambda way: way.__module__.rpartition(".")[2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5, 40), (7, 33), (1, 1, 256)])
def test_the_stream_takes_up_what_a_block_says_and_is_normed(way, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape, device=DEVICE), torch.rand(shape[-1], device=DEVICE).to(dtype)
    for y in (None, torch.randn(shape, device=DEVICE).to(dtype)):
        stream = x.clone()
        found = way(stream, y, weight, 1e-5, dtype)
        total = x.double() if y is None else x.double() + y.double()
        scale = (total.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        wanted = total * scale * weight.double()
        assert found.dtype == dtype
        torch.testing.assert_close(stream.double(), total, rtol=1e-6, atol=1e-6)
        bound = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]  # the interpreter truncates
        torch.testing.assert_close(found.double(), wanted, rtol=bound, atol=bound)


@pytest.mark.slow  # it imports everything once more
@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the kernel runs in this process")
def test_the_kernel_passes_these_tests_under_the_interpreter() -> None:
    """A process of its own, since Triton decides at its first import whether it compiles or interprets."""
    pytest.importorskip("triton")
    assert "18 passed" in under_the_interpreter(__file__)
