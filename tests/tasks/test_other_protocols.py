"""Cobra's and Mamba-VL's protocols, VizWiz and VSR: prompts to the byte, readings as in the authors' own code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmamba_eval.baselines import published
from vlmamba_eval.folder import Folder
from vlmamba_eval.registry import all_tasks, get_task
from vlmamba_eval.table import tabulate
from vlmamba_eval.tasks.vizwiz import VAL, VizWiz, normalised
from vlmamba_eval.tasks.vsr import Vsr
from vlmamba_eval.types import DataError, Generation, Likelihood, Loaded, Sample

Put = Callable[..., Path]
SHORT = "Answer the question using a single word or phrase."


def sample(question: str, target: Any = None, **more: Any) -> Sample:
    return Sample("1", None, question, target, **more)


def golden_rows(golden: Callable[[str], list[dict[str, Any]]], kind: str) -> list[dict[str, Any]]:
    return [row for row in golden("other_protocols") if row["kind"] == kind]


# =============================================================================
# Prompts
# =============================================================================


@pytest.mark.parametrize(
    ("task", "asked", "expected"),
    [
        ("vqav2_cobra", sample("What is it?"), f"What is it?\n{SHORT}"),
        ("gqa_cobra", sample("Is it overcast?"), f"Is it overcast?\n{SHORT}"),
        ("pope_cobra", sample("Is there a dog in the image?"), f"Is there a dog in the image?\n{SHORT}"),
        ("vizwiz", sample("What is this?"),
         f"What is this?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT}"),
        ("vsr", sample("The bed is next to the cat."),
         'Based on the image, is this statement "True" or "False"? The bed is next to the cat.\n'
         'Respond with "True" or "False" directly.'),
        ("textvqa_cobra", sample("what brand?", fields={"words": ("A", "B")}),
         f"Reference OCR token: A, B\n{SHORT}\nWhat brand?\n{SHORT}"),
        ("textvqa_cobra", sample("what brand?", fields={"words": ()}),
         f"Reference OCR token: \n{SHORT}\nWhat brand?\n{SHORT}"),
        ("pope_mambavl", sample("Is there a TV here?"), f"{SHORT}\nIs there a tv here?\n"),
        ("textvqa_mambavl", sample("what brand", fields={"words": ("A", "B")}),
         f"{SHORT}\nOCR text:\nA B\nQuestion: What brand.\nAnswer: "),
        ("vqav2_mambavl", sample(" is it a TV?"), f"{SHORT}\nQuestion: Is it a tv?\nAnswer: "),
        ("gqa_mambavl", sample("Is it overcast"), f"{SHORT}\nQuestion: Is it overcast.\nAnswer: "),
        ("gqa_mmmamba", sample("Is it overcast?"), f"Is it overcast? {SHORT}"),
        ("mme_mmmamba", sample("Is it a dog?"), f"Is it a dog? Please answer yes or no.{SHORT}"),
        ("refcoco", sample("navy shirt"),
         'Please provide the bounding box coordinate of the region this sentence describes: "navy shirt"'),
    ],
)  # fmt: skip
def test_prompts_are_the_authors_to_the_byte(task: str, asked: Sample, expected: str) -> None:
    assert get_task(task).prompt(asked) == expected


def test_cobras_prompt_of_textvqa_is_what_its_code_makes_of_llavas_question_file() -> None:
    """vlm_eval/models/cobra.py splits LLaVA's text at the recognised words and puts them in front."""
    llava = f"What brand?\nReference OCR token: A, B\n{SHORT}"
    question, words = llava.split("\nReference OCR token: ")
    expected = f"Reference OCR token: {words}\n{question}" + f"\n{SHORT}"
    assert get_task("textvqa_cobra").prompt(sample("what brand?", fields={"words": ("A", "B")})) == expected


def test_a_protocol_of_its_own_is_named_and_shares_no_column() -> None:
    for name, task in all_tasks().items():
        own = name.endswith(("_cobra", "_mambavl", "_mmmamba")) or name.startswith(("vsr", "refcoco"))
        assert (task.info.protocol in ("cobra", "mambavl", "mmmamba")) == own, name
    titles = [task.info.title for task in all_tasks().values()]
    assert len(set(titles)) == len(titles)


