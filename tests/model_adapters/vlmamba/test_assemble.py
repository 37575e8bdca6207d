"""Checkpoints from parts in every published layout; the parts are made here, small."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import CLIPVisionConfig, CLIPVisionModel, MambaConfig, MambaForCausalLM, SiglipConfig, SiglipModel

from vlmamba_eval.model_adapters.vlmamba import assemble as module
from vlmamba_eval.model_adapters.vlmamba import checkpoint
from vlmamba_eval.model_adapters.vlmamba.assemble import assemble
from vlmamba_eval.model_adapters.vlmamba.config import ModelConfig, VisionConfig
from vlmamba_eval.model_adapters.vlmamba.model import random_model
from vlmamba_eval.types import ModelError

TINY_TOKENIZER = str(Path(module.__file__).parent / "tiny" / "tokenizer.json")


def vision_arguments(config: VisionConfig) -> dict[str, Any]:
    return {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_act": config.hidden_act,
        "layer_norm_eps": config.layer_norm_eps,
    }


@pytest.fixture
def siglip(tmp_path: Path, micro: ModelConfig) -> str:
    """A whole SigLIP, text tower and all, as the hub has it."""
    torch.manual_seed(0)
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    text |= {"bos_token_id": 1, "eos_token_id": 2}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision_arguments(micro.vision)))
    model.save_pretrained(tmp_path / "siglip")
    return str(tmp_path / "siglip")


def native_mamba(folder: Path, config: ModelConfig, *, safetensors: bool = False) -> dict[str, torch.Tensor]:
    """The files of state-spaces/mamba-*."""
    folder.mkdir(exist_ok=True)
    lm = config.language_model
    data = {"d_model": lm.d_model, "n_layer": lm.n_layer, "vocab_size": lm.vocab_size, "ssm_cfg": {}, "rms_norm": True}
    (folder / "config.json").write_text(json.dumps(data | {"pad_vocab_size_multiple": lm.pad_vocab_size_multiple}))
    tensors = dict(random_model(config, 7).language_model.state_dict())
    stored = {name: tensor.clone() for name, tensor in tensors.items()}
    stored["lm_head.weight"] = tensors["backbone.embedding.weight"].clone()
    if safetensors:
        save_file(stored, folder / "model.safetensors")
    else:
        torch.save(stored, folder / "pytorch_model.bin")
    return tensors


def build(micro: ModelConfig, tmp_path: Path, siglip: str, **options: Any) -> Path:
    options = {"language_model": str(tmp_path / "mamba"), "vision": siglip, "tokenizer": TINY_TOKENIZER} | options
    return assemble(micro, tmp_path / "out", **options)


@pytest.mark.parametrize("safetensors", [False, True])
def test_a_native_mamba_and_a_siglip_make_a_checkpoint(
    tmp_path: Path, micro: ModelConfig, siglip: str, safetensors: bool
) -> None:
    tensors = native_mamba(tmp_path / "mamba", micro, safetensors=safetensors)
    model, config, _ = checkpoint.load(build(micro, tmp_path, siglip))
    for name, tensor in model.language_model.state_dict().items():
        assert torch.equal(tensor, tensors[name])
    assert config.provenance.untrained == ("connector",)
    assert config.provenance.sources["connector"] == "random:0"
    assert config.provenance.sources["vision"] == siglip
    whole = SiglipModel.from_pretrained(siglip).vision_model.state_dict()
    for name, tensor in model.vision.state_dict().items():
        assert torch.equal(tensor, whole[name])


def test_a_transformers_mamba_gives_transformers_logits(tmp_path: Path, micro: ModelConfig, siglip: str) -> None:
    torch.manual_seed(1)
    lm = micro.language_model
    theirs = MambaForCausalLM(
        MambaConfig(hidden_size=lm.d_model, num_hidden_layers=lm.n_layer, vocab_size=lm.padded_vocab_size)
    ).eval()
    theirs.save_pretrained(tmp_path / "mamba")
    model, _, _ = checkpoint.load(build(micro, tmp_path, siglip))
    ids = torch.randint(1000, (2, 19))
    with torch.no_grad():
        expected = theirs(ids).logits
        ours = model.language_model
        found = ours.logits(ours.prefill(ours.embed(ids))[0])
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-4


def test_a_trained_connector_is_taken_as_it_is(tmp_path: Path, micro: ModelConfig, siglip: str) -> None:
    native_mamba(tmp_path / "mamba", micro)
    connector = random_model(micro, 9).connector.state_dict()
    for prefix in ("", "connector."):
        save_file({prefix + name: tensor for name, tensor in connector.items()}, tmp_path / "connector.safetensors")
        model, config, _ = checkpoint.load(build(micro, tmp_path, siglip, connector=tmp_path / "connector.safetensors"))
        assert all(torch.equal(tensor, connector[name]) for name, tensor in model.connector.state_dict().items())
        assert config.provenance.untrained == ()


def test_a_fresh_connector_follows_its_seed(tmp_path: Path, micro: ModelConfig, siglip: str) -> None:
    native_mamba(tmp_path / "mamba", micro)
    drawn = [
        checkpoint.load(build(micro, tmp_path, siglip, seed=seed))[0].connector.state_dict()["linear_in.weight"]
        for seed in (5, 5, 6)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_clip_tower_fits_its_configuration(tmp_path: Path, micro: ModelConfig) -> None:
    clip = replace(micro, vision=replace(micro.vision, kind="clip", hidden_act="quick_gelu", feature_layer=-2))
    torch.manual_seed(0)
    tower = CLIPVisionModel(CLIPVisionConfig(**vision_arguments(clip.vision)))
    tower.save_pretrained(tmp_path / "clip")
    native_mamba(tmp_path / "mamba", clip)
    model, _, _ = checkpoint.load(build(clip, tmp_path, str(tmp_path / "clip")))
    state = tower.state_dict()
    for name, tensor in model.vision.state_dict().items():
        assert torch.equal(tensor, state[name] if name in state else state["vision_model." + name])


def test_parts_of_another_model_are_refused(tmp_path: Path, micro: ModelConfig, siglip: str) -> None:
    native_mamba(tmp_path / "mamba", micro)
    larger = replace(micro, language_model=replace(micro.language_model, n_layer=3))
    with pytest.raises(ModelError, match=r"not the language model of micro: n_layer 2 \(expected 3\)"):
        build(larger, tmp_path, siglip)
    other = replace(micro, vision=replace(micro.vision, image_size=64))
    with pytest.raises(ModelError, match=r"not the vision encoder of micro: image_size 32 \(expected 64\)"):
        build(other, tmp_path, siglip)
    with pytest.raises(ModelError, match="expected a clip model, found model_type 'siglip"):
        build(replace(micro, vision=replace(micro.vision, kind="clip")), tmp_path, siglip)


def test_a_pickle_that_runs_code_is_not_opened(tmp_path: Path, micro: ModelConfig, siglip: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    native_mamba(tmp_path / "mamba", micro)
    torch.save({"backbone.embedding.weight": Trap()}, tmp_path / "mamba" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: holds more than weights"):
        build(micro, tmp_path, siglip)
    (tmp_path / "mamba" / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        build(micro, tmp_path, siglip)
    assert not (tmp_path / "executed").exists()


def test_an_untied_head_is_refused(tmp_path: Path, micro: ModelConfig, siglip: str) -> None:
    tensors = native_mamba(tmp_path / "mamba", micro)
    stored = {**tensors, "lm_head.weight": tensors["backbone.embedding.weight"] + 1}
    torch.save(stored, tmp_path / "mamba" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="the output head is not the embedding matrix"):
        build(micro, tmp_path, siglip)


def test_what_is_missing_is_named(tmp_path: Path, micro: ModelConfig, siglip: str) -> None:
    (tmp_path / "mamba").mkdir()
    (tmp_path / "mamba" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"expected \*\.safetensors or pytorch_model\*\.bin"):
        build(micro, tmp_path, siglip)
    with pytest.raises(ModelError, match="micro names no language_model"):
        assemble(micro, tmp_path / "out", vision=siglip, tokenizer=TINY_TOKENIZER)
    native_mamba(tmp_path / "mamba", micro)
    save_file({"connector.norm.weight": torch.zeros(3)}, tmp_path / "c.safetensors")
    with pytest.raises(ModelError, match="missing: connector"):
        build(micro, tmp_path, siglip, connector=tmp_path / "c.safetensors")
    assert not (tmp_path / "out").exists()


def test_an_assembled_checkpoint_answers(tmp_path: Path, micro: ModelConfig, siglip: str, tokenizer: Tokenizer) -> None:
    from PIL import Image

    from vlmamba_eval import registry
    from vlmamba_eval.types import Generation, ImageQuestions, Question

    native_mamba(tmp_path / "mamba", micro)
    adapter = registry.load(str(build(micro, tmp_path, siglip)), {"device": "cpu"})
    assert adapter.info.untrained
    assert adapter.info.weights.startswith("sha256:")
    image = adapter.prepare(Image.new("RGB", (50, 30), "red"))
    [[answer]] = adapter.generate([ImageQuestions(image, (Question("What is it?", 3),))])
    assert isinstance(answer, Generation)
    assert answer.n_tokens <= 3


# =============================================================================
# Parts in another dress
# =============================================================================


@pytest.mark.parametrize(
    "dress",
    [
        lambda t: {"model": t, "epoch": 1},
        lambda t: {"model": {"llm_backbone": {f"llm.{n}": p for n, p in t.items()}, "projector": {"0": torch.ones(2)}}},
        lambda t: {"state_dict": {f"module.{name}": tensor for name, tensor in t.items()}},
    ],
)
def test_a_wrapped_language_model_is_found(tmp_path: Path, micro: ModelConfig, siglip: str, dress: Any) -> None:
    tensors = native_mamba(tmp_path / "mamba", micro)
    stored = {**tensors, "lm_head.weight": tensors["backbone.embedding.weight"]}
    torch.save(dress(stored), tmp_path / "mamba" / "pytorch_model.bin")
    model, _, _ = checkpoint.load(build(micro, tmp_path, siglip))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.language_model.state_dict().items())


def test_the_connector_of_a_whole_model_is_taken(tmp_path: Path, micro: ModelConfig, siglip: str) -> None:
    native_mamba(tmp_path / "mamba", micro)
    whole = random_model(micro, 9)
    torch.save({"model": whole.state_dict()}, tmp_path / "whole.pt")
    model, _, _ = checkpoint.load(build(micro, tmp_path, siglip, connector=tmp_path / "whole.pt"))
    assert torch.equal(model.connector.linear_in.weight, whole.connector.linear_in.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": None}, "d_model must be int, found None"),
        ({"pad_vocab_size_multiple": 0}, "pad_vocab_size_multiple must be at least 1, found 0"),
        ({"n_layer": 10**9}, "n_layer must be at most 1,024"),
        ({"ssm_cfg": [1]}, r"ssm_cfg must be an object, found \[1\]"),
        ({"vocab_size": "50280"}, "vocab_size must be int, found '50280'"),
    ],
)
def test_a_language_models_absurd_configuration_is_named(
    tmp_path: Path, micro: ModelConfig, siglip: str, changes: dict[str, Any], message: str
) -> None:
    native_mamba(tmp_path / "mamba", micro)
    path = tmp_path / "mamba" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=rf"config\.json: {message}"):
        build(micro, tmp_path, siglip)


def test_quantised_weights_are_refused(tmp_path: Path, micro: ModelConfig, siglip: str) -> None:
    tensors = native_mamba(tmp_path / "mamba", micro)
    stored = {name: p.to(torch.int8) if "in_proj" in name else p for name, p in tensors.items()}
    torch.save(stored, tmp_path / "mamba" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"in_proj\.weight is stored as int8, expected floating point"):
        build(micro, tmp_path, siglip)
