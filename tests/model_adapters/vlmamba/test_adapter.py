from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tokenizers import Tokenizer

from vlmamba_eval import registry
from vlmamba_eval.adapter import RanksContinuations
from vlmamba_eval.model_adapters.vlmamba import FAMILY
from vlmamba_eval.model_adapters.vlmamba import adapter as vlmamba
from vlmamba_eval.model_adapters.vlmamba.assemble import draw
from vlmamba_eval.model_adapters.vlmamba.config import PRESETS, ModelConfig
from vlmamba_eval.types import Generation, ImageQuestions, ModelError, Question, UsageError


def test_every_preset_has_a_name_here_and_a_summary() -> None:
    assert set(PRESETS) == set(FAMILY.models)
    assert all(FAMILY.models.values())


def test_listing_models_imports_no_model_code() -> None:
    code = (
        "import sys; from vlmamba_eval.registry import registry; assert registry().families;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'pandas', 'tokenizers')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"Unknown model 'vlmamba-2\.8'.*Did you mean: vlmamba-2\.8b"):
        registry.load("vlmamba-2.8")
    with pytest.raises(UsageError, match="There are: vlmamba-tiny"):
        registry.load("qqqqqq")


def test_a_model_without_public_weights_says_what_to_do() -> None:
    with pytest.raises(UsageError) as caught:
        registry.load("vlmamba-2.8b")
    for word in ("no public VL-Mamba weights", "vlmamba-eval assemble", "--weights DIR", "--random-init"):
        assert word in str(caught.value)


def test_random_parameters_are_marked_untrained_and_answer() -> None:
    adapter = registry.load("vlmamba-tiny", {"random_init": True, "seed": 5, "device": "cpu"})
    assert adapter.info.untrained
    assert adapter.info.weights == "random:5"
    assert adapter.info.image_tokens == PRESETS["vlmamba-tiny"].vision.image_tokens
    assert isinstance(adapter, RanksContinuations)
    image = adapter.prepare(Image.new("RGB", (40, 20)))
    [[answer]] = adapter.generate([ImageQuestions(image, (Question("Is it red?", 2),))])
    assert isinstance(answer, Generation)
    assert answer.n_tokens <= 2


def test_random_parameters_follow_their_seed() -> None:
    def said(seed: int) -> str:
        adapter = registry.load("vlmamba-tiny", {"random_init": True, "seed": seed, "device": "cpu"})
        assert isinstance(adapter, RanksContinuations)
        [[answer]] = adapter.rank([ImageQuestions(None, (Question("Is it red?", 1, ("Yes",)),))])
        assert isinstance(answer, Generation)
        return str(answer.likelihoods)

    assert said(1) == said(1) != said(2)


@pytest.fixture
def folder(tmp_path: Path, micro: ModelConfig, tokenizer: Tokenizer) -> Path:
    return draw(micro, tokenizer, tmp_path / "model")


def test_a_folder_is_a_model(folder: Path) -> None:
    adapter = registry.load(str(folder), {"device": "cpu"})
    assert adapter.info.name == "micro"
    assert adapter.info.weights.startswith("sha256:")
    assert adapter.info.dtype == "float32"
    settings = adapter.info.settings
    assert settings["template"] == {"name": "vicuna_v1", "image_first": False}
    assert settings["preprocessing"]["fit"] == "pad"
    assert settings["connector"]["blocks"] == "shared"
    assert settings["scan_width"] == 48


def test_weights_of_another_architecture_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a vlmamba-2\.8b: its config\.json differs in .*d_model") as caught:
        registry.load("vlmamba-2.8b", {"weights": str(folder), "device": "cpu"})
    assert f"--model {folder}" in str(caught.value)


def test_weights_take_the_place_of_the_bundled_ones(folder: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    other = draw(PRESETS["vlmamba-tiny"], tokenizer, tmp_path / "tiny", seed=11)
    adapter = registry.load("vlmamba-tiny", {"weights": str(other), "device": "cpu"})
    assert adapter.info.name == "vlmamba-tiny"
    assert adapter.info.settings["provenance"]["sources"]["connector"] == "random:11"


def test_options_that_do_not_go_together_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave out --weights"):
        registry.load("vlmamba-tiny", {"weights": str(folder), "random_init": True})
    with pytest.raises(UsageError, match=r"Invalid enum value 'int8' - at `\$\.dtype`"):
        registry.load(str(folder), {"dtype": "int8"})
    with pytest.raises(UsageError, match="unknown device 'abacus'"):
        registry.load(str(folder), {"device": "abacus"})
    with pytest.raises(UsageError, match=r"no family of models recognises its config\.json"):
        registry.load(str(tmp_path))


def test_timing_without_a_network_takes_the_bundled_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise ModelError("the hub can't be reached.")

    monkeypatch.setattr("vlmamba_eval.model_adapters.vlmamba.assemble.fetch_tokenizer", unreachable)
    with pytest.warns(UserWarning, match="tokenizer of vlmamba-tiny instead"):
        _, source = vlmamba.tokenizer_for_timing(PRESETS["vlmamba-2.8b"], None)
    assert source == "vlmamba-tiny (in place of EleutherAI/gpt-neox-20b)"
