from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmamba_eval.answer_files import read_answer_file
from vlmamba_eval.dataset import load_dataset, read_folder, read_hub
from vlmamba_eval.folder import Folder
from vlmamba_eval.images import read_image
from vlmamba_eval.score import answer_text
from vlmamba_eval.tasks.pope import SPLITS, TASKS
from vlmamba_eval.types import DataError, Generation, ImageRef, Sample

Score = Callable[..., dict[tuple[str, str], float]]
Put = Callable[..., Path]
POPE, POPE_9000 = TASKS
SUFFIX = "\nAnswer the question using a single word or phrase."


def folder(root: Path) -> Folder:
    return Folder(root, POPE.info.folders)


def row(number: int, label: str = "yes", image: str = "COCO_val2014_000000000001.jpg") -> dict[str, Any]:
    return {
        "question_id": number,
        "image": image,
        "text": f"Is there a cat number {number} in the image?",
        "label": label,
    }


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def official(put: Put, tmp_path: Path) -> Path:
    """Each list: four pictures with two questions, every other one a yes."""
    for split in SPLITS:
        rows = [row(i + 1, "yes" if i % 2 == 0 else "no", f"COCO_val2014_{i // 2:012d}.jpg") for i in range(8)]
        put(f"pope/coco/coco_pope_{split}.json", lines(rows))
    return tmp_path


def labelled(labels: list[str], split: str = "popular") -> list[Sample]:
    picture = ImageRef("picture", "picture")
    return [
        Sample(f"{split}/{i}", picture, "Is there a dog?", label, groups=(split,)) for i, label in enumerate(labels)
    ]


# -- scoring -----------------------------------------------------------------------------------------------------------


def test_every_golden_answer_is_read_as_the_official_script_reads_it(golden: Callable[[str], Any]) -> None:
    (sample,) = labelled(["yes"])
    cases = [case for case in golden("pope") if case["kind"] == "label"]
    assert len(cases) == 682
    for case in cases:
        assert POPE.grade(sample, case["text"]).parsed == case["label"], case


def test_every_golden_file_has_the_official_numbers(golden: Callable[[str], Any], score: Score) -> None:
    files = [case for case in golden("pope") if case["kind"] == "file"]
    assert len(files) == 10
    for case in files:
        samples = labelled(case["labels"])
        values = score(POPE, samples, {s.id: t for s, t in zip(samples, case["texts"], strict=True)})
        for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
            expected = case["expected"][name]
            expected = math.nan if expected is None else 100 * expected
            assert values[name, "popular"] == pytest.approx(expected, abs=1e-8, nan_ok=True), (case["name"], name)


@pytest.mark.parametrize(
    ("text", "valid"),
    [("Yes.", True), ("NO", False), ("There is no dog.", True), ("not visible", True), ("", False), ("Nope", False)],
)
def test_an_answer_without_the_word_yes_or_no_is_invalid_though_officially_a_yes(text: str, valid: bool) -> None:
    assert POPE.grade(labelled(["yes"])[0], text).valid is valid


def test_degenerate_models_have_closed_form_scores(official: Path, score: Score) -> None:
    samples = read_folder(POPE, folder(official).root).samples
    always_yes = score(POPE, samples, {s.id: "Yes" for s in samples})
    assert always_yes["mean_f1", "all"] == pytest.approx(200 / 3)
    assert always_yes["mean_accuracy", "all"] == 50
    assert always_yes["yes_ratio", "random"] == 100

    always_no = score(POPE, samples, {s.id: "No" for s in samples})
    assert always_no["mean_f1", "all"] == 0
    assert always_no["pooled_accuracy", "all"] == 50
    assert math.isnan(always_no["precision", "popular"])
    assert always_no["yes_ratio", "popular"] == 0

    empty = score(POPE, samples, {s.id: "" for s in samples})
    assert empty == always_yes, "the official parser reads the empty answer as a yes"

    gold = score(POPE, samples, {s.id: str(s.target) for s in samples})
    assert gold["mean_f1", "all"] == gold["pooled_f1", "all"] == gold["mean_accuracy", "all"] == 100
    assert gold["yes_ratio", "adversarial"] == 50


