"""From a decoded picture to an encoder's pixels, as every family here prepares them.

An image is prepared on the CPU with PIL alone and kept as bytes; scaling and normalising happen on the device, through
a table of the 256 possible values, so that they equal transformers' image processors exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PreprocessingConfig:
    """From a decoded RGB image to the encoder's input.

    `fit`: `pad` expands to a square with the mean colour and resizes (LLaVA-1.5,
    haotian-liu/LLaVA@c121f04:llava/mm_utils.py:152); `resize` squashes to the square (SigLIP's own, Cobra's);
    `crop` resizes the shortest edge and cuts the centre (CLIP's own).
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Literal["pad", "resize", "crop"] = "pad"


# Padding makes a square of the long side; beyond this many times the encoder's size an image is halved first, so that
# a strip of 1 x 20000 pixels does not become 400 million. No benchmark image comes near it.
_LARGEST = 16


def prepare(
    image: Image.Image, size: int, config: PreprocessingConfig, resample: Literal["bicubic", "bilinear"] = "bicubic"
) -> Tensor:
    """A decoded image -> its pixels, uint8 [3, size, size]. Thread-safe.

    `pad` is `expand2square` of haotian-liu/LLaVA@c121f04:llava/mm_utils.py:152 with the encoder's mean colour; `crop`
    and `resize` are what CLIP's and SigLIP's own processors do. Any mode is converted to RGB first.
    """
    from PIL import Image

    if image.mode != "RGB":
        image = image.convert("RGB")
    method = Image.Resampling[resample.upper()]
    excess = max(image.size) // (_LARGEST * size)
    if excess:
        image = image.reduce(excess + 1)
    width, height = image.size
    if config.fit == "pad" and width != height:
        side = max(width, height)
        if height < width:  # as `resize` does first with the square: of its rows, those of one colour stay as they are
            image = image.resize((size, height), resample=method)
        red, green, blue = (int(channel * 255) for channel in config.mean)
        square = Image.new("RGB", (image.width if height < width else side, side), (red, green, blue))
        square.paste(image, ((square.width - image.width) // 2, (side - height) // 2))
        image = square
    if config.fit == "crop":
        short, long = min(width, height), max(width, height)
        scaled = int(size * long / short)
        image = image.resize((size, scaled) if width <= height else (scaled, size), resample=method)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    else:
        image = image.resize((size, size), resample=method)
    return channels_first(image)  # [3, size, size]


def channels_first(image: Image.Image) -> Tensor:
    """A picture's bytes, uint8 [3, h, w].

    NumPy copies them on this thread; PyTorch would begin a team of threads for each thread that prepares pictures.
    """
    import numpy as np
    import torch

    return torch.from_numpy(np.array(np.asarray(image).transpose(2, 0, 1), order="C"))


def normalisation_table(config: PreprocessingConfig) -> Tensor:
    """What each of the 256 values of a channel becomes, float32 [3, 256], rounded as transformers' processors round."""
    import numpy as np
    import torch

    scaled = (np.arange(256).astype(np.float64) * (1 / 255)).astype(np.float32)
    mean, std = (np.array(values, dtype=np.float32)[:, None] for values in (config.mean, config.std))
    return torch.from_numpy((scaled - mean) / std)


def normalise(pixels: Tensor, config: PreprocessingConfig) -> Tensor:
    """uint8 pixels [i, 3, h, w] -> what the encoder takes, float32 [i, 3, h, w], on their device."""
    table, channels = _on(config, pixels.device)
    return table[channels, pixels.long()]


@cache
def _on(config: PreprocessingConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """The table [3, 256] and the channels' numbers [3, 1, 1] on a device; a copy each time would have the host wait."""
    import torch

    with torch.inference_mode(False):  # made once, for training as well
        return normalisation_table(config).to(device), torch.arange(3, device=device)[:, None, None]
