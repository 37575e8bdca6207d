"""A model that names the colour of a picture's first pixel, or of the corner that an option names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta
from PIL import Image

from vlmamba_eval.adapter import AdapterInfo
from vlmamba_eval.registry import Family
from vlmamba_eval.types import Generation, ImageQuestions


@dataclass(frozen=True)
class Options:
    corner: Annotated[Literal["first", "last"], Meta(description="which pixel is looked at")] = "first"


class Colour:
    def __init__(self, options: Options) -> None:
        self.corner = options.corner
        self.info = AdapterInfo("colour", "none", "cpu", "none", settings={"corner": options.corner})

    def prepare(self, image: Image.Image) -> str:
        place = (0, 0) if self.corner == "first" else (image.width - 1, image.height - 1)
        return "#{:02x}{:02x}{:02x}".format(*image.getpixel(place))  # type: ignore[misc]

    def generate(self, batch: Sequence[ImageQuestions]) -> list[list[Generation]]:
        return [[Generation(str(item.image), q.text, 1, "eos") for q in item.questions] for item in batch]


FAMILY = Family("colour", "names a pixel's colour", lambda name, options: Colour(options), Options, {"colour": "one"})
