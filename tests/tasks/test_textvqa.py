from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmamba_eval.answer_files import read_answer_file
from vlmamba_eval.dataset import load_dataset, read_folder, read_hub
from vlmamba_eval.images import read_image
from vlmamba_eval.tasks.textvqa import TASKS, TextVqa
from vlmamba_eval.tasks.vqa_accuracy import evalai
from vlmamba_eval.types import DataError, Sample

Score = Callable[..., dict[tuple[str, str], float]]
Put = Callable[..., Path]
AFTER, BEFORE, NONE = TASKS
SUFFIX = "Answer the question using a single word or phrase."
WORDS = {"p1": ["ACME", "Single-Use"], "p2": []}


def row(image: str = "p1", question: str = "what is THE brand?", answers: list[str] | None = None) -> dict[str, Any]:
    return {"question": question, "question_id": 1, "image_id": image, "answers": answers or ["acme"] * 10}


ROWS = [row(), row(question="who?", answers=["bob"] * 3 + ["al"] * 7), row("p2", answers=["x"] * 10)]


@pytest.fixture
def official(put: Put, tmp_path: Path) -> Path:
    put("textvqa/TextVQA_0.5.1_val.json", {"data": ROWS})
    recognised = [{"image_id": image, "ocr_tokens": words} for image, words in WORDS.items()]
    put("textvqa/TextVQA_Rosetta_OCR_v0.2_val.json", {"data": recognised})
    return tmp_path


def load(root: Path, task: TextVqa = AFTER) -> list[Sample]:
    return read_folder(task, root).samples


def llava_row(image: str, text: str) -> dict[str, Any]:
    return {"question_id": image, "image": f"{image}.jpg", "text": text, "category": "default"}


# -- scoring -----------------------------------------------------------------------------------------------------------


def test_every_golden_answer_gets_the_official_credit(golden: Callable[[str], Any], official: Path) -> None:
    cases = [case for case in golden("textvqa") if case["kind"] == "score"]
    assert len(cases) == 724
    credit = []
    for case in cases:
        sample = Sample("1", None, "", tuple(case["answers"]))
        credit.append(AFTER.grade(sample, case["prediction"]).credit)
        assert credit[-1] == pytest.approx(case["score"], abs=1e-9), case
    (mean,) = [case["mean"] for case in golden("textvqa") if case["kind"] == "mean"]
    assert sum(credit) / len(credit) == pytest.approx(mean, abs=1e-9)


def test_degenerate_models_have_closed_form_scores(official: Path, score: Score) -> None:
    samples = load(official)
    gold = score(AFTER, samples, {s.id: str(s.target[0]) for s in samples if s.target})
    assert gold["accuracy", "all"] == pytest.approx(100 * (1 + 0.9 + 1) / 3)
    assert gold["accuracy_min3", "all"] == 100
    assert gold["accuracy", "ocr_tokens/00"] == 100
    assert gold["accuracy", "ocr_tokens/01-05"] == pytest.approx(95)
    for texts in ({}, {s.id: "" for s in samples}, {s.id: "Yes" for s in samples}):
        assert score(AFTER, samples, texts)["accuracy", "all"] == 0
    one = score(AFTER, samples, {samples[1].id: "Bob."})
    assert one["accuracy", "all"] == pytest.approx(30)
    assert one["accuracy_min3", "all"] == pytest.approx(100 / 3)


def test_the_order_of_rows_changes_nothing(official: Path, score: Score) -> None:
    samples = load(official)
    texts = {samples[0].id: "acme", samples[1].id: "bob", samples[2].id: "y"}
    assert score(AFTER, samples[::-1], texts) == score(AFTER, samples, texts)


def test_an_answer_of_which_nothing_is_left_is_invalid(official: Path) -> None:
    sample = load(official)[0]
    assert [AFTER.grade(sample, text).valid for text in ("acme", "", "the", "?!")] == [True, False, False, False]


# -- loading and prompts -----------------------------------------------------------------------------------------------


