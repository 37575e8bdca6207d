"""MMBench: golden readings, circular credit, both file forms, the sheet for the server, and refused files."""

from __future__ import annotations

import base64
import csv
import io
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from vlmamba_eval.answer_files import read_answer_file
from vlmamba_eval.dataset import Dataset, read_folder, read_hub
from vlmamba_eval.hub import Hub
from vlmamba_eval.images import read_image
from vlmamba_eval.manifest import DataIdentity
from vlmamba_eval.task import LETTER_ANSWER
from vlmamba_eval.tasks.mmbench import SUBMISSION, TASKS
from vlmamba_eval.tasks.options import read_choice, read_choice_vlmevalkit
from vlmamba_eval.types import DataError, Sample

MMBENCH, OCTOBER, CHINESE = TASKS
Scores = dict[tuple[str, str], float]
COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category", "split")


def picture(name: str = "") -> str:
    return base64.b64encode(name.encode().ljust(60, b".")).decode()


def row(index: int, options: str = "red blue green", answer: str = "A", **changes: Any) -> dict[str, Any]:
    letters = dict(zip("ABCD", options.split(), strict=False))
    row = {"index": index, "question": "Which?", "answer": answer, "category": "ocr", "l2-category": "perception"}
    return {**row, **letters, "image": picture(str(index % 1_000_000)), "split": "dev", **changes}


def circle(base: int) -> list[dict[str, Any]]:
    """Three passes of one question: the options turn to the right, the letter moves with them."""
    turns = ("red blue green", "green red blue", "blue green red")
    return [row(k * 1_000_000 + base, options, "ABC"[k]) for k, options in enumerate(turns)]


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    file = io.StringIO()
    writer = csv.writer(file, delimiter="\t", lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[row.get(name, "") for name in columns] for row in rows])
    return file.getvalue()


