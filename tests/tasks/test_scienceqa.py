"""ScienceQA: the official parser's cases, LLaVA's prompts, every layout, and LLaVA-1.5-13B's published numbers."""

from __future__ import annotations

import io
import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlmamba_eval.dataset import read_folder, read_hub
from vlmamba_eval.folder import Folder
from vlmamba_eval.hub import Hub
from vlmamba_eval.images import read_image
from vlmamba_eval.task import LETTER_ANSWER, LETTERS
from vlmamba_eval.tasks.scienceqa import ALL, TASKS, ScienceQA
from vlmamba_eval.types import DataError, ImageRef, Sample

SCIENCEQA, IMG = TASKS


def sample(pid: str, n_choices: int, answer: int, *, image: bool = False) -> Sample:
    ref = ImageRef(pid, pid) if image else None
    groups = ("context/image",) if image else ("context/none",)
    choices = tuple(f"choice {i}" for i in range(n_choices))
    return Sample(pid, ref, "Which?", LETTERS[answer], choices, groups, {"hint": ""})


def problem(**changes: Any) -> dict[str, Any]:
    row = {"question": "Which is red?", "choices": ["a ball", "a box"], "answer": 1, "hint": "", "image": None}
    return {**row, "subject": "natural science", "grade": "grade2", "split": "test", **changes}


def write(root: Path, problems: Any, test: Any = None) -> Folder:
    folder = root / "scienceqa"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "problems.json").write_text(json.dumps(problems), encoding="utf-8")
    (folder / "pid_splits.json").write_text(json.dumps({"test": list(problems) if test is None else test}))
    return Folder(root, ALL.folders)


# =============================================================================
# Parsing and scoring
# =============================================================================


def test_every_answer_is_read_as_the_official_script_reads_it(golden: Callable[[str], list[dict[str, Any]]]) -> None:
    cases = [line for line in golden("scienceqa") if line["kind"] == "parse"]
    assert len(cases) == 653
    for case in cases:
        verdict = SCIENCEQA.grade(sample("1", case["n_choices"], case["answer_index"]), case["text"])
        assert (verdict.parsed or "FAILED") == case["parsed"], case
        assert verdict.credit == case["correct"], case
        assert verdict.valid == (case["pred_index"] >= 0), case


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("A. ", "A"), ("A.", None), ("A", "A"), ("F", None), ("E. x", "E"), ("The answer is B.", "B"),
     ("The answer is B", None), ("The answer is B. The answer is B.", None), ("a. x", None)],
)  # fmt: skip
def test_a_letter_is_read_at_the_beginning_or_after_the_answer_is(text: str, parsed: str | None) -> None:
    verdict = SCIENCEQA.grade(sample("1", 3, 0), text)
    assert verdict.parsed == parsed
    assert verdict.valid == (parsed in ("A", "B"))  # there are three choices


def test_whole_files_score_as_the_official_script_scores_them(
    golden: Callable[[str], list[dict[str, Any]]], score: Callable[..., dict[tuple[str, str], float]]
) -> None:
    """With a missing answer the IMG share is the one over the problem file: the script drops it there."""
    files = [line for line in golden("scienceqa") if line["kind"] == "file"]
    assert len(files) == 3
    for case in files:
        samples = [
            sample(pid, row["n_choices"], row["answer"], image=row["image"] is not None)
            for pid, row in case["problems"].items()
        ]
        scores = score(SCIENCEQA, samples, {row["question_id"]: row["text"] for row in case["predictions"]})
        if case["official_outcome"] == "ok":
            assert scores["accuracy", "all"] == pytest.approx(case["official"]["acc_percent"], abs=1e-8)
            assert scores["img_accuracy", "all"] == pytest.approx(case["by_problem_file"]["img_acc_percent"])
        else:  # no question with a picture: the script divides by zero, the number is undefined
            assert math.isnan(scores["img_accuracy", "all"])


def test_an_answer_that_cannot_be_read_is_worth_a_guess_where_the_authors_guess(
    score: Callable[..., dict[tuple[str, str], float]],
) -> None:
    """One right of two choices, one wrong of two, one unreadable of four; a missing one is no guess."""
    samples = [sample(str(i), n, 0) for i, n in enumerate((2, 2, 4, 5))]
    scores = score(SCIENCEQA, samples, {"0": "A", "1": "B", "2": "perhaps"})
    assert scores["accuracy_guessing", "all"] == pytest.approx(100 * (1 + 0 + 1 / 4) / 4)
    assert scores["accuracy", "all"] == 25


