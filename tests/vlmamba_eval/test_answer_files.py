"""Answer files of other programs: read by content, joined by what was asked; what is foreign never scores."""

from __future__ import annotations

import gzip
import json
import math
import os
import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.answered import gold, samples
from vlmamba_eval.answer_files import read_answer_file, score_answers
from vlmamba_eval.answers.asking import Asking
from vlmamba_eval.answers.cleaning import clean, remarks
from vlmamba_eval.answers.layouts import read_saved
from vlmamba_eval.dataset import Dataset
from vlmamba_eval.manifest import DataIdentity
from vlmamba_eval.registry import get_task
from vlmamba_eval.submit import submit
from vlmamba_eval.types import Answer, DataError, Generation, Sample

Rows = list[dict[str, Any]]


def saved(dataset: Dataset, text: Callable[[Sample], str] = gold) -> Rows:
    """LLaVA's rows of a model that is always right."""
    return [
        {"question_id": s.answer_key, "prompt": dataset.task.prompt(s), "text": text(s), "model_id": "m"}
        for s in dataset.samples
    ]


def lines(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(dataset: Dataset, path: Path) -> dict[str, str]:
    return {key: a.generation.text for key, a in read_answer_file(dataset, path).items() if a.generation}


def right(dataset: Dataset) -> dict[str, str]:
    return {sample.id: gold(sample) for sample in dataset.samples}


def small(*questions: str, task: str = "vqav2", **fields: Any) -> Dataset:
    """A list of questions with the ids 101, 102, ..."""
    found = [Sample(str(101 + i), None, question, "x", **fields) for i, question in enumerate(questions)]
    return Dataset(get_task(task), found, DataIdentity(len(found), ""))


# -- foreign answers ---------------------------------------------------------------------------------------------------


def test_one_foreign_answer_in_many_is_failed_named_and_makes_the_result_incomplete(tmp_path: Path) -> None:
    pope = samples("pope")
    rows = saved(pope)
    rows[7]["prompt"] = "Is there a zeppelin in the image?\nAnswer the question using a single word or phrase."
    notes: list[str] = []
    outcome = score_answers(pope, lines(tmp_path / "a.jsonl", rows), tmp_path, note=notes.append)
    counts = outcome.scores.n_foreign, outcome.scores.n_error, outcome.scores.n_missing
    assert (counts, outcome.complete) == ((1, 0, 0), False)
    assert "INCOMPLETE" in outcome.scores.marks
    headline = next(score for score in outcome.scores.scores if score.headline)
    assert headline.value is not None
    assert headline.value < 100
    assert headline.n_foreign == 1
    assert len(notes) == 1
    assert "1 of 288 rows are foreign" in notes[0]
    assert "a.jsonl:8: 'Is there a zeppelin" in notes[0]
    failure = read_answer_file(pope, tmp_path / "a.jsonl")[pope.samples[7].id].failure
    assert failure is not None
    assert failure.kind == "foreign"


def test_more_than_one_in_a_hundred_is_refused(tmp_path: Path) -> None:
    pope = samples("pope")
    rows = saved(pope)
    for row in rows[:2]:
        row["prompt"] = "Is there a zeppelin in the image?"
    assert len(texts(pope, lines(tmp_path / "a.jsonl", rows))) == 286
    rows[2]["prompt"] = "Is there a zeppelin in the image?"
    with pytest.raises(DataError, match=r"a\.jsonl:1: 'Is there a zeppelin.*does not ask what POPE asks.*3 of 288"):
        read_answer_file(pope, lines(tmp_path / "a.jsonl", rows))


def test_one_in_a_hundred_may_be_foreign(tmp_path: Path) -> None:
    dataset = small(*(f"What is {i}?" for i in range(200)))
    rows = saved(dataset)
    for row in rows[:2]:
        row["prompt"] = "Who?"
    assert len(texts(dataset, lines(tmp_path / "a.jsonl", rows))) == 198
    rows[2]["prompt"] = "Who?"
    with pytest.raises(DataError, match="nor do 3 of 200 prompts"):
        read_answer_file(dataset, lines(tmp_path / "a.jsonl", rows))


def test_a_foreign_row_beside_the_right_one_is_refused(tmp_path: Path) -> None:
    pope = samples("pope")
    rows = saved(pope)
    stray = rows[0] | {"prompt": "Is there a zeppelin in the image?"}
    with pytest.raises(DataError, match=r"a\.jsonl:289.*the questions under that id have their answers"):
        read_answer_file(pope, lines(tmp_path / "a.jsonl", [*rows, stray]))


def test_answers_of_another_task_name_it(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", saved(samples("gqa")))
    with pytest.raises(DataError, match=r"240 of 240 answers are unknown\. It is most likely for `gqa`.*--task gqa"):
        read_answer_file(samples("pope"), path)


def test_another_task_is_named_if_nine_in_ten_rows_are_its(tmp_path: Path) -> None:
    rows = saved(samples("gqa"))
    for n, found in ((24, "most likely for `gqa`"), (25, "Is this file for another task, or for another list than")):
        path = lines(tmp_path / "a.jsonl", [row | {"prompt": "Is it a zeppelin?"} for row in rows[:n]] + rows[n:])
        with pytest.raises(DataError, match=rf"240 of 240 answers are unknown\. .*{found}"):
            read_answer_file(samples("pope"), path)


def test_a_list_that_is_not_at_hand_is_told_by_its_size(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"question_id": f"x{i}", "text": "A"} for i in range(4_329)])
    with pytest.raises(DataError, match=r"4,329 answers are unknown\. It is most likely for `mmbench_20231003`"):
        read_answer_file(samples("mmbench"), path)


def test_prompts_that_are_asked_under_other_ids_are_of_another_version(tmp_path: Path) -> None:
    gqa = samples("gqa")
    rows = [row | {"question_id": f"moved {row['question_id']}"} for row in saved(gqa)]
    with pytest.raises(DataError, match="another version of `gqa`, in which the ids have moved"):
        read_answer_file(gqa, lines(tmp_path / "a.jsonl", rows))
    rows[3]["prompt"] = "Is it a zeppelin?"
    with pytest.raises(DataError, match="Is this file for another task, or for another list than `gqa`"):
        read_answer_file(gqa, lines(tmp_path / "a.jsonl", rows))


def test_what_is_partly_without_prompts_is_counted(tmp_path: Path) -> None:
    gqa = samples("gqa")
    rows = saved(gqa)
    for row in rows[:2]:
        del row["prompt"]
    rows[5]["text"] = "x"
    notes: list[str] = []
    score_answers(gqa, lines(tmp_path / "a.jsonl", rows), tmp_path, note=notes.append)
    assert notes == ["GQA: 2 of 240 answers lack a saved prompt: whether they answer these questions is not checked."]


