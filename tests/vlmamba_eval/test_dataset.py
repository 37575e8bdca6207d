"""Counts are checked, ids are unique, and answer files are joined by id and prompt, never by order."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.toys import ToyTask, write_toy_data
from vlmamba_eval.answer_files import read_answer_file, score_answers
from vlmamba_eval.dataset import Dataset, fingerprint, load_dataset, samples_folder
from vlmamba_eval.folder import Folder
from vlmamba_eval.identity import identity
from vlmamba_eval.registry import get_task
from vlmamba_eval.store import read_scores
from vlmamba_eval.types import DataError, ImageRef, Loaded, Sample, UsageError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_toy_data(tmp_path / "data")


def answers_file(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def perfect(dataset: Dataset) -> list[dict]:
    return [
        {"question_id": sample.id, "prompt": dataset.task.prompt(sample), "text": sample.target, "model_id": "gold"}
        for sample in dataset.samples
    ]


def test_other_counts_than_the_declared_are_refused_or_marked(data: Path) -> None:
    with pytest.raises(DataError, match=r"expected 25 questions \(test\), found 24.*--allow-partial"):
        load_dataset(ToyTask(questions=25), str(data))
    with pytest.raises(DataError, match=r"expected 7 images \(test\), found 6"):
        load_dataset(ToyTask(images=7), str(data))
    assert load_dataset(ToyTask(questions=25), str(data), allow_partial=True).identity.marks == ("PARTIAL",)
    assert load_dataset(ToyTask(), str(data)).identity.marks == ()


def test_a_plug_in_may_read_the_folder_of_a_benchmark_and_as_many_rows(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MME names its questions by their category, which samples of other makes need not have."""

    class Ungrouped(ToyTask):
        def load(self, data: Folder) -> Loaded:
            return Loaded([replace(sample, groups=()) for sample in super().load(data).samples])

    task, mme = Ungrouped(questions=25), get_task("mme")
    task.info = replace(task.info, folders=(*task.info.folders, *mme.info.folders))
    monkeypatch.setattr(mme, "info", replace(mme.info, questions=24, images=None, ids="", counts={}))
    assert len(load_dataset(task, str(data), allow_partial=True).samples) == 24


def test_a_limit_of_the_whole_list_is_none(data: Path) -> None:
    for limit, marks in ((24, ()), (23, ("PARTIAL",)), (1, ("PARTIAL",))):
        limited = load_dataset(ToyTask(), str(data), limit=limit)
        assert limited.identity.marks == marks
        assert (limited.identity.limit is None) == (marks == ())


def declaring(sha256: str) -> ToyTask:
    task = ToyTask()
    task.info = replace(task.info, sha256=(sha256,))
    return task


def test_another_list_of_the_same_size_is_refused_by_its_sha256(data: Path) -> None:
    known = identity(ToyTask(), load_dataset(ToyTask(), str(data)).samples)
    assert load_dataset(declaring(known), str(data)).identity.marks == ()
    with pytest.raises(DataError, match=r"the 24 questions are not those of test: their sha256 differs from the decl"):
        load_dataset(declaring(f"{known[:-1]}{'0' if known[-1] != '0' else '1'}"), str(data))
    assert load_dataset(declaring("0" * 64), str(data), allow_partial=True).identity.marks == ("PARTIAL",)


def test_the_sha256_of_a_list_is_that_of_ids_prompts_and_whether_there_is_a_picture() -> None:
    """Computed here by hand: runs that are on disk, and declared lists, depend on every byte of it."""
    samples = [Sample("b", None, "Two\ud800?", "no"), Sample("a", ImageRef("k", "here"), "One?", "yes")]
    asked = b"a\0One?\nAnswer yes or no.\0True\1" + b"b\0Two\xed\xa0\x80?\nAnswer yes or no.\0False\1"
    assert fingerprint(AsksYesOrNo(), samples) == hashlib.sha256(asked).hexdigest()


class AsksYesOrNo(ToyTask):
    def prompt(self, sample: Sample) -> str:
        return f"{sample.question}\nAnswer yes or no."


