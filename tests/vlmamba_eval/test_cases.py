"""Answer files and lists as others have left them: each gives the right value, or a sentence that says what to do.

The files below `cases/` are small ones of our own, made after what users of other programs have reported.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.answered import gold, samples
from vlmamba_eval.answer_files import read_answer_file, score_answers
from vlmamba_eval.dataset import load_dataset
from vlmamba_eval.images import open_image
from vlmamba_eval.registry import get_task
from vlmamba_eval.types import DataError, Scores

CASES = Path(__file__).parent / "cases"


def score(task: str, data: str, answers: str, out: Path) -> Scores:
    dataset = load_dataset(get_task(task), str(CASES / data), allow_partial=True)
    return score_answers(dataset, CASES / answers, out).scores


def headline(scores: Scores) -> float | None:
    return next(score.value for score in scores.scores if score.headline)


RIGHT = [
    ("mmbench", "options-repeated-before-the-answer", "answers-list.jsonl"),
    ("mmbench", "options-repeated-before-the-answer", "answers-reason.jsonl"),
    *(
        ("mmbench", "clear-letters-in-other-dress", f"answers-{dress}.jsonl")
        for dress in ("bold", "boxed", "bracket", "label", "lower", "option", "quoted", "sentence")
    ),
    ("textvqa", "textvqa-official-question-ids", "answers.jsonl"),
]


@pytest.mark.parametrize(("task", "case", "name"), RIGHT, ids=[f"{case}-{name}" for _, case, name in RIGHT])
def test_what_is_right_for_a_reader_is_right(task: str, case: str, name: str, tmp_path: Path) -> None:
    assert headline(score(task, case, f"{case}/{name}", tmp_path)) == 100


def test_answers_of_an_older_list_are_refused_with_the_cause(tmp_path: Path) -> None:
    case = "answers-of-an-older-list"
    with pytest.raises(DataError, match="another version of `pope_9000`, in which the ids have moved"):
        score("pope_9000", case, f"{case}/answers.jsonl", tmp_path)


def test_seed_categories_may_be_named_and_are_kept_without_labels(tmp_path: Path) -> None:
    case = "seed-category-names"
    scores = score("seed_image", case, f"{case}/answers.jsonl", tmp_path)
    assert "UNSCORED" in scores.marks
    assert scores.n_missing == 0


@pytest.mark.parametrize(
    ("task", "case", "name", "missing"),
    [
        ("pope", "lmms-eval-samples-file", "20250101_samples_pope.jsonl", 8),
        ("mmbench", "vlmevalkit-results", "model_MMBench_DEV_EN.tsv", 3),
    ],
)
def test_files_of_other_harnesses_are_read(task: str, case: str, name: str, missing: int, tmp_path: Path) -> None:
    assert score(task, case, f"{case}/{name}", tmp_path).n_missing == missing


@pytest.mark.parametrize("task", ["pope", "gqa", "textvqa", "vqav2"])
def test_reasoning_left_in_the_answers_is_told(task: str, tmp_path: Path) -> None:
    dataset = samples(task)
    rows = [
        {
            "question_id": sample.answer_key,
            "prompt": dataset.task.prompt(sample),
            "text": f"<think>Let me look.</think>{gold(sample).capitalize()}",
        }
        for sample in dataset.samples
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes: list[str] = []
    score_answers(dataset, path, tmp_path, note=notes.append)
    assert any(f"Of {len(rows)} answers {len(rows)} hold reasoning tags" in note for note in notes), notes


def test_unreadable_answers_are_counted_in_the_scores(tmp_path: Path) -> None:
    case = "nothing-was-readable"
    scores = score("pope", case, f"{case}/answers.jsonl", tmp_path)
    counted = [score for score in scores.scores if score.headline]
    assert headline(scores) == pytest.approx(200 / 3)
    assert [score.n_unparsed for score in counted] == [12]


@pytest.mark.parametrize(
    ("task", "name", "texts"),
    [
        ("vqav2", "vqa-results.json", ["yes", "red"]),
        ("vqav2", "indented.json", ["yes"]),
        ("gqa", "gqa-predictions.json", ["no"]),
        ("coco_caption", "coco-results.json", ["A square."]),
        ("mmvet", "mmvet.json", ["sun"]),
        ("seed", "seed-upload.jsonl", ["C"]),
    ],
)
def test_official_result_lists_are_read(task: str, name: str, texts: list[str]) -> None:
    answers = read_answer_file(samples(task), CASES / "official-result-lists" / name)
    assert [answer.generation.text for answer in answers.values() if answer.generation] == texts


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        ("mmbench", "options-with-holes/gap", r"\.tsv:2: option D is there and option C before it is not"),
        ("mmbench", "options-with-holes/gap-answer-d", r"\.tsv:2: option D is there and option C before it is not"),
        ("gqa", "gqa-group-list/data", r"entry '1', field 'groups': field 'global' should be text"),
        ("pope", "long-number/data", r"popular\.json:1: .*thousands of digits"),
    ],
)
def test_lists_that_cannot_be_right_are_refused_by_file_and_row(task: str, data: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(get_task(task), str(CASES / data), allow_partial=True)


def test_cells_that_say_nan_are_no_options() -> None:
    dataset = load_dataset(get_task("mmbench"), str(CASES / "options-with-holes/nan"), allow_partial=True)
    assert all("nan" not in dataset.task.prompt(sample) for sample in dataset.samples)


@pytest.mark.parametrize("kind", ["dataurl", "wrapped"])
def test_pictures_in_base64_are_read_in_either_dress(kind: str) -> None:
    dataset = load_dataset(get_task("mmbench"), str(CASES / "base64-with-wrapping" / kind), allow_partial=True)
    for sample in dataset.samples:
        assert sample.image is not None
        assert open_image(sample.image).mode == "RGB"