def test_half_the_questions_as_answers_are_no_model_and_one_row_may_be_anything(tmp_path: Path) -> None:
    few = small("What is it?", "Why?", "Who?", "Where?")
    asked = [few.task.prompt(s) for s in few.samples]
    for echoed, refused in ((2, False), (3, True)):
        rows = [{"question_id": s.id, "text": asked[i] if i < echoed else "x"} for i, s in enumerate(few.samples)]
        path = lines(tmp_path / "a.jsonl", rows)
        if refused:
            with pytest.raises(DataError, match="holds the questions of VQAv2"):
                read_answer_file(few, path)
        else:
            assert texts(few, path)["103"] == "x"
    one = lines(tmp_path / "one.jsonl", [{"question_id": 101, "text": asked[0]}])
    assert texts(few, one) == {"101": asked[0]}


def test_files_without_prompts_say_that_the_join_is_not_checked(tmp_path: Path) -> None:
    pope = samples("pope")
    rows = [{"question_id": row["question_id"], "text": row["text"]} for row in saved(pope)]
    notes: list[str] = []
    score_answers(pope, lines(tmp_path / "a.jsonl", rows), tmp_path, note=notes.append)
    assert notes == ["POPE: All answers lack a saved prompt: whether they answer these questions is not checked."]
    notes.clear()
    score_answers(pope, lines(tmp_path / "b.jsonl", saved(pope)), tmp_path, note=notes.append)
    assert notes == []


@pytest.mark.parametrize("folder", [False, True])
def test_pope_answered_list_by_list_is_recognised_by_its_prompts(tmp_path: Path, folder: bool) -> None:
    pope = samples("pope")
    wanted = {s.id: f"{gold(s)} {s.id}" for s in pope.samples}
    by_list: dict[str, Rows] = {}
    for s in pope.samples:
        row = {"question_id": int(s.id.split("/")[1]), "prompt": pope.task.prompt(s), "text": wanted[s.id]}
        by_list.setdefault(s.groups[0], []).append(row)
    path = tmp_path / "answers"
    if folder:
        path.mkdir()
        for i, split in enumerate(("random", "adversarial", "popular")):
            lines(path / f"{i}.jsonl", by_list[split])
    else:
        lines(path, [row for split in ("popular", "random", "adversarial") for row in by_list[split]])
    assert texts(pope, path) == wanted
    popular = lines(tmp_path / "one.jsonl", by_list["popular"])
    assert texts(pope, popular) == {key: text for key, text in wanted.items() if key.startswith("popular")}


def test_one_in_a_hundred_of_a_list_may_be_foreign_too(tmp_path: Path) -> None:
    task, first = get_task("pope"), {"adversarial": 0, "random": 10_000_000}
    found = [
        Sample(f"{split}/{i}", None, f"Is there a {split} {i} in the image?", "yes", (), (split,), {}, f"{start + i}")
        for split, start in first.items()
        for i in range(1, 101)
    ]
    dataset = Dataset(task, found, DataIdentity(200, ""))
    rows = [
        {"question_id": int(s.id.split("/")[1]), "prompt": task.prompt(s), "text": s.id}
        for s in [*found[100:], *found[:100]]
    ]
    rows[5]["prompt"] = "Is there a zeppelin in the image?"
    answers = texts(dataset, lines(tmp_path / "a.jsonl", rows))
    assert answers == {s.id: s.id for s in found if s.id != "random/6"}
    rows[6]["prompt"] = "Is there a zeppelin in the image?"
    with pytest.raises(DataError, match="does not ask what POPE"):
        read_answer_file(dataset, lines(tmp_path / "a.jsonl", rows))


def test_a_list_ends_with_its_file_even_if_no_number_comes_twice(tmp_path: Path) -> None:
    pope = samples("pope")
    folder = tmp_path / "answers"
    folder.mkdir()
    wanted = {}
    for split, part in (("random", slice(0, 48)), ("popular", slice(48, 96))):
        some = [s for s in pope.samples if s.groups[0] == split][part]
        rows = [{"question_id": int(s.id.split("/")[1]), "prompt": pope.task.prompt(s), "text": s.id} for s in some]
        lines(folder / f"{split}.jsonl", rows)
        wanted |= {s.id: s.id for s in some}
    assert texts(pope, folder) == wanted


# -- what a prompt asks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("What is it?\nAnswer the question using a single word or phrase.", True),
        ("<image>\nwhat  is it?", True),
        ("USER: What is it? ASSISTANT:", True),
        ("Question: What is it\nAnswer:", True),
        ("Do you know what is it? What is it?", True),
        ("<image>What is it<image>", True),
        ("What is it made of?", False),
        ("Do you know what is it?", False),
        ("What is this?", False),
        (" ", False),
        *((f"see{mark} What is it", True) for mark in "\n:.>?!)]}\"'-,|"),
        *((f"What is it {mark} x", True) for mark in "\n:.?!)]}\"',;<|"),
        *((f"see{mark} What is it", False) for mark in "x1_;<(["),
        *((f"What is it {mark} x", False) for mark in "x1_>-(["),
    ],
)
def test_other_words_may_stand_around_a_question_but_not_in_it(prompt: str, asked: bool) -> None:
    one, other = Sample("1", None, "What is it?", "x"), Sample("2", None, "What is there?", "x")
    assert Asking(get_task("vqav2"), [one, other]).asks(one, prompt) is asked
    assert Asking(get_task("vqav2"), [one]).asks(one, prompt) is asked


def test_prompts_tell_nothing_if_all_are_alike() -> None:
    """All captions are asked for in the same words: whatever a row says was asked is taken for its picture's."""
    one, other = (Sample(key, None, "Describe it.", "x") for key in "12")
    assert Asking(get_task("vqav2"), [one, other]).asks(one, "What do you see?")
    assert not Asking(get_task("vqav2"), [one, replace(other, question="What?")]).asks(one, "What do you see?")


def test_textvqas_oldest_prompts_still_ask_their_question() -> None:
    textvqa = samples("textvqa")
    asking = Asking(textvqa.task, textvqa.samples)
    for sample in textvqa.samples:
        prompt = f"OCR tokens: {', '.join(sample.fields['words'])}. Question: {sample.question} Short answer:"
        assert [s.id for s in textvqa.samples if s.image == sample.image and asking.asks(s, prompt)] == [sample.id]


def test_prompts_in_other_words_than_the_protocols_are_told(tmp_path: Path) -> None:
    """TextVQA with and without recognised words are two numbers: 58 and 46 for one model."""
    notes: list[str] = []
    asked, scored = samples("textvqa"), samples("textvqa_no_ocr")
    score_answers(scored, lines(tmp_path / "a.jsonl", saved(asked)), tmp_path, note=notes.append)
    assert len(notes) == 1
    assert "15 of 15 prompts put the question in other words than the protocol (llava-1.5)" in notes[0]
    assert "a.jsonl:1: 'What does the sign say? Reference OCR token: SUN Answer the question" in notes[0]


