"""A model on this engine behind the harness's protocol: VL-Mamba's adapter, and those of families built alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from vlmamba_eval.adapter import AdapterInfo
from vlmamba_eval.types import Generation, ImageQuestions

from .engine import Engine, Limits, ReadsImages
from .scan import choose_backend

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class EngineAdapter:
    """Answers questions on the engine; `vlmamba_eval.adapter` documents the protocol.

    `prepare` turns a decoded picture into what the model's `embed_images` takes stacked; it is called on threads.
    `sharing=False` answers every question by itself, from the pixels on.
    """

    def __init__(
        self,
        model: ReadsImages,
        tokenizer: Tokenizer,
        info: AdapterInfo,
        prepare: Callable[[Image.Image], Tensor],
        *,
        sharing: bool = True,
        limits: Limits | None = None,
    ):
        self.engine = Engine(model, tokenizer, sharing=sharing, limits=limits)
        self.info = info
        self._prepare = prepare

    @property
    def images_encoded(self) -> int:
        """How many images went through the encoder so far."""
        return self.engine.images_encoded

    def prepare(self, image: Image.Image) -> Tensor:
        """A decoded image -> uint8 [3, h, w] as the encoder wants it. Thread-safe."""
        return self._prepare(image)

    def generate(self, batch: Sequence[ImageQuestions]) -> list[list[Generation]]:
        """Answer every question of every image, in order."""
        return self.engine.generate(batch)

    def rank(self, batch: Sequence[ImageQuestions]) -> list[list[Generation]]:
        """Score every continuation of every question, in order."""
        return self.engine.rank(batch)


def engine_settings(device: torch.device, sharing: bool) -> dict[str, Any]:
    """What the engine adds to a model's own settings."""
    return {"scan_backend": choose_backend(device), "state_dtype": "float32", "sharing": sharing}