def load(root: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> list[Sample]:
    (root / "mmbench").mkdir(exist_ok=True)
    (root / "mmbench/mmbench_dev_20230712.tsv").write_text(table(rows, columns), encoding="utf-8")
    return read_folder(MMBENCH, root).samples


@pytest.mark.parametrize(
    ("task", "question", "found"),
    [
        (MMBENCH, "图中是什么颜色？", "this is Chinese: 3 of 3 .* Use --tasks mmbench_cn"),
        (OCTOBER, "图中是什么颜色？", "this is Chinese: 3 of 3 .* Use --tasks mmbench_cn"),
        (CHINESE, "Which colour?", "this is English: 0 of 3 .* Use --tasks mmbench_20231003"),
    ],
)
def test_a_list_in_the_other_language_is_refused_by_name(tmp_path: Path, task: Any, question: str, found: str) -> None:
    (tmp_path / task.files[0]).write_text(table([{**r, "question": question} for r in circle(7)]), encoding="utf-8")
    with pytest.raises(DataError, match=found):
        read_folder(task, tmp_path)


def test_half_a_list_in_chinese_is_no_chinese_list(tmp_path: Path) -> None:
    """An English list may quote Chinese; more than half of a Chinese one is Chinese."""
    for chinese, refused in ((2, False), (3, True)):
        rows = [row(i, question="图中是什么颜色？" if i < chinese else "Which?") for i in range(4)]
        (tmp_path / OCTOBER.files[0]).write_text(table(rows), encoding="utf-8")
        (tmp_path / CHINESE.files[0]).write_text(table(rows), encoding="utf-8")
        task, other = (OCTOBER, CHINESE) if refused else (CHINESE, OCTOBER)
        with pytest.raises(DataError, match=rf"{chinese} of 4 questions hold Chinese characters"):
            read_folder(task, tmp_path)
        assert len(read_folder(other, tmp_path).samples) == 4


# =============================================================================
# Reading an answer
# =============================================================================


def test_every_golden_answer_is_read_as_vlmevalkit_reads_it(golden: Callable[[str], list[dict[str, Any]]]) -> None:
    cases = [line for line in golden("mmbench") if line["kind"] == "infer"]
    assert len(cases) == 646
    for case in cases:
        choices = tuple(case["choices"].values())
        assert (read_choice_vlmevalkit(case["text"], choices) or False) == case["can_infer"], case
        exact = case["text"] if case["text"] in case["choices"] else None
        assert exact == case["exact_letter"]
        if exact:
            assert read_choice(case["text"], choices) == exact


def test_golden_files_score_as_the_official_circles(
    tmp_path: Path, golden: Callable[[str], list[dict[str, Any]]], score: Callable[..., Scores]
) -> None:
    files = [line for line in golden("mmbench") if line["kind"] == "file"]
    assert len(files) == 4
    for case in files:
        rows = [{**r, **r["options"], "image": picture(str(r["index"] % 1_000_000))} for r in case["rows"]]
        samples = load(tmp_path, rows)
        scores = score(MMBENCH, samples, {str(r["index"]): r["prediction"] for r in rows})
        exact = case["exact_letter"]
        assert scores["circular_accuracy_exact", "all"] == pytest.approx(100 * exact["circular"], abs=1e-8)
        kit = case["vlmevalkit_no_judge"]
        assert scores["circular_accuracy_vlmevalkit", "all"] == pytest.approx(100 * kit["circular"], abs=1e-8)
        if case["letters_only"]:
            assert scores["circular_accuracy", "all"] == scores["circular_accuracy_exact", "all"]
            assert scores["vanilla_accuracy", "all"] == pytest.approx(100 * exact["pass0"], abs=1e-8)
            assert scores["row_accuracy", "all"] == pytest.approx(100 * exact["all_rows"], abs=1e-8)


@pytest.mark.parametrize(
    ("text", "choices", "letter"),
    [
        ("B", "red blue", "B"),
        (" B\n", "red blue", "B"),
        ("B.", "red blue", "B"),
        ("B. blue", "red blue", "B"),
        ("(B) red", "red blue", "B"),
        ("B) blue", "red blue", "B"),
        ("B: I think", "red blue", "B"),
        ("B, the blue one", "red blue", "B"),
        ("C", "red blue", None),  # an option that is not there
        ("b", "red blue", None),
        ("A red thing", "red blue", "A"),  # by its text, not by the article
        ("A blue thing", "red blue", "B"),
        ("A thing", "red blue", None),
        ("It is Blue.", "red blue", "B"),
        ("red or blue", "red blue", None),
        ("reddish", "red blue", None),  # inside a word
        ("financial", "nan bank", None),
        ("", "red blue", None),
        ("red", "red red", None),  # two equal options
        ("**B**", "red blue", "B"),
        ("The answer is (B).", "red blue", "B"),
        ("Answer: B", "red blue", "B"),
        ("[B]", "red blue", "B"),
        (r"\boxed{B}", "red blue", "B"),
        (r"$\boxed{\text{B}}$", "red blue", "B"),
        ("Ｂ", "red blue", "B"),
        ("（Ｂ）", "red blue", "B"),
        ("答案是B", "red blue", "B"),
        ("答案：B。", "red blue", "B"),
        ("选B", "red blue", "B"),
        ("the answer is b", "red blue", "B"),
        ("(b)", "red blue", "B"),
        ('"B"', "red blue", "B"),
        ("“B.”", "red blue", "B"),
        ("Option B.", "red blue", "B"),
        ("choice (B)", "red blue", "B"),
        ("Option C", "red blue", None),  # an option that is not there
        ("(b)", "(b) (a)", "A"),  # an option's own text
        ("the answer is a thing", "red blue", None),  # an article
        ("A. red\nB. blue\nThe answer is B", "red blue", "B"),  # the options repeated first
        ("The answer is A. No: the answer is B.", "red blue", "B"),  # what it concludes with
        ("A. red is wrong, so B. blue", "red blue", None),  # two letters, and nothing said
        ("A. red\nB. blue", "red blue", None),
    ],
)
def test_the_documented_rules_read_these_answers(text: str, choices: str, letter: str | None) -> None:
    assert read_choice(text, choices.split()) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B one two three", "B"),  # one of the last four words
        ("B one two three four", None),
        ("is ab it", "A"),  # an option's text in one that is twice as long as all options
        ("is ab it?", None),
        ("answer is **c", None),  # not there
        ("Failed to obtain answer via API B", None),
        ("Failed to obtain answer via API", None),
        ("I can't process this file. B", "Z"),
        ("Z", "Z"),
        ("A and B", None),
    ],
)
def test_vlmevalkits_reading_at_its_limits(text: str, letter: str | None) -> None:
    assert read_choice_vlmevalkit(text, ("ab", "cd")) == letter