def test_published_numbers_stand_under_the_protocol_that_they_were_measured_with() -> None:
    llavas = {name for name, task in all_tasks().items() if task.info.protocol == "llava-1.5"}
    cobras = [row for row in published() if row.model.startswith(("cobra", "ml-mamba")) and row.task != "speed"]
    assert len(cobras) > 80
    assert {row.task for row in cobras} & llavas == {"vizwiz"}  # whose prompt is one and the same
    by_task = {row.task: row.value for row in cobras if row.model == "cobra-3.5b"}
    assert by_task == {
        "vqav2_cobra": 77.8, "gqa_cobra": 62.3, "vizwiz": 49.7, "textvqa_cobra": 58.2,
        "vsr (likelihood)": 58.4, "pope_cobra (likelihood)": 88.4,
        "refcoco": 52.7, "refcoco+": 45.6, "refcocog": 48.9,
    }  # fmt: skip
    controlled = [row for row in published() if row.model.startswith("shaking-up")]
    assert {row.task for row in controlled} & llavas == {"coco_caption", "nocaps", "textcaps"}
    mmmambas = {row.task for row in published() if row.model.startswith("mmmamba")}
    assert {"gqa_mmmamba", "mme_mmmamba"} <= mmmambas
    assert not mmmambas & {"gqa", "mme", "textvqa"}


def test_every_published_number_of_another_split_says_so() -> None:
    for row in published():
        task = all_tasks().get(row.task.removesuffix(" (likelihood)"))
        if task is not None and row.model.startswith(("cobra", "ml-mamba", "shaking-up", "zamba2-vl")):
            assert row.split in (task.info.split, "all") or row.note, row
            assert row.source, row


# =============================================================================
# Readings
# =============================================================================


def test_vizwiz_gives_the_official_accuracy(golden: Callable[[str], list[dict[str, Any]]]) -> None:
    rows = golden_rows(golden, "vizwiz")
    assert len(rows) == 60
    for row in rows:
        credit = VizWiz().grade(sample("?", tuple(row["answers"])), row["answer"]).credit
        assert credit == pytest.approx(row["accuracy"], abs=1e-4), row


def test_vizwiz_normalises_as_its_own_script_does(golden: Callable[[str], list[dict[str, Any]]]) -> None:
    """Each contraction of its table and of VQAv2's, both ways, number words and articles, and some whole answers."""
    rows = golden_rows(golden, "vizwiz normalisation")
    assert len(rows) == 361
    for row in rows:
        assert normalised(row["text"]) == row["normalised"], row


def test_vqav2_is_read_as_cobras_evaluation_reads_it(golden: Callable[[str], list[dict[str, Any]]]) -> None:
    rows = golden_rows(golden, "vqav2_cobra")
    for row in rows:
        credit = get_task("vqav2_cobra").grade(sample("?", tuple(row["answers"])), row["answer"]).credit
        assert credit == pytest.approx(row["accuracy"], abs=1e-9), row
    llava = [get_task("vqav2").grade(sample("?", tuple(row["answers"])), row["answer"]).credit for row in rows]
    differing = [row for row, credit in zip(rows, llava, strict=True) if credit != pytest.approx(row["accuracy"])]
    assert differing  # or there would be no need of a twin


@pytest.mark.parametrize(
    ("text", "credit"), [("No.", 1), ("no", 1), ("N.o,", 1), ("No, it isn't", 0), ("Yes", 0), ("", 0)]
)
def test_gqa_takes_all_punctuation_out(text: str, credit: float) -> None:
    assert get_task("gqa_cobra").grade(sample("?", "no"), text).credit == credit


def test_gqa_of_mambavl_leaves_out_one_full_stop_and_no_case() -> None:
    grade = get_task("gqa_mambavl").grade
    assert [grade(sample("?", "no"), text).credit for text in ("No.", "no", "no..", "no, it is not.")] == [1, 1, 0, 0]


def test_vqav2_of_mambavl_compares_with_gold_answers_as_they_are() -> None:
    grade = get_task("vqav2_mambavl").grade
    answers = ("2",) * 3 + ("two",) * 5 + ("A dog", "dog")
    assert grade(sample("?", answers), "Two.").credit == 0.9  # "2" after normalisation: three annotators, not eight
    assert grade(sample("?", answers), "a dog.").credit == 0.3  # "A dog" keeps its article and is another answer
    assert grade(sample("?", ("yes",) * 10), "Yes").credit == 1


@pytest.mark.parametrize("name", ["vqav2_mambavl", "gqa_mambavl", "textvqa_mambavl"])
def test_a_question_in_mambavls_spelling_is_found_again(name: str) -> None:
    task = get_task(name)
    asked = (sample(text, fields={"words": ("TV",)}) for text in ("is it a TV?", "Is it a tv?"))
    spelt, other = (task.join_key(task.prompt(one)) for one in asked)
    assert spelt == other == "is it a tv?"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("Yes", "yes"), ("Well, yes!", "yes"), ("The answer is no.", "no"), ("yes or no", "other"), ("Eyes", "other"),
     ("", "other")],
)  # fmt: skip
def test_mme_of_mmmamba_looks_for_the_word_anywhere(text: str, parsed: str) -> None:
    verdict = get_task("mme_mmmamba").grade(sample("?", "Yes"), text)
    assert (verdict.parsed, verdict.credit, verdict.valid) == (parsed, parsed == "yes", parsed != "other")