@pytest.mark.parametrize("around", ["USER: <image>\n{} ASSISTANT:", "<|im_start|>{}<|im_end|>", "{}"])
@pytest.mark.parametrize("task", ["textvqa", "mmbench", "scienceqa", "pope"])
def test_a_template_around_the_protocols_words_is_no_other_protocol(tmp_path: Path, task: str, around: str) -> None:
    dataset, notes = samples(task), list[str]()
    first, *others = saved(dataset)
    without_request = first["prompt"].rpartition("\n")[0]  # so LLaVA saves MMBench's
    rows = [first | {"prompt": without_request}, *(r | {"prompt": around.format(r["prompt"])} for r in others)]
    score_answers(dataset, lines(tmp_path / "a.jsonl", rows), tmp_path, note=notes.append)
    assert notes == []


def test_a_question_of_several_lines_may_stand_on_one() -> None:
    one, other = Sample("1", None, "It is red.\nWhat is it?", "x"), Sample("2", None, "Why?", "x")
    asking = Asking(get_task("vqav2"), [one, other])
    assert asking.asks(one, "Question: It is red.\nWhat is it? Answer:")
    assert asking.asks(one, "Question: It is red. What is it? Answer:")
    assert asking.asks(one, "Look here\nIt is red.\nWhat is it\nAnswer in short")
    alone = replace(one, question="What is it?")
    assert not Asking(get_task("vqav2"), [alone, other]).asks(alone, "What is\nit?")
    assert not asking.asks(one, "Question: It is red.\nWhy is it? Answer:")
    assert not asking.asks(replace(other, question="What is\n it"), "What  is it made of?")


def test_a_question_without_words_is_asked_by_no_other_prompt() -> None:
    one, other = Sample("1", None, " ?", "x"), Sample("2", None, "Why?", "x")
    assert not Asking(get_task("vqav2"), [one, other]).asks(one, "What is it?")


def test_options_in_another_order_ask_something_else() -> None:
    one = Sample("1", None, "Which?", "A", ("red", "blue\ngreen", "white"), fields={"hint": ""})
    asking = Asking(get_task("mmbench"), [one, replace(one, id="2", question="What?")])
    asked = {
        "Which?\nOptions:\nA. red\nB. blue\nC. white\nPlease select.": True,  # of an option, its first line
        "Which?\n(A) Red\n (B)  blue\n(C) white\nD. none of these": True,
        "Which?\nA: red\nB: blue\ngreen\nC: white": True,
        "Which?\nA. blue\nB. red\nC. white\nPlease select.": False,
        "Which?\nA. red\nB. white\nC. blue": False,
        "Which?\nA. red\nB. blue": False,  # an option is missing
        "Which?\nA. reddish": True,  # no list of options
        "Which?\nB. red\nC. blue": True,
        "Which?": True,
        "A. red\nB. blue\nC. white": False,
    }
    assert {prompt: asking.asks(one, prompt) for prompt in asked} == asked


# -- repeated rows -----------------------------------------------------------------------------------------------------


def test_rows_that_fill_up_the_last_batch_are_taken_once_and_counted(tmp_path: Path) -> None:
    gqa = samples("gqa")
    rows = saved(gqa)
    padded = [row | {"answer_id": "another"} for row in rows[:3]]
    notes: list[str] = []
    outcome = score_answers(gqa, lines(tmp_path / "a.jsonl", [*rows, *padded]), tmp_path, note=notes.append)
    assert outcome.complete
    assert len(notes) == 1
    assert "3 rows repeat an answer" in notes[0]
    padded[1]["text"] = "something else"
    with pytest.raises(DataError, match=r"a\.jsonl:242: .*answered twice, differently; .*a\.jsonl:2\. 1 rows are such"):
        read_answer_file(gqa, lines(tmp_path / "a.jsonl", [*rows, *padded]))


def test_a_question_that_stands_twice_is_served_by_one_answer_or_by_two(tmp_path: Path) -> None:
    task = get_task("vqav2")
    pair = [Sample(key, None, "What is it?", None, external_id="49914") for key in ("49914", "49914#2")]
    dataset = Dataset(task, [*pair, Sample("7", None, "Why?", None)], DataIdentity(3, ""))
    first, second, other = ({"question_id": n, "text": t} for n, t in ((49914, "a"), (49914, "b"), (7, "c")))
    for prompt in ({"prompt": "What is it?"}, {}):  # what a benchmark's server takes holds no prompts
        both = lines(tmp_path / "both.jsonl", [first | prompt, second | prompt, other])
        assert texts(dataset, both) == {"49914": "a", "49914#2": "b", "7": "c"}
        one = lines(tmp_path / "one.jsonl", [first | prompt, other])
        assert texts(dataset, one) == {"49914": "a", "49914#2": "a", "7": "c"}
    unlike = Dataset(task, [pair[0], replace(pair[1], question="What else?")], DataIdentity(2, ""))
    with pytest.raises(DataError, match=r"stands for 2 questions of .*, so the field 'prompt' is needed"):
        texts(unlike, lines(tmp_path / "which.jsonl", [first]))


# -- layouts -----------------------------------------------------------------------------------------------------------


def lmms(sample: Sample, dataset: Dataset, **also: Any) -> dict[str, Any]:
    split, number = sample.id.split("/")
    doc = {"id": "900", "question_id": number, "question": sample.question, "category": split}
    return {
        "doc_id": 0,
        "doc": doc,
        "target": "x",
        "arguments": [dataset.task.prompt(sample), {"until": ["\n"]}],
    } | also


@pytest.mark.parametrize(
    "responses",
    [
        lambda text: {"resps": [[text]], "filtered_resps": [text]},
        lambda text: {"resps": [text]},
        lambda text: {"filtered_resps": text},
        lambda text: {"filtered_resps": [[text]]},
    ],
)
def test_lmms_evals_samples_are_read_in_all_nestings(tmp_path: Path, responses: Callable[[str], Any]) -> None:
    pope = samples("pope")
    rows = [lmms(s, pope, **responses(gold(s))) for s in pope.samples]
    assert texts(pope, lines(tmp_path / "x_samples_pope.jsonl", rows)) == right(pope)


def test_newer_lmms_eval_keeps_its_ids_in_the_metrics_rows(tmp_path: Path) -> None:
    pope = samples("pope")
    rows = []
    for s in pope.samples:
        split, number = s.id.split("/")
        metric = {"question_id": number, "score": 1.0, "prediction": gold(s), "category": split}
        rows.append({"doc_id": 0, "input": pope.task.prompt(s), "filtered_resps": [gold(s)], "pope_accuracy": metric})
    assert texts(pope, lines(tmp_path / "a.jsonl", rows)) == right(pope)


