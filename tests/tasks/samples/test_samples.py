"""The bundled samples: true of their scenes, in the official formats, and written alike every time."""

from __future__ import annotations

import csv
import io
import itertools
import json
import random
import re
from base64 import b64decode
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from vlmamba_eval.tasks.samples import DATA, questions, writers
from vlmamba_eval.tasks.samples.scene import (
    COLORS,
    REGIONS,
    SHAPES,
    SPANISH,
    Scene,
    Sign,
    Thing,
    draw,
    random_scene,
    scenes,
)
from vlmamba_eval.tasks.samples.training import PATCH_CLASSES, example, patch_labels

csv.field_size_limit(10_000_000)

# =============================================================================
# An answerer of its own: it reads the question's words and looks at the scene
# =============================================================================

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}


def fitting(scene: Scene, noun: str) -> list[Thing]:
    words = set(noun.replace("crosses", "cross").split())
    words = {word.removesuffix("s") if word.removesuffix("s") in (*SHAPES, "object") else word for word in words}
    words -= {"a", "an", "the", "object"}
    return [thing for thing in scene.things if words <= {thing.shape, thing.color, thing.size}]


def the(scene: Scene, noun: str) -> Thing:
    (thing,) = fitting(scene, noun)
    return thing


def beside(scene: Scene, first: Thing, side: str, second: Thing) -> bool:
    if "left" in side or "right" in side:
        return first.column < second.column if "left" in side else first.column > second.column
    return first.row < second.row if side == "above" else first.row > second.row


def yes(truth: bool) -> str:
    return "yes" if truth else "no"


def answer(scene: Scene, question: str) -> str:
    """What is true of the scene, found from the wording alone."""
    q = question.strip()
    sign = scene.sign
    if m := re.fullmatch(r"Are there both an? (.*) and an? (.*) in the image\?", q):
        return yes(bool(fitting(scene, m[1])) and bool(fitting(scene, m[2])))
    if m := re.fullmatch(r"Is there an? (\w+) or an? (\w+) in the image\?", q):
        return yes(bool(fitting(scene, m[1])) or bool(fitting(scene, m[2])))
    if m := re.fullmatch(r"Is there only one (.*) in the image\?", q):
        return yes(len(fitting(scene, m[1])) == 1)
    if m := re.fullmatch(r"Are there (\w+) (\w+) in the image\?", q):
        return yes(len(fitting(scene, m[2])) == NUMBERS[m[1]])
    if m := re.fullmatch(r"Is there (an? .*) in (?:the|this) image\?", q):
        return yes(bool(fitting(scene, m[1])))
    if m := re.fullmatch(r"How many (\w+) are in the image\?", q):
        return str(len(fitting(scene, m[1])))
    if q == "What color is the background?":
        return scene.background
    if m := re.fullmatch(r"Is the background (\w+)\?", q):
        return yes(scene.background == m[1])
    if m := re.fullmatch(r"(?:What does the sign say|Does the sign say \"(\w+)\")\?", q):
        assert sign is not None
        return yes(sign.text == m[1]) if m[1] else sign.text.lower()
    if m := re.fullmatch(r"Is it right to translate the Spanish word in the image as \"(\w+)\"\?", q):
        assert sign is not None
        return yes(SPANISH[sign.text] == m[1])
    if q == "What does the Spanish word on the sign mean in English?":
        assert sign is not None
        return SPANISH[sign.text]
    if m := re.fullmatch(r"(?:What is the sum on the sign|Is the answer to the arithmetic .* image (\d+))\?", q):
        assert sign is not None
        total = sum(map(int, sign.text.split("+")))
        return yes(total == int(m[1])) if m[1] else str(total)
    if m := re.fullmatch(r"Is the value of the Python expression in the image (\w+)\?", q):
        assert sign is not None
        left, right = map(int, sign.text.split(">"))
        return yes(str(left > right) == m[1])
    if q == "Are all objects of the same shape?":
        return yes(len({thing.shape for thing in scene.things}) == 1)
    if m := re.fullmatch(r"Do the (.*) and the (.*) have the same color\?", q):
        return yes(the(scene, m[1]).color == the(scene, m[2]).color)
    if m := re.fullmatch(r"Which is larger, the (.*) or the (.*)\?", q):
        large = [noun for noun in (m[1], m[2]) if the(scene, noun).size == "large"]
        assert len(large) == 1
        return large[0]
    if m := re.fullmatch(r"Where in the image is the (.*)\?", q):
        return the(scene, m[1]).region
    if m := re.fullmatch(r"What shape is at the (.*) of the image\?", q):
        (thing,) = [t for t in scene.things if REGIONS[t.row][t.column] == m[1]]
        return thing.shape
    if m := re.fullmatch(r"What shape is (to the left of|to the right of|above|below) the (.*)\?", q):
        (thing,) = [t for t in scene.things if beside(scene, t, m[1], the(scene, m[2]))]
        return thing.shape
    if m := re.fullmatch(r"What (color|shape|size) is the (.*)\?", q):
        return getattr(the(scene, m[2]), m[1])
    if m := re.fullmatch(r"Is the (.*) (to the left or to the right of|above or below) the (.*)\?", q):
        first, second = the(scene, m[1]), the(scene, m[3])
        sides = ("left", "right") if "left" in m[2] else ("above", "below")
        (side,) = [side for side in sides if beside(scene, first, side, second)]
        return side
    if m := re.fullmatch(r"Is the (.*) (to the left of|to the right of|above|below) the (.*)\?", q):
        return yes(beside(scene, the(scene, m[1]), m[2], the(scene, m[3])))
    if m := re.fullmatch(r"Is the (.*?) (?:at|in|on) the (.*?)(?: row| column| side)? of the image\?", q):
        thing = the(scene, m[1])
        if "middle" in m[2]:
            return yes((thing.row if " row " in q else thing.column) == 1)
        edge = {"top": thing.row == 0, "bottom": thing.row == 2, "left": thing.column == 0, "right": thing.column == 2}
        return yes(edge[m[2]])
    if m := re.fullmatch(r"Is the (.*) (\w+) or (\w+)\?", q):
        (color,) = [color for color in (m[2], m[3]) if the(scene, m[1]).color == color]
        return color
    if m := re.fullmatch(r"Is the (.*) (?:an? )?(\w+)\?", q):
        thing = the(scene, m[1].removesuffix(" a").removesuffix(" an"))
        return yes(m[2] in (thing.shape, thing.color, thing.size))
    raise AssertionError(f"nobody taught the test to answer {q!r}")


