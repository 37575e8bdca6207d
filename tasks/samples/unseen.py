"""How well a model sees: scores on freshly drawn scenes of any seed, in the shape of four benchmarks.

All scenes are of the held-out part, so no training stream contains them. Without seeing, POPE's F1 is at most 67
(always yes), a category of MME 50 (always the same) to 75 (a coin), four choices 25.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from vlmamba_eval.task import LETTER_ANSWER, LETTERS, SHORT_ANSWER, lettered
from vlmamba_eval.tasks.samples import questions
from vlmamba_eval.tasks.samples.questions import Asked, ask
from vlmamba_eval.tasks.samples.scene import Scene, draw, scenes
from vlmamba_eval.tasks.samples.writers import GQA_TOPICS, mme_pair, several, with_choices

Answerer = Callable[[Image.Image, Sequence[str]], Sequence[str]]
"""A model: from a picture and the prompts about it to the answers."""

MME_TOPICS = {
    "existence": ("exist",),
    "count": ("count_is",),
    "position": ("place_is", "relation_is"),
    "color": ("color_is",),
}


@dataclass(frozen=True, slots=True)
class Score:
    """A value with its 95 % interval, from a bootstrap over scenes."""

    value: float
    low: float
    high: float


def measure(
    answer: Answerer, seed: str, n: int = 60, picture: Callable[[Scene], Image.Image] = draw
) -> dict[str, Score]:
    """Scores over n scenes for each of the four shapes, on the published scales.

    `picture` draws a scene: noise instead shows what a model scores without seeing.
    """
    found = {"pope_mean_f1": _score(_mean_f1, list(_pope(answer, seed, n, picture)))}
    for category, topics in MME_TOPICS.items():
        rows = list(_mme(answer, f"{seed} {category}", n, topics, picture))
        found[f"mme_{category}"] = _score(_accuracies, rows)
    found["gqa_accuracy"] = _score(_accuracy, list(_gqa(answer, seed, n, picture)))
    found["choice_accuracy"] = _score(_accuracy, list(_choices(answer, seed, n, picture)))
    return found


def _score(metric: Callable[[Counter[str]], float], scenes: list[Counter[str]]) -> Score:
    """A metric of sums over scenes."""
    rng = random.Random("bootstrap")
    resampled = sorted(metric(sum(rng.choices(scenes, k=len(scenes)), Counter())) for _ in range(1000))
    return Score(metric(sum(scenes, Counter())), resampled[25], resampled[974])


def _accuracy(sums: Counter[str]) -> float:
    return 100 * sums["right"] / sums["asked"]


def _accuracies(sums: Counter[str]) -> float:
    """MME's accuracy and accuracy of pairs."""
    return _accuracy(sums) + 100 * sums["both"] / sums["pairs"]


def _mean_f1(sums: Counter[str]) -> float:
    f1 = []
    for split in ("random", "adversarial"):
        tp, fp, fn = (sums[f"{split} {outcome}"] for outcome in ("tp", "fp", "fn"))
        f1.append(200 * tp / max(1, 2 * tp + fp + fn))
    return sum(f1) / len(f1)


def noise(scene: Scene) -> Image.Image:
    """A picture of random pixels in place of the scene's."""
    side = draw(scene).size
    return Image.frombytes("RGB", side, random.Random(scene.content()).randbytes(3 * side[0] * side[1]))


def _held_out(seed: str, fits: Callable[[Scene], bool] = lambda scene: True) -> Iterator[Scene]:
    return (scene for scene in scenes(f"unseen: {seed}", held_out=True) if fits(scene))


def _pope(answer: Answerer, seed: str, n: int, picture: Callable[[Scene], Image.Image]) -> Iterator[Counter[str]]:
    """Random and adversarial absent nouns, three of them and three present nouns a scene."""
    rng = random.Random(f"pope: {seed}")

    def fits(scene: Scene) -> bool:
        return len(questions.absent_nouns(scene, adversarial=True)) > 2 and len(scene.things) > 1

    for scene in itertools.islice(_held_out(f"pope {seed}", fits), n):
        sums: Counter[str] = Counter()
        nouns = sorted({noun for t in scene.things for noun in (t.shape, f"{t.color} {t.shape}")})
        present = rng.sample(nouns, 3)
        for split in ("random", "adversarial"):
            absent = rng.sample(questions.absent_nouns(scene, adversarial=split == "adversarial"), 3)
            asked = [questions.is_there(scene, noun) for noun in (*present, *absent)]
            said = answer(picture(scene), [f"{q.question}\n{SHORT_ANSWER}" for q in asked])
            for question, text in zip(asked, said, strict=True):
                yes, right = text.strip().lower().rstrip(".") == "yes", question.answer == "yes"
                outcome = {(True, True): "tp", (True, False): "fp", (False, True): "fn"}.get((yes, right), "tn")
                sums[f"{split} {outcome}"] += 1
        yield sums


def _mme(
    answer: Answerer, seed: str, n: int, topics: tuple[str, ...], picture: Callable[[Scene], Image.Image]
) -> Iterator[Counter[str]]:
    """One yes and one no question a scene."""
    rng = random.Random(f"mme: {seed}")
    pairs = 0
    for scene in _held_out(f"mme {seed}", lambda scene: len(scene.things) > 1):
        pair = mme_pair(scene, topics[pairs % len(topics)], rng)
        if pair is None:
            continue
        said = answer(picture(scene), [f"{q.question}\n{SHORT_ANSWER}" for q in pair])
        right = [text.strip().lower() == q.answer for q, text in zip(pair, said, strict=True)]
        yield Counter(right=sum(right), asked=2, both=int(all(right)), pairs=1)
        pairs += 1
        if pairs == n:
            return


def _gqa(answer: Answerer, seed: str, n: int, picture: Callable[[Scene], Image.Image]) -> Iterator[Counter[str]]:
    rng = random.Random(f"gqa: {seed}")
    for scene in itertools.islice(_held_out(f"gqa {seed}", lambda scene: len(scene.things) > 1), n):
        asked = several(scene, GQA_TOPICS, 10, rng)
        said = answer(picture(scene), [f"{q.question}\n{SHORT_ANSWER}" for q in asked])
        right = sum(text.strip().rstrip(".").lower() == q.answer for q, text in zip(asked, said, strict=True))
        yield Counter(right=right, asked=len(asked))


def _choices(answer: Answerer, seed: str, n: int, picture: Callable[[Scene], Image.Image]) -> Iterator[Counter[str]]:
    """Four choices; topics that have fewer wrong answers are left out."""
    rng = random.Random(f"choices: {seed}")
    for scene in itertools.islice(_held_out(f"choices {seed}"), n):
        found: list[Asked] = [a for topic in questions.OPEN if (a := ask(scene, topic, rng)) and len(a.others) > 2]
        prompts, letters = [], []
        for asked in rng.sample(found, min(4, len(found))):
            choices, place = with_choices(asked, 4, rng)
            prompts.append(f"{asked.question}\n{lettered(choices)}\n{LETTER_ANSWER}")
            letters.append(LETTERS[place])
        said = answer(picture(scene), prompts)
        right = sum(text.strip() == letter for text, letter in zip(said, letters, strict=True))
        yield Counter(right=right, asked=len(letters))
