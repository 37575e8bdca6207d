"""The protocol that every model family implements, and nothing more.

An adapter never sees a task's name: the conversation template is the adapter's, the benchmark's text is the task's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from vlmamba_eval.types import Generation, ImageQuestions


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """What decides a model's answers, as the manifest records it.

    `weights` identifies the parameters by content (sha256, or `random:<seed>`). `settings` holds everything else that
    changes an answer: conversation template, preprocessing, precision, kernels. `image_tokens` is the number of
    embeddings that one image takes. `untrained` marks parameters that were never trained: every table of such a run
    says so.
    """

    name: str
    weights: str
    device: str
    dtype: str
    image_tokens: int
    untrained: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Deferred:
    """An adapter that is described but not loaded: a run that has all its answers never needs the model itself."""

    info: AdapterInfo
    load: Callable[[], Adapter]


class Adapter(Protocol):
    """A model that answers questions about images.

    Greedy and deterministic: the answer to a question depends on its image and its text alone, never on the
    other questions of the batch. Inputs are never changed.
    """

    info: AdapterInfo

    def prepare(self, image: Image.Image) -> Any:
        """Turn a decoded image into what `generate` takes. Runs on CPU threads, several at a time."""
        ...

    def generate(self, batch: Sequence[ImageQuestions]) -> list[list[Generation]]:
        """Answer every question of every image, in order.

        Raises `OutOfMemory` where the batch does not fit the device.
        """
        ...


@runtime_checkable
class RanksContinuations(Protocol):
    """The optional ability to score given continuations instead of generating."""

    def rank(self, batch: Sequence[ImageQuestions]) -> list[list[Generation]]:
        """Score every continuation of every question.

        Each `Generation` has `stop == "likelihood"`, one `Likelihood` for each continuation, and as text the
        continuation of the greatest mean log-probability a token (the first of equals).
        """
        ...