def test_mme_of_mmmamba_sums_categories_as_mme_does(score: Callable[..., Any], samples_folder: Path) -> None:
    task = get_task("mme_mmmamba")
    loaded = task.load(Folder(samples_folder, task.info.folders))
    values = score(task, loaded, {s.id: f"I say {s.target}" for s in loaded.samples})
    assert values["perception", "all"] == 2000


@pytest.mark.parametrize(
    ("text", "parsed", "valid"),
    [("no", "no", True), ("No", "no", True), ("no.", "yes", False), ("nope", "yes", False), ("Yes", "yes", True)],
)
def test_mambavls_pope_knows_one_no(text: str, parsed: str, valid: bool) -> None:
    verdict = get_task("pope_mambavl").grade(sample("?", "no"), text)
    assert (verdict.parsed, verdict.valid) == (parsed, valid)


def test_mambavls_textvqa_leaves_out_the_full_stop() -> None:
    answers = ("dakota",) * 10
    assert get_task("textvqa_mambavl").grade(sample("?", answers), "Dakota.").credit == 1


def test_popes_headline_is_the_mean_accuracy_of_the_lists(score: Callable[..., Any], samples_folder: Path) -> None:
    task = get_task("pope_cobra")
    loaded = task.load(Folder(samples_folder, task.info.folders))
    assert [s.id for s in loaded.samples] == [
        s.id for s in get_task("pope").load(Folder(samples_folder, ("pope",))).samples
    ]
    values = score(task, loaded, {s.id: "Yes" for s in loaded.samples})
    mean = sum(values["accuracy", split] for split in ("random", "popular", "adversarial")) / 3
    assert values["mean_accuracy", "all"] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("text", "parsed"), [("True", "True"), ("false.", "False"), ("It is TRUE", "True"), ("", None)]
)
def test_vsr_reads_true_and_false(text: str, parsed: str | None) -> None:
    verdict = Vsr().grade(sample("?", "True"), text)
    assert verdict.parsed == parsed
    assert verdict.credit == (parsed == "True")
    assert verdict.valid == (parsed is not None)


def test_the_likelier_word_is_the_answer() -> None:
    generation = Generation("No", "", 1, "likelihood", (Likelihood(-2.0, 1), Likelihood(-0.1, 1)))
    task: Any = get_task("pope_cobra")
    assert task.continuations(sample("?")) == ("Yes", "No")
    assert task.grade(sample("?", "no"), generation.text).credit == 1
    assert Vsr().continuations(sample("?")) == ("True", "False")


# =============================================================================
# Files
# =============================================================================


def vizwiz_row(**changes: Any) -> dict[str, Any]:
    answers = [{"answer_confidence": "yes", "answer": "cat"}] * 9 + [{"answer_confidence": "no", "answer": "dog"}]
    row = {"image": "VizWiz_val_00000000.jpg", "question": "What is this?", "answers": answers}
    return row | {"answer_type": "other", "answerable": 1} | changes


def test_vizwiz_is_read_from_its_release(put: Put, score: Callable[..., Any]) -> None:
    unanswerable = vizwiz_row(
        image="b.jpg", answerable=0, answer_type="unanswerable", answers=[{"answer": "unanswerable"}] * 10
    )
    path = put("vizwiz/val.json", [vizwiz_row(), unanswerable])
    loaded = VizWiz().load(Folder(path.parents[1], VAL.folders))
    assert [s.id for s in loaded.samples] == ["VizWiz_val_00000000.jpg", "b.jpg"]
    first = loaded.samples[0]
    assert first.target == ("cat",) * 9 + ("dog",)
    assert first.groups == ("answerable", "answer_type/other")
    assert first.image
    assert first.image.path.endswith("vizwiz/val/VizWiz_val_00000000.jpg")
    values = score(VizWiz(), loaded, {"VizWiz_val_00000000.jpg": "Cat", "b.jpg": "Unanswerable?"})
    assert values["accuracy", "all"] == 100
    values = score(VizWiz(), loaded, {"VizWiz_val_00000000.jpg": "Cat's", "b.jpg": "dog"})
    assert values["accuracy", "unanswerable"] == values["accuracy", "all"] == 0