@pytest.mark.parametrize(("answer", "all_", "img"), [("gold", 100.0, 100.0), ("", 0.0, 0.0), ("A", 40.0, 50.0)])
def test_degenerate_models_get_their_closed_form_scores(
    score: Callable[..., dict[tuple[str, str], float]], answer: str, all_: float, img: float
) -> None:
    samples = [sample(str(i), 3, [0, 1, 0, 2, 1][i], image=i < 2) for i in range(5)]
    texts = {s.id: str(s.target) if answer == "gold" else answer for s in samples}
    random.Random(0).shuffle(samples)
    scores = score(SCIENCEQA, samples, texts)
    assert (scores["accuracy", "all"], scores["img_accuracy", "all"]) == (all_, img)


def test_a_missing_answer_is_wrong_and_stays_in_the_denominator(
    score: Callable[..., dict[tuple[str, str], float]],
) -> None:
    samples = [sample(str(i), 2, 0, image=True) for i in range(4)]
    assert score(SCIENCEQA, samples, {"0": "A", "1": "A"})["img_accuracy", "all"] == 50.0


def test_the_authors_average_is_worth_a_guess_for_what_cannot_be_read(
    score: Callable[..., dict[tuple[str, str], float]],
) -> None:
    samples = [sample(str(i), [2, 4, 5, 2][i], 0, image=True) for i in range(4)]
    scores = score(SCIENCEQA, samples, {"0": "A", "1": "unread", "2": "B"})  # right, guessed, wrong, missing
    assert scores["accuracy", "all"] == 25
    assert scores["accuracy_guessing", "all"] == 100 * (1 + 1 / 4) / 4


def test_the_order_of_questions_and_answers_changes_nothing(
    samples_folder: Path, score: Callable[..., dict[tuple[str, str], float]]
) -> None:
    samples = read_folder(SCIENCEQA, samples_folder).samples
    texts = {s.id: random.Random(s.id).choice("AB") for s in samples}
    before = score(SCIENCEQA, samples, texts)
    random.Random(1).shuffle(samples)
    assert score(SCIENCEQA, samples, dict(reversed(texts.items()))) == pytest.approx(before, nan_ok=True)


def test_llava_13b_gets_its_published_numbers(real: Path, score: Callable[..., dict[tuple[str, str], float]]) -> None:
    """Published: SQA 71.6, on IMG; the exact counts are those of the official script on the released answers."""
    samples = read_folder(SCIENCEQA, real).samples
    lines = (real / "scienceqa/answers/llava-v1.5-13b.jsonl").read_text(encoding="utf-8").splitlines()
    texts = {row["question_id"]: row["text"] for row in map(json.loads, lines)}
    scores = score(SCIENCEQA, samples, texts)
    assert scores["accuracy", "all"] == pytest.approx(100 * 3155 / 4241, abs=1e-8)
    assert scores["img_accuracy", "all"] == pytest.approx(100 * 1445 / 2017, abs=1e-8)
    alone = score(IMG, read_folder(IMG, real).samples, texts)
    assert alone["img_accuracy", "all"] == scores["img_accuracy", "all"]


# =============================================================================
# Prompts
# =============================================================================


def test_the_prompt_is_llavas_byte_for_byte(tmp_path: Path) -> None:
    data = write(tmp_path, {"4": problem(hint="A  hint.\nIt has two lines."), "5": problem(image="image.png")})
    assert [SCIENCEQA.prompt(s) for s in read_folder(SCIENCEQA, data.root).samples] == [
        "Context: A hint.\nIt has two lines.\nWhich is red?\nA. a ball\nB. a box\n" + LETTER_ANSWER,
        "Which is red?\nA. a ball\nB. a box\n" + LETTER_ANSWER,
    ]


def test_all_real_prompts_equal_those_of_llavas_question_file(real: Path) -> None:
    asked = {row["id"]: row for row in json.loads((real / "scienceqa/llava_test_CQM-A.json").read_text())}
    samples = read_folder(SCIENCEQA, real).samples
    assert [s.id for s in samples] == list(asked)
    for s in samples:
        value = asked[s.id]["conversations"][0]["value"].replace("<image>", "").strip()
        assert SCIENCEQA.prompt(s) == f"{value}\n{LETTER_ANSWER}"
        assert (s.image is not None) == ("image" in asked[s.id])


