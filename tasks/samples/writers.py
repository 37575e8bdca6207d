"""The sample scenes in the official release layout of every benchmark.

Each writer fills one sub-folder of a data folder that is used like any `--data DIR`. Everything follows from fixed
seeds; ids follow from a scene's content. Formats: the official files of each benchmark, field for field.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.samples import questions
from tasks.samples.questions import Asked, ask
from tasks.samples.scene import Scene, draw, scenes

# =============================================================================
# Scenes and files
# =============================================================================


def chosen(purpose: str, n: int, fits: Callable[[Scene], bool] = lambda scene: True) -> list[Scene]:
    """The first n held-out scenes of a purpose's seed that fit, no two of equal content."""
    found: dict[str, Scene] = {}
    for scene in scenes(f"samples: {purpose}", held_out=True):
        if fits(scene):
            found.setdefault(scene.content(), scene)
        if len(found) == n:
            return list(found.values())
    raise AssertionError("the generator never ends")


def number(scene: Scene, below: int, purpose: str = "") -> int:
    """A number of a scene that follows from its content, for ids."""
    digest = hashlib.sha256(f"{purpose}{scene.content()}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % below


def coco_id(scene: Scene) -> int:
    return number(scene, 580_000)


def jpeg(scene: Scene) -> bytes:
    file = io.BytesIO()
    draw(scene).save(file, "JPEG", quality=85, subsampling=0)
    return file.getvalue()


def png(scene: Scene) -> bytes:
    file = io.BytesIO()
    draw(scene).save(file, "PNG", optimize=True)
    return file.getvalue()


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def put_json(path: Path, value: Any) -> None:
    put(path, json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def several(scene: Scene, topics: list[str], n: int, rng: random.Random) -> list[Asked]:
    """Up to n questions of distinct wording, on topics drawn from the list (a topic may stand there repeatedly)."""
    found: dict[str, Asked] = {}
    for _ in range(20 * n):
        asked = ask(scene, rng.choice(topics), rng)
        if asked:
            found.setdefault(asked.question, asked)
        if len(found) == n:
            break
    return list(found.values())


def with_choices(asked: Asked, n: int, rng: random.Random) -> tuple[list[str], int]:
    """The answer among n - 1 others (fewer where there are fewer), and its place."""
    others = rng.sample(asked.others, min(n - 1, len(asked.others)))
    place = rng.randrange(len(others) + 1)
    return [*others[:place], asked.answer, *others[place:]], place


# =============================================================================
# POPE
# =============================================================================


def pope_scenes() -> list[Scene]:
    """The pictures of POPE and VQAv2, which share COCO's file names."""

    def fits(scene: Scene) -> bool:
        adversarial = questions.absent_nouns(scene, adversarial=True)
        return len({thing.shape for thing in scene.things}) > 1 and len(adversarial) > 2

    return chosen("coco", 16, fits)


def write_pope(folder: Path) -> None:
    """Three JSON-lines files over the same pictures and the same three "yes" questions of each.

    Absent nouns are random, the most frequent of all pictures, or adversarial: a colour and a shape that are both
    there but not on one thing.
    """
    pictures = pope_scenes()
    frequent = Counter(f"{thing.color} {thing.shape}" for scene in pictures for thing in scene.things)
    by_frequency = sorted(frequent, key=lambda noun: (-frequent[noun], noun))
    lines: dict[str, list[str]] = {"random": [], "popular": [], "adversarial": []}
    for scene in pictures:
        rng = random.Random(f"pope: {scene.content()}")
        file = f"COCO_val2014_{coco_id(scene):012d}.jpg"
        put(folder / "pope/val2014" / file, jpeg(scene))
        nouns = {noun for thing in scene.things for noun in (thing.shape, f"{thing.color} {thing.shape}")}
        present = rng.sample(sorted(nouns), 3)
        absent = {
            "random": rng.sample(questions.absent_nouns(scene, adversarial=False), 3),
            "popular": [noun for noun in by_frequency if questions.number_of(scene, noun) == 0][:3],
            "adversarial": rng.sample(questions.absent_nouns(scene, adversarial=True), 3),
        }
        for split, split_lines in lines.items():
            for there, not_there in zip(present, absent[split], strict=True):
                for noun in (there, not_there):
                    asked = questions.is_there(scene, noun)
                    row = {"question_id": len(split_lines) + 1, "image": file}
                    split_lines.append(json.dumps({**row, "text": asked.question, "label": asked.answer}))
    for split, split_lines in lines.items():
        put(folder / f"pope/coco/coco_pope_{split}.json", "\n".join(split_lines) + "\n")


# =============================================================================
# GQA
# =============================================================================

# topic -> structural and semantic type, GQA's "detailed" name
_GQA_TYPES = {
    "color": ("query", "attr", "directOf"),
    "shape": ("query", "cat", "category"),
    "size": ("query", "attr", "directWhich"),
    "at_region": ("query", "rel", "positionQuery"),
    "relation": ("query", "rel", "relS"),
    "background": ("query", "global", "background"),
    "color_is": ("verify", "attr", "verifyAttr"),
    "place_is": ("verify", "attr", "positionVerify"),
    "relation_is": ("verify", "rel", "relVerify"),
    "background_is": ("verify", "global", "backgroundVerify"),
    "exist": ("verify", "obj", "exist"),
    "both": ("logical", "obj", "existAnd"),
    "either": ("logical", "obj", "existOr"),
    "choose_color": ("choose", "attr", "chooseAttr"),
    "choose_side": ("choose", "rel", "relChooser"),
    "same_color": ("compare", "attr", "twoSame"),
    "larger": ("compare", "attr", "comparativeChoose"),
}
_GQA_GLOBAL_GROUPS = {
    "color": "color",
    "choose_color": "color",
    "background": "color",
    "size": "size",
    "shape": "shape",
    "at_region": "shape",
    "relation": "shape",
}


def gqa_entry(scene: Scene, asked: Asked, image: str, qid: str) -> dict[str, Any]:
    structural, semantic, detailed = _GQA_TYPES[asked.topic]
    indices = {t.shape: str(i) for i, t in enumerate(scene.things) if questions.number_of(scene, t.shape) == 1}

    def marked(text: str) -> dict[str, str]:
        words = text.lower().strip("?.").replace(",", "").split()
        return {str(place): indices[word] for place, word in enumerate(words) if word in indices}

    steps = asked.program
    written = [f"{s.operation}: {s.argument}" + (f" {list(s.needs)}" if s.needs else "") for s in steps]
    subject = next(step.argument for step in steps if step.operation == "select").split(" (")[0]
    return {
        "semantic": [{"operation": s.operation, "dependencies": list(s.needs), "argument": s.argument} for s in steps],
        "entailed": [qid],
        "equivalent": [qid],
        "question": asked.question,
        "imageId": image,
        "isBalanced": True,
        "groups": {"global": _GQA_GLOBAL_GROUPS.get(asked.topic), "local": f"{structural}-{subject}_{asked.topic}"},
        "answer": asked.answer,
        "semanticStr": "->".join(written),
        "annotations": {
            "answer": marked(asked.answer),
            "question": marked(asked.question),
            "fullAnswer": marked(asked.sentence),
        },
        "types": {"detailed": detailed, "semantic": semantic, "structural": structural},
        "fullAnswer": asked.sentence,
    }


def write_gqa(folder: Path) -> None:
    """`testdev_balanced_questions.json` in an order that is not grouped by image, as in the release."""
    entries: dict[str, dict[str, Any]] = {}
    # Half of GQA's questions are queries.
    topics = [topic for topic, types in _GQA_TYPES.items() for _ in range(2 if types[0] == "query" else 1)]
    for scene in chosen("gqa", 20, lambda scene: len(scene.things) > 1):
        rng = random.Random(f"gqa: {scene.content()}")
        image = f"n{number(scene, 600_000):06d}"
        put(folder / f"gqa/images/{image}.jpg", jpeg(scene))
        for place, asked in enumerate(several(scene, topics, 12, rng)):
            qid = f"20{number(scene, 100_000):05d}{place:02d}"
            entries[qid] = gqa_entry(scene, asked, image, qid)
    order = sorted(entries)
    random.Random("gqa: order").shuffle(order)
    put_json(folder / "gqa/testdev_balanced_questions.json", {qid: entries[qid] for qid in order})


# =============================================================================
# MME
# =============================================================================

# category -> topics, number of pictures, file extension, own folder for pictures. Scenes have no celebrities
# or landmarks: those categories ask something else that is true of the scene, as the folder's README says.
_MME_CATEGORIES: dict[str, tuple[tuple[str, ...], int, str, bool]] = {
    "existence": (("exist",), 8, "jpg", False),
    "count": (("count_is",), 8, "jpg", False),
    "position": (("place_is", "relation_is"), 8, "jpg", False),
    "color": (("color_is",), 8, "jpg", False),
    "posters": (("sign_says",), 5, "jpg", True),
    "celebrity": (("shape_is",), 5, "jpg", True),
    "scene": (("background_is",), 5, "jpg", True),
    "landmark": (("size_is",), 5, "jpg", True),
    "artwork": (("both",), 5, "jpg", True),
    "OCR": (("sign_says",), 5, "jpg", False),
    "commonsense_reasoning": (("either",), 5, "png", False),
    "numerical_calculation": (("sum_is",), 5, "png", False),
    "text_translation": (("translation_is",), 5, "png", False),
    "code_reasoning": (("comparison_is",), 5, "png", False),
}
_COCO_NAMED = ("existence", "count", "position", "color")


def mme_pair(scene: Scene, topic: str, rng: random.Random) -> tuple[Asked, Asked] | None:
    """One question whose answer is yes and one whose answer is no."""
    yes, no = ask(scene, topic, rng, want=True), ask(scene, topic, rng, want=False)
    return (yes, no) if yes and no else None


def write_mme(folder: Path) -> None:
    """Fourteen categories; beside each picture, or in `questions_answers_YN`, one text file of two lines."""
    for category, (topics, n, extension, apart) in _MME_CATEGORIES.items():
        base = folder / "MME/MME_Benchmark_release_version" / category
        rng = random.Random(f"mme: {category}")

        def fits(scene: Scene, topics: tuple[str, ...] = topics) -> bool:
            trial = random.Random("trial")
            return len(scene.things) > 1 and all(mme_pair(scene, topic, trial) for topic in topics)

        for place, scene in enumerate(chosen(f"mme {category}", n, fits)):
            stem = f"{coco_id(scene):012d}" if category in _COCO_NAMED else f"{place + 1:04d}"
            pair = mme_pair(scene, topics[place % len(topics)], rng)
            assert pair is not None  # noqa: S101  `fits` has seen to it
            lines = [f"{q.question} Please answer yes or no.\t{q.answer.capitalize()}\n" for q in pair]
            if rng.random() < 0.5:
                lines.reverse()
            put(
                base / ("images" if apart else "") / f"{stem}.{extension}",
                jpeg(scene) if extension == "jpg" else png(scene),
            )
            put(base / ("questions_answers_YN" if apart else "") / f"{stem}.txt", "".join(lines))


# =============================================================================
# All of them
# =============================================================================

WRITERS: tuple[Callable[[Path], None], ...] = (write_pope, write_gqa, write_mme)


def write_all(folder: Path) -> None:
    """Write the samples of every benchmark into a data folder."""
    for writer in WRITERS:
        writer(folder)
