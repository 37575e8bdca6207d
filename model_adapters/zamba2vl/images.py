"""Images as Qwen2.5-VL's tower reads them: any size, in patches of which four neighbours become one embedding.

The size is chosen as in huggingface/transformers:src/transformers/models/qwen2_vl/image_processing_qwen2_vl.py.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlmamba_eval.model_adapters.shared.pixels import channels_first
from vlmamba_eval.types import DataError

# OpenAI's CLIP, as all Qwen2-VL models.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def size_of(width: int, height: int, unit: int, least: int, most: int) -> tuple[int, int]:
    """The width and height to resize to: multiples of `unit` near the image's own, `least` to `most` units in all."""
    if max(width, height) > 200 * min(width, height):
        raise DataError(f"an image of {width} x {height} pixels: its sides should differ by a factor of 200 at most")
    columns, rows = max(1, round(width / unit)), max(1, round(height / unit))
    pixels = unit * unit
    if columns * rows > most:
        shrink = math.sqrt(width * height / (most * pixels))
        columns = max(1, math.floor(width / shrink / unit))
        rows = max(1, math.floor(height / shrink / unit))
    elif columns * rows < least:
        grow = math.sqrt(least * pixels / (width * height))
        columns, rows = math.ceil(width * grow / unit), math.ceil(height * grow / unit)
    return columns * unit, rows * unit


def prepare(image: Image.Image, unit: int, least: int, most: int) -> Tensor:
    """A decoded image -> uint8 [3, h, w], sides in multiples of `unit`. Thread-safe."""
    image = image.convert("RGB")
    size = size_of(image.width, image.height, unit, least, most)
    return channels_first(image.resize(size, Image.Resampling.BICUBIC))


def normalisation_table() -> Tensor:
    """What each of the 256 values of a channel becomes, float32 [3, 256], rounded as transformers' processors round."""
    scaled = (np.arange(256).astype(np.float64) * (1 / 255)).astype(np.float32)
    mean, std = (np.array(values, dtype=np.float32)[:, None] for values in (MEAN, STD))
    return torch.from_numpy((scaled - mean) / std)


def patches_of(pixels: Tensor, patch: int, merge: int) -> Tensor:
    """Normalised pixels [3, h, w] -> [patches, 3 patch^2]; the merge^2 patches of one embedding stand together."""
    x = pixels.unflatten(1, (-1, merge, patch)).unflatten(4, (-1, merge, patch))  # [3, rows, m, p, columns, m, p]
    return x.permute(1, 4, 2, 5, 0, 3, 6).flatten(4).flatten(0, 3)
