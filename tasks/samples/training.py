"""Endless training examples: scenes of the other part, talked about in the benchmarks' own prompts.

An example is a row of LLaVA's training format whose `image` is the picture itself instead of a file name. It
follows from a seed and a number alone, so a run can be resumed at any of them, and its scene is never one of the
samples or of a measurement (see `scene.Scene.held_out`).
"""

from __future__ import annotations

import random
from typing import Any

from vlmamba_eval.task import LETTER_ANSWER, SHORT_ANSWER, lettered
from vlmamba_eval.tasks.samples.questions import OPEN, YES_NO, Asked, ask, caption
from vlmamba_eval.tasks.samples.scene import (
    COLORS,
    DIGITS,
    GRID,
    RADII,
    SHAPES,
    SIDE,
    SPANISH,
    WORDS,
    Scene,
    draw,
    random_scene,
)
from vlmamba_eval.tasks.samples.writers import HINT, TEXT_FACTS, with_choices

CAPTION_PROMPT = "Provide a one-sentence caption for the provided image."
DESCRIBE_PROMPT = "What objects are in the image?"

# Topics that need several things to be seen and bound together are asked more often.
_TOPICS = [
    *OPEN,
    *YES_NO,
    *("exist", "exist", "count", "count_is", "place_is", "relation_is", "relation_is", "color_is", "where", "relation"),
]
_CHARACTERS = sorted({*"".join([*WORDS, *SPANISH]), *map(str, DIGITS), "+", ">"})

PATCH_CLASSES = {
    "shape": ["", *SHAPES],
    "color": ["", *COLORS],
    "size": ["", *RADII],
    "character": ["", *_CHARACTERS],
}
"""What a patch of a picture can be labelled with; the first class is "nothing there"."""


def example(seed: str, number: int, turns: int = 8, captions: float = 0.3, patches: int = 0) -> dict[str, Any]:
    """The example of that number: one picture and `turns` questions about it, or one question without a picture.

    `captions` is the share of examples that also ask for a full description. With `patches`, the labels of a grid of
    that many patches a side are added (`patch_labels`).
    """
    rng = random.Random(f"training: {seed} {number}")
    row: dict[str, Any] = {"id": f"{seed}-{number}"}
    if rng.random() < 0.01:
        return {**row, "conversations": _said([_fact(rng)])}
    scene = random_scene(rng)
    while scene.held_out:
        scene = random_scene(rng)
    pairs = [_turn(scene, rng) for _ in range(turns)]
    if rng.random() < captions:
        pairs[rng.randrange(len(pairs))] = (
            rng.choice((CAPTION_PROMPT, CAPTION_PROMPT, DESCRIBE_PROMPT)),
            caption(scene),
        )
    pairs[0] = (f"<image>\n{pairs[0][0]}", pairs[0][1])
    row |= {"image": draw(scene), "conversations": _said(pairs), "content": scene.content()}
    if patches:
        row["patch_labels"] = patch_labels(scene, patches)
    return row


def _said(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"from": speaker, "value": value}
        for pair in pairs
        for speaker, value in zip(("human", "gpt"), pair, strict=True)
    ]


def _turn(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A question in one of the benchmarks' forms, and its answer in that form."""
    while (asked := ask(scene, rng.choice(_TOPICS), rng)) is None:
        pass
    form = rng.random()
    if asked.others and form < 0.3:
        return _lettered_turn(asked, rng)
    if asked.topic in ("sign_word", "total", "meaning") and form < 0.6:
        tokens = [scene.sign.text] if scene.sign and rng.random() < 0.8 else []
        question = asked.question.lower().capitalize()
        return f"{question}\nReference OCR token: {', '.join(tokens)}\n{SHORT_ANSWER}", asked.answer
    if form > 0.96:
        return asked.question, asked.sentence
    answer = asked.answer.capitalize() if asked.answer in ("yes", "no") else asked.answer
    return f"{asked.question}\n{SHORT_ANSWER}", answer


def _lettered_turn(asked: Asked, rng: random.Random) -> tuple[str, str]:
    choices, place = with_choices(asked, rng.choice((2, 3, 4, 4, 4, 4, 5)), rng)
    if len(choices) == 3 and rng.random() < 0.2:
        choices.append("None of the above")
    before = rng.choice(("", "", "", f"{HINT}\n", f"Context: {HINT}\n"))
    return f"{before}{asked.question}\n{lettered(choices)}\n{LETTER_ANSWER}", "ABCDE"[place]


def _fact(rng: random.Random) -> tuple[str, str]:
    question, answer, wrong = rng.choice(TEXT_FACTS)
    choices = [*rng.sample(wrong, rng.choice((1, 2, 3))), answer]
    rng.shuffle(choices)
    return f"{question}\n{lettered(choices)}\n{LETTER_ANSWER}", "ABCDE"[choices.index(answer)]


def patch_labels(scene: Scene, patches: int) -> dict[str, list[int]]:
    """For each patch, row by row, the class of the thing in its cell of the grid and of the character at its place."""
    labels = {name: [0] * (patches * patches) for name in PATCH_CLASSES}
    things = {(thing.row, thing.column): thing for thing in scene.things}
    for patch in range(patches * patches):
        y, x = ((place + 0.5) / patches for place in divmod(patch, patches))
        thing = things.get((int(y * GRID), int(x * GRID)))
        if thing:
            labels["shape"][patch] = PATCH_CLASSES["shape"].index(thing.shape)
            labels["color"][patch] = PATCH_CLASSES["color"].index(thing.color)
            labels["size"][patch] = PATCH_CLASSES["size"].index(thing.size)
        if scene.sign and int(y * GRID) == scene.sign.row:
            character = scene.sign.character_at(x * SIDE)
            labels["character"][patch] = PATCH_CLASSES["character"].index(character)
    return labels
