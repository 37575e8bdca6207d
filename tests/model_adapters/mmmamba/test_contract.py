"""The contract of all adapters, for mmMamba linear and hybrid."""

from __future__ import annotations

import pytest

from tests.contract import AdapterContract
from tests.model_adapters.mmmamba import published
from vlmamba_eval.adapter import Adapter
from vlmamba_eval.model_adapters.mmmamba import Options
from vlmamba_eval.model_adapters.mmmamba.adapter import load


@pytest.fixture(scope="module", params=["linear", "hybrid"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    folder = tmp_path_factory.mktemp("mmmamba")
    published.write(folder, ["mamba2"] * 3 if request.param == "linear" else ["mha", "mamba2", "mha"])
    return load(str(folder), Options(device="cpu", max_tiles=2)).load()


class TestMMMamba(AdapterContract):
    @pytest.fixture
    def adapter(self, made: Adapter) -> Adapter:
        return made