@pytest.mark.parametrize(
    ("expected", "found", "other"),
    [
        ("pope", 9_000, "pope_9000"),
        ("pope_9000", 8_910, "pope"),
        ("mmbench", 4_329, "mmbench_20231003"),
        ("mmbench_20231003", 4_377, "mmbench"),
        ("seed", 17_990, "seed_updated"),
        ("seed_updated", 19_242, "seed"),
        ("scienceqa", 2_017, "scienceqa_img"),
    ],
)
def test_a_list_of_another_size_is_refused_by_the_name_of_its_task(
    monkeypatch: pytest.MonkeyPatch, data: Path, expected: str, found: int, other: str
) -> None:
    task = get_task(expected)
    samples = Loaded([Sample(str(number), None, "?", "yes", fields={"hint": ""}) for number in range(found)])
    monkeypatch.setattr(type(task), "load", lambda self, folder: samples)
    with pytest.raises(DataError, match=rf"{expected}: expected .* found {found:,}\. .*use --tasks {other}\b"):
        load_dataset(task, str(data))


def test_a_list_of_no_known_size_is_sent_to_the_list_of_tasks(data: Path) -> None:
    with pytest.raises(DataError, match=r"Choose the task that stands for your list \(vlmamba-eval list tasks\)"):
        load_dataset(ToyTask(questions=25), str(data))


@pytest.mark.parametrize("where", ["samples", str(samples_folder()), f"{samples_folder()}/../data"])
def test_the_bundled_samples_say_so_by_whatever_name(where: str) -> None:
    assert load_dataset(get_task("pope"), where).identity.marks == ("SAMPLES",)


