"""How Mamba-VL and Pythia-VL see: EVA-02 with its last norm, two layers, and marks around and between the rows.

An image of 24 x 24 patches stands in front of the text as 601 embeddings: the mark `###`, then each row of patches with
`&&` behind it, whose last is `###` again (gpantaz/vl_mamba@c788f5f: src/vl_mamba/datasets/base_dataset.py,
models/modeling_vlmambaclip.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from vlmamba_eval.model_adapters.shared.configuration import shorten
from vlmamba_eval.model_adapters.shared.pixels import PreprocessingConfig, normalise, prepare
from vlmamba_eval.model_adapters.shared.published import fetch_weights, tensors
from vlmamba_eval.model_adapters.shared.vision_tower import Tower, TowerConfig, from_published
from vlmamba_eval.types import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# timm's eva02_large_patch14_clip_336; its rotation was trained on 16 x 16 patches.
EVA02 = TowerConfig("eva02", 336, 14, 1024, 24, 16, 2730, 1e-6, "silu", final_norm=True, rotary_grid=16)
PIXELS = PreprocessingConfig((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "resize")
# The marks of image and row by their ids in GPT-NeoX's tokenizer.
IMAGE_MARK, ROW_MARK = ("###", 4118), ("&&", 10494)


class Vision(nn.Module):
    """Tower and connector: `vision_encoder.*`, `vision_embed_tokens.*` as in the authors' files."""

    def __init__(self, tower: TowerConfig, width: int):
        super().__init__()
        self.vision_encoder = Tower(tower)
        self.vision_embed_tokens = nn.Sequential(
            nn.Linear(tower.hidden_size, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, pixels: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """uint8 pixels [i, 3, h, w] -> embeddings [i, t, width]; `embed` is the language model's for ids."""
        patches = self.vision_embed_tokens(self.vision_encoder.features(normalise(pixels, PIXELS)))  # [i, p, width]
        marks = torch.tensor([IMAGE_MARK[1], ROW_MARK[1]], device=patches.device)
        image, row = embed(marks).to(patches.dtype)[:, None, None]  # 2 x [1, 1, width]
        side = self.vision_encoder.tower_config.side
        rows = patches.unflatten(1, (side, side))  # [i, h, w, width]
        rows = torch.cat([rows, row.expand(len(rows), side, 1, -1)], dim=2).flatten(1, 2)  # [i, h (w + 1), width]
        edge = image.expand(len(rows), 1, -1)
        return torch.cat([edge, rows[:, :-1], edge], dim=1)  # [i, 1 + h (w + 1), width]


def image_tokens(tower: TowerConfig) -> int:
    """How many embeddings an image takes."""
    return 1 + tower.side * (tower.side + 1)


def pixels_of(tower: TowerConfig) -> Callable[[Image.Image], Tensor]:
    """What turns a picture into pixels: squashed to the square, bilinear."""
    return lambda image: prepare(image, tower.image_size, PIXELS, "bilinear")


def check_config(data: Mapping[str, Any], tower: TowerConfig, where: str) -> None:
    """`ModelError` unless a config.json, as far as it says, names this tower and its patches."""
    expected = {"image_size": tower.image_size, "select_feature": "patch"}
    for key, want in expected.items():
        if data.get(key, want) != want:
            raise ModelError(f"{where}: {key} should be {want!r}, found {shorten(data[key])}")
    name = data.get("vision_encoder_name", "eva02")
    if "eva02" not in str(name):
        raise ModelError(
            f"{where}: vision_encoder_name should be timm's eva02_large_patch14_clip_336, found {shorten(name)}"
        )


def check_marks(tokenizer: Tokenizer, where: str) -> None:
    """`ModelError` unless the marks of image and row are the tokens that the model was trained with."""
    for text, want in (IMAGE_MARK, ROW_MARK):
        found = tokenizer.encode(text, add_special_tokens=False).ids
        if found != [want]:
            raise ModelError(
                f"{where}: expected {text!r} to be the one token {want}, as in EleutherAI/gpt-neox-20b; found {found}"
            )


def split(
    stored: Mapping[str, Tensor], tower: TowerConfig, vision: str, files: ExitStack, where: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint's tensors as (those of `Vision`, the language model's).

    The tower is the checkpoint's own, or the one from `vision` if it has none.
    """
    own = {name.removeprefix("vision_encoder."): t for name, t in stored.items() if name.startswith("vision_encoder.")}
    if own:
        encoder = from_published(tower, own.items(), where)
    else:
        encoder = from_published(tower, tensors(fetch_weights(vision)[1], files), vision)
    seen = {f"vision_encoder.{name}": tensor for name, tensor in encoder.items()}
    rest = {}
    for name, tensor in stored.items():
        if name.startswith("vision_embed_tokens."):
            seen[name] = tensor
        elif not name.startswith("vision_encoder."):
            rest[name] = tensor
    return seen, rest


def files_of(stored: list[Path], names: list[str], vision: str) -> list[Path]:
    """The files that hold a model's parameters: the checkpoint's, and the tower's if it has none of its own."""
    own = any(name.startswith("vision_encoder.") for name in names)
    return stored if own else [*stored, *fetch_weights(vision)[1]]
