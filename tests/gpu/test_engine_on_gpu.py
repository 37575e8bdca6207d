"""See `engine_on_gpu`."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.engine_on_gpu import check


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_reading_few_images_as_graphs_changes_no_answer() -> None:
    assert check() > 1000
