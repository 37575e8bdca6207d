"""VL-Mamba as one module: encoder, connector, language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .connector import Connector
from .language_model import LanguageModel
from .linear import pack_all
from .making import drawn, empty
from .vision import VisionTower


class VLMamba(nn.Module):
    """The three parts. Their parameters are `vision.*`, `connector.*` and `language_model.backbone.*`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision, config.preprocessing)
        self.connector = Connector(config.vision.hidden_size, config.language_model.d_model, config.connector)
        self.language_model = LanguageModel(config.language_model)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [i, 3, h, w] -> embeddings [i, t, d_model] that stand in the text's place of the image."""
        return self.connector(self.vision(pixels), self.config.vision.grid)

    def reset_parameters(self) -> None:
        """Random parameters everywhere, as before any training."""
        self.vision.reset_parameters()
        self.connector.reset_parameters()
        self.language_model.reset_parameters()

    def prepare_for_inference(self) -> None:
        """Pack the matrices for this machine. The model can be neither trained nor saved afterwards."""
        self.requires_grad_(False)
        self.eval()
        pack_all(self)


def empty_model(config: ModelConfig, dtype: torch.dtype = torch.float32) -> VLMamba:
    """The model without memory (on the meta device), its parameters of the precision that they will have."""
    return empty(lambda: VLMamba(config), dtype)


def random_model(
    config: ModelConfig, seed: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> VLMamba:
    """The model with random parameters, drawn on the device itself. The global random state is left as it was."""
    return drawn(empty_model(config, dtype), seed, torch.device(device))