def test_of_options_that_contain_each_other_the_longer_one_counts() -> None:
    assert read_choice("It is a black cat.", ("cat", "black cat")) == "B"
    assert read_choice("It is a cat.", ("cat", "black cat")) == "A"
    assert read_choice("C++ (of course)", ("C", "C++")) == "B"


# =============================================================================
# Circular credit
# =============================================================================


@pytest.mark.parametrize(
    ("model", "circular", "vanilla", "rows"),
    [
        ("gold", 100.0, 100.0, 100.0),
        ("A", 0.0, 100.0, 100 / 3),
        ("B", 0.0, 0.0, 100 / 3),
        ("", 0.0, 0.0, 0.0),
        ("red", 100.0, 100.0, 100.0),
    ],
)
def test_degenerate_models_get_their_closed_form_scores(
    tmp_path: Path, score: Callable[..., Scores], model: str, circular: float, vanilla: float, rows: float
) -> None:
    samples = load(tmp_path, [*circle(1), *circle(2)])
    random.Random(0).shuffle(samples)
    scores = score(MMBENCH, samples, {s.id: str(s.target) if model == "gold" else model for s in samples})
    assert scores["circular_accuracy", "all"] == circular
    assert scores["circular_accuracy_exact", "all"] == (0.0 if model == "red" else circular)
    assert scores["vanilla_accuracy", "all"] == vanilla
    assert scores["row_accuracy", "all"] == pytest.approx(rows)


def test_one_wrong_or_missing_pass_costs_the_whole_question(tmp_path: Path, score: Callable[..., Scores]) -> None:
    samples = load(tmp_path, [*circle(1), *circle(2)])
    texts = {s.id: str(s.target) for s in samples}
    assert score(MMBENCH, samples, {**texts, "1000002": "A"})["circular_accuracy", "all"] == 50.0
    del texts["1000002"]
    scores = score(MMBENCH, samples, texts)
    assert scores["circular_accuracy", "all"] == 50.0
    assert scores["vanilla_accuracy", "all"] == 100.0


def test_questions_that_share_a_picture_are_counted_one_by_one(tmp_path: Path, score: Callable[..., Scores]) -> None:
    rows = [{**r, "image": picture("same")} for r in (*circle(1), *circle(2))]
    samples = load(tmp_path, rows)
    assert len({s.image.key for s in samples if s.image}) == 1
    texts = {s.id: str(s.target) if s.id.endswith("1") else "" for s in samples}
    assert score(MMBENCH, samples, texts)["circular_accuracy", "all"] == 50.0


def test_abilities_are_reported_by_circles(tmp_path: Path, score: Callable[..., Scores]) -> None:
    other = [{**r, "category": "image_scene", "l2-category": "coarse"} for r in circle(2)]
    samples = load(tmp_path, [*circle(1), *other])
    scores = score(MMBENCH, samples, {s.id: str(s.target) for s in samples if s.id.endswith("1")})
    assert scores["circular_accuracy", "category/ocr"] == scores["circular_accuracy", "l2/perception"] == 100.0
    assert scores["circular_accuracy", "category/image_scene"] == scores["circular_accuracy", "l2/coarse"] == 0.0


def test_the_order_of_rows_changes_nothing(samples_folder: Path, score: Callable[..., Scores]) -> None:
    samples = read_folder(MMBENCH, samples_folder).samples
    texts = {s.id: random.Random(s.id).choice([str(s.target)] * 9 + ["A"]) for s in samples}
    before = score(MMBENCH, samples, texts)
    random.Random(1).shuffle(samples)
    assert score(MMBENCH, samples, dict(reversed(texts.items()))) == pytest.approx(before)
    assert 0 < before["circular_accuracy", "all"] < before["row_accuracy", "all"]


# =============================================================================
# Files
# =============================================================================


def test_the_prompt_is_llavas_byte_for_byte(tmp_path: Path) -> None:
    plain, hinted = load(tmp_path, [row(1, "red blue"), row(2, hint="Look.", question="Which  one?")])
    assert MMBENCH.prompt(plain) == f"Which?\nA. red\nB. blue\n{LETTER_ANSWER}"
    assert MMBENCH.prompt(hinted) == f"Look.\nWhich  one?\nA. red\nB. blue\nC. green\n{LETTER_ANSWER}"
    assert CHINESE.prompt(plain) == "Which?\nA. red\nB. blue\n请直接回答选项字母。"