def test_missing_answers_are_wrong_and_no_answers(official: Path, score: Score) -> None:
    samples = read_folder(POPE, folder(official).root).samples
    none = score(POPE, samples, {})
    assert none["mean_f1", "all"] == none["mean_accuracy", "all"] == 0
    assert math.isnan(none["yes_ratio", "popular"])
    assert math.isnan(none["precision", "popular"]), "of no yes"
    no = score(POPE, samples, {s.id: "No" for s in samples if s.target == "yes"})
    assert math.isnan(no["precision", "random"]), "of no yes, whatever is missing"
    half = score(POPE, samples, {s.id: str(s.target) for s in samples if s.target == "yes"})
    assert half["accuracy", "random"] == 50
    assert half["recall", "random"] == 100
    assert half["precision", "random"] == 50
    assert half["yes_ratio", "random"] == 100


def test_the_order_of_rows_changes_nothing(official: Path, score: Score) -> None:
    samples = read_folder(POPE, folder(official).root).samples
    rng = random.Random(1)
    texts = {s.id: rng.choice(["Yes", "No", "no, it is", "", "maybe"]) for s in samples}
    shuffled = rng.sample(samples, len(samples))
    assert score(POPE, shuffled, texts) == score(POPE, samples, texts)


# -- loading -----------------------------------------------------------------------------------------------------------


def test_the_official_lists_load_with_llavas_ids(official: Path) -> None:
    samples = read_folder(POPE, folder(official).root).samples
    assert len({s.id for s in samples}) == len(samples) == 24
    assert [s.external_id for s in samples[:2]] == ["1", "2"]
    assert {s.id: s.external_id for s in samples}["random/3"] == "10000003"
    assert {s.id: s.external_id for s in samples}["popular/8"] == "20000008"
    assert samples[0].groups == ("adversarial",)
    assert POPE.prompt(samples[0]) == "Is there a cat number 1 in the image?" + SUFFIX
    assert len({s.image.key for s in samples if s.image}) == 4, "the lists share their pictures"
    assert samples[1].where.endswith("coco_pope_adversarial.json:2")


def test_llavas_question_file_alone_gives_the_same_questions_without_labels(official: Path, put: Put) -> None:
    samples = read_folder(POPE, folder(official).root).samples
    rows = [
        {
            "question_id": int(s.external_id),
            "image": Path(s.image.key).name,
            "text": POPE.prompt(s),
            "category": s.groups[0],
        }
        for s in samples
        if s.image
    ]
    put("llava/pope/llava_pope_test.jsonl", rows)
    unlabelled = read_folder(POPE, folder(official / "llava").root).samples
    assert all(s.target is None for s in unlabelled)
    assert [(s.id, s.external_id, s.question) for s in unlabelled] == [
        (s.id, s.external_id, s.question) for s in samples
    ]


def test_the_hubs_list_has_its_own_name(hub: Callable[..., Any]) -> None:
    rows = [
        {
            "question_id": "1",
            "question": "Is there a cat?",
            "answer": label,
            "category": split,
            "image_source": "COCO_1",
        }
        for split, label in (("adversarial", "yes"), ("popular", "no"), ("random", "yes"))
    ]
    samples = read_hub(POPE_9000, hub({("lmms-lab-encoder/POPE", None, "test"): rows})).samples
    assert [(s.id, s.target) for s in samples] == [("adversarial/1", "yes"), ("popular/1", "no"), ("random/1", "yes")]
    assert len({s.image.key for s in samples if s.image}) == 1
    with pytest.raises(DataError, match="no copy of this list"):
        read_hub(POPE, hub({}))
    rows[0]["answer"] = "Yes"
    with pytest.raises(DataError, match=r"row 0: field 'answer' should be one of 'yes', 'no'"):
        read_hub(POPE_9000, hub({("lmms-lab-encoder/POPE", None, "test"): rows}))


def test_the_bundled_samples_load(samples_folder: Path) -> None:
    samples = read_folder(POPE, samples_folder).samples
    assert {s.target for s in samples} == {"yes", "no"}
    assert all(s.image and read_image(s.image)[:2] == b"\xff\xd8" for s in samples)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", r"coco_pope_random.json:1: expected one JSON object a line"),
        ('{"question_id": 1', r"coco_pope_random.json:1: not a valid JSON line"),
        (lines([{**row(1), "label": "maybe"}]), r"random.json:1: field 'label' should be one of 'yes', 'no'"),
        (
            lines([row(1), {"question_id": 2, "image": "a.jpg", "text": "?"}]),
            r"random.json:2: field 'label' is missing",
        ),
        (lines([{**row(1), "question_id": "one"}]), r"random.json:1: field 'question_id' should be a whole number"),
        (lines([row(1, image="../../secret.jpg")]), r"random.json:1: image name .* leaves the image folder"),
        (b'{"question_id": 1}\n\xff\xfe', r"random.json:2: not UTF-8"),
    ],
)
def test_a_bad_list_is_an_error_that_names_file_and_line(
    official: Path, put: Put, content: str | bytes, message: str
) -> None:
    put("pope/coco/coco_pope_random.json", content)
    with pytest.raises(DataError, match=message):
        read_folder(POPE, folder(official).root)


