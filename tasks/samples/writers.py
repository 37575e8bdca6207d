"""The sample scenes in the official release layout of every benchmark.

Each writer fills one sub-folder of a data folder that is used like any `--data DIR`. Everything follows from fixed
seeds; ids follow from a scene's content. Formats: the official files of each benchmark, field for field.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmamba_eval.task import LETTERS
from vlmamba_eval.tasks.samples import questions
from vlmamba_eval.tasks.samples.questions import Asked, ask
from vlmamba_eval.tasks.samples.scene import SIDE, Scene, draw, scenes

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
    """The answer among n - 1 others (fewer if there are fewer), and its place."""
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
# Half of GQA's questions are queries.
GQA_TOPICS = [topic for topic, types in _GQA_TYPES.items() for _ in range(2 if types[0] == "query" else 1)]
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
    for scene in chosen("gqa", 20, lambda scene: len(scene.things) > 1):
        rng = random.Random(f"gqa: {scene.content()}")
        image = f"n{number(scene, 600_000):06d}"
        put(folder / f"gqa/images/{image}.jpg", jpeg(scene))
        for place, asked in enumerate(several(scene, GQA_TOPICS, 12, rng)):
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
# VQAv2
# =============================================================================

# The official question types (the openings of questions) that scenes give rise to.
_VQA_QUESTION_TYPES = (
    "what color is the", "what is the", "what does the", "what", "how many", "where is the", "which", "is there a",
    "is there", "is the", "are there", "are", "does the", "do",
)  # fmt: skip


def ten_answers(asked: Asked, rng: random.Random) -> list[str]:
    """What ten annotators would say: up to three of them err, alike or not."""
    wrong = asked.others or ("no" if asked.answer == "yes" else "yes",)
    answers = [asked.answer] * 10
    for place in rng.sample(range(10), rng.choice((0, 0, 1, 1, 2, 3))):
        answers[place] = rng.choice(wrong)
    return answers


def write_vqav2(folder: Path) -> None:
    """VQAv2 val over the pictures of POPE."""
    asked_rows, annotations = [], []
    topics = ["color", "count", "count", "shape", "background", "exist", "color_is", "relation_is", "larger", "both"]
    for scene in pope_scenes():
        rng = random.Random(f"vqav2: {scene.content()}")
        image = coco_id(scene)
        put(folder / f"vqav2/val2014/COCO_val2014_{image:012d}.jpg", jpeg(scene))
        for place, asked in enumerate(several(scene, topics, 5, rng)):
            ids = {"image_id": image, "question_id": image * 1000 + place}
            opening = (kind for kind in _VQA_QUESTION_TYPES if asked.question.lower().startswith(kind + " "))
            kind = "number" if asked.answer.isdigit() else "other" if asked.others else "yes/no"
            answers = [
                {"answer": answer, "answer_confidence": rng.choice(("yes", "yes", "maybe")), "answer_id": i}
                for i, answer in enumerate(ten_answers(asked, rng), 1)
            ]
            asked_rows.append({"image_id": image, "question": asked.question, "question_id": ids["question_id"]})
            annotations.append(
                {
                    "question_type": next(opening, "none of the above"),
                    "multiple_choice_answer": asked.answer,
                    "answers": answers,
                    "image_id": image,
                    "answer_type": kind,
                    "question_id": ids["question_id"],
                }
            )
    head = {
        "info": {"description": "Scenes in the format of VQA v2.0", "version": "2.0"},
        "data_type": "mscoco",
        "data_subtype": "val2014",
        "license": {"name": "the license of this project"},
    }
    questions_file = {**head, "task_type": "Open-Ended", "questions": asked_rows}
    put_json(folder / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json", questions_file)
    put_json(folder / "vqav2/v2_mscoco_val2014_annotations.json", {**head, "annotations": annotations})


# =============================================================================
# ScienceQA
# =============================================================================

TEXT_FACTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Which shape has three corners?", "triangle", ("circle", "ring", "square")),
    ("Which shape has four equal sides?", "square", ("circle", "star", "triangle")),
    ("Which shape has no corners and no hole?", "circle", ("star", "square", "triangle")),
    ("Which shape has a hole in the middle?", "ring", ("circle", "square", "star")),
    ("Which color do blue and yellow paint make?", "green", ("red", "black", "orange")),
    ("Which color do red and yellow paint make?", "orange", ("blue", "green", "black")),
    ("Which color do red and blue paint make?", "purple", ("yellow", "green", "orange")),
)
"""Questions without a picture: question, answer, wrong answers."""

HINT = "The picture shows colored shapes. Some pictures also show a sign."

# topic -> subject, topic, category, skill
_SCIENCE = {
    "color": ("natural science", "physics", "Materials", "Identify colors"),
    "shape": ("natural science", "science-and-engineering-practices", "Classification", "Identify shapes"),
    "where": ("social science", "geography", "Maps", "Read a map: directions"),
    "relation": ("social science", "geography", "Maps", "Read a map: directions"),
    "count": ("natural science", "science-and-engineering-practices", "Measurement", "Count objects"),
    "sign_word": ("language science", "reading-comprehension", "Signs", "Read a sign"),
    "meaning": ("language science", "vocabulary", "Word meaning", "Translate a word"),
}


def write_scienceqa(folder: Path) -> None:
    """Problems with and without a picture in three splits; the test split is what is asked."""
    problems: dict[str, dict[str, Any]] = {}
    splits: dict[str, list[str]] = {name: [] for name in ("train", "val", "test", "trainval")}
    rng = random.Random("scienceqa")

    def add(split: str, question: str, choices: list[str], answer: int, topic: str, scene: Scene | None) -> None:
        subject, kind, category, skill = _SCIENCE[topic]
        pid = str(len(problems) * 7 + 4)
        problems[pid] = {
            "question": question,
            "choices": choices,
            "answer": answer,
            "hint": HINT if scene and rng.random() < 0.5 else "",
            "image": "image.png" if scene else None,
            "task": "closed choice",
            "grade": f"grade{rng.randint(1, 12)}",
            "subject": subject,
            "topic": kind,
            "category": category,
            "skill": skill,
            "lecture": "",
            "solution": "",
            "split": split,
        }
        for name in (split, "trainval") if split in ("train", "val") else (split,):
            splits[name].append(pid)
        if scene:
            put(folder / f"scienceqa/images/{split}/{pid}/image.png", png(scene))

    def add_fact(split: str, place: int) -> None:
        question, answer, wrong = TEXT_FACTS[place]
        choices = [*rng.sample(wrong, rng.choice((1, 2, 3))), answer]
        rng.shuffle(choices)
        add(split, question, choices, choices.index(answer), "color" if "paint" in question else "shape", None)

    add_fact("train", 0)
    add_fact("val", 1)
    for topic in _SCIENCE:
        for scene in chosen(f"scienceqa {topic}", 4, lambda s, t=topic: ask(s, t, random.Random("trial")) is not None):
            asked = ask(scene, topic, rng)
            assert asked is not None  # noqa: S101  `chosen` has seen to it
            choices, answer = with_choices(asked, rng.choice((2, 3, 4, 4, 5)), rng)
            add("test", asked.question, choices, answer, topic, scene)
        if len(splits["test"]) % 2:
            add_fact("test", rng.randrange(len(TEXT_FACTS)))
    for place in range(4):
        add_fact("test", place)
    for name in ("train", "val", "test"):
        splits[f"mini{name}"] = splits[name][:1]
    put(folder / "scienceqa/problems.json", json.dumps(problems, indent=1) + "\n")
    put(folder / "scienceqa/pid_splits.json", json.dumps(splits, indent=1) + "\n")


# =============================================================================
# TextVQA
# =============================================================================


def _textvqa_scenes() -> list[Scene]:
    return chosen("textvqa", 14, lambda scene: scene.sign is not None and scene.sign.kind != "comparison")


def write_textvqa(folder: Path) -> None:
    """Signs that are read; one picture's list of recognised words is empty, as for 115 questions of the release."""
    rows, recognised = [], []
    for place, scene in enumerate(_textvqa_scenes()):
        assert scene.sign is not None  # noqa: S101  `chosen` has seen to it
        rng = random.Random(f"textvqa: {scene.content()}")
        image = f"{number(scene, 2**64):016x}"
        put(folder / f"textvqa/train_images/{image}.jpg", jpeg(scene))
        tokens = [] if place == 3 else [scene.sign.text]
        left, top, right, bottom = scene.sign.box
        box = {
            "top_left_x": left / SIDE,
            "top_left_y": top / SIDE,
            "width": (right - left) / SIDE,
            "height": (bottom - top) / SIDE,
            "rotation": 0,
        }
        info = [{"word": token, "bounding_box": box} for token in tokens]
        recognised.append({"image_id": image, "ocr_tokens": tokens, "ocr_info": info})
        for asked in several(scene, ["sign_word", "total", "meaning", "meaning"], 2, rng):
            rows.append(
                {
                    "question": asked.question.lower(),
                    "image_id": image,
                    "image_classes": ["Poster", "Sign"],
                    "flickr_original_url": "",
                    "flickr_300k_url": "",
                    "image_width": SIDE,
                    "image_height": SIDE,
                    "answers": ten_answers(asked, rng),
                    "question_tokens": asked.question.lower().rstrip("?").split(),
                    "question_id": 34_602 + len(rows),
                    "set_name": "val",
                }
            )
    head = {"dataset_type": "val", "dataset_name": "textvqa"}
    put_json(folder / "textvqa/TextVQA_0.5.1_val.json", {**head, "dataset_version": "0.5.1", "data": rows})
    put_json(
        folder / "textvqa/TextVQA_Rosetta_OCR_v0.2_val.json", {**head, "dataset_version": "0.2", "data": recognised}
    )


