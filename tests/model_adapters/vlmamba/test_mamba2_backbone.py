"""A VL-Mamba whose language model is a Mamba-2: configuration, checkpoint, answers, gradients, published files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from vlmamba_eval.model_adapters.vlmamba import checkpoint
from vlmamba_eval.model_adapters.vlmamba.adapter import VLMambaAdapter, describe
from vlmamba_eval.model_adapters.vlmamba.assemble import draw
from vlmamba_eval.model_adapters.vlmamba.config import (
    PRESETS,
    LanguageModelConfig,
    Mamba2LanguageModelConfig,
    ModelConfig,
    from_dict,
    to_dict,
)
from vlmamba_eval.model_adapters.vlmamba.language_model import LanguageModel, config_from_published, name_of_published
from vlmamba_eval.model_adapters.vlmamba.model import VLMamba, random_model
from vlmamba_eval.model_adapters.vlmamba.train.recipe import load_recipe
from vlmamba_eval.types import ImageQuestions, ModelError, Question

MAMBA2 = Mamba2LanguageModelConfig(d_model=48, n_layer=2, vocab_size=1024, d_state=16, headdim=12, ngroups=2)


@pytest.fixture
def config(micro: ModelConfig) -> ModelConfig:
    return replace(micro, language_model=MAMBA2)


def test_the_configuration_survives_json_and_keeps_its_kind(config: ModelConfig):
    again = from_dict(json.loads(json.dumps(to_dict(config))), "config.json")
    assert again == config
    assert type(again.language_model) is Mamba2LanguageModelConfig


def test_a_mamba_1_is_written_as_it_always_was(micro: ModelConfig):
    assert set(to_dict(micro)["language_model"]) == {
        "d_model", "n_layer", "vocab_size", "pad_vocab_size_multiple", "d_state", "d_conv", "expand", "norm_eps",
    }  # fmt: skip
    assert type(from_dict(to_dict(micro), "config.json").language_model) is LanguageModelConfig


def test_heads_that_do_not_divide_the_channels_are_named(config: ModelConfig):
    data = to_dict(config)
    data["language_model"]["headdim"] = 13
    with pytest.raises(ModelError, match="96 channels are no heads of headdim 13 in ngroups 2"):
        from_dict(data, "config.json")


def test_a_checkpoint_comes_back_as_it_was(config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path):
    folder = draw(config, tokenizer, tmp_path / "model", seed=3)
    model, found, _ = checkpoint.load(folder)
    expected = random_model(config, 3).state_dict()
    assert found.language_model == MAMBA2
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    half, _, _ = checkpoint.load(folder, dtype=torch.bfloat16)
    mixer = half.language_model.blocks[0].mixer
    assert mixer.dtype == torch.bfloat16
    assert mixer.A_log.dtype == mixer.D.dtype == mixer.get_parameter("dt_bias").dtype == torch.float32


def test_an_image_read_once_gives_the_answers_of_each_question_alone(
    config: ModelConfig, tokenizer: Tokenizer, mild: Callable[[ModelConfig], VLMamba]
):
    answers = []
    for sharing in (True, False):
        adapter = VLMambaAdapter(mild(config), tokenizer, weights="random:0", sharing=sharing)
        images = [torch.full((3, 32, 32), 40 * i, dtype=torch.uint8) for i in range(3)]
        texts = ("What is it?", "Is there a red circle on the left?", "no")
        batch = [ImageQuestions(image, tuple(Question(text, 5) for text in texts)) for image in images]
        answers.append(adapter.generate([*batch, ImageQuestions(None, (Question("yes?", 5),))]))
    assert answers[0] == answers[1]
    assert len({answer.text for group in answers[0] for answer in group}) > 3


def test_the_manifest_names_the_backend_of_the_scan(config: ModelConfig, micro: ModelConfig):
    assert describe(config, "random:0", torch.device("cpu"), torch.float32).settings["ssd_backend"] == "chunked"
    assert "ssd_backend" not in describe(micro, "random:0", torch.device("cpu"), torch.float32).settings


def test_gradients_reach_every_parameter_with_and_without_checkpointing():
    torch.manual_seed(0)
    model = LanguageModel(MAMBA2)
    model.reset_parameters()
    ids, found = torch.randint(0, 1000, (2, 70)), []
    for again in (False, True):
        model.gradient_checkpointing = again
        model.zero_grad()
        x, _ = model(model.embed(ids))
        model.logits(x).logsumexp(-1).sum().backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})  # type: ignore
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-5)


# =============================================================================
# Published files
# =============================================================================


def test_a_model_of_transformers_has_the_same_logits():
    from transformers import Mamba2Config, Mamba2ForCausalLM

    torch.manual_seed(1)
    theirs = Mamba2ForCausalLM(
        Mamba2Config(
            hidden_size=32, num_hidden_layers=3, vocab_size=96, state_size=16, head_dim=8, num_heads=8, n_groups=2,
            chunk_size=16, tie_word_embeddings=True,
        )
    ).eval().requires_grad_(False)  # fmt: skip
    config = config_from_published(theirs.config.to_dict(), "config.json")
    assert isinstance(config, Mamba2LanguageModelConfig)
    model = LanguageModel(config).requires_grad_(False)
    state = {name_of_published(name): tensor for name, tensor in theirs.state_dict().items()}
    model.load_state_dict({name: tensor for name, tensor in state.items() if name is not None})
    ids = torch.randint(0, 96, (2, 40))
    expected = theirs(ids).logits
    x, kept = model.prefill(model.embed(ids[:, :37]))
    found = [model.logits(x[:, -1])] + [model.logits(model.step(ids[:, t], kept)) for t in range(37, 40)]
    assert float((torch.stack(found, 1) - expected[:, 36:]).abs().max() / expected.abs().max()) < 1e-4


SPACES: dict[str, Any] = {
    "d_model": 48, "n_layer": 2, "vocab_size": 1024, "d_intermediate": 0, "rms_norm": True, "tie_embeddings": True,
    "attn_layer_idx": [], "pad_vocab_size_multiple": 16,
    "ssm_cfg": {"layer": "Mamba2", "d_state": 16, "headdim": 12, "ngroups": 2},
}  # fmt: skip


def test_the_configuration_of_state_spaces_is_read():
    assert config_from_published(SPACES, "config.json") == MAMBA2
    published = {**SPACES, "d_model": 2560, "n_layer": 64, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"}}
    assert config_from_published(published, "config.json") == PRESETS["vlmamba-mamba2-2.7b"].language_model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_layer_idx": [3]}, r"attn_layer_idx = \[3\] \(expected \[\]\)"),
        ({"d_intermediate": 64}, r"d_intermediate = 64 \(expected 0\)"),
        ({"ssm_cfg": {**SPACES["ssm_cfg"], "dt_limit": [0.0, 0.1]}}, "time_step_limit = "),
    ],
)
def test_another_kind_of_mamba_2_is_refused_with_a_sentence(changes: dict[str, Any], message: str):
    with pytest.raises(ModelError, match=message):
        config_from_published({**SPACES, **changes}, "config.json")


def test_assembling_takes_a_mamba_2_only_where_one_is_expected(
    config: ModelConfig, micro: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
):
    import contextlib

    from vlmamba_eval.model_adapters.vlmamba import assemble

    tensors = {n: t.clone() for n, t in random_model(config, 7).language_model.state_dict().items()}
    (tmp_path / "config.json").write_text(json.dumps(SPACES), encoding="utf-8")
    save_file(tensors, tmp_path / "model.safetensors")
    with contextlib.ExitStack() as files:
        found = assemble._language_model(str(tmp_path), config, files)
        assert all(torch.equal(found[f"language_model.{name}"], tensor) for name, tensor in tensors.items())
        with pytest.raises(ModelError, match=r"kind mamba2 \(expected none\)"):
            assemble._language_model(str(tmp_path), micro, files)


def test_the_recipe_trains_the_preset():
    recipe = load_recipe("vlmamba-mamba2-2.7b")
    assert recipe.config.architecture == PRESETS["vlmamba-mamba2-2.7b"].architecture
