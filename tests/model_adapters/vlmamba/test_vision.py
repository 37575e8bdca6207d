from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vlmamba_eval.model_adapters.shared.pixels import normalisation_table, prepare
from vlmamba_eval.model_adapters.vlmamba.config import (
    CLIP,
    CLIP_PIXELS,
    SIGLIP,
    SIGLIP_PIXELS,
    PreprocessingConfig,
    VisionConfig,
)
from vlmamba_eval.model_adapters.vlmamba.vision import VisionTower

SIZES = [(64, 64), (97, 40), (31, 200), (500, 333), (1, 7), (336, 336)]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (max(height // 4, 1), max(width // 4, 1), 3), dtype=np.uint8))
    return small.resize((width, height), resample=Image.Resampling.BILINEAR)


def normalised(pixels: torch.Tensor, config: PreprocessingConfig) -> torch.Tensor:
    return normalisation_table(config)[torch.arange(3)[:, None, None], pixels.long()]


@pytest.mark.parametrize("size", SIZES)
def test_resizing_equals_the_siglip_processor(size: tuple[int, int]) -> None:
    processor: Any = SiglipImageProcessorPil(
        size={"height": 48, "width": 48}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    config = replace(SIGLIP_PIXELS, fit="resize")
    expected = processor(noise(*size), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(normalised(prepare(noise(*size), 48, config), config), expected)


@pytest.mark.parametrize("size", SIZES)
def test_cropping_equals_the_clip_processor(size: tuple[int, int]) -> None:
    processor: Any = CLIPImageProcessorPil(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})
    config = replace(CLIP_PIXELS, fit="crop")
    expected = processor(noise(*size), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(normalised(prepare(noise(*size), 42, config), config), expected)


@pytest.mark.parametrize(("config", "colour"), [(CLIP_PIXELS, (122, 116, 104)), (SIGLIP_PIXELS, (127, 127, 127))])
@pytest.mark.parametrize("size", SIZES)
def test_padding_is_llavas(size: tuple[int, int], config: PreprocessingConfig, colour: tuple[int, int, int]) -> None:
    """LLaVA pastes the picture into the middle of a square of the mean colour, then runs the CLIP processor on it."""
    width, height = size
    side = max(size)
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = colour
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = np.asarray(noise(*size))
    processor: Any = CLIPImageProcessorPil(
        size={"shortest_edge": 42},
        crop_size={"height": 42, "width": 42},
        image_mean=list(config.mean),
        image_std=list(config.std),
    )
    expected = processor(Image.fromarray(square), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(normalised(prepare(noise(*size), 42, config), config), expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new(mode, (20, 10)) if mode == "I;16" else noise(20, 10).convert(mode)
    pixels = prepare(image, 16, SIGLIP_PIXELS)
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == torch.uint8


def test_a_long_strip_does_not_become_a_huge_square() -> None:
    assert prepare(noise(20000, 1), 32, SIGLIP_PIXELS).shape == (3, 32, 32)


def test_preparing_on_threads_gives_the_same_pixels() -> None:
    images = [noise(random.Random(i).randint(5, 90), 50, seed=i) for i in range(16)]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda image: prepare(image, 32, CLIP_PIXELS), images))
    assert all(torch.equal(a, prepare(b, 32, CLIP_PIXELS)) for a, b in zip(threaded, images, strict=True))


def narrow(config: VisionConfig, feature_layer: int = -2) -> VisionConfig:
    """The real grid and kind with few, thin layers."""
    return replace(
        config,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        feature_layer=feature_layer,
    )


@pytest.mark.parametrize("feature_layer", [-1, -2, 0, 2])
@pytest.mark.parametrize("config", [SIGLIP, CLIP], ids=["siglip", "clip"])
def test_features_are_the_chosen_hidden_state_without_the_class_token(config: VisionConfig, feature_layer: int) -> None:
    small = narrow(config, feature_layer)
    shared: dict[str, Any] = {
        "image_size": small.image_size,
        "patch_size": small.patch_size,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "hidden_act": small.hidden_act,
        "layer_norm_eps": small.layer_norm_eps,
    }
    torch.manual_seed(0)
    whole: Any
    if config is SIGLIP:
        whole = SiglipVisionModel(SiglipVisionConfig(**shared)).eval()
    else:
        whole = CLIPVisionModel(CLIPVisionConfig(**shared)).eval()
    preprocessing = SIGLIP_PIXELS if config is SIGLIP else CLIP_PIXELS
    tower = VisionTower(small, preprocessing)
    state = {name.removeprefix("vision_model."): p for name, p in whole.state_dict().items()}
    tower.load_state_dict({name: state[name] for name in tower.state_dict()})
    pixels = torch.stack([prepare(noise(90, 60, seed=i), small.image_size, preprocessing) for i in range(2)])
    with torch.no_grad():
        found = tower(pixels)
        values = torch.stack([normalised(p, preprocessing) for p in pixels])
        hidden = whole(pixel_values=values, output_hidden_states=True).hidden_states[feature_layer]
    expected = hidden[:, 1:] if config is CLIP else hidden
    assert found.shape == (2, 729 if config is SIGLIP else 576, 16)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_layers_above_the_chosen_one_do_not_exist() -> None:
    assert not [name for name, _ in VisionTower(narrow(CLIP), CLIP_PIXELS).named_parameters() if "layers.2" in name]
