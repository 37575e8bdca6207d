"""Our towers beside those of transformers and timm, on random weights in the layout of their own files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.model_adapters.towers_by_hand import eva02_by_hand, timm_like
from vlmamba_eval.model_adapters.shared.vision_tower import Tower, TowerConfig, from_published
from vlmamba_eval.types import ModelError

SIZES: dict[str, Any] = {
    "image_size": 48,
    "patch_size": 8,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "layer_norm_eps": 1e-6,
}
LAYERS = 3


def tower_config(kind: Any, **changes: Any) -> TowerConfig:
    known = {"intermediate_size": 72, "hidden_act": "gelu", "layers": LAYERS}
    known |= {"registers": 4 if kind == "dinov2_reg" else 0, "rotary_grid": 4 if kind == "eva02" else 0}
    return TowerConfig(kind=kind, **(SIZES | known | changes))


def noisy(model: Any, seed: int = 0) -> Any:
    """The model with nothing left at its initial constant."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.data += 1
    return model.eval()


def pixels(size: int = 48) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def features(config: TowerConfig, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    tower = Tower(config)
    tower.load_state_dict(from_published(config, parameters.items(), "the file"))
    with torch.no_grad():
        return tower(x)


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5


@pytest.mark.parametrize("act", ["gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("layers", [0, 2, LAYERS])
def test_siglip_equals_transformers_up_to_every_layer(layers: int, act: str) -> None:
    theirs = noisy(
        SiglipVisionModel(SiglipVisionConfig(**SIZES, intermediate_size=72, num_hidden_layers=LAYERS, hidden_act=act))
    )
    with torch.no_grad():
        expected = theirs(pixels(), output_hidden_states=True).hidden_states[layers]
    close(features(tower_config("siglip", layers=layers, hidden_act=act), theirs.state_dict(), pixels()), expected)


@pytest.mark.parametrize("layers", [1, LAYERS])
def test_clip_equals_transformers_up_to_every_layer(layers: int) -> None:
    arguments = SIZES | {"intermediate_size": 72, "num_hidden_layers": LAYERS, "hidden_act": "quick_gelu"}
    theirs = noisy(CLIPVisionModel(CLIPVisionConfig(**arguments)))
    with torch.no_grad():
        expected = theirs(pixels(), output_hidden_states=True).hidden_states[layers][:, 1:]
    config = tower_config("clip", layers=layers, hidden_act="quick_gelu")
    close(features(config, theirs.state_dict(), pixels()), expected)


def dinov2(size: int) -> Any:
    more = {"image_size": size, "num_hidden_layers": LAYERS, "mlp_ratio": 2, "num_register_tokens": 4}
    arguments: Any = SIZES | more
    return noisy(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**arguments)))


@pytest.mark.parametrize("trained_on", [48, 72])
def test_dinov2_with_registers_equals_transformers_at_its_own_and_at_another_grid(trained_on: int) -> None:
    theirs = dinov2(trained_on)
    with torch.no_grad():
        hidden = theirs(pixels(), output_hidden_states=True).hidden_states
        last = theirs(pixels()).last_hidden_state
    config = tower_config("dinov2_reg", intermediate_size=64, layers=LAYERS - 1)
    close(features(config, theirs.state_dict(), pixels()), hidden[LAYERS - 1][:, 5:])
    config = tower_config("dinov2_reg", intermediate_size=64, final_norm=True)
    close(features(config, theirs.state_dict(), pixels()), last[:, 5:])


def test_dinov2_is_read_by_the_names_that_its_files_have_on_the_hub(tmp_path: Any) -> None:
    from safetensors.torch import load_file

    theirs = dinov2(48)
    theirs.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    older = {
        name.replace("attention.q_proj", "attention.attention.query")
        .replace("attention.k_proj", "attention.attention.key")
        .replace("attention.v_proj", "attention.attention.value")
        .replace("attention.o_proj", "attention.output.dense"): tensor
        for name, tensor in stored.items()
    }
    config = tower_config("dinov2_reg", intermediate_size=64)
    expected = features(config, theirs.state_dict(), pixels())
    for names in (stored, older):
        assert torch.equal(features(config, names, pixels()), expected)


# =============================================================================
# timm
# =============================================================================


@pytest.mark.parametrize("prefix", ["", "visual.trunk.", "module.vision_tower."])
@pytest.mark.parametrize("kind", ["siglip", "dinov2_reg", "eva02"])
def test_a_file_with_timms_names_is_read(kind: Any, prefix: str) -> None:
    config = tower_config(kind)
    parameters = dict(noisy(Tower(config)).state_dict())
    stored = {prefix + name: tensor for name, tensor in timm_like(kind, parameters).items()}
    assert len({name for name in stored if "qkv" in name}) == (0 if kind == "eva02" else 2 * LAYERS)
    found = from_published(config, (stored | {"head.weight": torch.zeros(2)}).items(), "the file")
    assert found.keys() == parameters.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in parameters.items())