def test_prompts_from_the_official_fields_equal_llavas(real: Path, tmp_path: Path) -> None:
    """357 of 361: in the other four the hint was edited in the copy that has the official fields."""
    asked = {row["id"]: row for row in json.loads((real / "scienceqa/llava_test_CQM-A.json").read_text())}
    problems = json.loads((real / "scienceqa/problems_official_schema_sample.json").read_text())
    same = 0
    for s in read_folder(SCIENCEQA, write(tmp_path, problems).root).samples:
        value = asked[s.id]["conversations"][0]["value"].replace("<image>", "").strip()
        same += SCIENCEQA.prompt(s) == f"{value}\n{LETTER_ANSWER}"
        assert {group.split("/")[0] for group in s.groups} == {"context", "subject", "grade"}
    assert (same, len(problems)) == (357, 361)


# =============================================================================
# Layouts
# =============================================================================


def test_llavas_question_file_alone_gives_the_same_samples(real: Path, tmp_path: Path) -> None:
    (tmp_path / "scienceqa").mkdir()
    shutil.copy(real / "scienceqa/llava_test_CQM-A.json", tmp_path / "scienceqa")
    official = read_folder(SCIENCEQA, real).samples
    for ours, theirs in zip(read_folder(SCIENCEQA, tmp_path).samples, official, strict=True):
        assert SCIENCEQA.prompt(ours) == SCIENCEQA.prompt(theirs)
        assert (ours.id, ours.choices, ours.target, ours.groups) == (
            theirs.id,
            theirs.choices,
            theirs.target,
            theirs.groups,
        )


def test_llavas_question_file_holds_hint_and_choices_in_one_text(tmp_path: Path) -> None:
    asked = "Context: It has\nlines.\nWhich is red?\nA. a ball\nB. a box\nwith a lid\nC. D. neither"
    rows = [
        {"id": "4", "image": "4/image.png", "conversations": [{"value": f"<image>\n{asked}"}, {"value": "C"}]},
        {"id": 5, "image": "5/image.png", "conversations": [{"value": "Why?\nA. a\nB. b\n<image>"}, {"value": "A"}]},
        {"id": "6", "conversations": [{"value": "Context: c\nWhy?\nA. a\nB. b"}, {"value": "B"}]},
        {"id": "7", "conversations": [{"value": "Why?\nA. a\nB. b\nC. c\nD. d\nE. e"}, {"value": "E"}]},
    ]
    (tmp_path / "scienceqa").mkdir()
    (tmp_path / "scienceqa/llava_test_CQM-A.json").write_text(json.dumps(rows))
    samples = read_folder(SCIENCEQA, tmp_path).samples
    first = samples[0]
    assert SCIENCEQA.prompt(first) == f"{asked}\n{LETTER_ANSWER}"
    assert first.choices == ("a ball", "a box\nwith a lid", "D. neither")
    assert first.image is not None
    assert first.image.path.endswith("scienceqa/images/test/4/image.png")
    assert [(s.id, s.target, s.groups) for s in samples] == [
        ("4", "C", ("context/text", "context/image")),
        ("5", "A", ("context/image",)),
        ("6", "B", ("context/text",)),
        ("7", "E", ("context/none",)),
    ]
    assert [s.id for s in read_folder(IMG, tmp_path).samples] == ["4", "5"]


def test_subject_context_and_grade_are_groups(tmp_path: Path) -> None:
    rows = {
        "1": problem(hint="text", image="image.png", grade="grade6", subject="social science"),
        "2": problem(grade="grade7", subject="language science"),
        "3": {name: value for name, value in problem().items() if name not in ("subject", "grade")},
    }
    assert [set(s.groups) for s in read_folder(SCIENCEQA, write(tmp_path, rows).root).samples] == [
        {"context/text", "context/image", "subject/social science", "grade/1-6"},
        {"context/none", "subject/language science", "grade/7-12"},
        {"context/none"},
    ]


def test_only_the_image_list_leaves_out_questions_without_a_picture(tmp_path: Path) -> None:
    data = write(tmp_path, {"1": problem(), "2": problem(image="image.png")})
    assert [s.image is None for s in read_folder(SCIENCEQA, data.root).samples] == [True, False]
    assert [s.id for s in read_folder(IMG, data.root).samples] == ["2"]


