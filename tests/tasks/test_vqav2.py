from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmamba_eval.dataset import load_dataset, read_folder, read_hub
from vlmamba_eval.images import read_image
from vlmamba_eval.tasks.vqa_accuracy import evalai
from vlmamba_eval.tasks.vqav2 import TASKS, VqaV2TestDev
from vlmamba_eval.types import DataError, Sample

Score = Callable[..., dict[tuple[str, str], float]]
Put = Callable[..., Path]
VAL, TEST_DEV = TASKS
SUFFIX = "\nAnswer the question using a single word or phrase."
QUESTIONS = "vqav2/v2_OpenEnded_mscoco_{}_questions.json"
ANNOTATIONS = "vqav2/v2_mscoco_val2014_annotations.json"


def question(number: int, image: int = 1) -> dict[str, Any]:
    return {"image_id": image, "question": f"What is number {number}?", "question_id": number}


def annotation(number: int, answers: list[str], kind: str = "other") -> dict[str, Any]:
    return {
        "question_id": number,
        "image_id": 1,
        "question_type": "what is",
        "answer_type": kind,
        "multiple_choice_answer": answers[0],
        "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers, 1)],
    }


GOLD = [["yes"] * 10, ["Two"] * 3 + ["2.5"] * 7, ["a red car"] * 9 + ["car"]]


@pytest.fixture
def val(put: Put, tmp_path: Path) -> Path:
    put(QUESTIONS.format("val2014"), {"questions": [question(n, image) for n, image in ((10, 1), (11, 1), (20, 2))]})
    kinds = ("yes/no", "number", "other")
    rows = [annotation(n, a, k) for n, a, k in zip((10, 11, 20), GOLD, kinds, strict=True)]
    put(ANNOTATIONS, {"annotations": rows[::-1]})
    return tmp_path


def load(root: Path) -> list[Sample]:
    return read_folder(VAL, root).samples


def names(samples: list[Sample]) -> list[str]:
    return [Path(s.image.key).name for s in samples if s.image]


# -- scoring -----------------------------------------------------------------------------------------------------------


def test_every_golden_answer_gets_the_official_accuracy(
    golden: Callable[[str], Any], put: Put, tmp_path: Path, score: Score
) -> None:
    cases = [case for case in golden("vqav2") if case["kind"] == "score"]
    assert len(cases) == 790
    rows = [annotation(i, case["answers"], case["answer_type"]) for i, case in enumerate(cases)]
    for row, case in zip(rows, cases, strict=True):
        row["question_type"] = case["question_type"]
    put(QUESTIONS.format("val2014"), {"questions": [question(i) for i in range(len(cases))]})
    put(ANNOTATIONS, {"annotations": rows})
    samples = load(tmp_path)
    for sample, case in zip(samples, cases, strict=True):
        assert (len(set(sample.target or ())) == 1) == case["all_equal"]
        verdict = VAL.grade(sample, case["prediction"])
        assert round(100 * verdict.also["raw"], 2) == pytest.approx(case["accuracy_percent"], abs=1e-9), case
        submitted = VAL.grade(sample, evalai(case["prediction"]))
        assert verdict.credit == submitted.also["raw"], "the headline is the official score of the processed answer"

    (mean,) = [case for case in golden("vqav2") if case["kind"] == "mean"]
    values = score(VAL, samples, {s.id: case["prediction"] for s, case in zip(samples, cases, strict=True)})
    expected = {"all": mean["overall"]}
    expected |= {f"answer_type/{name}": value for name, value in mean["per_answer_type"].items()}
    expected |= {f"question_type/{name}": value for name, value in mean["per_question_type"].items()}
    ours = {category: value for (metric, category), value in values.items() if metric == "accuracy_raw"}
    assert ours == pytest.approx(expected, abs=0.005 + 1e-9), "the official script gives two decimals"


