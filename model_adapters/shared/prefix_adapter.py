"""What families of transformers' models share behind the adapter protocol: texts in and out, and a self-check."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw
from torch import Tensor

from vlmamba_eval.adapter import AdapterInfo
from vlmamba_eval.types import Failure, Generation, ImageQuestions, Question

from .configuration import reason
from .prefix_engine import Asked, Prefix, PrefixEngine

BOUNDS = {"float32": 1e-3, "float16": 0.03, "bfloat16": 0.06}
"""How far shared logits may be from those of whole prompts, relative to the largest logit, by precision.

Rounding alone stays well below: 1e-6 to 1e-5 in float32. A cache that drops its state, or a prefix that depends on the
question, is off by several per cent and more in any precision.
"""

_CHECKED = ("What is shown here?\nAnswer the question using a single word or phrase.", "Is the shape red?")


@dataclass(frozen=True, slots=True)
class Sharing:
    """Whether images are read once for all their questions, and what the check at load found."""

    on: bool
    why: str
    """One sentence, for tables and the manifest."""


class Conversations:
    """How a family words its prompts. Subclasses say how; `PrefixAdapter` does the rest."""

    def prepare(self, image: Image.Image) -> Any:
        """What is kept of an image until it is read. Thread-safe."""
        raise NotImplementedError

    def prompt(self, text: str, *, image: bool) -> str:
        """The conversation as it is sent, `<image>` standing for the image."""
        raise NotImplementedError

    def asked(self, text: str, *, image: bool) -> list[int]:
        """The tokens behind the image, or of the whole prompt if there is no image."""
        raise NotImplementedError

    def all_asked(self, texts: Sequence[str], *, image: bool) -> list[list[int] | Unaskable]:
        """`asked` of every text, or why it can't be asked. Families whose tokenizer is faster on many override it."""
        found: list[list[int] | Unaskable] = []
        for text in texts:
            try:
                found.append(self.asked(text, image=image))
            except Unaskable as error:
                found.append(error)
        return found

    def continuation(self, text: str, answer: str, *, image: bool) -> list[int]:
        """The tokens with which an answer continues the prompt of a question; at least one."""
        raise NotImplementedError

    def prefix(self, prepared: Any) -> Prefix:
        """What is read of an image for all its questions."""
        raise NotImplementedError

    def whole(self, prepared: Any | None, text: str) -> Mapping[str, Tensor]:
        """The model's inputs for one whole prompt, one row."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens as text, special ones left out."""
        raise NotImplementedError


