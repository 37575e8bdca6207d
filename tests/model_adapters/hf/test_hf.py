"""Any image-text-to-text model of transformers, with its own chat template; a prefix is shared where that is exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract import AdapterContract
from tests.model_adapters import toy_vlms
from tests.model_adapters.llava.test_llava import batch_for
from vlmamba_eval.adapter import Adapter
from vlmamba_eval.model_adapters.shared.prefix_adapter import PrefixAdapter
from vlmamba_eval.registry import load
from vlmamba_eval.types import Generation

FAMILIES = [
    toy_vlms.llava, toy_vlms.llava_next, toy_vlms.qwen2_5_vl, toy_vlms.qwen3_vl, toy_vlms.internvl, toy_vlms.paligemma,
    toy_vlms.idefics3,
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_sharing_changes_no_answer_of_any_family(tmp_path: Path, family: Callable[[Path], Path]) -> None:
    where = f"hf:{family(tmp_path)}"
    options = {"device": "cpu"} | ({"chat_template": "none"} if family is toy_vlms.paligemma else {})
    shared, alone = load(where, options), load(where, options | {"sharing": False})
    found, expected = shared.generate(batch_for(shared)), alone.generate(batch_for(alone))
    assert found == expected
    said = [one.text for row in found for one in row if isinstance(one, Generation)]
    assert len(said) == 9
    assert isinstance(shared, PrefixAdapter)


class TestContract(AdapterContract):
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return toy_vlms.qwen2_5_vl(tmp_path_factory.mktemp("qwen"))

    @pytest.fixture(scope="class")
    def made(self, folder: Path) -> Adapter:
        return load(f"hf:{folder}", {"device": "cpu"})

    @pytest.fixture
    def adapter(self, made: Adapter) -> Adapter:
        return made