def test_nothing_of_a_raw_answer_is_normalised_where_the_annotators_agree(val: Path) -> None:
    unanimous, *_, mixed = load(val)
    texts = ("yes", "Yes", "yes.", " yes\n")
    assert [VAL.grade(unanimous, text).also["raw"] for text in texts] == [1, 0, 0, 1]
    assert [VAL.grade(unanimous, text).credit for text in texts] == [1, 1, 1, 1], "LLaVA submits all of them as yes"
    for text, worth in (("Red car.", 1), ("the red\tcar", 1), ("car", 0.3)):
        verdict = VAL.grade(mixed, text)
        assert (verdict.credit, verdict.also["raw"]) == pytest.approx((worth, worth))


def test_the_processed_answer_is_the_headline_and_the_raw_one_stands_beside_it(val: Path, score: Score) -> None:
    values = score(VAL, load(val), {"10": "Yes", "11": "2.5", "20": "It's a car"})
    assert VAL.info.headline == "accuracy"
    assert (values["accuracy", "all"], values["accuracy_raw", "all"]) == pytest.approx((200 / 3, 100 / 3))
    assert (values["accuracy", "answer_type/yes/no"], values["accuracy_raw", "answer_type/yes/no"]) == (100, 0)


def test_degenerate_models_have_closed_form_scores(val: Path, score: Score) -> None:
    samples = load(val)
    gold = score(VAL, samples, {s.id: str(s.target[0]) for s in samples if s.target})
    assert gold["accuracy", "all"] == pytest.approx(100 * (1 + 0.9 + 1) / 3)
    assert gold["accuracy_min3", "all"] == 100
    assert gold["accuracy", "answer_type/number"] == pytest.approx(90)
    always_yes = score(VAL, samples, {s.id: "yes" for s in samples})
    assert always_yes["accuracy", "all"] == pytest.approx(100 / 3)
    assert always_yes["accuracy", "answer_type/yes/no"] == 100
    assert always_yes["accuracy", "question_type/what is"] == pytest.approx(100 / 3)
    for texts in ({}, {s.id: "" for s in samples}, {s.id: "No" for s in samples}):
        assert score(VAL, samples, texts)["accuracy", "all"] == 0


def test_the_order_of_rows_changes_nothing(val: Path, score: Score) -> None:
    samples = load(val)
    texts = {"10": "yes", "11": "two", "20": "car"}
    assert score(VAL, samples[::-1], texts) == score(VAL, samples, texts)


def test_an_answer_of_which_nothing_is_left_is_invalid(val: Path) -> None:
    sample = load(val)[0]
    assert [VAL.grade(sample, text).valid for text in ("no", "", "the", "?")] == [True, False, False, False]


# -- loading -----------------------------------------------------------------------------------------------------------


def test_questions_and_annotations_are_joined_by_id(val: Path) -> None:
    samples = load(val)
    assert [s.id for s in samples] == [s.answer_key for s in samples] == ["10", "11", "20"]
    assert samples[1].groups == ("answer_type/number", "question_type/what is")
    assert [s.target for s in samples] == [tuple(answers) for answers in GOLD]
    assert names(samples) == [f"COCO_val2014_{i:012d}.jpg" for i in (1, 1, 2)]
    assert samples[0].image
    assert samples[0].image.where.endswith("vqav2/val2014/COCO_val2014_000000000001.jpg)")
    assert VAL.prompt(samples[0]) == "What is number 10?" + SUFFIX


def test_the_bundled_samples_load() -> None:
    samples = load_dataset(VAL, "samples").samples
    assert {s.groups[0] for s in samples} == {"answer_type/yes/no", "answer_type/number", "answer_type/other"}
    assert all(s.image and read_image(s.image)[:2] == b"\xff\xd8" for s in samples)


