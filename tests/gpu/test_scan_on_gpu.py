"""The kernels on the GPU of this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.model_adapters.vlmamba.gradients import training_step, worst
from vlmamba_eval.model_adapters.vlmamba import scan
from vlmamba_eval.model_adapters.vlmamba.config import PRESETS
from vlmamba_eval.model_adapters.vlmamba.scan.mamba_ssm import selective_scan_fn

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """Convolutions and matrix products in float32, not in TF32."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_the_kernels_equal_the_float64_definition():
    pytest.importorskip("triton")
    from tests.gpu.scan_on_gpu import check

    assert check().all


@pytest.mark.parametrize("backend", ["autograd", "mamba_ssm"])
def test_a_training_step_has_the_gradients_that_it_has_on_a_cpu(monkeypatch: pytest.MonkeyPatch, backend: str):
    if backend == "mamba_ssm" and selective_scan_fn() is None:
        pytest.skip("mamba-ssm is not installed")
    expected = training_step(PRESETS["vlmamba-tiny"])
    monkeypatch.setattr(scan, "choose_backend", lambda device, requires_grad=False: backend)
    name, size = worst(training_step(PRESETS["vlmamba-tiny"], "cuda"), {n: t.cuda() for n, t in expected.items()})
    assert size < 1e-3, name
