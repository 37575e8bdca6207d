"""Any image-text-to-text model of transformers, with its own chat template; a prefix is shared if that is exact."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract import AdapterContract
from tests.model_adapters import toy_vlms
from tests.model_adapters.llava.test_llava import batch_for
from vlmamba_eval.adapter import Adapter
from vlmamba_eval.model_adapters.hf.adapter import ProcessorConversations, adapter_of
from vlmamba_eval.model_adapters.shared.prefix_adapter import PrefixAdapter
from vlmamba_eval.registry import load
from vlmamba_eval.types import Generation, ModelError

FAMILIES = [
    toy_vlms.llava, toy_vlms.llava_next, toy_vlms.qwen2_5_vl, toy_vlms.qwen3_vl, toy_vlms.internvl, toy_vlms.paligemma,
    toy_vlms.idefics3,
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_sharing_changes_no_answer_of_any_family(tmp_path: Path, family: Callable[[Path], Path]) -> None:
    where = f"hf:{family(tmp_path)}"
    options = {"device": "cpu"} | ({"chat_template": "none"} if family is toy_vlms.paligemma else {})
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # arguments that transformers is about to take away
        shared, alone = load(where, options), load(where, options | {"sharing": False})
        found, expected = shared.generate(batch_for(shared)), alone.generate(batch_for(alone))
    assert found == expected
    said = [one.text for row in found for one in row if isinstance(one, Generation)]
    assert len(said) == 9
    assert isinstance(shared, PrefixAdapter)


def test_sharing_changes_no_answer_of_nemotron_h_omni(recwarn: pytest.WarningsRecorder) -> None:
    """Mamba-2 with attention between; copies of states and of keys and values."""
    model, processor = toy_vlms.nemotron_h_omni()
    made = []
    for sharing in (True, False):
        talk = ProcessorConversations(processor, processor.chat_template, "toy")
        made.append(
            adapter_of(model, talk, name="toy", weights="random:0", template=processor.chat_template, sharing=sharing)
        )
    shared, alone = made
    assert shared.sharing.on
    found = shared.generate(batch_for(shared))
    assert shared.engine.images_encoded == 3
    assert found == alone.generate(batch_for(alone))
    assert not [each for each in recwarn if issubclass(each.category, FutureWarning)]


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_model_whose_pictures_need_torchvision_says_so_before_its_weights_are_read(tmp_path: Path) -> None:
    _, processor = toy_vlms.nemotron_h_omni()
    processor.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nemotron_h_omni", "vision_config": {}}))
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    kind = "NemotronH_Omni_Reasoning_V3ImageProcessor"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind}))
    with pytest.raises(ModelError, match=r"for torchvision alone, which is not installed\. .*--model openai:"):
        load(f"hf:{tmp_path}", {"device": "cpu"})


@pytest.mark.parametrize("language", ["mamba", "falcon_mamba"])
def test_a_llava_on_mamba_1_is_refused_in_words(tmp_path: Path, language: str) -> None:
    """Its class in transformers fails on it before anything is read."""
    toy_vlms.llava(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    small = {"model_type": language, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 400}
    (tmp_path / "config.json").write_text(json.dumps(config | {"text_config": small}))
    with pytest.raises(ModelError, match=f"takes no language model of the type {language}.*list models"):
        load(f"hf:{tmp_path}", {"device": "cpu"})


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
