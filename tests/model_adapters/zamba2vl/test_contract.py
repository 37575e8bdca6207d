"""The contract of all adapters, for Zamba2-VL."""

from __future__ import annotations

import pytest

from tests.contract import AdapterContract
from tests.model_adapters.zamba2vl import published
from vlmamba_eval.adapter import Adapter
from vlmamba_eval.model_adapters.zamba2vl import Options
from vlmamba_eval.model_adapters.zamba2vl.adapter import load


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    folder = tmp_path_factory.mktemp("zamba2vl")
    published.write(folder)
    return load(str(folder), Options(device="cpu", max_image_tokens=9, min_image_tokens=4)).load()


class TestZamba2VL(AdapterContract):
    @pytest.fixture
    def adapter(self, made: Adapter) -> Adapter:
        return made