def test_eva02_equals_its_equations() -> None:
    config = tower_config("eva02", image_size=24, layers=2, hidden_act="silu", final_norm=True)
    tower = noisy(Tower(config))
    with torch.no_grad():
        found = tower(pixels(24))
        stored = {name: tensor.double() for name, tensor in timm_like("eva02", dict(tower.state_dict())).items()}
        expected = torch.stack([eva02_by_hand(stored, image.double(), config) for image in pixels(24)])
    close(found.double(), expected)


def test_towers_equal_timms() -> None:
    timm: Any = pytest.importorskip("timm", reason="timm is not installed")
    shared: dict[str, Any] = {"num_classes": 0, "embed_dim": 32, "depth": LAYERS, "num_heads": 4, "patch_size": 8}
    eva = noisy(timm.create_model("eva02_large_patch14_clip_336", img_size=48, ref_feat_shape=(4, 4), **shared))
    inner = eva.blocks[0].mlp.fc2.in_features
    config = tower_config("eva02", intermediate_size=inner, hidden_act="silu", final_norm=True)
    with torch.no_grad():
        close(features(config, eva.state_dict(), pixels()), eva.forward_features(pixels())[:, 1:])
    for name, kind in (("vit_large_patch14_reg4_dinov2", "dinov2_reg"), ("vit_so400m_patch14_siglip_384", "siglip")):
        vit = noisy(timm.create_model(name, img_size=48, mlp_ratio=2.25, **shared))
        with torch.no_grad():
            [expected] = vit.get_intermediate_layers(pixels(), n=[LAYERS - 2])
        close(features(tower_config(kind, layers=LAYERS - 1), vit.state_dict(), pixels()), expected)


def test_timm_and_we_resample_positions_alike() -> None:
    layers: Any = pytest.importorskip("timm.layers", reason="timm is not installed")
    config = tower_config("dinov2_reg")
    parameters = timm_like("dinov2_reg", dict(noisy(Tower(config)).state_dict()))
    parameters["pos_embed"] = torch.randn(1, 81, 32)
    found = from_published(config, parameters.items(), "the file")["embeddings.position_embedding.weight"]
    expected = layers.resample_abs_pos_embed(parameters["pos_embed"], (6, 6), num_prefix_tokens=0)
    close(found, expected[0])


# =============================================================================
# Files that do not fit
# =============================================================================


def test_what_is_missing_or_of_another_shape_is_named() -> None:
    config = tower_config("siglip")
    parameters = dict(noisy(Tower(config)).state_dict())
    parameters["encoder.layers.1.mlp.fc1.weight"] = torch.zeros(3, 3)
    with pytest.raises(ModelError, match=r"1 of another shape: encoder.layers.1.mlp.fc1.weight: expected \[72, 32\]"):
        from_published(config, parameters.items(), "the file")
    with pytest.raises(ModelError, match=r"siglip vision tower .* 51 missing: embeddings.patch_embedding.bias"):
        from_published(config, {"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(2)}.items(), "the file")


def test_a_seed_means_the_same_parameters_each_time() -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        tower = Tower(tower_config("dinov2_reg"))
        tower.reset_parameters()
        return dict(tower.state_dict())

    assert all(torch.equal(a, b) for a, b in zip(drawn(3).values(), drawn(3).values(), strict=True))
    assert not torch.equal(drawn(3)["embeddings.register_tokens"], drawn(4)["embeddings.register_tokens"])