# =============================================================================
# MMBench
# =============================================================================

# topic -> L3 and L2 ability
_MMBENCH = {
    "background": ("image_scene", "coarse_perception"),
    "color": ("attribute_recognition", "finegrained_perception (instance-level)"),
    "size": ("attribute_recognition", "finegrained_perception (instance-level)"),
    "shape": ("object_localization", "finegrained_perception (instance-level)"),
    "where": ("object_localization", "finegrained_perception (instance-level)"),
    "sign_word": ("ocr", "finegrained_perception (instance-level)"),
    "relation": ("spatial_relationship", "finegrained_perception (cross-instance)"),
    "larger": ("attribute_comparison", "finegrained_perception (cross-instance)"),
    "meaning": ("identity_reasoning", "attribute_reasoning"),
    "choose_side": ("physical_relation", "relation_reasoning"),
    "total": ("structuralized_imagetext_understanding", "logic_reasoning"),
}
_MMBENCH_COLUMNS = (
    "index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category",
    "comment", "split",
)  # fmt: skip


def circular_passes(choices: list[str], answer: int, pinned: bool) -> list[tuple[list[str], int]]:
    """The passes of one question: each rotates the last one's options to the right; a pinned last option stays."""
    passes = []
    tail = choices[-1:] if pinned else []
    moving = choices[: len(choices) - len(tail)]
    right = choices[answer]
    for _ in range(len(moving)):
        options = [*moving, *tail]
        passes.append((options, options.index(right)))
        moving = [moving[-1], *moving[:-1]]
    return passes