def test_a_missing_list_is_named(official: Path) -> None:
    (official / "pope/coco/coco_pope_popular.json").unlink()
    with pytest.raises(DataError, match="popular list"):
        read_folder(POPE, folder(official).root)


def test_duplicate_questions_and_other_counts_are_refused(official: Path, put: Put) -> None:
    with pytest.raises(DataError, match="expected 8,910 questions"):
        load_dataset(POPE, str(official))
    put("pope/coco/coco_pope_random.json", lines([row(1), row(1)]))
    with pytest.raises(DataError, match=r"random.json:2: question id 'random/1' occurs twice"):
        load_dataset(POPE, str(official))


def test_llavas_file_of_another_benchmark_is_refused(put: Put, tmp_path: Path) -> None:
    put("pope/llava_pope_test.jsonl", [{"question_id": 1, "image": "a.jpg", "text": "Hi", "category": "default"}])
    with pytest.raises(DataError, match="field 'category' should be one of 'adversarial'"):
        read_folder(POPE, folder(tmp_path).root)


def test_likelihood_scoring_ranks_yes_and_no(official: Path) -> None:
    sample = read_folder(POPE, folder(official).root).samples[0]
    assert POPE.continuations(sample) == ("Yes", "No")
    assert POPE.grade(sample, answer_text(POPE, sample, Generation("No", "", 1, "likelihood"))).parsed == "no"


# -- real files --------------------------------------------------------------------------------------------------------


def test_prompts_equal_llavas_on_every_real_question(real: Path) -> None:
    expected = {
        str(question["question_id"]): question["text"]
        for question in map(json.loads, (real / "pope/llava_pope_test.jsonl").read_text().splitlines())
    }
    samples = load_dataset(POPE, str(real)).samples
    assert {s.external_id: POPE.prompt(s) for s in samples} == expected


def test_the_released_llava_answers_have_the_published_score(real: Path, score: Score) -> None:
    expected = json.loads((real / "expected.json").read_text())["pope"]
    dataset = load_dataset(POPE, str(real))
    answers = read_answer_file(dataset, real / "pope/answers/llava-v1.5-13b.jsonl")
    values = score(POPE, dataset.samples, {key: a.generation.text for key, a in answers.items() if a.generation})
    assert values["mean_f1", "all"] == pytest.approx(expected["mean_f1_percent"], abs=1e-6)
    assert values["mean_accuracy", "all"] == pytest.approx(expected["mean_accuracy_percent"], abs=1e-6)
    assert values["pooled_f1", "all"] == pytest.approx(expected["pooled_f1_percent"], abs=1e-6)
    assert values["pooled_accuracy", "all"] == pytest.approx(expected["pooled_accuracy_percent"], abs=1e-6)
    for split, numbers in expected["splits"].items():
        for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
            assert values[name, split] == pytest.approx(100 * numbers[name], abs=1e-6)


def test_the_released_answers_on_the_longer_list_name_the_list_they_belong_to(tmp_path: Path, real: Path) -> None:
    """A list whose random part has rows in the middle that theirs has not, as POPE's head has."""
    target = tmp_path / "pope_9000" / "coco"
    target.mkdir(parents=True)
    for split in SPLITS:
        rows = [json.loads(line) for line in (real / f"pope/coco/coco_pope_{split}.json").read_text().splitlines()]
        if split == "random":
            for i in range(90):
                rows.insert(33 * i + 7, rows[33 * i] | {"text": f"Is there a zeppelin {i} in the image?"})
            rows = [found | {"question_id": number} for number, found in enumerate(rows, 1)]
        (target / f"coco_pope_{split}.json").write_text(lines(rows))
    dataset = load_dataset(POPE_9000, str(tmp_path), allow_partial=True)
    assert len(dataset.samples) == 9_000
    with pytest.raises(DataError, match=r"2,\d\d\d of 8,910 prompts\. It is most likely for `pope`"):
        read_answer_file(dataset, real / "pope/answers/llava-v1.5-13b.jsonl")