def test_likelihoods_and_repeats_of_lmms_eval_are_no_single_answer(tmp_path: Path) -> None:
    pope = samples("pope")
    for resps, message in (([[-1.5, False]], "should hold the text of one"), ([["Yes", "No"]], "2 different answers")):
        path = lines(tmp_path / "a.jsonl", [lmms(pope.samples[0], pope, filtered_resps=resps)])
        with pytest.raises(DataError, match=message):
            read_answer_file(pope, path)


def vlmevalkit(dataset: Dataset) -> list[list[str]]:
    letters = "ABCD"
    head = ["index", "question", *letters, "answer", "prediction"]
    rows = [[s.id, s.question, *[*s.choices, "", "", ""][:4], "wrong on purpose", gold(s)] for s in dataset.samples]
    return [head, *rows]


def test_vlmevalkits_table_is_read_tab_separated_and_as_a_sheet(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    mmbench = samples("mmbench")
    table = vlmevalkit(mmbench)
    tsv = tmp_path / "model_MMBench.tsv"
    tsv.write_text("".join("\t".join(row) + "\n" for row in table))
    assert texts(mmbench, tsv) == right(mmbench)
    book = openpyxl.Workbook()
    for row in table:
        book.active.append([float(cell) if cell.isdecimal() else cell for cell in row])
    book.save(tmp_path / "model_MMBench.xlsx")
    assert texts(mmbench, tmp_path / "model_MMBench.xlsx") == right(mmbench)
    table[1][2], table[1][3] = table[1][3], table[1][2]  # the options of one row in another order
    few = tmp_path / "few.tsv"
    few.write_text("".join("\t".join(row) + "\n" for row in table[:2]))
    with pytest.raises(DataError, match="does not ask what MMBench"):
        read_answer_file(mmbench, few)


def test_empty_cells_and_rows_of_a_sheet_are_no_answers(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["index", None, "prediction"], [101.0, None, "x"], [None, None, None], [102, 7, None], [103, "", 0.5]):
        book.active.append(row)
    book.create_sheet("notes").append(["not", "read"])
    path = tmp_path / "sheet.xlsx"
    book.save(path)
    assert texts(small("What?", "Why?", "Who?"), path) == {"101": "x", "102": "", "103": "0.5"}
    book.active.append([7, None, "x"])
    book.save(path)
    with pytest.raises(DataError, match=r"sheet\.xlsx, row 6: question '7' is not in"):
        read_answer_file(small("What?", "Why?", "Who?"), path)
    nothing = tmp_path / "nothing.xlsx"
    openpyxl.Workbook().save(nothing)
    with pytest.raises(DataError, match=r"nothing\.xlsx.* no answers"):
        read_answer_file(small("What?"), nothing)
    book.active.delete_cols(1)  # the index
    book.save(path)
    with pytest.raises(DataError, match="the columns should hold an `index`; the header has ', prediction'"):
        read_answer_file(small("What?", "Why?", "Who?"), path)


def test_vlm_evaluations_results_are_read(tmp_path: Path) -> None:
    gqa = samples("gqa")
    results = {
        s.id: {"question_id": int(s.id), "question": f"In: {gqa.task.prompt(s)}\nOut: ", "model_output": gold(s)}
        for s in gqa.samples
    }
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results, indent=2))
    assert texts(gqa, path) == right(gqa)
    path.write_text(json.dumps({"-3": {"question_id": -3, "question": "?", "yes_no_probabilities": [0.2, 0.8]}}))
    with pytest.raises(
        DataError, match=r"vlm-evaluation's results\.json of a task of yes and no: it holds probabilities"
    ):
        read_answer_file(samples("pope"), path)


@pytest.mark.parametrize(
    ("task", "key", "answer"),
    [
        ("vqav2", "question_id", "answer"),
        ("gqa", "questionId", "prediction"),
        ("coco_caption", "image_id", "caption"),
        ("seed", "question_id", "prediction"),
    ],
)
@pytest.mark.parametrize("dump", ["list", "indented", "lines"])
def test_the_benchmarks_own_lists_are_read(tmp_path: Path, task: str, key: str, answer: str, dump: str) -> None:
    dataset = samples(task)
    rows = [{key: int(s.id) if s.id.isdecimal() else s.id, answer: gold(s)} for s in dataset.samples]
    path = tmp_path / "results.json"
    if dump == "lines":
        lines(path, rows)
    else:
        path.write_text(json.dumps(rows, indent=2 if dump == "indented" else None))
    assert texts(dataset, path) == right(dataset)


