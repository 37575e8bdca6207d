"""Cobra as one module (h-zhao1997/cobra@4b81082: cobra/models/vlms/cobra.py, cobra/util/nn_utils.py).

Features of both towers stand side by side, DINOv2's first: [i, 729, 1024 + 1152]. The projector makes embeddings of
them, which stand before all text.

    linear           Linear
    gelu-mlp         Linear, GELU, Linear                    hidden width: the language model's
    fused-gelu-mlp   Linear, GELU, Linear, GELU, Linear      hidden widths: four times the features', the model's
    fused-ldpnet     Linear, GELU, Linear; pooled to 14 x 14; a depthwise 3 x 3 convolution is added

Glossary: i images; t tokens; c width of the features; h, w grid of patches.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmamba_eval.model_adapters.shared.pixels import PreprocessingConfig, normalise
from vlmamba_eval.model_adapters.shared.template import TemplateConfig
from vlmamba_eval.model_adapters.shared.vision_tower import Tower, TowerConfig
from vlmamba_eval.model_adapters.vlmamba.config import (
    MAMBA,
    SIGLIP_PIXELS,
    LanguageModelConfig,
    TokenizerConfig,
)
from vlmamba_eval.model_adapters.vlmamba.language_model import LanguageModel
from vlmamba_eval.model_adapters.vlmamba.linear import pack_all

Projection = Literal["linear", "gelu-mlp", "fused-gelu-mlp", "fused-ldpnet"]
TowerName = Literal["dino", "siglip"]

# Blocks up to the one before last, no norm after them; timm's SigLIP has the exact GELU, transformers' the tanh one.
DINO = TowerConfig("dinov2_reg", 384, 14, 1024, 23, 16, 4096, 1e-6, "gelu", registers=4)
SIGLIP = TowerConfig("siglip", 384, 14, 1152, 26, 16, 4304, 1e-6, "gelu")

# By the ids of config.json.
TOWERS: dict[str, dict[TowerName, TowerConfig]] = {
    "dinosiglip-vit-so-384px": {"dino": DINO, "siglip": SIGLIP},
    "siglip-vit-so400m-384px": {"siglip": SIGLIP},
}
LANGUAGE_MODELS: dict[str, LanguageModelConfig] = {
    "mamba-2.8b-zephyr": MAMBA["2.8b"],
    "mamba-2.8b-slimpj": MAMBA["2.8b"],
    "mamba-2.8b": MAMBA["2.8b"],
    "mamba-1.4b": MAMBA["1.4b"],
}
PIXELS: dict[TowerName, PreprocessingConfig] = {
    "dino": PreprocessingConfig((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "resize"),
    "siglip": PreprocessingConfig(SIGLIP_PIXELS.mean, SIGLIP_PIXELS.std, "resize"),
}
_POOLED = 14


@dataclass(frozen=True, slots=True)
class CobraConfig:
    """A whole Cobra. The towers stand in the order of their features."""

    name: str
    towers: dict[TowerName, TowerConfig]
    projector: Projection
    language_model: LanguageModelConfig
    template: TemplateConfig = field(default_factory=lambda: TemplateConfig("cobra_zephyr", image_first=True))
    tokenizer: TokenizerConfig = field(default_factory=lambda: TokenizerConfig("xiuyul/mamba-2.8b-zephyr"))

    @property
    def image_size(self) -> int:
        return next(iter(self.towers.values())).image_size

    @property
    def features(self) -> int:
        """Width of the towers' features, side by side."""
        return sum(tower.hidden_size for tower in self.towers.values())

    @property
    def image_tokens(self) -> int:
        side = next(iter(self.towers.values())).side
        return (_POOLED if self.projector == "fused-ldpnet" else side) ** 2

    def settings(self) -> dict[str, Any]:
        """Everything that changes an answer, as plain data."""
        return asdict(self) | {"preprocessing": {name: asdict(PIXELS[name]) for name in self.towers}}


class _Pool(nn.Module):
    """The grid of patches averaged to a smaller one: [i, t, c] -> [i, 196, c]."""

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(_grid(x), (_POOLED, _POOLED)).flatten(2).transpose(1, 2)


class _Position(nn.Module):
    """Each patch with its neighbours' convolution added, per channel: [i, t, c] -> [i, t, c]."""

    def __init__(self, width: int):
        super().__init__()
        self.peg = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width))

    def forward(self, x: Tensor) -> Tensor:
        grid = _grid(x)
        return (self.peg(grid) + grid).flatten(2).transpose(1, 2)


def _grid(x: Tensor) -> Tensor:
    """[i, t, c] -> [i, c, h, w] of a square."""
    return x.transpose(1, 2).unflatten(2, (round(x.shape[1] ** 0.5), -1))


class Projector(nn.Module):
    """Features [i, t, c] -> embeddings [i, t', d_model]; parameters as in the authors' files."""

    def __init__(self, kind: Projection, features: int, d_model: int):
        super().__init__()
        hidden = 4 * features if kind.startswith("fused") else d_model
        if kind == "linear":
            self.projector: nn.Module = nn.Linear(features, d_model)
            return
        layers: list[nn.Module] = [nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, d_model)]
        if kind == "fused-gelu-mlp":
            layers += [nn.GELU(), nn.Linear(d_model, d_model)]
        if kind == "fused-ldpnet":
            layers += [_Pool(), _Position(d_model)]
        self.projector = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.projector(x)


class Cobra(nn.Module):
    """Towers, projector, language model: `towers.*`, `projector.projector.*`, `language_model.backbone.*`."""

    def __init__(self, config: CobraConfig):
        super().__init__()
        self.config = config
        self.towers = nn.ModuleDict({name: Tower(tower) for name, tower in config.towers.items()})
        self.projector = Projector(config.projector, config.features, config.language_model.d_model)
        self.language_model = LanguageModel(config.language_model)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [i, 3, h, w] -> embeddings [i, t, d_model]."""
        features = [
            cast(Tower, self.towers[name]).features(normalise(pixels, PIXELS[name])) for name in self.config.towers
        ]
        return self.projector(torch.cat(features, dim=-1))

    def reset_parameters(self) -> None:
        """Random parameters everywhere, for timing."""
        for tower in self.towers.values():
            cast(Tower, tower).reset_parameters()
        for layer in self.projector.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.reset_parameters()
        self.language_model.reset_parameters()

    def prepare_for_inference(self) -> None:
        """Pack the matrices for this machine. The model can be neither trained nor saved afterwards."""
        self.requires_grad_(False)
        self.eval()
        pack_all(self)