def test_every_answer_is_true_of_its_scene():
    rng = random.Random("answers")
    asked = 0
    for _ in range(400):
        scene = random_scene(rng)
        for topic in (*questions.OPEN, *questions.YES_NO):
            found = questions.ask(scene, topic, rng)
            if found:
                asked += 1
                assert answer(scene, found.question) == found.answer, (scene.content(), found.question)
                assert found.answer not in found.others
    assert asked > 6000


@pytest.mark.parametrize("topic", questions.YES_NO)
def test_yes_no_questions_are_asked_with_the_wanted_answer(topic: str):
    rng = random.Random(topic)
    found = {True: 0, False: 0}
    for _ in range(300):
        scene = random_scene(rng)
        want = rng.random() < 0.5
        asked = questions.ask(scene, topic, rng, want)
        if asked:
            assert asked.answer == yes(want)
            found[want] += 1
    assert min(found.values()) > 3


@pytest.mark.parametrize("topic", ["exist", "count_is", "color_is", "place_is", "background_is", "both", "either"])
def test_the_words_of_a_question_alone_dont_tell_its_answer(topic: str):
    """Saying for each wording what is most often right must stay near a coin: a high score needs the picture."""
    rng = random.Random(topic)
    said: dict[str, Counter[str]] = {}
    for _ in range(3000):
        pair = writers.mme_pair(random_scene(rng), topic, rng)
        for asked in pair or ():
            wording = re.sub("|".join((*SHAPES, *COLORS)), "X", asked.question)
            said.setdefault(wording, Counter())[asked.answer] += 1
    best = sum(max(counts.values()) for counts in said.values())
    assert best < 0.6 * sum(counts.total() for counts in said.values())


# =============================================================================
# The files
# =============================================================================


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same files with each scene's value in the place of its picture."""
    folder = tmp_path_factory.mktemp("described")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("jpeg", "png"):
            patch.setattr(writers, kind, lambda scene: json.dumps(asdict(scene)).encode())
        writers.write_all(folder)
    return folder


def scene_at(path: Path) -> Scene:
    return scene_of(path.read_text())


