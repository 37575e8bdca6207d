"""The seam to models: the protocol that every model family implements, and nothing more.

An adapter never sees a task's name: the conversation template is the adapter's, the benchmark's text is the task's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from vlmamba_eval.types import Failure, Generation, ImageQuestions

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """What decides a model's answers, as the manifest records it.

    `weights` identifies the parameters by content (sha256, or `random:<seed>`), or names what a server calls them.
    `settings` holds everything else that changes an answer: conversation template, preprocessing, kernels, sharing.
    `image_tokens` is the number of embeddings that one image takes, for the size of batches. `untrained` marks
    parameters that were never trained: every table of such a run says so. A model whose answers may differ from run to
    run (a server, sampling) is not `deterministic`, and tables say that too.
    """

    name: str
    weights: str
    device: str
    dtype: str
    image_tokens: int = 0
    untrained: bool = False
    deterministic: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Deferred:
    """An adapter that is described but not loaded: a run that has all its answers never needs the model itself."""

    info: AdapterInfo
    load: Callable[[], Adapter]


class Adapter(Protocol):
    """A model that answers questions about images.

    The answer to a question depends on its image and its text alone, never on the other questions of the batch. Inputs
    are never changed. `tests/contract.py` holds what every adapter must do.
    """

    info: AdapterInfo

    def prepare(self, image: Image.Image) -> Any:
        """Turn a decoded RGB image into what `generate` takes. Runs on CPU threads, several at a time."""
        ...

    def generate(self, batch: Sequence[ImageQuestions]) -> Sequence[Sequence[Generation | Failure]]:
        """Answer every question of every image, in order; a question that fails gets a `Failure` of its own.

        Raises `OutOfMemory` if the batch does not fit the device: the harness halves it. It halves it after any other
        exception too, until the question at fault fails alone; so an adapter need not catch anything itself.
        """
        ...


@runtime_checkable
class RanksContinuations(Protocol):
    """The optional ability to score given continuations instead of generating."""

    def rank(self, batch: Sequence[ImageQuestions]) -> Sequence[Sequence[Generation | Failure]]:
        """Score every continuation of every question.

        Each `Generation` has `stop == "likelihood"`, one `Likelihood` for each continuation, and as text the
        continuation of the greatest mean log-probability per token (on a tie, the first).
        """
        ...


@runtime_checkable
class ReportsTelemetry(Protocol):
    """The optional ability to say what answering took: tokens, requests, costs. It goes into the run's telemetry."""

    def telemetry(self) -> Mapping[str, Any]:
        """What was used since the adapter was made. It decides no answer."""
        ...