def test_the_recognised_words_stand_where_the_task_says(official: Path) -> None:
    after, before, none = (task.prompt(load(official, task)[0]) for task in TASKS)
    assert after == f"What is the brand?\nReference OCR token: ACME, Single-Use\n{SUFFIX}"
    assert before == f"Reference OCR token: ACME, Single-Use\nWhat is the brand?\n{SUFFIX}"
    assert none == f"What is the brand?\n{SUFFIX}"
    assert AFTER.prompt(load(official)[2]).split("\n")[1] == "Reference OCR token: "


def test_the_official_files_load(official: Path) -> None:
    samples = load(official)
    assert [s.id for s in samples] == ["p1/What is the brand?", "p1/Who?", "p2/What is the brand?"]
    assert [s.external_id for s in samples] == ["p1", "p1", "p2"]
    assert [s.groups for s in samples] == [("ocr_tokens/01-05",), ("ocr_tokens/01-05",), ("ocr_tokens/00",)]
    assert samples[0].where.endswith("TextVQA_0.5.1_val.json: data[0]")


@pytest.mark.parametrize(
    ("n", "group"),
    [
        (0, "00"),
        (1, "01-05"),
        (5, "01-05"),
        (6, "06-10"),
        (10, "06-10"),
        (11, "11-20"),
        (20, "11-20"),
        (21, "21-50"),
        (50, "21-50"),
        (51, "51+"),
    ],
)
def test_questions_are_grouped_by_the_number_of_recognised_words(official: Path, put: Put, n: int, group: str) -> None:
    rows = [{"image_id": image, "ocr_tokens": ["w"] * n} for image in WORDS]
    put("textvqa/TextVQA_Rosetta_OCR_v0.2_val.json", {"data": rows})
    assert load(official)[0].groups == (f"ocr_tokens/{group}",)


def test_llavas_question_file_supplies_the_words_in_its_own_order(official: Path, put: Put) -> None:
    texts = [f"{r['question'].capitalize()}\nReference OCR token: B, A, x\n{SUFFIX}" for r in ROWS]
    put(
        "textvqa/llava_textvqa_val_v051_ocr.jsonl",
        [llava_row(r["image_id"], t) for r, t in zip(ROWS, texts, strict=True)],
    )
    samples = load(official)
    assert [AFTER.prompt(s) for s in samples] == texts
    assert samples[0].target == ("acme",) * 10
    (official / "textvqa/TextVQA_0.5.1_val.json").unlink()
    unlabelled = load(official)
    assert all(s.target is None for s in unlabelled)
    assert [(s.id, AFTER.prompt(s)) for s in unlabelled] == [(s.id, AFTER.prompt(s)) for s in samples]


def test_without_recognised_words_only_the_task_that_needs_none_loads(official: Path) -> None:
    (official / "textvqa/TextVQA_Rosetta_OCR_v0.2_val.json").unlink()
    assert load(official, NONE)[0].groups == ()
    for task in (AFTER, BEFORE):
        with pytest.raises(DataError, match=r"recognised words of TextVQA's prompts \(either file\) not found"):
            load(official, task)


def test_answers_are_joined_by_picture_and_question_whatever_the_order_of_their_words(official: Path, put: Put) -> None:
    dataset = load_dataset(AFTER, str(official), allow_partial=True)
    samples = dataset.samples
    prompts = [AFTER.prompt(samples[1]), "<image>\n" + AFTER.prompt(samples[0]), AFTER.prompt(samples[2])]
    keys = [samples[1], samples[0], samples[2]]
    rows = [{"question_id": s.external_id, "prompt": p, "text": s.question} for s, p in zip(keys, prompts, strict=True)]
    answers = read_answer_file(dataset, put("answers.jsonl", rows))
    assert {key: a.generation.text for key, a in answers.items() if a.generation} == {s.id: s.question for s in samples}
    for task in TASKS:
        assert (
            task.join_key(BEFORE.prompt(samples[0])) == task.join_key(NONE.prompt(samples[0])) == "what is the brand?"
        )


def test_the_bundled_samples_load() -> None:
    for task in TASKS:
        samples = load_dataset(task, "samples").samples
        assert samples
        assert all(s.image and read_image(s.image)[:2] == b"\xff\xd8" for s in samples)