@pytest.mark.parametrize("wrap", [lambda said: said, lambda said: {"acc": 1.0, "results": {}, "outputs": said}])
def test_an_object_from_id_to_text_is_read(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    for task in ("mmvet", "scienceqa"):
        dataset = samples(task)
        said = {s.id: f"text of {s.id}" for s in dataset.samples}
        path = tmp_path / f"{task}.json"
        path.write_text(json.dumps(wrap(said), indent=2))
        assert texts(dataset, path) == said


def test_what_submit_writes_for_mme_is_read_again(tmp_path: Path) -> None:
    mme = samples("mme")
    outcome = score_answers(mme, lines(tmp_path / "a.jsonl", saved(mme)), tmp_path)
    written = submit(outcome.folder, out=tmp_path / "mme_results")
    assert len(written) > 1
    assert texts(mme, tmp_path / "mme_results") == right(mme)
    again = score_answers(mme, tmp_path / "mme_results", tmp_path / "again", "m")
    assert again.scores.scores == outcome.scores.scores
    for rename in (str.upper, str.lower):
        (other := tmp_path / rename("results")).mkdir()
        for path in written:
            (other / f"{rename(path.stem)}.txt").write_bytes(path.read_bytes())
        assert texts(mme, other) == right(mme)
    only = texts(mme, written[0])
    assert only == {key: text for key, text in right(mme).items() if key.startswith(f"{written[0].stem}/")}


def test_official_ids_of_textvqa_are_known_beside_llavas(tmp_path: Path) -> None:
    textvqa = samples("textvqa")
    rows = [{"question_id": s.fields["question_id"], "answer": gold(s)} for s in textvqa.samples]
    assert texts(textvqa, lines(tmp_path / "a.jsonl", rows)) == right(textvqa)


def test_a_folder_of_chunks_is_one_file(tmp_path: Path) -> None:
    gqa = samples("gqa")
    rows = saved(gqa)
    folder = tmp_path / "model"
    folder.mkdir()
    for i in range(11):
        lines(folder / f"11_{i}.jsonl", rows[i::11])
    (folder / ".DS_Store").write_bytes(b"\0")
    outcome = score_answers(gqa, folder, tmp_path)
    assert outcome.complete
    assert outcome.scores.model == "m"
    first = outcome.folder
    lines(folder / "11_0.jsonl", [row | {"text": "x"} for row in rows[0::11]])
    assert score_answers(gqa, folder, tmp_path).folder != first


@pytest.mark.parametrize("name", ["question_id", "questionId", "index", "id", "image_id", "pid"])
@pytest.mark.parametrize(
    "said",
    ["text", "prediction", "model_output", "pred", "response", "output", "model_answer", "pred_answer",
     "generated_text", "caption", "answer"],
)  # fmt: skip
def test_ids_and_answers_have_one_of_these_names(tmp_path: Path, name: str, said: str) -> None:
    dataset = small("What?", "Why?")
    rows = [{name: s.id, said: f"about {s.id}"} for s in dataset.samples]
    assert texts(dataset, lines(tmp_path / "a.jsonl", rows)) == {"101": "about 101", "102": "about 102"}


@pytest.mark.parametrize(
    "row",
    [
        {"question_id": 101, "answer": "x"},
        {"questionId": 101, "prediction": "x"},
        {"id": 101, "text": "x"},
        {"doc_id": 0, "doc": {"question_id": 101}, "resps": ["x"]},
        {"doc": {"question_id": 101}, "filtered_resps": ["x"]},
    ],
)
def test_a_file_may_hold_a_single_answer(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "one.json"
    for indent in (None, 1):
        path.write_text(json.dumps(row, indent=indent))
        assert texts(small("What?"), path) == {"101": "x"}


@pytest.mark.parametrize(
    "row",
    [
        {"id": 102, "question_id": 101, "text": "x", "prediction": "y", "answer": "gold"},
        {"question_id": 101, "prediction": "x", "answer": "gold", "choices": ["a", "b"]},
        {"pid": "101", "question": "What?", "answer": "x"},
        {"question_id": 101.0, "text": "x", "category": 7, "split": None},
        {"question_id": " 101 ", "text": "x", "category": "default"},
        {"question_id": 101, "text": "x", "label": "yes", "image": "a.jpg", "prompt": "What?"},
        {"question_id": 101, "text": "x", "label": "yes", "image": "a.jpg", "answer": "gold"},
        {"question_id": 101, "text": "x", "label": "yes"},
        {"question_id": 101, "text": "x", "resp": ["y"]},
        {"doc": {"question_id": 101, "id": 102}, "filtered_resps": ["x"], "resps": ["y", "z"]},
    ],
)
def test_of_several_names_the_likeliest_counts(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([row]))
    assert texts(small("What?", "Why?"), path) == {"101": "x"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        *(({"question_id": 101, "answer": "x", name: "a"}, f"a row with `{name}` and `answer` is a question with its")
          for name in ("choices", "choice_a", "options", "A")),
        ({"question_id": 101.5, "text": "x"}, "field 'question_id' should be an id"),
        ({"question_id": 101, "said": "x"}, r"no field holds the text of an answer \(text, prediction, .*Rename that"),
        ({"number": 101, "text": "x"}, r"no field holds the id of a question \(question_id, questionId, .*Rename that"),
        ({"logs": {"a": 1}}, r"entry 'logs': expected the text of an answer, found \{'a': 1\}"),
        ({"rows": [{"question_id": 101}]}, "entry 'rows': a list of rows stands here under a name"),
        ({"rows": []}, r"entry 'rows': expected the text of an answer, found \[\]"),
        ({"rows": ["x"]}, r"entry 'rows': expected the text of an answer, found \['x'\]"),
        ({"101": {"model_output": "x", "question": "Who?"}}, r"'Who\?' does not ask what VQAv2"),
    ],
)  # fmt: skip
def test_a_row_that_tells_too_little_is_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match=message):
        read_answer_file(small("What?", "Why?"), path)