def test_a_data_set_remembers_where_it_was_read(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    assert load_dataset(ToyTask(), data.name).source == str(data.resolve())
    assert load_dataset(get_task("pope"), "samples").source == "samples"
    with pytest.raises(UsageError, match="No samples of vsr are bundled"):
        load_dataset(get_task("vsr"), "samples")


def test_a_folder_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        load_dataset(ToyTask(), str(tmp_path / "nowhere"))


def test_a_duplicate_id_names_both_rows(data: Path) -> None:
    path = data / "toy" / "toy.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[2]]) + "\n")
    with pytest.raises(
        DataError, match=r"toy\.jsonl:24: question id '0-2' occurs twice; the first, '0-2', is .*jsonl:3"
    ):
        load_dataset(ToyTask(), str(data))


@pytest.mark.parametrize(("one", "other"), [("7", 7), ("a", "a "), ("caf\u00e9", "cafe\u0301")])
def test_ids_that_look_alike_are_refused(tmp_path: Path, one: object, other: object) -> None:
    data = write_toy_data(tmp_path, images=1, questions=2)
    rows = [{"id": id_, "image": "0.png", "question": "?", "answer": "red"} for id_ in (one, other)]
    answers_file(data / "toy" / "toy.jsonl", rows)
    with pytest.raises(DataError, match=r"toy\.jsonl:2: question id .* occurs twice"):
        load_dataset(ToyTask(questions=2, images=1), str(data))


def test_the_fingerprint_knows_questions_not_places_or_order(data: Path, tmp_path: Path) -> None:
    there = write_toy_data(tmp_path / "elsewhere")
    task = ToyTask()
    here = load_dataset(task, str(data)).samples
    assert fingerprint(task, here) == fingerprint(task, reversed(load_dataset(task, str(there)).samples))
    assert fingerprint(task, here) != fingerprint(task, here[:-1])


def test_answers_are_joined_by_id_in_any_order(data: Path, tmp_path: Path) -> None:
    dataset = load_dataset(ToyTask(), str(data))
    rows = perfect(dataset)
    scores = [
        score_answers(dataset, answers_file(tmp_path / f"{i}.jsonl", order), tmp_path / str(i)).scores
        for i, order in enumerate([rows, rows[::-1]])
    ]
    assert scores[0] == scores[1]
    assert scores[0].model == "gold"
    assert scores[0].scores[0].value == 100.0


def test_a_dropped_answer_is_missing_counts_as_wrong_and_shifts_nothing(data: Path, tmp_path: Path) -> None:
    dataset = load_dataset(ToyTask(), str(data))
    outcome = score_answers(dataset, answers_file(tmp_path / "a.jsonl", perfect(dataset)[1:]), tmp_path, "short")
    [headline] = [score for score in outcome.scores.scores if score.headline]
    assert headline.value == pytest.approx(100 * 23 / 24)
    assert (headline.n, headline.n_missing) == (24, 1)
    assert outcome.scores.marks == ("INCOMPLETE",)
    assert not outcome.complete


def test_an_answer_file_for_another_task_is_refused(data: Path, tmp_path: Path) -> None:
    dataset = load_dataset(ToyTask(), str(data))
    foreign = [{"question_id": i, "text": "yes"} for i in range(5)]
    with pytest.raises(DataError, match=r"a\.jsonl:1: question '0' is not in Toy .* for another task"):
        read_answer_file(dataset, answers_file(tmp_path / "a.jsonl", foreign))
    disguised = [row | {"prompt": "Is there a snowboard in the image?"} for row in perfect(dataset)]
    with pytest.raises(DataError, match=r"a\.jsonl:1: 'Is there a snowboard.*does not ask what Toy asks"):
        read_answer_file(dataset, answers_file(tmp_path / "a.jsonl", disguised))


def test_blank_prompts_ask_nothing_and_are_refused_as_foreign(data: Path, tmp_path: Path) -> None:
    dataset = load_dataset(ToyTask(), str(data))
    blank = [row | {"prompt": " \n"} for row in perfect(dataset)]
    with pytest.raises(DataError, match=r"a\.jsonl:1: '' does not ask what Toy asks"):
        read_answer_file(dataset, answers_file(tmp_path / "a.jsonl", blank))


def test_a_models_name_from_an_answer_file_may_be_anything(data: Path, tmp_path: Path) -> None:
    dataset = load_dataset(ToyTask(), str(data))
    for name in ("m" * 300, "../../..", "\x1b[31m", "\ud800", "a\nb", "é %d"):
        rows = [row | {"model_id": name} for row in perfect(dataset)]
        outcome = score_answers(dataset, answers_file(tmp_path / "a.jsonl", rows), tmp_path / "out")
        assert outcome.folder.resolve().is_relative_to(tmp_path / "out" / "runs")
        assert read_scores(outcome.folder).model == name


def test_two_answers_to_one_question_name_both_lines(data: Path, tmp_path: Path) -> None:
    dataset = load_dataset(ToyTask(), str(data))
    rows = perfect(dataset)
    again = [row | {"text": "other"} for row in rows[:2]]
    with pytest.raises(
        DataError, match=r"a\.jsonl:25: question '0-0' is answered twice, differently; .*a\.jsonl:1\. 2 rows are such"
    ):
        read_answer_file(dataset, answers_file(tmp_path / "a.jsonl", [*rows, *again]))


@pytest.mark.parametrize(
    ("content", "message"), [("", "holds no answers"), ('{"text": "a"}\n', "no field holds the id of a question")]
)
def test_a_file_without_answers_says_what_was_expected(data: Path, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_answer_file(load_dataset(ToyTask(), str(data)), path)


class Repeating(ToyTask):
    """Every image's questions share one external id, as MME's do."""

    def load(self, data):
        samples = [
            Sample(s.id, s.image, f"{s.question} {s.id[-1]}", s.target, external_id=s.id[0], where=s.where)
            for s in super().load(data).samples
        ]
        return Loaded(samples)


def test_repeating_ids_are_told_apart_by_the_prompt(data: Path, tmp_path: Path) -> None:
    dataset = load_dataset(Repeating(), str(data))
    rows = [
        {"question_id": s.external_id, "prompt": f"<image>\n{dataset.task.prompt(s)}", "text": s.id}
        for s in reversed(dataset.samples)
    ]
    answers = read_answer_file(dataset, answers_file(tmp_path / "a.jsonl", rows))
    assert {key: answer.generation.text for key, answer in answers.items() if answer.generation} == {
        s.id: s.id for s in dataset.samples
    }
    del rows[3]["prompt"]
    with pytest.raises(DataError, match=r"a\.jsonl:4: question id '5' stands for 4 questions .* 'prompt' is needed"):
        read_answer_file(dataset, answers_file(tmp_path / "a.jsonl", rows))
    rows[3]["prompt"] = "something else"
    with pytest.raises(DataError, match=r"a\.jsonl:4: 'something else' does not ask what Toy asks under id '5'"):
        read_answer_file(dataset, answers_file(tmp_path / "a.jsonl", rows))


def test_without_gold_labels_answers_are_kept_and_reported_as_unscored(data: Path, tmp_path: Path) -> None:
    path = data / "toy" / "toy.jsonl"
    path.write_text(path.read_text().replace('"answer"', '"ignored"'))
    dataset = load_dataset(ToyTask(), str(data))
    assert not dataset.labelled
    rows = [{"question_id": sample.id, "text": "red"} for sample in dataset.samples]
    outcome = score_answers(dataset, answers_file(tmp_path / "a.jsonl", rows), tmp_path)
    assert outcome.complete
    assert (outcome.scores.marks, outcome.scores.scores) == (("UNSCORED",), ())