def test_likelihood_ranks_the_letters_of_the_options(tmp_path: Path) -> None:
    samples = load(tmp_path, [row(1, "red blue"), row(2, "a b c d")])
    assert [MMBENCH.continuations(s) for s in samples] == [("A", "B"), ("A", "B", "C", "D")]


def test_cells_that_exports_write_for_nothing_are_absent_and_others_survive(tmp_path: Path) -> None:
    """LLaVA's script takes the texts nan and none for absent, in any case; pandas takes NA and null too."""
    one, two = load(tmp_path, [row(1, "NA null"), row(2, "NA null nan None", hint="nan")])
    assert one.choices == two.choices == ("NA", "null")
    assert MMBENCH.prompt(one) == MMBENCH.prompt(two)


def test_a_hole_among_the_options_is_refused_with_its_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"option D is there and option C before it is not"):
        load(tmp_path, [row(1, "a b") | {"D": "three"}])


def test_two_to_four_options_and_tabs_or_lines_inside_cells_are_read(tmp_path: Path) -> None:
    two, four = load(tmp_path, [row(1, "a b"), row(2, "a b c d", question='Two\nlines,\ta "tab"')])
    assert (len(two.choices), len(four.choices)) == (2, 4)
    assert four.question == 'Two\nlines,\ta "tab"'


def test_passes_share_one_picture_in_memory(tmp_path: Path) -> None:
    first, *others = load(tmp_path, circle(1))
    assert all(s.image is first.image for s in others)
    assert first.image is not None
    assert read_image(first.image).startswith(b"1.")


def test_vlmevalkits_references_to_another_rows_picture_are_followed(tmp_path: Path) -> None:
    rows = circle(7)
    rows[1]["image"] = rows[2]["image"] = "7"
    for order in (rows, rows[::-1]):
        samples = load(tmp_path, order)
        assert len({s.image for s in samples}) == 1


def test_the_hubs_rows_load_as_the_october_list(hub: Callable[..., Hub]) -> None:
    rows = []
    for r in circle(3):
        del r["image"], r["l2-category"]
        rows.append({**r, "D": "nan", "hint": "nan", "L2-category": "perception"})
    samples = read_hub(OCTOBER, hub({("lmms-lab-encoder/MMBench", "en", "dev"): rows})).samples
    assert [s.id for s in samples] == ["3", "1000003", "2000003"]
    assert {s.choices[0] for s in samples} == {"red", "green", "blue"}
    assert len({s.image.key for s in samples if s.image}) == 1
    assert samples[0].groups == ("pass 0", "l2/perception", "category/ocr")
    assert OCTOBER.prompt(samples[0]) == f"Which?\nA. red\nB. blue\nC. green\n{LETTER_ANSWER}"
    with pytest.raises(DataError, match="the hub holds no copy of this list"):
        read_hub(MMBENCH, hub({}))


def test_the_bundled_samples_load_with_all_their_passes(samples_folder: Path) -> None:
    samples = read_folder(MMBENCH, samples_folder).samples
    passes = [len([s for s in samples if s.fields["base"] == base]) for base in {s.fields["base"] for s in samples}]
    assert set(passes) >= {3, 4}
    assert all(s.image and read_image(s.image).startswith(b"\xff\xd8") for s in samples)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"B": "", "C": ""}, "expected 2 to 4 options in columns A to D, found 1"),
        ({"answer": "D"}, "field 'answer' should be one of A, B, C, found 'D'"),
        ({"answer": "red"}, "found 'red'"),
        ({"index": "1.5"}, "field 'index' should be a whole number"),
        ({"image": "12"}, "the index of the row that does; found '12'"),
        ({"image": ""}, "should hold a picture in base64"),
        ({"index": 1_000_001}, "repeats question 1, whose last pass is missing"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path, [row(5), {**row(1), **changes}])
    assert "mmbench_dev_20230712.tsv:3" in str(error.value)