def test_the_hubs_rows_share_their_pictures(hub: Callable[..., Any]) -> None:
    rows = [{**r, "ocr_tokens": WORDS[r["image_id"]]} for r in ROWS]
    samples = read_hub(AFTER, hub({("lmms-lab-encoder/textvqa", None, "validation"): rows})).samples
    assert len({s.image.key for s in samples if s.image}) == 2
    assert AFTER.prompt(samples[0]) == f"What is the brand?\nReference OCR token: ACME, Single-Use\n{SUFFIX}"
    del rows[2]["ocr_tokens"]
    with pytest.raises(DataError, match="row 2: field 'ocr_tokens' is missing"):
        read_hub(AFTER, hub({("lmms-lab-encoder/textvqa", None, "validation"): rows}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"questions": []}, "field 'data' is missing"),
        ({"data": {}}, "expected a list under 'data'"),
        ({"data": [row(answers=["a"] * 9)]}, r"data\[0\]: expected 10 answers, found 9"),
        ({"data": [{**row(), "answers": "acme"}]}, r"data\[0\]: field 'answers' should be a list of texts"),
        ({"data": [row("p9")]}, r"data\[0\]: .*Rosetta_OCR_v0.2_val.json has no recognised words for picture 'p9'"),
        ({"data": [row("../p1")]}, r"data\[0\]: image name .* leaves the image folder"),
        ({"data": [{"question": "?"}]}, r"data\[0\]: field 'image_id' is missing"),
        (b'{"data": ["\xff"]}', "val.json:1: not UTF-8"),
    ],
)
def test_a_bad_annotation_file_is_an_error_that_names_its_row(
    official: Path, put: Put, content: Any, message: str
) -> None:
    put("textvqa/TextVQA_0.5.1_val.json", content)
    with pytest.raises(DataError, match=message):
        load(official)


def test_a_bad_row_of_llavas_file_is_named(put: Put, tmp_path: Path) -> None:
    put("textvqa/llava_textvqa_val_v051_ocr.jsonl", [llava_row("p1", f"Who?\n{SUFFIX}")])
    with pytest.raises(DataError, match=r"ocr.jsonl:1: field 'text' should be a question, a line 'Reference OCR token"):
        load(tmp_path)


def test_a_question_that_occurs_twice_is_refused(official: Path, put: Put) -> None:
    put("textvqa/TextVQA_0.5.1_val.json", {"data": [row(), row()]})
    with pytest.raises(DataError, match=r"data\[1\]: question id 'p1/What is the brand\?' occurs twice"):
        load_dataset(AFTER, str(official))


# -- real files --------------------------------------------------------------------------------------------------------


def test_prompts_equal_llavas_on_every_real_question(real: Path, put: Put, tmp_path: Path) -> None:
    """Read from LLaVA's file itself, and from the official format with the words that LLaVA's file holds."""
    text = (real / "textvqa/llava_textvqa_val_v051_ocr.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    expected = [r["text"] for r in rows]
    dataset = load_dataset(AFTER, str(real))
    assert not dataset.labelled
    assert [AFTER.prompt(s) for s in dataset.samples] == expected

    words = {r["question_id"]: [w for w in r["text"].split("\n")[1][21:].split(", ") if w] for r in rows}
    put(
        "textvqa/TextVQA_0.5.1_val.json",
        {"data": [row(r["question_id"], r["text"].split("\n")[0].lower()) for r in rows]},
    )
    recognised = [{"image_id": image, "ocr_tokens": tokens} for image, tokens in words.items()]
    put("textvqa/TextVQA_Rosetta_OCR_v0.2_val.json", {"data": recognised})
    samples = load_dataset(AFTER, str(tmp_path)).samples
    assert [AFTER.prompt(s) for s in samples] == expected


def test_the_released_llava_answers_are_matched_and_normalise_to_the_known_texts(real: Path) -> None:
    expected = json.loads((real / "expected.json").read_text())["textvqa"]
    dataset = load_dataset(AFTER, str(real))
    answers = read_answer_file(dataset, real / "textvqa/answers/llava-v1.5-13b.jsonl")
    assert len(answers) == expected["n"]
    lines: list[str] = []
    for key, answer in answers.items():  # in the order of the answer file
        assert answer.generation
        lines.append(f"{key.split('/')[0]}\t{evalai(answer.generation.text)}")
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == expected["normalised_predictions_sha256"]