def scene_of(text: str) -> Scene:
    scene = json.loads(text)
    things = tuple(Thing(**thing) for thing in scene["things"])
    return Scene(scene["background"], things, Sign(**scene["sign"]) if scene["sign"] else None)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def read_tsv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text()), delimiter="\t"))


def test_pope_labels_are_true_and_splits_share_their_yes_questions(described: Path):
    yes_questions = {}
    for split in ("random", "popular", "adversarial"):
        rows = [json.loads(line) for line in (described / f"pope/coco/coco_pope_{split}.json").read_text().splitlines()]
        assert [row["question_id"] for row in rows] == list(range(1, len(rows) + 1))
        for row in rows:
            assert answer(scene_at(described / "pope/val2014" / row["image"]), row["text"]) == row["label"]
        yes_questions[split] = {(row["image"], row["text"]) for row in rows if row["label"] == "yes"}
        assert 2 * len(yes_questions[split]) == len(rows)
    assert yes_questions["random"] == yes_questions["popular"] == yes_questions["adversarial"]


def test_gqa_answers_are_true_and_entries_have_the_official_fields(described: Path):
    entries = read_json(described / "gqa/testdev_balanced_questions.json")
    images = [entry["imageId"] for entry in entries.values()]
    assert len([1 for _ in itertools.groupby(images)]) > 2 * len(set(images)), "the file is not grouped by image"
    for entry in entries.values():
        assert answer(scene_at(described / f"gqa/images/{entry['imageId']}.jpg"), entry["question"]) == entry["answer"]
        assert set(entry) == {
            "semantic", "entailed", "equivalent", "question", "imageId", "isBalanced", "groups", "answer",
            "semanticStr", "annotations", "types", "fullAnswer",
        }  # fmt: skip
        for place, step in enumerate(entry["semantic"]):
            assert all(need < place for need in step["dependencies"])


def test_mme_has_one_yes_and_one_no_for_every_picture_of_fourteen_categories(described: Path):
    base = described / "MME/MME_Benchmark_release_version"
    assert len(list(base.iterdir())) == 14
    for text in base.rglob("*.txt"):
        folder = text.parent.parent / "images" if text.parent.name == "questions_answers_YN" else text.parent
        (picture,) = [path for path in folder.glob(f"{text.stem}.*") if path.suffix != ".txt"]
        lines = text.read_text().splitlines()
        assert sorted(line.split("\t")[1] for line in lines) == ["No", "Yes"]
        for line in lines:
            question, label = line.split("\t")
            assert question.endswith(" Please answer yes or no.")
            asked = question.removesuffix(" Please answer yes or no.")
            assert answer(scene_at(picture), asked) == label.lower()