def test_the_bundled_samples_load_and_their_pictures_open(samples_folder: Path) -> None:
    samples = read_folder(SCIENCEQA, samples_folder).samples
    assert {bool(s.image) for s in samples} == {True, False}
    assert all(read_image(s.image).startswith(b"\x89PNG") for s in samples if s.image)


def test_the_hubs_rows_load_with_and_without_picture(tmp_path: Path) -> None:
    import datasets
    from PIL import Image

    picture = Image.new("RGB", (4, 4), "red")
    rows = [
        {**problem(), "image": None},
        {**problem(answer=0, hint="Look."), "image": picture},
    ]
    folder = tmp_path / "hub"
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "choices": [datasets.Value("string")],
            "answer": datasets.Value("int8"),
            **{name: datasets.Value("string") for name in ("question", "hint", "subject", "grade", "split")},
        }
    )
    folder.mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(folder / "test.parquet"))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: ScienceQA-FULL\n  data_files: [{split: test, path: test.parquet}]\n---\n"
    )
    task = ScienceQA(replace(ALL, hub=str(folder)), config="ScienceQA-FULL", images_only=False)
    first, second = read_hub(task, Hub()).samples
    assert first.image is None
    assert second.image is not None
    assert Image.open(io.BytesIO(read_image(second.image))).size == (4, 4)
    assert task.prompt(second) == f"Context: Look.\nWhich is red?\nA. a ball\nB. a box\n{LETTER_ANSWER}"


# =============================================================================
# Bad input
# =============================================================================


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choices": ["only one"]}, "field 'choices' should hold 2 to 5 choices, found 1"),
        ({"choices": list("abcdef")}, "found 6"),
        ({"choices": "ab"}, "should be a list of texts"),
        ({"answer": 2}, "a place among the 2 choices, from 0; found 2"),
        ({"answer": -1}, "found -1"),
        ({"answer": "B"}, "should be a whole number"),
        ({"question": None}, "field 'question' should be text"),
        ({"grade": "third"}, "field 'grade' should be one of"),
        ({"subject": "history"}, "field 'subject' should be one of"),
        ({"image": "../../secret.png"}, "leaves the image folder"),
    ],
)
def test_a_bad_problem_is_refused_with_its_place(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    data = write(tmp_path, {"7": problem(**changes)})
    with pytest.raises(DataError, match=message) as error:
        read_folder(SCIENCEQA, data.root)
    assert "problems.json: entry '7'" in str(error.value)


def test_missing_wrong_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ScienceQA's problems not found(.|\n)*problems\.json"):
        read_folder(SCIENCEQA, tmp_path)
    with pytest.raises(DataError, match=r"problem '9' is not in .*problems\.json"):
        read_folder(SCIENCEQA, write(tmp_path, {"7": problem()}, test=["9"]).root)
    with pytest.raises(DataError, match="field 'choices' is missing"):
        read_folder(SCIENCEQA, write(tmp_path, {"7": {"text": "POPE?"}}).root)
    with pytest.raises(DataError, match="expected an object from id to row"):
        read_folder(SCIENCEQA, write(tmp_path, [problem()], test=["0"]).root)
    (tmp_path / "scienceqa/problems.json").write_bytes(b'{"7": {"question": "caf\xe9"}}')
    with pytest.raises(DataError, match=r"problems\.json:1: not UTF-8"):
        read_folder(SCIENCEQA, tmp_path)


def test_llavas_file_without_lettered_choices_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scienceqa").mkdir()
    path = tmp_path / "scienceqa/llava_test_CQM-A.json"
    row = {"id": "4", "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "B"}]}
    path.write_text(json.dumps([row]))
    with pytest.raises(DataError, match="should end with lettered choices"):
        read_folder(SCIENCEQA, tmp_path)
    for turns in (1, 3):
        path.write_text(json.dumps([row | {"conversations": [{"value": "Why?\nA. a\nB. b"}] * turns}]))
        with pytest.raises(DataError, match=f"should hold a question and its answer, found {turns} turns"):
            read_folder(SCIENCEQA, tmp_path)
    row["conversations"] = [{"from": "human", "value": "Which?\nA. a\nB. b"}, {"from": "gpt", "value": "C"}]
    path.write_text(json.dumps([row]))
    with pytest.raises(DataError, match="should be one of 'A', 'B', found 'C'"):
        read_folder(SCIENCEQA, tmp_path)


def test_likelihood_ranks_the_letters_of_the_choices() -> None:
    assert SCIENCEQA.continuations(sample("1", 3, 0)) == ("A", "B", "C")
