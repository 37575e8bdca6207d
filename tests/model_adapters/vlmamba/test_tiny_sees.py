"""The bundled model sees: scores on freshly drawn scenes that no training stream contains, and on noise instead."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from PIL import Image

from vlmamba_eval.registry import load
from vlmamba_eval.tasks.samples.unseen import Answerer, Score, measure, noise
from vlmamba_eval.types import Generation, ImageQuestions, Question

FLOORS = {
    "pope_mean_f1": 90,
    "mme_existence": 160,
    "mme_color": 160,
    "mme_position": 140,
    "mme_count": 140,
    "gqa_accuracy": 75,
    "choice_accuracy": 70,
}

# What a model that sees nothing can reach: always yes gives 67, a coin 75 of MME's 200, four choices 25; many of
# GQA's questions have two answers. The rest is room for few scenes.
BLIND = {
    "pope_mean_f1": 75,
    "mme_existence": 115,
    "mme_color": 115,
    "mme_position": 115,
    "mme_count": 115,
    "gqa_accuracy": 55,
    "choice_accuracy": 45,
}


@pytest.fixture(scope="module")
def answer() -> Answerer:
    torch.set_num_threads(1)
    adapter = load("vlmamba-tiny", {"device": "cpu"})

    def answerer(picture: Image.Image, prompts: Sequence[str]) -> list[str]:
        questions = tuple(Question(prompt, max_new_tokens=16) for prompt in prompts)
        (generations,) = adapter.generate([ImageQuestions(adapter.prepare(picture), questions)])
        return [generation.text for generation in generations if isinstance(generation, Generation)]

    return answerer


def values(scores: dict[str, Score]) -> dict[str, float]:
    return {name: score.value for name, score in scores.items()}


def test_the_bundled_model_answers_questions_about_scenes_it_has_never_seen(answer: Answerer):
    found = values(measure(answer, "floors", 16))
    assert {name: value for name, value in found.items() if value < FLOORS[name]} == {}


def test_without_the_picture_it_falls_to_chance(answer: Answerer):
    found = values(measure(answer, "floors", 16, noise))
    assert {name: value for name, value in found.items() if value > BLIND[name]} == {}


@pytest.mark.slow
def test_the_floors_hold_with_certainty_on_many_scenes(answer: Answerer):
    """The whole 95 % interval lies above the floor."""
    found = measure(answer, "many", 150)
    assert {name: score for name, score in found.items() if score.low < FLOORS[name]} == {}
