"""The engine behind the harness's adapter protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from vlmamba_eval.adapter import AdapterInfo
from vlmamba_eval.types import Generation, ImageQuestions

from .engine import HybridEngine


class HybridAdapter:
    """Answers questions; `vlmamba_eval.adapter` documents the protocol. `prepare` must be thread-safe."""

    def __init__(self, engine: HybridEngine, info: AdapterInfo, prepare: Callable[[Image.Image], Any]):
        self.engine, self.info = engine, info
        self._prepare = prepare

    @property
    def images_encoded(self) -> int:
        """How many images went through the encoder so far."""
        return self.engine.images_encoded

    def prepare(self, image: Image.Image) -> Any:
        """A decoded image -> what the model's encoder takes."""
        return self._prepare(image)

    def generate(self, batch: Sequence[ImageQuestions]) -> list[list[Generation]]:
        """Answer every question of every image, in order."""
        return self.engine.generate(batch)

    def rank(self, batch: Sequence[ImageQuestions]) -> list[list[Generation]]:
        """Score every continuation of every question, in order."""
        return self.engine.rank(batch)
