"""Answer files of other programs: read by content, joined by what was asked; what is foreign never scores."""

from __future__ import annotations

import gzip
import json
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.answered import gold, samples
from vlmamba_eval.answer_files import read_answer_file, score_answers
from vlmamba_eval.answers.asking import Asking
from vlmamba_eval.answers.cleaning import clean, remarks
from vlmamba_eval.dataset import Dataset
from vlmamba_eval.manifest import DataIdentity
from vlmamba_eval.registry import get_task
from vlmamba_eval.submit import submit
from vlmamba_eval.types import DataError, Sample

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


# -- what a prompt asks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("What is it?\nAnswer the question using a single word or phrase.", True),
        ("<image>\nwhat  is it?", True),
        ("USER: What is it? ASSISTANT:", True),
        ("Question: What is it\nAnswer:", True),
        ("What is it made of?", False),
        ("Do you know what is it?", False),
        ("What is this?", False),
        (" ", False),
    ],
)
def test_other_words_may_stand_around_a_question_but_not_in_it(prompt: str, asked: bool) -> None:
    one, other = Sample("1", None, "What is it?", "x"), Sample("2", None, "What is there?", "x")
    assert Asking(get_task("vqav2"), [one, other]).asks(one, prompt) is asked


def test_options_in_another_order_ask_something_else() -> None:
    one = Sample("1", None, "Which?", "A", ("red", "blue"), fields={"hint": ""})
    asking = Asking(get_task("mmbench"), [one, Sample("2", None, "What?", "A", ("red", "blue"), fields={"hint": ""})])
    assert asking.asks(one, "Which?\nOptions:\nA. red\nB. blue\nPlease select.")
    assert not asking.asks(one, "Which?\nOptions:\nA. blue\nB. red\nPlease select.")
    assert asking.asks(one, "Which?")


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


def test_nan_is_harmless_in_fields_that_nobody_reads(tmp_path: Path) -> None:
    gqa = samples("gqa")
    rows = [row | {"score": math.nan} for row in saved(gqa)]
    assert texts(gqa, lines(tmp_path / "a.jsonl", rows)) == right(gqa)
    with pytest.raises(DataError, match=r"a\.jsonl:1: field 'text' should be text, found nan"):
        read_answer_file(gqa, lines(tmp_path / "a.jsonl", [row | {"text": math.nan} for row in rows]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"{}", mtime=0), "is compressed with gzip"),
        (pickle.dumps({"a": 1}), "is a Python pickle, which is never opened"),
        (b"PAR1....", "is a Parquet file"),
        (b"PK\x03\x04....", "begins like a zip archive or an Excel sheet"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"a" * 200_000 + b",b\n", "is a table whose columns are 'aaa"),
        (b'{"filtered_resps": ' + b"[" * 400 + b"]" * 400 + b"}", "should hold the text of one answer"),
        (b"a,b\n1,2\n", "is a table whose columns are 'a, b'; expected `index` and `prediction`"),
        (b"Yes\nNo\n", "is text that begins with 'Yes'"),
        (b"", "holds no answers"),
        (b"[]", "holds no answers, but an empty list"),
        (b"[1, 2]", "item 0: expected an object with named fields, found 1"),
        (b'{"results": {}, "configs": {}}', "is lmms-eval's summary of scores"),
        (b'{"v1_0": {"model": "g", "score": [0.5], "content": ["x"]}}', "holds the grades of MM-Vet's evaluator"),
        (b'{"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "no"}', "list of questions, not of answers"),
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
        ("a < b > c", "a < b > c"),
        ("[A]", "[A]"),
    ],
)
def test_cleaning_takes_off_tokens_reasoning_and_white_space(text: str, wanted: str) -> None:
    assert clean(text) == wanted
    assert clean(wanted) == wanted
    assert bool(remarks([text])) == (text != wanted)


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
