"""The vision encoder: SigLIP or CLIP through transformers, up to the hidden state that the connector reads."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from vlmamba_eval.model_adapters.shared.pixels import PreprocessingConfig, normalisation_table

from .config import VisionConfig


class VisionTower(nn.Module):
    """Embeddings and the first layers of the encoder; what stands above the chosen hidden state does not exist here."""

    def __init__(self, config: VisionConfig, preprocessing: PreprocessingConfig):
        super().__init__()
        self.config = config
        self.preprocessing = preprocessing
        tower = _transformers_tower(config)
        self.embeddings: Any = tower.embeddings
        if config.kind == "clip":
            self.pre_layrnorm: Any = tower.pre_layrnorm
        self.encoder: Any = tower.encoder

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [i, 3, h, w], as `prepare` makes them -> patch features [i, t, c], row by row."""
        table = normalisation_table(self.preprocessing).to(pixels.device)  # [3, 256]
        channels = torch.arange(3, device=pixels.device)[:, None, None]
        x = table[channels, pixels.long()]  # [i, 3, h, w]
        x = self.embeddings(x)  # [i, t (+ 1), c]
        if self.config.kind == "clip":
            x = self.pre_layrnorm(x)
        x = self.encoder(inputs_embeds=x).last_hidden_state
        return x[:, 1:] if self.config.kind == "clip" else x  # [i, t, c]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random weights: matrices by fan-in, biases zero, norms one."""
        # By name, so that a seed means the same whatever order a version of transformers makes its layers in.
        for name, parameter in sorted(self.named_parameters()):
            if "norm" in name and name.endswith("weight"):
                nn.init.ones_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "embedding" in name and "patch" not in name:
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        self.reset_buffers()

    @torch.no_grad()
    def reset_buffers(self) -> None:
        """Number the positions anew, where the module was made without memory."""
        weight = self.embeddings.position_embedding.weight
        self.embeddings.position_ids = torch.arange(weight.shape[0], device=weight.device)[None]


def _transformers_tower(config: VisionConfig) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

    shared = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers_used,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "layer_norm_eps": config.layer_norm_eps,
        "hidden_act": config.hidden_act,
    }
    if config.kind == "siglip":
        model = SiglipVisionModel(SiglipVisionConfig(**shared, vision_use_head=False))
    else:
        model = CLIPVisionModel(CLIPVisionConfig(**shared))
    # Earlier versions of transformers keep the same modules one level deeper.
    return cast(nn.Module, getattr(model, "vision_model", model))
