"""Mamba-2's kernels on the GPU of this machine."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.gpu


def test_the_kernels_equal_the_float64_definition(monkeypatch: pytest.MonkeyPatch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("triton")
    from tests.gpu.ssd_on_gpu import check

    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    assert check().all