@pytest.mark.parametrize("name", ["index", "question_id", "id", "image_path"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("cell", [",", "\t"])
def test_a_tables_ids_have_one_of_these_names(tmp_path: Path, name: str, ends: str, cell: str) -> None:
    path = tmp_path / "table"
    rows = [(name, "prediction"), ("101", "one"), ("102.0", "two")]  # pandas writes 102.0 beside an empty cell
    path.write_text("".join(cell.join(row) + ends for row in rows), newline="")
    assert texts(small("What?", "Why?"), path) == {"101": "one", "102": "two"}


def test_a_table_without_ids_or_with_a_short_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table"
    for content, message in {
        "number,prediction\n101,x\n": "columns should hold an `index`; the header has 'number, prediction'",
        "index,prediction\n101,x\n102\n": r"table:3: expected 2 cells, found 1\.",
        'index,prediction\n101,"x\n': "table:2: not a valid row of a table",
    }.items():
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            read_answer_file(small("What?", "Why?"), path)


@pytest.mark.parametrize("field", ["arguments", "input"])
def test_what_lmms_eval_asked_is_compared_with_the_question(tmp_path: Path, field: str) -> None:
    dataset = small("What?", "Why?")
    row = {
        "doc_id": 0,
        "doc": {"question_id": 101},
        "filtered_resps": ["x"],
        field: [["What?", None], {"until": ["."]}],
    }
    path = tmp_path / "x_samples_y.jsonl"
    assert texts(dataset, lines(path, [row])) == {"101": "x"}
    with pytest.raises(DataError, match=r"'Who\?' does not ask what VQAv2"):
        read_answer_file(dataset, lines(path, [row | {field: ["Who?"]}]))
    with pytest.raises(DataError, match=r"'Who\?' does not ask what VQAv2"):  # no prompt is saved, but the question
        read_answer_file(dataset, lines(path, [row | {field: None, "doc": {"question_id": 101, "question": "Who?"}}]))


def test_a_saved_question_stands_for_the_prompt_if_there_is_none(tmp_path: Path) -> None:
    dataset, path = small("What?", "Why?"), tmp_path / "a.jsonl"
    row = {"question_id": 101, "text": "x"}
    for also in ({"question": "What?"}, {"question": 7}, {"question": "Who?", "prompt": "What?"}, {"question": ""}):
        assert texts(dataset, lines(path, [row | also])) == {"101": "x"}
    for also in ({"question": "Who?"}, {"question": "What?", "prompt": "Who?"}, {"question": "Who?", "prompt": None}):
        with pytest.raises(DataError, match=r"'Who\?' does not ask what VQAv2"):
            read_answer_file(dataset, lines(path, [row | also]))


def test_what_is_not_saved_is_not_made_up(tmp_path: Path) -> None:
    row = {"question_id": 101, "text": "x", "prompt": "USER: What? ASSISTANT:"}
    found = read_answer_file(small("What?", "Why?"), lines(tmp_path / "a.jsonl", [row]))
    assert found == {"101": Answer("101", Generation("x", "USER: What? ASSISTANT:", 0, "unknown"))}


def test_a_model_may_be_named_in_the_rows(tmp_path: Path) -> None:
    for model_id, name in (("a model", "a model"), (7, "saved"), (None, "saved"), ("", "saved")):
        row = {"question_id": 101, "text": "x", "model_id": model_id}
        (found,) = read_saved(lines(tmp_path / "saved.jsonl", [row]))
        assert (found.model or "saved") == name


def test_an_answer_of_lmms_eval_may_lie_four_lists_deep_and_no_deeper(tmp_path: Path) -> None:
    row = {"doc_id": 0, "doc": {"question_id": 101}, "arguments": ["What?"]}
    path = tmp_path / "a.jsonl"
    for resps in ([[[["x"]]]], {"a": [None, "x"]}, [["x"], ["x"]]):
        assert texts(small("What?"), lines(path, [row | {"resps": resps}])) == {"101": "x"}
    for resps in ([[[[["x"]]]]], [], None, [["x", 3]]):
        with pytest.raises(DataError, match="field 'resps' should hold the text of one answer"):
            read_answer_file(small("What?"), lines(path, [row | {"resps": resps}]))


def test_a_row_without_an_id_of_the_benchmarks_is_joined_by_a_question_that_stands_once(tmp_path: Path) -> None:
    """lmms-eval's newest files, and VLMEvalKit's numbers: a question that stands twice tells nothing."""
    dataset = small("What?", "Why?", "Why?\nSay it shortly.")
    path = tmp_path / "a.jsonl"
    row = {"doc": {"id": "n7"}, "filtered_resps": ["x"]}
    assert texts(dataset, lines(path, [row | {"input": "what?\nAnswer."}])) == {"101": "x"}
    for prompt in ("Who?", "Well, what?"):
        with pytest.raises(DataError, match="question 'n7' is not in VQAv2"):
            read_answer_file(dataset, lines(path, [row | {"input": prompt}]))
    twice = small("Why?", "Why?", "What?")
    with pytest.raises(DataError, match="question 'n7' is not in VQAv2"):
        read_answer_file(twice, lines(path, [row | {"input": "Why?"}]))
    one, other = (replace(s, groups=(name,)) for s, name in zip(twice.samples, ("far", "near"), strict=False))
    parted = Dataset(twice.task, [one, other, twice.samples[2]], twice.identity)
    assert texts(parted, lines(path, [row | {"input": "Why?", "doc": {"id": "n7", "category": "near"}}])) == {
        "102": "x"
    }
    assert texts(parted, lines(path, [row | {"input": "What?", "doc": {"id": "n7", "split": "test"}}])) == {"103": "x"}


def test_the_id_whose_question_was_asked_counts_before_the_likelier_one(tmp_path: Path) -> None:
    """A row of lmms-eval may hold several ids: `question_id` of the row, `id` of the picture."""
    dataset = small("What?", "Why?")
    row = {"doc": {"question_id": 102, "id": 101}, "filtered_resps": ["x"]}
    path = tmp_path / "a.jsonl"
    assert texts(dataset, lines(path, [row])) == {"102": "x"}
    assert texts(dataset, lines(path, [row | {"input": "What?"}])) == {"101": "x"}
    assert texts(dataset, lines(path, [row | {"input": "Why?"}])) == {"102": "x"}
    assert texts(dataset, lines(path, [row | {"doc": {"question_id": 7, "id": 101}, "input": "What?"}])) == {"101": "x"}


def test_a_row_without_a_prompt_is_joined_by_its_likeliest_id(tmp_path: Path) -> None:
    pope = samples("pope")
    row = {"doc_id": 0, "doc": {"question_id": "12", "id": "13", "category": "popular"}, "filtered_resps": ["x"]}
    assert texts(pope, lines(tmp_path / "a.jsonl", [row])) == {"popular/12": "x"}


def test_programs_that_read_ids_as_numbers_lose_their_zeros(tmp_path: Path) -> None:
    zeros = replace(small("What?").samples[0], id="00101")
    dataset = Dataset(get_task("vqav2"), [zeros], DataIdentity(1, ""))
    assert texts(dataset, lines(tmp_path / "a.jsonl", [{"question_id": 101, "text": "x"}])) == {"00101": "x"}
    assert texts(dataset, lines(tmp_path / "a.jsonl", [{"question_id": "00101", "text": "x"}])) == {"00101": "x"}


def test_old_samples_of_lmms_eval_stand_under_logs(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"args": {}, "logs": [{"doc": {"question_id": 101}, "filtered_resps": ["x"]}]}))
    assert texts(small("What?"), path) == {"101": "x"}


def test_mmes_files_are_read_with_the_line_ends_of_any_system(tmp_path: Path) -> None:
    mme = samples("mme")
    first = next(s for s in mme.samples if s.groups[0] == "count")
    folder = tmp_path / "results"
    folder.mkdir()
    row = "\t".join((first.external_id.split("/")[-1], first.fields["asked"], str(first.target), "Yes"))
    (folder / "count.txt").write_text(f"{row}\r\n\r\n", newline="")
    assert texts(mme, folder) == {first.id: "Yes"}
    (folder / "count.txt").write_text(f"{row}\n\n{row}\tand more\n")
    with pytest.raises(DataError, match=r"count\.txt:3: expected picture, question, gold and answer .* found 5 cells"):
        read_answer_file(mme, folder)