def write_mmbench(folder: Path) -> None:
    """The TSV of the 20230712 list: every circular pass is a row of its own, pictures are base64 cells."""
    rows = []
    rng = random.Random("mmbench")
    for topic, (category, l2_category) in _MMBENCH.items():
        fitting = chosen(f"mmbench {topic}", 2, lambda s, t=topic: ask(s, t, random.Random("trial")) is not None)
        for place, scene in enumerate(fitting):
            asked = ask(scene, topic, rng)
            assert asked is not None  # noqa: S101  `chosen` has seen to it
            choices, answer = with_choices(asked, rng.choice((3, 4, 4)), rng)
            pinned = topic == "shape" and place == 0
            if pinned:
                choices, answer = with_choices(asked, 3, rng)
                choices.append("None of the above")
            base = number(scene, 1_000_000)
            image = base64.b64encode(jpeg(scene)).decode()
            hint = HINT if rng.random() < 0.3 else ""
            for k, (options, right) in enumerate(circular_passes(choices, answer, pinned)):
                letters = [*options, "", "", ""][:4]
                row = (k * 1_000_000 + base, asked.question, hint, *letters, LETTERS[right], category, image, "scenes")
                rows.append((*row, l2_category, "", "dev"))
    rng.shuffle(rows)
    rows.sort(key=lambda row: row[0] // 1_000_000)
    file = io.StringIO()
    writer = csv.writer(file, delimiter="\t", lineterminator="\n")
    writer.writerow(_MMBENCH_COLUMNS)
    writer.writerows(rows)
    put(folder / "mmbench/mmbench_dev_20230712.tsv", file.getvalue())


# =============================================================================
# SEED-Bench
# =============================================================================

_SEED_TYPES: dict[str, tuple[int, tuple[str, ...]]] = {
    "Scene Understanding": (1, ("background",)),
    "Instance Identity": (2, ("shape",)),
    "Instance Attributes": (3, ("color",)),
    "Instance Location": (4, ("where",)),
    "Instances Counting": (5, ("count",)),
    "Spatial Relation": (6, ("choose_side", "relation")),
    "Instance Interaction": (7, ("larger",)),
    "Visual Reasoning": (8, ("total",)),
    "Text Understanding": (9, ("sign_word",)),
    "Action Recognition": (10, ("at_region",)),
    "Action Prediction": (11, ("choose_color",)),
    "Procedure Understanding": (12, ("relation",)),
}


def write_seed(folder: Path) -> None:
    """Pictures without a file extension, several questions on some, and middle frames of clips."""
    rows = []
    rng = random.Random("seed")

    def add(scene: Scene, topic: str, type_id: int, data_id: str, question_id: str, more: dict[str, Any]) -> None:
        asked = ask(scene, topic, rng)
        assert asked is not None  # noqa: S101  `chosen` has seen to it
        choices, answer = with_choices(asked, 4, rng)
        options = {f"choice_{letter}": choice for letter, choice in zip("abcd", choices, strict=True)}
        row = {"answer": LETTERS[answer], **options, "data_id": data_id, "data_type": "image", **more}
        row |= {"question": asked.question, "question_id": question_id, "question_type_id": type_id}
        rows.append(row)

    for type_id, topics in _SEED_TYPES.values():
        for place in range(3 if type_id < 10 else 2):
            topic = topics[place % len(topics)]
            fitting = chosen(f"seed {type_id}", 3, lambda s, t=topic: ask(s, t, random.Random("trial")) is not None)
            scene = fitting[place]
            if type_id < 10:
                data_id = f"{number(scene, 10_000_000)}_{number(scene, 2**31, 'b')}"
                put(folder / f"seed_bench/SEED-Bench-image/{data_id}", jpeg(scene))
                add(scene, topic, type_id, data_id, str(100_000 + len(rows)), {})
                if place == 0:
                    add(scene, "count", 5, data_id, str(100_000 + len(rows)), {})
            else:
                question_id = f"v{len(rows)}"
                put(folder / f"seed_bench/SEED-Bench-video-image/{type_id}_{question_id}.png", png(scene))
                more = {"data_type": "video", "segment": [float(place), place + 2.5]}
                add(scene, topic, type_id, f"clip_{type_id}_{place}.webm", question_id, more)
    types = {name: type_id for name, (type_id, _) in _SEED_TYPES.items()}
    put_json(folder / "seed_bench/SEED-Bench.json", {"questions": rows, "question_type": types})


# =============================================================================
# MM-Vet and captioning
# =============================================================================

_MMVET = {"sign_word": ["ocr"], "total": ["ocr", "math"], "color": ["rec"], "where": ["rec", "spat"]}


def write_mmvet(folder: Path) -> None:
    """Open questions with the answers that a judge compares with; the last asks for a description."""
    entries = {}
    rng = random.Random("mm-vet")
    for topic, capability in _MMVET.items():
        for scene in chosen(f"mmvet {topic}", 2, lambda s, t=topic: ask(s, t, random.Random("trial")) is not None):
            asked = ask(scene, topic, rng)
            assert asked is not None  # noqa: S101  `chosen` has seen to it
            _add_mmvet(folder, entries, scene, asked.question, asked.answer, capability)
    for scene in chosen("mmvet describe", 2):
        answer = "<AND>".join(f"{thing.color} {thing.shape}" for thing in scene.things)
        _add_mmvet(folder, entries, scene, "What objects are in the image?", answer, ["rec", "gen"])
    put(folder / "mm-vet/mm-vet.json", json.dumps(entries, indent=4) + "\n")


def _add_mmvet(
    folder: Path, entries: dict[str, Any], scene: Scene, question: str, answer: str, capability: list[str]
) -> None:
    key = f"v1_{len(entries)}"
    put(folder / f"mm-vet/images/{key}.png", png(scene))
    entries[key] = {
        "imagename": f"{key}.png",
        "question": question,
        "answer": answer,
        "imagesource": "drawn by this project",
        "capability": capability,
    }


def write_coco_caption(folder: Path) -> None:
    """Five sentences a picture in COCO's caption format."""
    images, annotations = [], []
    for scene in chosen("coco caption", 10):
        image = coco_id(scene)
        file = f"COCO_val2014_{image:012d}.jpg"
        put(folder / "coco_caption/val2014" / file, jpeg(scene))
        images.append({"id": image, "file_name": file, "width": SIDE, "height": SIDE, "license": 1})
        for sentence in questions.short_captions(scene)[:5]:
            annotations.append({"image_id": image, "id": len(annotations) + 1, "caption": sentence})
    licenses = [{"id": 1, "name": "the license of this project", "url": ""}]
    info = {"description": "Scenes in COCO's caption format", "version": "1.0"}
    content = {"info": info, "images": images, "licenses": licenses, "annotations": annotations, "type": "captions"}
    put_json(folder / "coco_caption/captions_karpathy_test.json", content)


def write_nocaps(folder: Path) -> None:
    """Ten sentences a picture in COCO's caption format, in three domains."""
    images, annotations = [], []
    for place, scene in enumerate(chosen("nocaps", 6)):
        open_images = f"{number(scene, 2**64):016x}"
        put(folder / f"nocaps/val/{open_images}.jpg", jpeg(scene))
        row = {
            "license": 0,
            "coco_url": "",
            "file_name": f"{open_images}.jpg",
            "height": SIDE,
            "width": SIDE,
            "id": place,
        }
        domain = ("in-domain", "near-domain", "out-domain")[place % 3]
        images.append({**row, "open_images_id": open_images, "date_captured": "2018-11-06 11:04:33", "domain": domain})
        for sentence in questions.short_captions(scene):
            annotations.append({"image_id": place, "id": len(annotations), "caption": sentence})
    content = {"licenses": [], "info": {"description": "Scenes in NoCaps' format", "version": "0.1"}}
    put_json(folder / "nocaps/nocaps_val_4500_captions.json", {**content, "images": images, "annotations": annotations})


def write_flickr30k(folder: Path) -> None:
    """Five sentences a picture in Karpathy's format; one picture belongs to another split."""
    images = []
    sentences = itertools.count()
    for place, scene in enumerate(chosen("flickr30k", 7)):
        file = f"{number(scene, 10**10)}.jpg"
        put(folder / "flickr30k/flickr30k-images" / file, jpeg(scene))
        said = [
            {"tokens": re.findall(r"\w+", raw.lower()), "raw": raw, "imgid": place, "sentid": next(sentences)}
            for raw in questions.short_captions(scene)[:5]
        ]
        row = {"sentids": [sentence["sentid"] for sentence in said], "imgid": place, "sentences": said}
        images.append({**row, "split": "val" if place == 2 else "test", "filename": file})
    put_json(folder / "flickr30k/dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})


def write_textcaps(folder: Path) -> None:
    """One row a sentence, each with all five of its picture; the pictures are TextVQA's."""
    rows = []
    for scene in _textvqa_scenes():
        sentences = questions.short_captions(scene)[:4] + questions.short_captions(scene)[5:6]
        image = f"{number(scene, 2**64):016x}"
        for sentence in sentences:
            row = {"caption_str": sentence, "caption_id": len(rows) + 1, "image_id": image, "image_classes": ["Sign"]}
            row |= {"caption_tokens": re.findall(r"\w+", sentence.lower()), "reference_strs": sentences}
            row |= {"flickr_original_url": "", "flickr_300k_url": "", "image_width": SIDE, "image_height": SIDE}
            rows.append({**row, "image_name": image, "image_path": f"train/{image}", "set_name": "val"})
    head = {"dataset_type": "val", "dataset_name": "textcaps", "dataset_version": "0.1"}
    put_json(folder / "textcaps/TextCaps_0.1_val.json", {**head, "data": rows})


# =============================================================================
# All of them
# =============================================================================

WRITERS: tuple[Callable[[Path], None], ...] = (
    write_pope, write_gqa, write_mme, write_vqav2, write_scienceqa, write_textvqa, write_mmbench, write_seed,
    write_mmvet, write_coco_caption, write_nocaps, write_flickr30k, write_textcaps,
)  # fmt: skip


def write_all(folder: Path) -> None:
    """Write the samples of every benchmark into a data folder."""
    for writer in WRITERS:
        writer(folder)