def test_the_hubs_rows_share_their_pictures(hub: Callable[..., Any]) -> None:
    name = "lmms-lab-encoder/VQAv2"
    rows = [{**annotation(n, answers), **question(n)} for n, answers in zip((10, 11), GOLD, strict=False)]
    samples = read_hub(VAL, hub({(name, None, "validation"): rows})).samples
    assert [(s.id, s.target) for s in samples] == [("10", tuple(GOLD[0])), ("11", tuple(GOLD[1]))]
    assert len({s.image.key for s in samples if s.image}) == 1
    tables = {(name, None, "testdev"): [question(10)], (name, None, "test"): [question(9), question(10)]}
    loaded = read_hub(TEST_DEV, hub(tables))
    (sample,) = loaded.samples
    assert sample.target is None
    assert loaded.extra() == [9, 10]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"questions": []}, "field 'annotations' is missing"),
        ({"annotations": [annotation(10, GOLD[0])]}, r"questions\[1\]: .* has no annotation of question 11"),
        ({"annotations": [annotation(10, ["a"] * 9)]}, r"annotations\[0\]: expected 10 answers, found 9"),
        (
            {"annotations": [{**annotation(10, GOLD[0]), "answers": GOLD[0]}]},
            r"field 'answers' should be a list of obj",
        ),
        ({"annotations": [{**annotation(10, GOLD[0]), "answers": None}]}, r"field 'answers' should be a list of obj"),
        ({"annotations": [annotation(10, [1] * 10)]}, r"field 'answers' should be a list of obj"),  # type: ignore[list-item]
        ({"annotations": [{"question_id": 10}]}, r"annotations\[0\]: field 'answers' is missing"),
        (b'{"annotations": "\xff"}', "annotations.json:1: not UTF-8"),
    ],
)
def test_a_bad_annotation_file_is_an_error_that_names_its_row(val: Path, put: Put, content: Any, message: str) -> None:
    put(ANNOTATIONS, content)
    with pytest.raises(DataError, match=message):
        load(val)


def test_a_question_that_occurs_twice_is_refused(val: Path, put: Put) -> None:
    put(QUESTIONS.format("val2014"), {"questions": [question(10), question(10)]})
    with pytest.raises(DataError, match=r"questions\[1\]: question id '10' occurs twice"):
        load_dataset(VAL, str(val))


def test_a_wrong_question_file_is_refused(val: Path, put: Put) -> None:
    put(QUESTIONS.format("val2014"), [question(10)])
    with pytest.raises(DataError, match="expected an object with named fields"):
        load(val)


# -- test-dev ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def test_dev(put: Put, tmp_path: Path) -> Path:
    put(QUESTIONS.format("test-dev2015"), {"questions": [question(11), question(20, 2)]})
    put(QUESTIONS.format("test2015"), {"questions": [question(n) for n in (10, 11, 12, 20)]})
    return tmp_path


def test_the_submission_covers_every_test_question(test_dev: Path) -> None:
    task = VqaV2TestDev(test_questions=4)
    loaded = read_folder(task, test_dev)
    samples = loaded.samples
    assert [(s.id, s.target) for s in samples] == [("11", None), ("20", None)]
    assert names(samples) == [f"COCO_test2015_{i:012d}.jpg" for i in (1, 2)]
    (path,) = task.submit(samples, {"11": "It's a dog, isnt it?", "20": "Two."}, test_dev, loaded.extra)
    assert json.loads(path.read_text()) == [
        {"question_id": 10, "answer": ""},
        {"question_id": 11, "answer": "it 's dog isn't it"},
        {"question_id": 12, "answer": ""},
        {"question_id": 20, "answer": "2"},
    ]


def test_a_submission_over_other_questions_is_refused(test_dev: Path, put: Put) -> None:
    loaded = read_folder(TEST_DEV, test_dev)
    samples = loaded.samples
    with pytest.raises(DataError, match="test2015 should hold 447,793 questions"):
        TEST_DEV.submit(samples, {}, test_dev, loaded.extra)
    put(QUESTIONS.format("test2015"), {"questions": [question(10), question(11)]})
    with pytest.raises(DataError, match="1 of test-dev missing"):
        VqaV2TestDev(test_questions=2).submit(samples, {}, test_dev, loaded.extra)
    (test_dev / QUESTIONS.format("test2015")).unlink()
    with pytest.raises(DataError, match=r"VQAv2's questions \(test2015\) not found"):
        TEST_DEV.submit(samples, {}, test_dev, loaded.extra)


