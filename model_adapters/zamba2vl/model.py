"""Zamba2-VL as one module: transformers' Qwen2.5-VL vision tower, whose merger is the connector, and Zamba2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlmamba_eval.model_adapters.hybrid.checkpoint import Facts
from vlmamba_eval.model_adapters.vlmamba.linear import pack_all
from vlmamba_eval.types import ModelError

from . import language_model as zamba2
from .images import normalisation_table, patches_of

# Patches that go through the tower at once, unless one image alone has more.
_PATCHES = 16384


@dataclass(frozen=True)
class Zamba2VLConfig:
    """`vision` is transformers' Qwen2_5_VLVisionConfig."""

    text: zamba2.Zamba2Config
    vision: Any
    image_token: int

    @property
    def unit(self) -> int:
        """Pixels of a side of what becomes one embedding."""
        return self.vision.patch_size * self.vision.spatial_merge_size


def config_of_published(data: dict[str, Any], where: str) -> Zamba2VLConfig:
    """Read a published `config.json`; `ModelError` names everything that is not as this code expects it."""
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

    facts = Facts(data, where)
    facts.expect("model_type", "zamba2_vl")
    facts.check("a Zamba2-VL")
    image_token = facts.get("image_token_index", int)
    text = zamba2.config_of_published(facts.get("text_config", dict), f"{where}: text_config")
    given = facts.get("vision_config", dict)
    seen = Facts(given, f"{where}: vision_config")
    seen.expect("temporal_patch_size", 1)
    seen.expect("in_channels", 3, default=given.get("in_chans", 3))
    seen.expect("out_hidden_size", text.hidden_size)
    seen.check("Qwen2.5-VL's vision tower")
    try:
        vision = Qwen2_5_VLVisionConfig(**{key: value for key, value in given.items() if key != "model_type"})
    except Exception as error:
        raise ModelError(f"{where}: transformers cannot read this vision_config: {str(error)[:300]}") from error
    return Zamba2VLConfig(text, vision, image_token)


class Zamba2VL(nn.Module):
    def __init__(self, config: Zamba2VLConfig):
        super().__init__()
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

        self.config = config
        self.vision_tower = Qwen2_5_VisionTransformerPretrainedModel(config.vision)
        self.language_model = zamba2.Zamba2(config.text)

    def embed_images(self, images: Sequence[Tensor]) -> list[Tensor]:
        """uint8 pixels [3, h, w] of each image -> its embeddings [h w / unit^2, hidden]."""
        found: list[Tensor] = []
        group: list[Tensor] = []
        side = self.config.vision.patch_size
        for image in images:
            held = sum(pixels[0].numel() for pixels in group) // side**2
            if group and held + image[0].numel() // side**2 > _PATCHES:
                found += self._embed(group)
                group = []
            group.append(image)
        return found + self._embed(group)

    def _embed(self, images: Sequence[Tensor]) -> list[Tensor]:
        weight = self.language_model.embed_tokens.weight
        device, vision = weight.device, self.config.vision
        table, channels = normalisation_table().to(device), torch.arange(3, device=device)[:, None, None]
        patches, grids = [], []
        for image in images:
            pixels = table[channels, image.to(device, non_blocking=True).long()]
            patches.append(patches_of(pixels, vision.patch_size, vision.spatial_merge_size))
            grids.append([1, image.shape[1] // vision.patch_size, image.shape[2] // vision.patch_size])
        grid = torch.tensor(grids, device=device)  # [i, 3]
        merged = self.vision_tower(torch.cat(patches).to(weight.dtype), grid_thw=grid).pooler_output
        sizes = [rows * columns // vision.spatial_merge_size**2 for _, rows, columns in grids]
        return list(merged.to(weight.dtype).split(sizes))

    def prepare_for_inference(self) -> None:
        """Pack the matrices for this machine. The model can be neither trained nor saved afterwards."""
        self.requires_grad_(False)
        self.eval()
        pack_all(self)
        self.language_model.pack_head()

    def reset_buffers(self, device: torch.device) -> None:
        """Compute anew what is computed and not stored, if the module was made without memory."""
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionRotaryEmbedding

        self.vision_tower.rotary_pos_emb = Qwen2_5_VLVisionRotaryEmbedding(self.config.vision).to(device)


def keeps_float32(name: str) -> bool:
    """Whether a parameter of this name stays in float32 in a model of lower precision."""
    return name.startswith("language_model.") and name.endswith((".A_log", ".D", ".dt_bias"))


def name_of_published(config: Zamba2VLConfig, name: str) -> str | None:
    """The parameter of `Zamba2VL` that a published tensor belongs to; None for those that no answer depends on."""
    if name.startswith("language_model."):
        ours = zamba2.name_of_published(config.text, name.removeprefix("language_model."))
        if ours is None:
            return None
        return f"language_model.{ours}"
    return name
