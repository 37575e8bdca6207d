"""How well a model sees: scores on freshly drawn scenes of any seed, in the shape of four benchmarks.

All scenes are of the held-out part, so no training stream contains them. Without seeing, POPE's F1 is at most 67
(always yes), a category of MME 50 (always the same) to 75 (a coin), four choices 25.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence

from PIL import Image

from tasks.base import LETTER_ANSWER, LETTERS, SHORT_ANSWER, lettered
from tasks.samples import questions
from tasks.samples.questions import Asked, ask
from tasks.samples.scene import Scene, draw, scenes
from tasks.samples.writers import GQA_TOPICS, mme_pair, several, with_choices

Answerer = Callable[[Image.Image, Sequence[str]], Sequence[str]]
"""A model: from a picture and the prompts about it to the answers."""

MME_TOPICS = {
    "existence": ("exist",),
    "count": ("count_is",),
    "position": ("place_is", "relation_is"),
    "color": ("color_is",),
}


def measure(
    answer: Answerer, seed: str, n: int = 60, picture: Callable[[Scene], Image.Image] = draw
) -> dict[str, float]:
    """Scores over n scenes for each of the four shapes, on the published scales.

    `picture` draws a scene: noise instead shows what a model scores without seeing.
    """
    found = {"pope_mean_f1": _pope(answer, seed, n, picture)}
    for category, topics in MME_TOPICS.items():
        found[f"mme_{category}"] = _mme(answer, f"{seed} {category}", n, topics, picture)
    found["gqa_accuracy"] = _gqa(answer, seed, n, picture)
    found["choice_accuracy"] = _choices(answer, seed, n, picture)
    return found


def noise(scene: Scene) -> Image.Image:
    """A picture of random pixels in place of the scene's."""
    side = draw(scene).size
    return Image.frombytes("RGB", side, random.Random(scene.content()).randbytes(3 * side[0] * side[1]))


def _held_out(seed: str, fits: Callable[[Scene], bool] = lambda scene: True) -> Iterator[Scene]:
    return (scene for scene in scenes(f"unseen: {seed}", held_out=True) if fits(scene))


def _says_yes(text: str) -> bool:
    return text.strip().lower().rstrip(".") == "yes"


def _pope(answer: Answerer, seed: str, n: int, picture: Callable[[Scene], Image.Image]) -> float:
    """Mean F1 over random and adversarial absent nouns, three of them and three present nouns a scene."""
    outcomes = {"random": [0, 0, 0], "adversarial": [0, 0, 0]}  # true positives, false positives, false negatives
    rng = random.Random(f"pope: {seed}")

    def fits(scene: Scene) -> bool:
        return len(questions.absent_nouns(scene, adversarial=True)) > 2 and len(scene.things) > 1

    for scene in itertools.islice(_held_out(f"pope {seed}", fits), n):
        nouns = sorted({noun for t in scene.things for noun in (t.shape, f"{t.color} {t.shape}")})
        present = rng.sample(nouns, 3)
        for split, counts in outcomes.items():
            absent = rng.sample(questions.absent_nouns(scene, adversarial=split == "adversarial"), 3)
            asked = [questions.is_there(scene, noun) for noun in (*present, *absent)]
            said = answer(picture(scene), [f"{q.question}\n{SHORT_ANSWER}" for q in asked])
            for question, text in zip(asked, said, strict=True):
                yes, right = _says_yes(text), question.answer == "yes"
                counts[0] += yes and right
                counts[1] += yes and not right
                counts[2] += right and not yes
    f1 = [200 * tp / max(1, 2 * tp + fp + fn) for tp, fp, fn in outcomes.values()]
    return sum(f1) / len(f1)


def _mme(
    answer: Answerer, seed: str, n: int, topics: tuple[str, ...], picture: Callable[[Scene], Image.Image]
) -> float:
    """100 * (accuracy + accuracy of pairs) over one yes and one no question a scene."""
    rng = random.Random(f"mme: {seed}")
    single = both = pairs = 0
    for scene in _held_out(f"mme {seed}", lambda scene: len(scene.things) > 1):
        pair = mme_pair(scene, topics[pairs % len(topics)], rng)
        if pair is None:
            continue
        said = answer(picture(scene), [f"{q.question}\n{SHORT_ANSWER}" for q in pair])
        right = [text.strip().lower() == q.answer for q, text in zip(pair, said, strict=True)]
        pairs, single, both = pairs + 1, single + sum(right), both + all(right)
        if pairs == n:
            break
    return 100 * (single / (2 * pairs) + both / pairs)


def _gqa(answer: Answerer, seed: str, n: int, picture: Callable[[Scene], Image.Image]) -> float:
    rng = random.Random(f"gqa: {seed}")
    right = total = 0
    for scene in itertools.islice(_held_out(f"gqa {seed}", lambda scene: len(scene.things) > 1), n):
        asked = several(scene, GQA_TOPICS, 10, rng)
        said = answer(picture(scene), [f"{q.question}\n{SHORT_ANSWER}" for q in asked])
        right += sum(text.strip().rstrip(".").lower() == q.answer for q, text in zip(asked, said, strict=True))
        total += len(asked)
    return 100 * right / total


def _choices(answer: Answerer, seed: str, n: int, picture: Callable[[Scene], Image.Image]) -> float:
    """Four choices; topics that have fewer wrong answers are left out."""
    rng = random.Random(f"choices: {seed}")
    right = total = 0
    for scene in itertools.islice(_held_out(f"choices {seed}"), n):
        found: list[Asked] = [a for topic in questions.OPEN if (a := ask(scene, topic, rng)) and len(a.others) > 2]
        prompts, letters = [], []
        for asked in rng.sample(found, min(4, len(found))):
            choices, place = with_choices(asked, 4, rng)
            prompts.append(f"{asked.question}\n{lettered(choices)}\n{LETTER_ANSWER}")
            letters.append(LETTERS[place])
        said = answer(picture(scene), prompts)
        right += sum(text.strip() == letter for text, letter in zip(said, letters, strict=True))
        total += len(letters)
    return 100 * right / total