@pytest.mark.parametrize(
    ("task", "name", "asked"),
    [
        (OCTOBER, "mmbench_dev_en_20231003.tsv", "Which?"),
        (OCTOBER, "MMBench_DEV_EN.tsv", "Which?"),
        (CHINESE, "mmbench_dev_cn_20231003.tsv", "图中是什么颜色？"),
        (CHINESE, "MMBench_DEV_CN.tsv", "图中是什么颜色？"),
    ],
)
def test_the_later_lists_have_two_names_each(tmp_path: Path, task: Any, name: str, asked: str) -> None:
    (tmp_path / "mmbench").mkdir()
    (tmp_path / "mmbench" / name).write_text(table([row(1, question=asked)]), encoding="utf-8")
    assert [s.question for s in read_folder(task, tmp_path).samples] == [asked]


def test_question_0_has_passes_too(tmp_path: Path) -> None:
    samples = load(tmp_path, circle(0))
    assert [(s.id, s.fields["base"], "pass 0" in s.groups) for s in samples] == [
        ("0", 0, True),
        ("1000000", 0, False),
        ("2000000", 0, False),
    ]
    with pytest.raises(DataError, match="index 1000000 repeats question 0, whose last pass is missing"):
        load(tmp_path, circle(0)[1:2])


def test_up_to_64_characters_name_another_row_and_more_are_a_picture(tmp_path: Path) -> None:
    assert len(load(tmp_path, [row(1, image="A" * 65)])) == 1
    with pytest.raises(DataError, match="should hold a picture in base64, or the index of the row"):
        load(tmp_path, [row(1, image="A" * 64)])


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"MMBench's tab-separated file not found"):
        read_folder(MMBENCH, tmp_path)
    with pytest.raises(DataError, match="columns B, image are missing"):
        load(tmp_path, [row(1)], ("index", "question", "A"))
    with pytest.raises(DataError, match=r"index 1 occurs twice; the first is at .*tsv:2"):
        load(tmp_path, [row(1), row(1)])
    with pytest.raises(DataError, match=r"tsv:3: index 1000001 repeats question 1, whose last pass shows another"):
        load(tmp_path, [row(1), row(1_000_001, image=picture("other"))])
    path = tmp_path / "mmbench/mmbench_dev_20230712.tsv"
    path.write_bytes(table([row(1)]).encode().replace(b"Which?", b"Wh\xefch?"))
    with pytest.raises(DataError, match=r"tsv:2: not UTF-8"):
        read_folder(MMBENCH, tmp_path)
    path.write_text(table([row(1)]) + "2\tWhich?\n")
    with pytest.raises(DataError, match=r"tsv:3: expected 12 cells, found 2"):
        read_folder(MMBENCH, tmp_path)


def test_llavas_answer_file_joins_by_index(
    tmp_path: Path, put: Callable[[str, Any], Path], score: Callable[..., Scores]
) -> None:
    """Its saved prompt lacks the last line."""
    samples = load(tmp_path, circle(1))
    rows = [
        {
            "question_id": int(s.id),
            "round_id": 0,
            "prompt": MMBENCH.prompt(s).removesuffix(f"\n{LETTER_ANSWER}"),
            "text": s.target,
            "options": list(s.choices),
            "option_char": ["A", "B", "C"],
            "answer_id": s.id,
            "model_id": "llava-v1.5-13b",
            "metadata": {},
        }
        for s in reversed(samples)
    ]
    answers = read_answer_file(
        Dataset(MMBENCH, samples, DataIdentity(len(samples), "")), put("llava-v1.5-13b.jsonl", rows)
    )
    texts = {key: answer.generation.text for key, answer in answers.items() if answer.generation}
    assert score(MMBENCH, samples, texts)["circular_accuracy_exact", "all"] == 100.0


# =============================================================================
# Submission
# =============================================================================


def test_the_sheet_has_the_servers_columns_and_the_texts_as_they_are(tmp_path: Path) -> None:
    samples = load(tmp_path, [row(1, "=1+1 NA"), row(2), row(3), row(4)])
    texts = {"1": "=SUM(A1)", "2": "nan", "3": "http://example.org", "4": "bell \x07 and \ud800_x0041_\r\nline"}
    (path,) = MMBENCH.submit(samples, texts, tmp_path, None)
    sheet = openpyxl.load_workbook(path).worksheets[0]
    header, *rows = sheet.iter_rows(values_only=True)
    assert header == SUBMISSION == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert rows[0] == (1, "Which?", "=1+1", "NA", None, None, "=SUM(A1)", "A", "dev")
    assert [r[6] for r in rows] == ["=SUM(A1)", "nan", "http://example.org", "bell  and \nline"]
    assert sheet["G2"].data_type == "s"
