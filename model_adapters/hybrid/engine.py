"""The engine of `vlmamba`, for models with keys and values, conversations of their own, and images of any length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vlmamba_eval.model_adapters.vlmamba.decoder import Decoder
from vlmamba_eval.model_adapters.vlmamba.engine import LIMITS, Engine, Limits, _Row
from vlmamba_eval.model_adapters.vlmamba.scan import Layout, choose_backend, takes_packed_rows
from vlmamba_eval.types import Generation, ImageQuestions

from .decoder import GrowingDecoder
from .model import HybridModel
from .state import HybridState, join


class Conversation(Protocol):
    """How a family puts a question: what stands before the image, what stands after it, and what ends an answer."""

    eos: int
    pad: int
    vocabulary: int
    """Tokens with a smaller id can be said."""

    def opening(self) -> list[int]:
        """The tokens before the image, the same for every question."""
        ...

    def question(self, text: str, *, image: bool) -> list[int]:
        """The tokens after the image; without an image, all tokens."""
        ...

    def prompt(self, text: str, *, image: bool) -> str:
        """The conversation as it is sent, `<image>` standing for the image."""
        ...

    def continuation(self, text: str) -> list[int]:
        """A given answer's tokens, at least one."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of an answer."""
        ...


class VisionLanguageModel(Protocol):
    """The parts that the engine runs."""

    @property
    def language_model(self) -> HybridModel: ...

    def embed_images(self, images: Sequence[Any]) -> list[Tensor]:
        """Prepared images, on the CPU -> the embeddings [t, d_model] of each; t may differ."""
        ...


class HybridEngine(Engine):
    """Greedy answers and likelihoods for groups of questions; `Engine` documents the way of a question."""

    def __init__(  # the parts of a VL-Mamba, which `Engine` takes apart, are not there
        self,
        model: VisionLanguageModel,
        conversation: Conversation,
        *,
        sharing: bool = True,
        limits: Limits | None = None,
    ):
        self.model: Any = model
        self.conversation = conversation
        self.eos, self.pad, self.vocabulary = conversation.eos, conversation.pad, conversation.vocabulary
        self.sharing = sharing
        self.device = next(model.language_model.parameters()).device
        self.packs = takes_packed_rows(choose_backend(self.device))
        kind = "cuda" if self.device.type == "cuda" else "packed" if self.packs else "padded"
        self.limits = limits or LIMITS[kind]
        self.images_encoded = 0
        self._opening: Any = None
        self._decoder: Any = None

    # =========================================================================
    # Texts
    # =========================================================================

    def _rows(self, batch: Sequence[ImageQuestions]) -> list[_Row]:
        rows = []
        images = 0
        for group, item in enumerate(batch):
            image = item.image is not None and bool(item.questions)
            for number, question in enumerate(item.questions):
                ids = self.conversation.question(question.text, image=image)
                prompt = self.conversation.prompt(question.text, image=image)
                rows.append(_Row(group, number, question, prompt, ids, images if image else -1))
            images += image
        return rows

    def _opening_ids(self) -> list[int]:
        return self.conversation.opening()

    def _continuations(self, row: _Row) -> list[list[int]]:
        return [self.conversation.continuation(text) for text in row.question.continuations]

    def _generation(self, row: _Row) -> Generation:
        if row.likelihoods:
            return super()._generation(row)
        return Generation(self.conversation.decode(row.answer), row.prompt, len(row.answer), row.stop or "unknown")

    # =========================================================================
    # Images
    # =========================================================================

    def _embed_images(self, pixels: Sequence[Any]) -> Any:
        self.images_encoded += len(pixels)
        return self.model.embed_images(pixels)

    def _read_images(self, batch: Sequence[ImageQuestions]) -> Any:
        images = [item.image for item in batch if item.image is not None and item.questions]
        if not images:
            return None
        if self._opening is None and (opening := self._opening_ids()):
            *_, self._opening = self._prefill_ids([opening])
        read: list[HybridState] = []
        for start in range(0, len(images), self.limits.images):
            embeds: list[Tensor] = self._embed_images(images[start : start + self.limits.images])
            lengths = [len(rows) for rows in embeds]
            if self.packs:
                x = torch.cat(embeds)[None]  # [1, m, d_model]
            else:
                x = torch.nn.utils.rnn.pad_sequence(embeds, batch_first=True)  # [i, t, d_model]
            sources = None if self._opening is None else [0] * len(embeds)
            layout = Layout.of(lengths, sources, self.device, packed=self.packs)
            read.append(self.model.language_model.prefill(x, self._opening, layout)[1])
        return join(read)

    def _read_plainly(self, row: _Row, image: Any, more: Sequence[int] = ()) -> Any:
        embed = self.model.language_model.embed
        text = embed(torch.tensor([[*row.ids, *more]], device=self.device))  # [1, l, d_model]
        if image is not None:
            opening = embed(torch.tensor([self._opening_ids()], dtype=torch.long, device=self.device))
            text = torch.cat([opening, self._embed_images([image])[0][None], text], dim=1)
        return self.model.language_model.prefill(text)

    # =========================================================================
    # Decoding
    # =========================================================================

    def _decoder_for(self, n: int) -> Any:
        if self._decoder is None or len(self._decoder) < n:
            self._decoder = None  # freed before the larger one is made
            model: Any = self.model.language_model
            kind: Any = GrowingDecoder if model.attends else Decoder
            self._decoder = kind(model, self.vocabulary, n)
        return self._decoder
