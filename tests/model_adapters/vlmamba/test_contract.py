from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.contract import AdapterContract
from vlmamba_eval.adapter import Adapter
from vlmamba_eval.model_adapters.vlmamba.adapter import VLMambaAdapter


class TestContract(AdapterContract):
    @pytest.fixture(params=[True, False], ids=["shared", "unshared"])
    def adapter(self, request: pytest.FixtureRequest, adapter: Callable[..., VLMambaAdapter]) -> Adapter:
        return adapter(sharing=request.param)