def test_vqav2_gold_is_what_most_of_ten_annotators_say(described: Path):
    asked = read_json(described / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json")["questions"]
    gold = read_json(described / "vqav2/v2_mscoco_val2014_annotations.json")["annotations"]
    disagreements = 0
    for question, annotation in zip(asked, gold, strict=True):
        assert question["question_id"] == annotation["question_id"]
        scene = scene_at(described / f"vqav2/val2014/COCO_val2014_{question['image_id']:012d}.jpg")
        assert answer(scene, question["question"]) == annotation["multiple_choice_answer"]
        answers = [item["answer"] for item in annotation["answers"]]
        assert [item["answer_id"] for item in annotation["answers"]] == list(range(1, 11))
        assert answers.count(annotation["multiple_choice_answer"]) >= 7
        disagreements += len(set(answers)) > 1
    assert 0 < disagreements < len(gold)


def test_scienceqa_answers_are_true_and_some_problems_have_no_picture(described: Path):
    problems = read_json(described / "scienceqa/problems.json")
    test = read_json(described / "scienceqa/pid_splits.json")["test"]
    assert {problem["split"] for problem in problems.values()} == {"train", "val", "test"}
    assert {len(problems[pid]["choices"]) for pid in test} >= {2, 3, 4, 5}
    without = 0
    for pid in test:
        problem = problems[pid]
        right = problem["choices"][problem["answer"]]
        assert len(set(problem["choices"])) == len(problem["choices"])
        if problem["image"]:
            scene = scene_at(described / f"scienceqa/images/test/{pid}/image.png")
            assert answer(scene, problem["question"]) == right
        else:
            without += 1
            assert {fact[0]: fact[1] for fact in writers.TEXT_FACTS}[problem["question"]] == right
    assert without >= 4


def test_textvqa_answers_are_true_and_one_picture_has_no_recognised_words(described: Path):
    rows = read_json(described / "textvqa/TextVQA_0.5.1_val.json")["data"]
    recognised = read_json(described / "textvqa/TextVQA_Rosetta_OCR_v0.2_val.json")["data"]
    assert {row["image_id"] for row in rows} == {row["image_id"] for row in recognised}
    assert any(not row["ocr_tokens"] for row in recognised)
    for row in rows:
        scene = scene_at(described / f"textvqa/train_images/{row['image_id']}.jpg")
        question = row["question"].capitalize().replace("spanish", "Spanish").replace("english", "English")
        assert row["answers"].count(answer(scene, question)) >= 7


def test_mmbench_passes_rotate_to_the_right_and_keep_the_answer(described: Path):
    rows = read_tsv(described / "mmbench/mmbench_dev_20230712.tsv")
    by_index = {int(row["index"]): row for row in rows}
    assert len(by_index) == len(rows)
    sizes = set()
    for index, row in by_index.items():
        options = [row[letter] for letter in "ABCD" if row[letter]]
        right = row[row["answer"]]
        assert answer(scene_of(b64decode(row["image"]).decode()), row["question"]) == right
        before = by_index.get(index - 1_000_000)
        if before:
            old = [before[letter] for letter in "ABCD" if before[letter]]
            pinned = 1 if "None of the above" in options else 0
            assert options[: len(options) - pinned] == [old[-1 - pinned], *old[: -1 - pinned]]
            assert before[before["answer"]] == right
        sizes.add(len(options))
    assert sizes == {2, 3, 4}


def test_seed_answers_are_true_in_pictures_and_middle_frames(described: Path):
    content = read_json(described / "seed_bench/SEED-Bench.json")
    assert sorted(content["question_type"].values()) == list(range(1, 13))
    for row in content["questions"]:
        if row["data_type"] == "image":
            picture = described / "seed_bench/SEED-Bench-image" / row["data_id"]
        else:
            assert row["question_id"].startswith("v")
            name = f"{row['question_type_id']}_{row['question_id']}.png"
            picture = described / "seed_bench/SEED-Bench-video-image" / name
        assert answer(scene_at(picture), row["question"]) == row[f"choice_{row['answer'].lower()}"]
    pictures = [row["data_id"] for row in content["questions"]]
    assert len(set(pictures)) < len(pictures)


def test_writing_again_gives_the_bundled_files(tmp_path: Path):
    """Annotations byte for byte; pictures within what JPEG decoders of other Pillow versions may differ."""
    writers.write_all(tmp_path)
    names = sorted(path.relative_to(DATA) for path in DATA.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    for name in names:
        new, old = (tmp_path / name).read_bytes(), (DATA / name).read_bytes()
        if new == old:
            continue
        if name.suffix == ".tsv":
            same_but_pictures(read_tsv(tmp_path / name), read_tsv(DATA / name))
        else:
            assert name.suffix not in (".json", ".txt"), name
            assert differs_little(new, old), name


def same_but_pictures(new: list[dict[str, str]], old: list[dict[str, str]]) -> None:
    for left, right in zip(new, old, strict=True):
        assert differs_little(b64decode(left.pop("image")), b64decode(right.pop("image")))
        assert left == right


def differs_little(new: bytes, old: bytes) -> bool:
    left, right = Image.open(io.BytesIO(new)).convert("RGB"), Image.open(io.BytesIO(old)).convert("RGB")
    difference = ImageChops.difference(left, right)
    return left.size == right.size and sum(difference.convert("L").histogram()[25:]) < 0.01 * 192 * 192


def test_the_samples_are_small_and_show_many_scenes():
    files = [path for path in DATA.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3_000_000
    main = [path for path in files if {"gqa", "pope", "MME"} & set(path.parts) and path.suffix in (".jpg", ".png")]
    assert len({path.read_bytes() for path in main}) >= 40


# =============================================================================
# Training and measurement never meet
# =============================================================================


def test_no_sample_scene_is_in_the_training_stream(described: Path):
    """By content, not by seed: the two parts are separated by a hash of what can be seen."""
    bundled = {scene_at(path).content() for path in described.rglob("*") if path.suffix in (".jpg", ".png")}
    rows = read_tsv(described / "mmbench/mmbench_dev_20230712.tsv")
    bundled |= {scene_of(b64decode(row["image"]).decode()).content() for row in rows}
    bundled |= {scene_at(path).content() for path in (described / "seed_bench/SEED-Bench-image").iterdir()}
    assert len(bundled) > 150
    held_out = {scene.content(): scene.held_out for scene in itertools.islice(scenes("any", held_out=True), 50)}
    assert all(held_out.values())
    trained = [example("tiny", number).get("content", "") for number in range(3000)]
    assert not bundled.intersection(trained)
    # Were training to draw from both parts, about 375 of 3000 scenes would lie in the samples' part.
    parts = list(itertools.islice(scenes("tiny", held_out=False), 500))
    assert not any(scene.held_out for scene in parts)
    assert sum(random_scene(random.Random(f"both {n}")).held_out for n in range(3000)) > 250


def test_an_example_follows_from_its_seed_and_number_alone():
    first, again, other = example("a", 7), example("a", 7), example("b", 7)
    assert first["image"].tobytes() == again["image"].tobytes()
    assert first["conversations"] == again["conversations"]
    assert first["conversations"] != other["conversations"]


def test_training_conversations_are_in_llavas_format():
    forms = set()
    for number in range(300):
        row = example("form", number)
        speakers = [turn["from"] for turn in row["conversations"]]
        assert speakers == ["human", "gpt"] * (len(speakers) // 2)
        marks = [turn["value"].count("<image>") for turn in row["conversations"]]
        assert marks == [int("image" in row), *[0] * (len(marks) - 1)]
        forms |= {turn["value"].rsplit("\n", 1)[-1] for turn in row["conversations"][::2]}
    assert {"Answer the question using a single word or phrase."} < forms


def test_patch_labels_name_what_stands_at_a_patch():
    thing = Thing("star", "red", "large", 0, 2)
    labels = patch_labels(Scene("white", (thing,), Sign("CUP", 2)), 8)
    assert PATCH_CLASSES["shape"][labels["shape"][7]] == "star"
    assert labels["color"][0] == 0
    bottom = [PATCH_CLASSES["character"][i] for i in labels["character"][-8:]]
    assert "".join(dict.fromkeys(bottom)) == "CUP"


def test_colors_are_drawn_where_the_scene_says():
    for scene in itertools.islice(scenes("pixels", held_out=True), 40):
        picture = draw(scene)
        for thing in scene.things:
            left, top, right, bottom = thing.box
            # A point inside every shape: in a ring's band, a cross's bar, a star's and a triangle's upper half.
            x, y = (left + right) // 2, (top + bottom) // 2
            inside = picture.getpixel((x, y - int(0.8 * (y - top)) if thing.shape == "ring" else y))
            assert isinstance(inside, tuple)
            assert max(abs(a - b) for a, b in zip(inside, COLORS[thing.color], strict=True)) <= 9


def test_captions_name_the_colors_and_shapes_of_their_scene(described: Path):
    coco = read_json(described / "coco_caption/captions_karpathy_test.json")
    pictures = {row["id"]: described / "coco_caption/val2014" / row["file_name"] for row in coco["images"]}
    said = [(pictures[row["image_id"]], row["caption"]) for row in coco["annotations"]]
    nocaps = read_json(described / "nocaps/nocaps_val_4500_captions.json")
    pictures = {row["id"]: described / "nocaps/val" / row["file_name"] for row in nocaps["images"]}
    said += [(pictures[row["image_id"]], row["caption"]) for row in nocaps["annotations"]]
    for row in read_json(described / "flickr30k/dataset_flickr30k.json")["images"]:
        path = described / "flickr30k/flickr30k-images" / row["filename"]
        said += [(path, sentence["raw"]) for sentence in row["sentences"]]
    for row in read_json(described / "textcaps/TextCaps_0.1_val.json")["data"]:
        assert row["caption_str"] in row["reference_strs"]
        said.append((described / f"textvqa/train_images/{row['image_id']}.jpg", row["caption_str"]))
    assert len(said) > 150
    for path, sentence in said:
        scene = scene_at(path)
        words = set(re.findall(r"\w+", sentence.lower()))
        assert words & set(SHAPES) <= {thing.shape for thing in scene.things}
        assert words & set(COLORS) <= {thing.color for thing in scene.things}
        if "sign" in words:
            assert scene.sign is not None
            assert f'"{scene.sign.text}"' in sentence