def test_files_of_a_folder_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "chunks"
    folder.mkdir()
    for number in (10, 9, 100):
        lines(folder / f"part{number}.jsonl", [{"question_id": 101, "text": f"{number}"}])
    (folder / "part9").mkdir()
    with pytest.raises(
        DataError, match=r"part10\.jsonl:1: .* the first answer is at .*part9\.jsonl:1\. 2 rows are such"
    ):
        read_answer_file(small("What?"), folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty is a folder without files"):
        read_answer_file(small("What?"), tmp_path / "empty")
    with pytest.raises(DataError, match="nowhere does not exist"):
        read_answer_file(small("What?"), tmp_path / "nowhere")


def text_of(rows: Rows, end: str = "\n") -> str:
    return "".join(json.dumps(row) + end for row in rows)


RELATIVES: dict[str, Callable[[Rows], str]] = {
    "byte order mark": lambda rows: "\ufeff" + text_of(rows),
    "Windows' line ends": lambda rows: text_of(rows, "\r\n"),
    "no last line end": lambda rows: text_of(rows).rstrip("\n"),
    "blank lines": lambda rows: "\n" + text_of(rows, "\n \n"),
    "a list": json.dumps,
    "an indented list": lambda rows: "\ufeff" + json.dumps(rows, indent=4).replace("\n", "\r\n"),
    "shuffled": lambda rows: text_of(random.Random(1).sample(rows, len(rows))),
    "ids as text": lambda rows: text_of([row | {"question_id": str(row["question_id"])} for row in rows]),
    "more columns": lambda rows: text_of([row | {"label": "x", "score": None, "image": ["y"]} for row in rows]),
}


@pytest.mark.parametrize("name", ["A.JSONL", "answers"])
@pytest.mark.parametrize("task", ["vqav2", "gqa", "scienceqa", "textvqa", "pope", "mme", "mmbench", "seed", "mmvet"])
@pytest.mark.parametrize("dress", RELATIVES)
def test_a_file_is_the_same_in_every_dress(tmp_path: Path, dress: str, task: str, name: str) -> None:
    dataset = samples(task)
    path = tmp_path / name
    path.write_text(RELATIVES[dress](saved(dataset)), encoding="utf-8", newline="")
    assert texts(dataset, path) == right(dataset)


def test_a_chunk_of_a_process_that_had_no_question_is_passed_over(tmp_path: Path) -> None:
    gqa = samples("gqa")
    (tmp_path / "model/more").mkdir(parents=True)
    with pytest.raises(DataError, match="a folder without files, but with the folders 'more': give one of them"):
        read_answer_file(gqa, tmp_path / "model")
    (tmp_path / "model/2_1.jsonl").touch()
    with pytest.raises(DataError, match=r"2_1\.jsonl: holds no answers"):
        read_answer_file(gqa, tmp_path / "model")
    lines(tmp_path / "model/2_0.jsonl", saved(gqa))
    assert texts(gqa, tmp_path / "model") == right(gqa)


@pytest.mark.parametrize("dress", [float, "{:.0f}".format, " {}\t".format], ids=["float", "text", "spaces"])
def test_numbers_are_ids_whatever_a_table_made_of_them(tmp_path: Path, dress: Callable[[int], Any]) -> None:
    pope = samples("pope")
    rows = [row | {"question_id": dress(int(row["question_id"]))} for row in saved(pope)]
    assert texts(pope, lines(tmp_path / "a.jsonl", rows)) == right(pope)
    with pytest.raises(DataError, match=r"field 'question_id' should be an id .*found 1\.5"):
        read_answer_file(pope, lines(tmp_path / "a.jsonl", [rows[0] | {"question_id": 1.5}]))


@pytest.mark.parametrize("said", ["prediction", "model_output", "pred", "response", "output", "model_answer"])
def test_the_gold_answer_beside_what_the_model_said_is_never_scored(tmp_path: Path, said: str) -> None:
    pope = samples("pope")
    rows = [{"question_id": s.answer_key, "answer": gold(s), said: "maybe"} for s in pope.samples]
    assert set(texts(pope, lines(tmp_path / "a.jsonl", rows)).values()) == {"maybe"}


def test_a_file_of_nothing_but_gold_answers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmamba_eval.answers.join.SUSPICIOUS", 200)
    notes: list[str] = []
    for task, row in (("pope", 0), ("gqa", 0), ("gqa", 1)):
        dataset = samples(task)
        rows = saved(dataset)
        rows[0]["text"] += "!" * row
        score_answers(dataset, lines(tmp_path / "a.jsonl", rows), tmp_path, note=notes.append)
    assert notes == [
        "POPE: All 288 answers are gold answers, letter for letter: did a model write this file?",
        "GQA: All 240 answers are gold answers, letter for letter: did a model write this file?",
    ]


def test_answers_without_prompts_of_another_lists_number_are_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """POPE's lists of 8,910 and of 9,000 share ids; joined by them alone, a good model's 85.9 reads 71.6."""
    monkeypatch.setattr(get_task("pope"), "info", replace(get_task("pope").info, questions=288))
    later = samples("pope_9000")
    rows = saved(later)
    path = lines(tmp_path / "a.jsonl", [{"question_id": row["question_id"], "text": row["text"]} for row in rows])
    with pytest.raises(
        DataError, match=r"288 answers without prompts, as many as `pope` has questions; POPE \(9,000\)"
    ):
        read_answer_file(later, path)
    assert len(read_answer_file(later, lines(path, rows))) == 288
    assert len(read_answer_file(samples("pope"), path)) == 288


def test_one_unknown_row_does_not_send_a_file_to_a_list_that_lacks_it_too(tmp_path: Path) -> None:
    pope = samples("pope")
    rows = saved(pope)
    rows[0]["question_id"] = "987654321"
    with pytest.raises(DataError, match="1 of 288 answers are unknown") as caught:
        read_answer_file(pope, lines(tmp_path / "a.jsonl", rows))
    assert "pope_9000" not in str(caught.value)


def test_nan_is_harmless_in_fields_that_nobody_reads(tmp_path: Path) -> None:
    gqa = samples("gqa")
    rows = [row | {"score": math.nan} for row in saved(gqa)]
    assert texts(gqa, lines(tmp_path / "a.jsonl", rows)) == right(gqa)
    with pytest.raises(DataError, match=r"a\.jsonl:1: field 'text' should be text, found nan"):
        read_answer_file(gqa, lines(tmp_path / "a.jsonl", [row | {"text": math.nan} for row in rows]))


def test_a_pipe_is_no_file_of_answers(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("pipe", "is no regular file: write what it gives into one"), ("none", "does not exist")):
        with pytest.raises(DataError, match=f"{name} {message}"):
            read_answer_file(samples("pope"), tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"{}", mtime=0), "is compressed with gzip"),
        (pickle.dumps({"a": 1}), "is a Python pickle, which is never opened"),
        (b"PAR1....", "is a Parquet file"),
        (b"%PDF-1.7", r"is a PDF\."),
        (b"\x89PNG\r\n", r"is a picture \(PNG\)\."),
        (b"\xff\xd8\xff\xe0", r"is a picture \(JPEG\)\."),
        (b"PK\x03\x04....", "begins like a zip archive or an Excel sheet"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"a" * 200_000 + b",b\n", "is a table whose columns are 'aaa"),
        (b'{"filtered_resps": ' + b"[" * 400 + b"]" * 400 + b"}", "should hold the text of one answer"),
        (b"index,prediction?\r\n1,2\r\n", r"is a table whose columns are 'index, prediction\?'; expected"),
        (b"a,b\n1,2\n", "is a table whose columns are 'a, b'; expected `index` and `prediction`"),
        (b"Yes\nNo\n", "is text that begins with 'Yes'"),
        (b"?\nNo\n", r"is text that begins with '\?'"),
        (b"", "holds no answers"),
        (b"[]", "holds no answers, but an empty list"),
        (b'{"answers": [{"question_id": 1, "text": "a"}]}', "entry 'answers': a list of rows stands here under a name"),
        (b'{"question_id": "1", "choice_a": "x", "choice_b": "y", "answer": "A"}', "a question with its gold answer"),
        (b'[{"id": "1", "choices": ["x", "y"], "answer": "x"}]', "is a question with its gold answer"),
        (b'{"question_id": 1, "said": "a"}', r"no field holds the text of an answer \(text, pred.*Rename .* to 'text'"),
        (b'{"number": 1, "text": "a"}', r"no field holds the id of a question \(question_id, .* to 'question_id'"),
        (b'[{"question_id": 1, "text": "a', "the file ends within its JSON"),
        (b"[1, 2]", "item 0: expected an object with named fields, found 1"),
        (b'{"results": {}, "configs": {}}', "is lmms-eval's summary of scores"),
        (b'{"results": {}, "configs": {}, "versions": {}}', "is lmms-eval's summary of scores"),
        (b'{"n-shot": {"pope": 0}, "pope": {}}', "is lmms-eval's summary of scores"),
        (b'{"results": {"7": "a"}}', "entry 'results': expected the text of an answer, found {'7': 'a'}"),
        (b'{"v1_0": {"score": [0.5]}}', "entry 'v1_0': expected the text of an answer, found {'score'"),
        (b'{"7": {"model_output": 3}}', "entry '7': field 'model_output' should be text, found 3"),
        (b"{}", "holds no answers, but an empty object"),
        (b'{"question_id" 1}\n{"question_id": 2, "text": "b"}\n', r"x:1: not a valid JSON line \(.*; column 16\)"),
        (b'{"question_id": 1, "question_id": 2}\n{"a": 1}\n', r"x:1: not a valid JSON line \(key 'question_id' occurs"),
        (b"[" * 100_000 + b"\n[1]\n", r"x:1: not a valid JSON line \("),
        (b"[" * 100_000, r"x: not valid JSON \("),
        (b'{\n "7": "a",\n "8" "b"}\n', r"x:3: not valid JSON \(.*, column 6\); the file begins with"),
        (b'{"7" "a"}', r"x:1: not valid JSON \(.*, column 6\); the file begins with"),
        (b'{"7": "a"', r"x:1: the file ends within its JSON \(.*\); it begins with"),
        (b'{"7": "a', r"x:1: the file ends within its JSON \(Unterminated string.*\); it begins with"),
        (b'{"question_id": 1, "text": "a"}\n\n[1]\n', r"x:3: expected one JSON object a line, found \[1\]"),
        (b'{"question_id": 1, "text": "a"}\n{"text": "b"} x\n', r"x:2: not a valid JSON line \(Extra data; "),
        (b'{"v1_0": {"model": "g", "score": [0.5], "content": ["x"]}}', "holds the grades of MM-Vet's evaluator"),
        (b'{"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "no"}', "list of questions, not of answers"),
        (b'{"image": "a.jpg", "text": "Is it?", "label": "no"}\n' * 2, "list of questions, not of answers"),
        (b'{"v1_0": {"score": [0.5], "content": ["x"]}}', "holds the grades of MM-Vet's evaluator"),
        (b'{"question": "Is it?", "answer": "no"}\n{"question": "Is it?", "answer": "no"}\n', "reads by order"),
        (b'{"id": "a", "text": "b", "prompt": "c", "stop": "eos"}\n', "`answers.jsonl` of a run of this tool"),
        (b'[\n {"question_id": 1,\n', "the file ends within its JSON"),
        (b'{"question_id": 1, "text": "a"}\n{"question_id": 2, "te', r"x:2: .*the line ends within its JSON"),
        (b'{"question_id": 1, "text": "a"}\n{"question_id": 2 "text": "b"}\n', r"x:2: .*column 19"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_called_by_its_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_answer_file(samples("pope"), path)
    assert "cut off" not in str(caught.value)


def test_a_list_of_questions_is_not_taken_for_answers(tmp_path: Path) -> None:
    pope = samples("pope")
    rows = [{"question_id": s.answer_key, "text": pope.task.prompt(s), "category": s.groups[0]} for s in pope.samples]
    with pytest.raises(DataError, match="holds the questions of POPE where answers should be"):
        read_answer_file(pope, lines(tmp_path / "q.jsonl", rows))


# -- what stands around an answer --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Yes", "Yes"),
        (" Yes\n", "Yes"),
        ("Yes</s>", "Yes"),
        ("B<|im_end|>\n", "B"),
        ("<think>a\nb</think>\n\nNo", "No"),
        ("It is no cat.</think> Yes", "Yes"),
        ("<think>and so on", ""),
        ("Yes<think>a\nb</think> and <THINK>c</THINK>no", "Yes and no"),
        ("Yes <Thought>a\nb", "Yes"),
        ("a\nb</REASONING>No", "No"),
        ("a < b > c", "a < b > c"),
        ("[A]", "[A]"),
    ],
)
def test_cleaning_takes_off_tokens_reasoning_and_white_space(text: str, wanted: str) -> None:
    assert clean(text) == wanted
    assert clean(wanted) == wanted
    assert bool(remarks([text])) == (text != wanted)


