"""What is done with a finished run: the file that a server wants, a judge's grades; and what `prepare` says before."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.answered import answered as finished
from tests.toys import ToyAdapter, ToyTask, write_toy_data
from vlmamba_eval.chat import Reply, Server
from vlmamba_eval.dataset import load_dataset
from vlmamba_eval.judge import judge
from vlmamba_eval.report.tables import board, load_runs
from vlmamba_eval.run import evaluate
from vlmamba_eval.store import Run, read_manifest, read_scores
from vlmamba_eval.submit import run_at, submit
from vlmamba_eval.task import Judged as JudgedTask
from vlmamba_eval.task import Submits
from vlmamba_eval.types import DataError, Loaded, StoreError, UsageError


class Judged(ToyTask):
    """The toy as a benchmark without labels, for a server and for a judge that likes red."""

    def __init__(self) -> None:
        super().__init__()
        self.info = dataclasses.replace(self.info, scored="judge", sources=("Colours: draw them yourself",))

    def load(self, data):
        return Loaded([dataclasses.replace(sample, target=None) for sample in super().load(data).samples])

    def submit(self, samples, answers, folder, extra):
        path = folder / "answers.json"
        path.write_text(json.dumps([answers[sample.id] for sample in samples]))
        return [path]

    def judge_messages(self, sample, answer):
        return [{"role": "user", "content": answer}]

    def read_judgement(self, reply: str) -> float | None:
        return float(reply == "red")


class Echo:
    """A judge that repeats the answer."""

    def __init__(self, server: Server) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask_all(self, requests):
        return (Reply(request.messages[0]["content"], "eos") for request in requests)

    def telemetry(self):
        return {"requests": 1}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("vlmamba_eval.registry.all_tasks", lambda: {"toy": Judged()})
    monkeypatch.setattr("vlmamba_eval.judge.Chat", Echo)
    return write_toy_data(tmp_path / "data")


def answered(data: Path, out: Path, adapter: ToyAdapter | None = None, **options: int) -> Path:
    return evaluate(adapter or ToyAdapter(), [load_dataset(Judged(), str(data), **options)], out)[0].folder  # type: ignore[arg-type]


def test_a_submission_holds_every_answer_and_lies_in_the_run(data: Path, tmp_path: Path) -> None:
    folder = answered(data, tmp_path)
    [path] = submit(folder)
    assert path == folder / "submission" / "answers.json"
    assert json.loads(path.read_text()) == (["red"] * 4 + ["blue"] * 4) * 3
    assert submit(folder, out=tmp_path / "elsewhere") == [tmp_path / "elsewhere" / "answers.json"]


def test_a_partial_or_incomplete_run_is_not_submitted(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a PARTIAL run; a submission needs every question of Toy\. Run again"):
        submit(answered(data, tmp_path, limit=4))
    (data / "toy" / "images" / "2.png").unlink()
    with pytest.raises(DataError, match=r"lacks 4 of 24 answers\. Run the same evaluation again"):
        submit(answered(data, tmp_path))


def test_a_place_where_no_submission_can_be_written_is_named(data: Path, tmp_path: Path) -> None:
    folder = answered(data, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/x cannot be written \(Not a directory\)"):
        submit(folder, out=tmp_path / "file" / "x")


def test_moved_data_is_asked_for_and_other_data_refused(data: Path, tmp_path: Path) -> None:
    folder = answered(data, tmp_path)
    moved = data.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="no such folder"):
        submit(folder)
    assert submit(folder, str(moved))
    path = moved / "toy" / "toy.jsonl"
    path.write_text(path.read_text().replace("What colour (2)", "Which colour (2)"))
    with pytest.raises(DataError, match=r"does not hold the questions that .* answered"):
        submit(folder, str(moved))
    (folder / "telemetry.jsonl").unlink()
    with pytest.raises(UsageError, match="does not say where its data was; give it with --data"):
        submit(folder)


def test_a_judge_scores_a_run_under_its_own_name(data: Path, tmp_path: Path) -> None:
    folder = answered(data, tmp_path)
    assert read_scores(folder).marks == ("UNSCORED",)
    said: list[tuple[int, int]] = []
    judge(folder, "http://x", "likes-red", judged=lambda done, total: said.append((done, total)))
    scores = read_scores(folder)
    assert (scores.judge, scores.marks, scores.scores[0].value) == ("likes-red", (), 50.0)
    assert (folder / "DONE").exists()
    assert said[-1] == (24, 24)
    assert evaluate(ToyAdapter(), [load_dataset(Judged(), str(data))], tmp_path)[0].scores.judge == "likes-red"
    (note,) = (note for note in board(load_runs([folder], tmp_path), []).notes if "judge" in note)
    assert note == "toy-model, Toy: the judge likes-red gave the grades; others give others."


def test_a_folder_above_a_run_is_enough_if_it_holds_one_of_the_kind(tmp_path: Path) -> None:
    pope, mme = finished(tmp_path, "a"), finished(tmp_path, "a", task="mme")
    assert run_at(tmp_path / "a", Submits, "runs with a submission file") == mme
    assert run_at(pope, Submits, "runs with a submission file") == pope  # what is named is meant
    with pytest.raises(UsageError, match=r"holds no runs that a judge grades. It holds:\n  .*mme"):
        run_at(tmp_path / "a", JudgedTask, "runs that a judge grades")
    other = finished(tmp_path, "b", task="mme")
    with pytest.raises(UsageError, match="holds 2 runs with a submission file; name the one that is meant:") as refused:
        run_at(tmp_path, Submits, "runs with a submission file")
    assert str(mme) in str(refused.value)
    assert str(other) in str(refused.value)


def test_a_failed_answer_stays_a_failure_under_the_judge(data: Path, tmp_path: Path) -> None:
    (data / "toy" / "images" / "2.png").unlink()
    folder = answered(data, tmp_path)
    score = judge(folder, "http://x", "likes-red").scores[0]
    assert (score.n, score.n_error, score.n_missing) == (24, 4, 0)
    assert score.value == pytest.approx(100 * 8 / 24)
    assert not (folder / "DONE").exists()


def test_a_judge_counts_answers_that_got_lost_and_leaves_the_run_incomplete(data: Path, tmp_path: Path) -> None:
    folder = answered(data, tmp_path)
    path = folder / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    scores = judge(folder, "http://x", "likes-red")
    assert (scores.n_missing, scores.marks) == (1, ("INCOMPLETE",))
    assert not (folder / "DONE").exists()


def test_a_place_where_no_judgement_can_be_written_is_named(data: Path, tmp_path: Path) -> None:
    folder = answered(data, tmp_path)
    (folder / "judgements.jsonl").mkdir()
    with pytest.raises(StoreError, match=r"judgements\.jsonl cannot be written \(Is a directory\)"):
        judge(folder, "http://x", "likes-red")


def test_two_judges_do_not_write_to_one_run(data: Path, tmp_path: Path) -> None:
    folder = answered(data, tmp_path)
    with Run(folder, read_manifest(folder)), pytest.raises(StoreError, match="is being written by process"):
        judge(folder, "http://x", "likes-red")


@pytest.mark.parametrize("action", [submit, lambda folder: judge(folder, "http://x", "m")])
def test_what_is_no_run_is_refused(tmp_path: Path, action: Callable[[Path], object]) -> None:
    with pytest.raises(StoreError, match=r"manifest\.json is missing\. Is this a run folder"):
        action(tmp_path)