class PrefixAdapter:
    """A transformers model behind the harness's protocol; `vlmamba_eval.adapter` documents that.

    With `sharing.on` the image of several questions is read once; else every prompt goes through `generate` alone.
    """

    def __init__(self, info: AdapterInfo, engine: PrefixEngine, conversations: Conversations, sharing: Sharing):
        self.info = info
        self.engine = engine
        self.conversations = conversations
        self.sharing = sharing

    def prepare(self, image: Image.Image) -> Any:
        """A decoded image -> what `generate` takes. Thread-safe."""
        return self.conversations.prepare(image)

    def generate(self, batch: Sequence[ImageQuestions]) -> list[list[Generation | Failure]]:
        """Answer every question of every image, in order."""
        return self._answer(batch, ranks=False)

    def rank(self, batch: Sequence[ImageQuestions]) -> list[list[Generation | Failure]]:
        """Score every continuation of every question, in order."""
        return self._answer(batch, ranks=True)

    def telemetry(self) -> Mapping[str, Any]:
        """How many images were read, and whether they were shared."""
        return {"images_read": self.engine.images_encoded, "sharing": self.sharing.why}

    def _answer(self, batch: Sequence[ImageQuestions], *, ranks: bool) -> list[list[Generation | Failure]]:
        results: list[list[Any]] = [[None] * len(item.questions) for item in batch]
        waiting: list[tuple[int, int, Asked]] = []
        for image in (True, False):
            places = [
                (group, number)
                for group, item in enumerate(batch)
                if (item.image is not None) == image
                for number in range(len(item.questions))
            ]
            questions = [batch[group].questions[number] for group, number in places]
            tokens = self.conversations.all_asked([question.text for question in questions], image=image)
            for (group, number), question, ids in zip(places, questions, tokens, strict=True):
                if isinstance(ids, Unaskable):
                    results[group][number] = Failure("model_error", str(ids))
                else:
                    waiting.append((group, number, self._asked(question, ids, group if image else -1, ranks)))
        if self.sharing.on:
            self._share(batch, [asked for *_, asked in waiting], ranks)
        else:
            alone = self.engine.rank_plainly if ranks else self.engine.generate_plainly
            for group, number, asked in waiting:
                item = batch[group]
                alone(self.conversations.whole(item.image, item.questions[number].text), asked)
        for group, number, asked in waiting:
            item = batch[group]
            question, has_image = item.questions[number], item.image is not None
            results[group][number] = self._generation(question, asked, has_image)
        return results

    def _share(self, batch: Sequence[ImageQuestions], asked: Sequence[Asked], ranks: bool) -> None:
        """Answer with each image read once: `image` of the questions becomes its place among the prefixes."""
        prefixes: list[Prefix] = []
        places: dict[int, int] = {}
        for question in asked:
            if question.image >= 0 and question.image not in places:
                places[question.image] = len(prefixes)
                prefixes.append(self.conversations.prefix(batch[question.image].image))
        for question in asked:
            question.image = places.get(question.image, -1)
        (self.engine.rank if ranks else self.engine.generate)(prefixes, asked)

    def _asked(self, question: Question, ids: list[int], image: int, ranks: bool) -> Asked:
        if not ranks:
            return Asked(ids, image, question.max_new_tokens)
        if not question.continuations:
            raise ValueError(f"nothing to rank: the question {question.text!r} has no continuations")
        continuation = self.conversations.continuation
        said = [continuation(question.text, answer, image=image >= 0) for answer in question.continuations]
        return Asked(ids, image, 0, said)

    def _generation(self, question: Question, asked: Asked, has_image: bool) -> Generation:
        prompt = self.conversations.prompt(question.text, image=has_image)
        if asked.likelihoods:
            means = [likelihood.logprob / likelihood.n_tokens for likelihood in asked.likelihoods]
            best = means.index(max(means))
            return Generation(
                text=question.continuations[best],
                prompt=prompt,
                n_tokens=asked.likelihoods[best].n_tokens,
                stop="likelihood",
                likelihoods=tuple(asked.likelihoods),
            )
        text = self.conversations.decode(asked.answer).strip()
        return Generation(text, prompt, len(asked.answer), asked.stop or "unknown")


class Unaskable(Exception):
    """A question that this model can't be asked; the message says why. The others go on."""


class Unshareable(Exception):
    """Why nothing can be read of an image for all its questions."""


def check_sharing(engine: PrefixEngine, conversations: Conversations, name: str, *, wanted: bool) -> Sharing:
    """Decide whether to share, by comparing shared with whole prompts on a drawn image and two questions.

    A model that should share and can't is named in a warning.
    """
    if not wanted:
        return Sharing(False, "off, as asked for: every question is read by itself, its image as well")
    bound = BOUNDS[str(engine.model.dtype).removeprefix("torch.")]
    try:
        prepared = conversations.prepare(drawn_image())
        prefix = conversations.prefix(prepared)
        asked = [Asked(conversations.asked(text, image=True), 0) for text in _CHECKED]
        whole = [conversations.whole(prepared, text) for text in _CHECKED]
        deviation = engine.deviation(prefix, asked, whole)
    except Unshareable as error:
        return _unshared(name, f"off: {error}")
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, NotImplementedError) as error:
        said = f"{type(error).__name__}: {reason(error):.200}"
        return _unshared(name, f"off: the check at load could not be made ({said})")
    if not deviation <= bound:
        return _unshared(
            name,
            f"off: behind a prefix the logits differ by {deviation:.1%} from the whole prompt's (bound {bound:.1%})",
        )
    return Sharing(True, f"on: logits within {bound:g} of the whole prompt's on the sample checked at load")


def _unshared(name: str, why: str) -> Sharing:
    warnings.warn(f"{name} reads an image anew for every question; sharing is {why}", stacklevel=3)
    return Sharing(False, why)


def drawn_image() -> Image.Image:
    """The picture of the self-check: a red disc on blue, wider than high."""
    image = Image.new("RGB", (96, 64), (40, 80, 160))
    ImageDraw.Draw(image).ellipse((20, 12, 60, 52), fill=(200, 30, 30))
    return image
