"""A model that gives the same answer to every question: the floor under every benchmark, and the shortest adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from vlmamba_eval.adapter import AdapterInfo
from vlmamba_eval.registry import Family
from vlmamba_eval.types import Generation, ImageQuestions

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Options:
    """The options of a constant model."""

    word: Annotated[str, Meta(description="the answer to every question")] = "yes"


class Constant:
    def __init__(self, word: str) -> None:
        self.word = word
        self.info = AdapterInfo(f"constant-{word}", weights=f"the word {word!r}", device="cpu", dtype="none")

    def prepare(self, image: Image.Image) -> None:
        """Nothing is looked at."""

    def generate(self, batch: Sequence[ImageQuestions]) -> list[list[Generation]]:
        return [[Generation(self.word, asked.text, 1, "eos") for asked in group.questions] for group in batch]


def load(word: str, options: Options) -> Constant:
    """`constant:no` always says no; so does `constant` with `--model-option word=no`."""
    return Constant(options.word if word in ("", "constant") else word)


FAMILY = Family(
    name="constant",
    summary="the same answer to every question: what a benchmark gives to a model that sees nothing",
    load=load,
    options=Options,
    models={"constant": "always yes, or --model-option word=WORD"},
    takes="WORD",
)