def test_what_would_be_cleaned_is_counted_by_kind() -> None:
    said = ["Yes", "[A]", "a < b", "<think>a</think>B", "x</THINK>y <|end|>", "<reasoning>", "[INST]", " D", "E\n"]
    assert remarks(said).startswith(
        "Of 9 answers 3 hold reasoning tags (<think>...), 2 hold special tokens, 2 begin or end in white space. They"
    )
    assert remarks(["Yes", "<s>"]).startswith("Of 2 answers 1 hold special tokens. They are scored as they are")
    assert remarks([]) == remarks(["Yes", "a < b [c]"]) == ""


def test_answers_with_marks_are_scored_officially_and_cleaned_under_a_name_of_their_own(tmp_path: Path) -> None:
    gqa = samples("gqa")
    path = lines(tmp_path / "a.jsonl", saved(gqa, lambda s: f"<think>Let me look.</think>{gold(s)}</s>"))
    notes: list[str] = []
    as_it_is = score_answers(gqa, path, tmp_path, note=notes.append)
    assert len(notes) == 1
    assert "240 hold reasoning tags (<think>...), 240 hold special tokens" in notes[0]
    assert "--clean" in notes[0]
    cleaned = score_answers(gqa, path, tmp_path, clean=True, note=notes.append)
    assert len(notes) == 1
    values = [next(s.value for s in outcome.scores.scores if s.headline) for outcome in (as_it_is, cleaned)]
    assert values == [0.0, 100.0]
    assert (as_it_is.scores.scoring, cleaned.scores.scoring) == ("generate", "cleaned")
    assert as_it_is.folder != cleaned.folder