def test_vizwiz_has_a_second_number_for_the_answer_as_llava_submits_it(put: Put, score: Callable[..., Any]) -> None:
    """TextVQA's processor knows "don't", VizWiz' own table spells it "don`t", which nobody answered."""
    rows = [vizwiz_row(image=f"{i}.jpg", answers=[{"answer": "don't"}] * n + [{"answer": "x"}] * (10 - n))
            for i, n in enumerate((10, 2, 10))]  # fmt: skip
    loaded = VizWiz().load(Folder(put("vizwiz/val.json", rows).parents[1], VAL.folders))
    values = score(VizWiz(), loaded, {"0.jpg": "dont", "1.jpg": "Dont"})  # the third is missing
    assert values["accuracy", "all"] == values["accuracy_min3", "all"] == 0
    assert values["accuracy_submitted", "all"] == pytest.approx(100 * (1 + 0.6) / 3)
    assert values["accuracy_submitted", "answer_type/other"] == pytest.approx(100 * (1 + 0.6) / 3)
    values = score(VizWiz(), loaded, {"0.jpg": "don't", "1.jpg": "don't"})
    assert values["accuracy", "all"] == values["accuracy_submitted", "all"] == pytest.approx(100 * (1 + 0.6) / 3)
    assert values["accuracy_min3", "all"] == pytest.approx(100 * (1 + 2 / 3) / 3)


@pytest.mark.parametrize("name", ["vizwiz", "vsr", "refcoco"])
def test_the_accuracy_over_all_questions_is_the_headline(name: str) -> None:
    task = get_task(name)
    none = tabulate(task, []).total()
    assert [(one.name, one.category) for one in task.metrics(none) if one.headline] == [("accuracy", "all")]
    assert {(one.upper, one.plain, one.group) for one in task.metrics(none)} == {(100.0, False, "all")}


@pytest.mark.parametrize("file", ["vizwiz/val.json", "vizwiz/Annotations/val.json", "val.json", "Annotations/val.json"])
@pytest.mark.parametrize("place", ["vizwiz/val", "vizwiz/val_images", "val", "val_images"])
def test_files_of_vizwiz_may_lie_here(put: Put, tmp_path: Path, file: str, place: str) -> None:
    put(file, [vizwiz_row()])
    put(f"{place}/x.jpg", b"")
    [sample] = VizWiz().load(Folder(tmp_path, VAL.folders)).samples
    assert sample.image is not None
    assert Path(sample.image.path).parent == tmp_path / place


@pytest.mark.parametrize("place", ["vsr/images", "images", "trainval2017", "coco/train2017"])
def test_pictures_of_vsr_may_lie_here(put: Put, tmp_path: Path, place: str) -> None:
    put("vsr/test.jsonl", [{"image": "1.jpg", "caption": "It is near.", "label": 1, "relation": "near"}])
    put(f"{place}/x.jpg", b"")
    [sample] = Vsr().load(Folder(tmp_path, ("vsr",))).samples
    assert sample.image is not None
    assert Path(sample.image.path).parent == tmp_path / place


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (vizwiz_row(answers=[{"answer": "x"}]), "expected 10 answers, found 1"),
        (vizwiz_row(answerable="yes"), "field 'answerable' should be a whole number"),
        (vizwiz_row(image="../x.jpg"), "leaves the image folder"),
        (vizwiz_row(answers=["x"] * 10), "expected an object"),
    ],
)
def test_bad_rows_of_vizwiz_are_named(put: Put, row: dict[str, Any], message: str) -> None:
    path = put("vizwiz/val.json", [row])
    with pytest.raises(DataError, match=message):
        VizWiz().load(Folder(path.parents[1], VAL.folders))


def test_vsr_is_read_from_its_release(put: Put, score: Callable[..., Any]) -> None:
    row = {"image": "1.jpg", "caption": "The bed is next to the cat.", "label": 1, "relation": "next to"}
    path = put("vsr/test.jsonl", [row, {**row, "label": 0, "relation": "under"}])
    loaded: Loaded = Vsr().load(Folder(path.parents[1], ("vsr",)))
    assert [(s.id, s.target, s.groups) for s in loaded.samples] == [
        ("0", "True", ("relation/next to",)),
        ("1", "False", ("relation/under",)),
    ]
    assert {Path(s.image.path) for s in loaded.samples if s.image} == {path.parent / "images" / "1.jpg"}
    assert score(Vsr(), loaded, {"0": "True", "1": "True"})["accuracy", "all"] == 50
    put("vsr/test.jsonl", [{**row, "label": 2}])
    with pytest.raises(DataError, match="field 'label' should be 0 or 1, found 2"):
        Vsr().load(Folder(path.parents[1], ("vsr",)))