def test_llavas_question_files_do_as_well(test_dev: Path, put: Put) -> None:
    official = read_folder(TEST_DEV, test_dev).samples
    for split, numbers in (("test-dev2015", (11, 20)), ("test2015", (10, 11, 12, 20))):
        rows = [
            {
                "question_id": n,
                "image": f"COCO_test2015_{n // 10:012d}.jpg",
                "text": f"What is number {n}?{SUFFIX}",
                "category": "default",
            }
            for n in numbers
        ]
        put(f"llava/vqav2/llava_vqav2_mscoco_{split}.jsonl", rows)
    loaded = read_folder(TEST_DEV, test_dev / "llava")
    samples = loaded.samples
    assert [(s.id, TEST_DEV.prompt(s)) for s in samples] == [(s.id, TEST_DEV.prompt(s)) for s in official]
    assert names(samples) == names(official)
    assert loaded.extra() == [10, 11, 12, 20]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "../1.jpg"}, "image name .* leaves the image folder"),
        ({"text": "What?"}, "field 'text' should end with the line"),
        ({"question_id": "11"}, "field 'question_id' should be a whole number"),
    ],
)
def test_a_bad_row_of_llavas_question_file_is_named(
    put: Put, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    row = {
        "question_id": 11,
        "image": "COCO_test2015_000000000001.jpg",
        "text": f"What?{SUFFIX}",
        "category": "default",
    }
    put("vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", [row, {**row, **change}])
    with pytest.raises(DataError, match=rf"test-dev2015.jsonl:2: {message}"):
        read_folder(TEST_DEV, tmp_path)


# -- full size ---------------------------------------------------------------------------------------------------------

FULL = """
import json, random, resource, sys, time
from vlmamba_eval.dataset import load_dataset, read_folder, read_hub
from vlmamba_eval.score import grade
from vlmamba_eval.stats import summarise
from vlmamba_eval.types import Answer, Generation
from vlmamba_eval.tasks.vqav2 import VqaV2

task, start = VqaV2(), time.process_time()
dataset = load_dataset(task, sys.argv[1], allow_partial=True)  # random content
loaded, rng = time.process_time(), random.Random(1)
answers = {s.id: Answer(s.id, Generation(rng.choice(s.target), "", 1, "eos")) for s in dataset.samples}
before = time.process_time()
rows = summarise(task, grade(dataset, answers))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"load": loaded - start, "score": time.process_time() - before, "gib": peak, "n": rows[0].n}))
"""


@pytest.mark.slow
def test_val_at_full_size_loads_and_scores_in_time_and_memory(tmp_path: Path) -> None:
    """214,354 questions over 40,504 pictures with random content: under 30 s and 3 GB, scores under 60 s."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["yes", "no", "2"] * 500 + ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(20_000)]
    asked, labelled = [], []
    for number in range(214_354):
        image, place = number % 40_504, number // 40_504
        key = image * 1000 + place
        best, rest = rng.choice(words), rng.choices(words, k=3)
        agree = rng.random() < 0.3
        answers = [
            best if agree or rng.random() < 0.6 else rng.choice(rest) + rng.choice(["", "'s", ", x"])
            for _ in "0123456789"
        ]
        row = annotation(key, answers, rng.choice(["yes/no", "number", "other"]))
        asked.append(json.dumps({**question(key, image), "question": " ".join(rng.choices(words, k=6))}))
        labelled.append(json.dumps({**row, "image_id": image, "question_type": f"type {rng.randrange(65)}"}))
    (tmp_path / "vqav2").mkdir()
    (tmp_path / QUESTIONS.format("val2014")).write_text(f'{{"questions": [{", ".join(asked)}]}}')
    (tmp_path / ANNOTATIONS).write_text(f'{{"annotations": [{", ".join(labelled)}]}}')
    run = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    seen = json.loads(run.stdout)
    assert seen["n"] == 214_354
    assert seen["load"] < 30
    assert seen["gib"] < 3 * 1e9 / 2**30
    assert seen["score"] < 60
