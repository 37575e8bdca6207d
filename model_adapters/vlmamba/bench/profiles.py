"""What is asked in a measurement: how many questions an image gets, how long they are, how long the answers.

    uniform   18 questions per image, of 20 to 40 tokens, 4 decoded tokens each
    gqa       testdev_balanced: 398 images with 3 to 92 questions, mean 31.6; 20 to 42 tokens, mean 25.7
    pope      COCO: 500 images with 16 to 18 questions, mean 17.8; 24 to 26 tokens, mean 24.3
    vqav2     val: mean 5.3 questions per image, published; the shape of the distributions is our assumption
    mme       2 questions per image; their lengths are our assumption

`gqa` and `pope` draw whole images from the token counts of the real files, in `question_lengths.json`, which says how
they were counted, and answers from the lengths of LLaVA-1.5-13B's released answers. Lengths are those of everything
after the image, with the template's end.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vlmamba_eval.model_adapters.shared.bench import AboutImage, Asked, counted

LENGTHS_FILE = Path(__file__).parent / "question_lengths.json"


@dataclass(frozen=True, slots=True)
class Profile:
    """`draw(rng, n)` gives n images; `whole` is how many the benchmark has."""

    summary: str
    draw: Callable[[random.Random, int], list[AboutImage]]
    whole: int | None = None


# =============================================================================
# By description
# =============================================================================

# Tokens that LLaVA's short-answer prompt and the template's end add to a question, counted as in the file.
_PROMPT = 16

# Eleven values each, for the 0th to the 100th percentile in steps of ten, linear between them.
# Published: 214,354 questions of 40,504 images, at least 3 an image. Assumed: the spread.
VQAV2_PER_IMAGE = (3, 3, 3, 3, 3, 4, 5, 6, 7, 9, 17)
# Published: 6.2 words in the mean (Goyal et al. 2017, arXiv 1612.00837). Assumed: 1.1 tokens per word, and the mark.
VQAV2_TOKENS = (3, 5, 5, 6, 6, 7, 7, 8, 9, 11, 23)
# Assumed, from the forms of its questions ("Is this photo taken in a place of ...?"); two an image.
MME_TOKENS = (6, 8, 9, 9, 10, 11, 12, 13, 14, 17, 40)


def from_deciles(deciles: Sequence[int], rng: random.Random) -> int:
    """A whole number from the distribution with these deciles."""
    place = rng.random() * (len(deciles) - 1)
    low = int(place)
    return round(deciles[low] + (place - low) * (deciles[low + 1] - deciles[low]))


def _about(questions: Sequence[Asked]) -> AboutImage:
    return AboutImage(tuple(questions), len(questions))


def _vqav2(rng: random.Random, n: int) -> list[AboutImage]:
    return [
        _about([Asked(_PROMPT + from_deciles(VQAV2_TOKENS, rng), 2) for _ in range(from_deciles(VQAV2_PER_IMAGE, rng))])
        for _ in range(n)
    ]


def _mme(rng: random.Random, n: int) -> list[AboutImage]:
    return [_about([Asked(_PROMPT + from_deciles(MME_TOKENS, rng), 2)] * 2) for _ in range(n)]


def uniform(rng: random.Random, n: int, questions: int = 18) -> list[AboutImage]:
    """`n` images with the same number of questions of 20 to 40 tokens, and 4 decoded tokens."""
    return [_about([Asked(rng.randint(20, 40), 4) for _ in range(questions)]) for _ in range(n)]


PROFILES: dict[str, Profile] = {
    "uniform": Profile("18 questions per image, 20 to 40 tokens, 4 decoded", uniform),
    "gqa": Profile("GQA testdev_balanced, counted", partial(counted, LENGTHS_FILE, "gqa"), 398),
    "pope": Profile("POPE on COCO, counted", partial(counted, LENGTHS_FILE, "pope"), 500),
    "vqav2": Profile("VQAv2 val, by description", _vqav2, 40_504),
    "mme": Profile("MME, by description", _mme, 1_187),
}


def draw(name: str, images: int, seed: int) -> list[AboutImage]:
    """The same images for the same seed."""
    return PROFILES[name].draw(random.Random(f"{name}/{seed}"), images)
