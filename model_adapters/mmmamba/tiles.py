"""An image cut into tiles as InternVL does, and mmMamba after it (hustvl/mmMamba@85143d0:docs/usage.md)."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def grid_of(width: int, height: int, size: int, most: int) -> tuple[int, int]:
    """Columns and rows of tiles for an image of these sides.

    Of all grids of at most `most` tiles the one of the nearest aspect ratio. Grids are met in the order of their
    number of tiles; an equally near one takes the place of an earlier one if the image has more than half its pixels.
    """
    grids = [(i, j) for i in range(1, most + 1) for j in range(1, most + 1) if i * j <= most]
    best, least = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        distance = abs(width / height - columns / rows)
        equal_and_large = distance == least and width * height > 0.5 * size * size * columns * rows
        if distance < least or equal_and_large:
            best, least = (columns, rows), distance
    return best


def cut(image: Image.Image, size: int, most: int) -> Tensor:
    """A decoded image -> its tiles row by row, then the whole as a thumbnail if there is more than one tile.

    uint8 [tiles, 3, size, size]. Thread-safe.
    """
    image = image.convert("RGB")
    columns, rows = grid_of(image.width, image.height, size, most)
    resized = image.resize((columns * size, rows * size))  # bicubic
    boxes = [(c * size, r * size, (c + 1) * size, (r + 1) * size) for r in range(rows) for c in range(columns)]
    pictures = [resized.crop(box) for box in boxes]
    if len(pictures) > 1:
        pictures.append(image.resize((size, size)))
    tiles = np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures])
    return torch.from_numpy(np.ascontiguousarray(tiles))  # not by PyTorch's threads, as in `channels_first`


def normalisation_table() -> Tensor:
    """What each of the 256 values of a channel becomes, float32 [3, 256], rounded as torchvision's transforms round."""
    values = torch.arange(256, dtype=torch.float32) / 255
    mean, std = torch.tensor(MEAN)[:, None], torch.tensor(STD)[:, None]
    return (values - mean) / std
