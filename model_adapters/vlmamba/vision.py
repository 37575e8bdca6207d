"""The vision encoder: SigLIP or CLIP up to the hidden state that the connector reads."""

from __future__ import annotations

from torch import Tensor

from vlmamba_eval.model_adapters.shared.pixels import PreprocessingConfig, normalise
from vlmamba_eval.model_adapters.shared.vision_tower import Tower, TowerConfig

from .config import VisionConfig


class VisionTower(Tower):
    """Embeddings and the first layers of the encoder; what stands above the chosen hidden state does not exist here."""

    def __init__(self, config: VisionConfig, preprocessing: PreprocessingConfig):
        super().__init__(tower_config(config))
        self.preprocessing = preprocessing

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [i, 3, h, w], as `prepare` makes them -> patch features [i, t, c], row by row."""
        return self.features(normalise(pixels, self.preprocessing))


def tower_config(config: VisionConfig) -> TowerConfig:
    """The encoder as far as it is run."""
    return TowerConfig(
        kind=config.kind,
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.hidden_size,
        layers=config.layers_used,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        layer_norm_eps=config.layer_norm_eps,
        hidden_act=config.hidden_act,
    )
