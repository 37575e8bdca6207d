"""Tables tell measured from published, carry every mark, and can be pasted anywhere safely."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vlmamba_eval
from tests.toys import ToyAdapter
from vlmamba_eval import text
from vlmamba_eval.adapter import AdapterInfo
from vlmamba_eval.baselines import DEFAULT, choose, published
from vlmamba_eval.dataset import load_dataset
from vlmamba_eval.manifest import DataIdentity, Manifest, TaskIdentity
from vlmamba_eval.report import formats
from vlmamba_eval.report.console import show
from vlmamba_eval.report.tables import COLUMNS, RunScores, board, load_runs, markdown, spoken, tidy, write_leaderboard
from vlmamba_eval.run import evaluate
from vlmamba_eval.store import find_runs
from vlmamba_eval.types import Mark, Score, Scores, StoreError, UsageError


def scores(
    model: str = "ours", task: str = "pope", marks: tuple[Mark, ...] = (), weights: str = "sha256:0", **more: Any
) -> RunScores:
    row = Score("mean_f1", "all", "all", 85.5, 84.0, 86.5, 8910, 500, 3, 0, 0, 0, True)
    found = Scores(model, task, "POPE", "all", "mean_f1", "generate", None, marks, 8910, 0, 0, (row,))
    info = AdapterInfo(model, weights, "cpu", "float32")
    manifest = Manifest(TaskIdentity(task, 1, "all", "llava-1.5"), DataIdentity(8910, "0"), model=info)
    return RunScores(f"runs/{model}/{task}/0123456789ab", replace(found, **more), manifest)


def with_row(run: RunScores, **changes: Any) -> RunScores:
    """The same run, its only score changed."""
    return replace(run, scores=replace(run.scores, scores=(replace(run.scores.scores[0], **changes),)))


def test_measured_and_published_rows_cannot_be_confused() -> None:
    table = board([scores()], choose(["llava-1.5-13b", "vl-mamba"]))
    assert [(line.model, line.kind, line.cells) for line in table.lines] == [
        ("ours", "measured", ("85.5 [84.0, 86.5]",)),
        ("LLaVA-1.5-13B", "published", ("85.9†",)),
        ("VL-Mamba (Mamba-2.8B)", "published", ("84.4†",)),
    ]
    assert any("LLaVA model zoo" in note for note in table.notes)
    assert any("names no split" in note for note in table.notes)


@pytest.mark.parametrize("model", ["llava-1.5-13b", "llava-hf/llava-1.5-13b-hf"])
def test_a_model_with_published_numbers_of_its_own_is_told_from_them(model: str) -> None:
    published = choose(DEFAULT)
    [note] = [note for note in board([scores(model)], published).notes if "less the published" in note]
    assert note.endswith("less the published LLaVA-1.5-13B: POPE -0.4.")
    for other in (scores("ours"), scores(model, marks=("PARTIAL",)), scores(model, headline="mean_accuracy")):
        assert not any("less the published" in note for note in board([other], published).notes)


def test_every_mark_stands_in_every_table_and_is_explained() -> None:
    runs = [scores(marks=("SAMPLES", "UNTRAINED")), scores(task="gqa", marks=("SAMPLES", "UNTRAINED", "PARTIAL"))]
    table = board(runs, [])
    assert table.lines[0].marks == ("SAMPLES", "UNTRAINED")
    assert table.tasks == ("gqa", "pope")
    assert table.lines[0].cells[0].endswith(" PARTIAL")
    page = markdown(runs, [])
    assert "**ours** SAMPLES UNTRAINED" in page
    assert "Task `pope` ([paper](https://arxiv.org/abs/2305.10355), [official scorer](https://github.com/" in page
    assert page.count("**UNTRAINED**: random weights") == 2
    assert {row["status"] for row in tidy(runs, [])} == {
        "measured SAMPLES UNTRAINED",
        "measured SAMPLES UNTRAINED PARTIAL",
    }


def test_the_tidy_table_has_one_row_a_metric_and_the_documented_columns() -> None:
    ours, theirs = tidy([scores()], choose(["llava-1.5-7b"]))
    assert list(ours) == list(theirs) == COLUMNS
    assert (ours["value"], ours["n"], ours["status"], ours["source"]) == (
        85.5, 8910, "measured", "runs/ours/pope/0123456789ab",
    )  # fmt: skip
    assert (theirs["model"], theirs["status"], theirs["value"]) == ("llava-1.5-7b", "published", 85.9)


def test_the_csv_is_what_pandas_writes_of_the_same_rows() -> None:
    import pandas as pd

    runs = [scores(model='a "b", c'), with_row(scores(task="gqa"), value=1 / 3, ci_low=None, few_images=True)]
    runs.append(scores(task="mmvet", marks=("UNSCORED",), scores=()))
    frame = pd.DataFrame(tidy(runs, choose(DEFAULT)), columns=pd.Index(COLUMNS))
    for name in ("n", "n_images", "n_unparsed", "n_missing", "n_error", "n_foreign", "n_truncated", "version"):
        frame[name] = frame[name].astype("Int64")
    assert formats.write("csv", runs, choose(DEFAULT)) == frame.to_csv(index=False, lineterminator="\n")


def test_the_leaderboard_is_the_headline_rows_of_the_tidy_table(tmp_path: Path) -> None:
    import pandas as pd

    runs = [scores(), scores(task="mmvet", headline="score", marks=("UNSCORED",), scores=())]
    write_leaderboard(tmp_path, runs, choose(["llava-1.5-7b", "vl-mamba"]))
    frame = pd.read_csv(tmp_path / "leaderboard.csv")
    assert frame["headline"].dtype == bool
    shown = frame[frame["headline"]].pivot(index="model", columns="task", values="value")
    assert shown["pope"].to_dict() == {"llava-1.5-7b": 85.9, "ours": 85.5, "vl-mamba": 84.4}
    assert shown["mmvet"]["llava-1.5-7b"] == 31.1
    assert shown["mmvet"].isna()["ours"]


def test_metrics_are_spoken_of_as_the_field_does() -> None:
    names = ("mean_f1", "img_accuracy", "cider", "cider_plain", "bleu_4", "rouge_l", "circular_accuracy_vlmevalkit")
    assert [spoken(name) for name in names] == [
        "mean F1", "IMG accuracy", "CIDEr", "CIDEr plain", "BLEU-4", "ROUGE-L", "circular accuracy VLMEvalKit",
    ]  # fmt: skip


def test_likelihood_scores_stand_under_their_own_name() -> None:
    table = board([scores(), scores(scoring="likelihood")], choose(["llava-1.5-7b"]))
    assert table.tasks == ("pope", "pope (likelihood)")
    assert table.lines[1].cells == ("85.9†", "")  # the published number is of generated answers


def test_two_runs_of_one_task_are_two_rows_named_by_their_key() -> None:
    table = board([scores(), replace(scores(), source="runs/ours/pope/fedcba987654")], [])
    assert [line.model for line in table.lines] == ["ours #012345", "ours #fedcba"]


def test_an_unscored_run_has_a_row_without_a_value() -> None:
    run = scores(marks=("UNSCORED",), scores=())
    assert board([run], []).lines[0].cells == ("-",)
    [row] = tidy([run], [])
    assert (row["status"], row["value"]) == ("measured UNSCORED", None)


EVIL = "=cmd|'/c calc'!A1\n| x <script> [here](http://a.b) `c` \x1b[31m\x9b2J\x07 \u202eabc\ud800"


def test_foreign_names_are_harmless_in_a_spreadsheet_and_in_markdown(tmp_path: Path) -> None:
    run = with_row(scores(model=EVIL, judge=EVIL, task="unknown"), category=EVIL)
    write_leaderboard(tmp_path, [run], [])
    with open(tmp_path / "leaderboard.csv", newline="") as file:
        row = next(csv.DictReader(file))
    assert row["model"].startswith("'=cmd")
    assert row["category"].startswith("'=cmd")
    page = (tmp_path / "leaderboard.md").read_text()
    assert not re.search(r"(?<!\\)(<script|\]\(http://a|`c`)|\n\| x", page)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", page)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r+", " =", "\x00-"])
def test_no_cell_is_a_formula(start: str) -> None:
    assert text.cell(f"{start}1+1")[0] == "'"
    assert [text.cell(harmless) for harmless in ("", "a=b", "7", " ")] == ["", "a=b", "7", " "]


def test_a_terminal_gets_no_escapes_from_names_answers_or_messages() -> None:
    seen = io.StringIO()
    with contextlib.redirect_stdout(seen):
        show(board([scores(model=EVIL)], choose(["llava-1.5-7b"])))
    assert "script" in seen.getvalue()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", seen.getvalue())
    assert text.printable("two\nlines\x1b]0;title\x07") == "two\nlines ]0;title "


def test_a_board_too_wide_for_its_place_stands_on_its_side() -> None:
    """Eight benchmarks in one row are twice as wide as a terminal."""
    names = ("vqav2", "gqa", "scienceqa", "textvqa", "pope", "mme", "mmbench", "seed")
    for tasks, first in ((names[:1], "model"), (names, "task")):
        seen = io.StringIO()
        with contextlib.redirect_stdout(seen):
            show(board([scores(task=task, title=task) for task in tasks], choose(DEFAULT)))
        lines = [line for line in seen.getvalue().splitlines() if line.startswith(("┃", "│"))]
        assert lines[0].split()[1] == first
        assert max(map(len, lines)) <= 120
        assert sum("85.5 [84.0, 86.5]" in line for line in lines) == (1 if first == "model" else 8)


def test_a_source_is_named_once_for_all_that_quote_it() -> None:
    table = board([scores(), scores(task="mmvet", title="MM-Vet", headline="score")], choose(DEFAULT))
    notes = [note.split(": ")[0] for note in table.notes]
    assert notes[0] == "† LLaVA-1.5-7B, LLaVA-1.5-13B"
    assert "on MM-Vet" in notes[1]


def test_the_tables_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    runs, quoted = [scores(), scores(task="gqa")], choose(DEFAULT)
    first = [path.read_bytes() for path in write_leaderboard(tmp_path / "a", runs, quoted)]
    assert first == [path.read_bytes() for path in write_leaderboard(tmp_path / "b", runs, quoted)]


def test_a_run_of_the_toy_gives_a_board(tmp_path: Path) -> None:
    from tests.toys import ToyTask, write_toy_data

    data = write_toy_data(tmp_path / "data")
    outcome = evaluate(ToyAdapter(), [load_dataset(ToyTask(), str(data))], tmp_path)[0]
    table = board(load_runs([outcome.folder], tmp_path), [])
    assert table.headers == ("Toy accuracy",)


def test_published_numbers_are_well_formed_and_have_sources() -> None:
    rows = published()
    assert len(rows) > 500
    assert all(row.source and row.metric and row.category for row in rows)
    keys = [(r.model, r.task, r.split, r.category, r.metric, r.source) for r in rows]
    assert len(keys) == len(set(keys))
    vl_mamba = {row.task: row.value for row in choose(["vl-mamba"])}
    assert vl_mamba == {
        "vqav2": 76.6, "gqa": 56.2, "scienceqa": 65.4, "textvqa": 48.9, "pope": 84.4, "mme": 1369.6, "mmbench": 57.0,
        "mmvet": 32.6, "mmmu": 30.6, "seed": 60.5,
    }  # fmt: skip
    assert all(row.note for row in choose(["vl-mamba"]))


def test_an_unknown_baseline_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"Unknown baseline 'llava-1\.5-13'. Did you mean: llava-1\.5-13b"):
        choose(["llava-1.5-13"])


def test_a_published_number_of_another_split_says_so_in_its_cell() -> None:
    vqa = scores(task="vqav2", title="VQAv2", split="val2014", headline="accuracy")
    vqa = with_row(vqa, metric="accuracy", split="val2014")
    assert board([vqa], choose(["llava-1.5-7b"])).lines[1].cells == ("78.5† (test-dev2015)",)


def test_models_of_one_name_are_rows_of_their_own_and_say_how_they_differ(tmp_path: Path) -> None:
    """Two checkpoints and two precisions under one name: four rows, in the table and in the CSV."""
    from tests.toys import ToyTask, write_toy_data

    data = write_toy_data(tmp_path / "data")
    for weights in ("sha256:aaaaaaaa", "sha256:bbbbbbbb"):
        for dtype in ("float32", "bfloat16"):
            adapter = ToyAdapter()
            adapter.info = replace(adapter.info, weights=weights, dtype=dtype)
            evaluate(adapter, [load_dataset(ToyTask(), str(data))], tmp_path)
    runs = load_runs(find_runs(tmp_path), tmp_path)
    assert [line.model for line in board(runs, []).lines] == [
        "toy-model (sha256 aaaaaa) (bfloat16)",
        "toy-model (sha256 aaaaaa) (float32)",
        "toy-model (sha256 bbbbbb) (bfloat16)",
        "toy-model (sha256 bbbbbb) (float32)",
    ]
    frame = vlmamba_eval.load_runs(tmp_path)
    headlines = frame[frame["headline"].astype(bool)]
    assert len(set(zip(headlines["weights"], headlines["dtype"], strict=True))) == 4
    assert len(set(headlines["model_key"])) == len(set(headlines["key"])) == 4


def test_one_models_tasks_are_one_row() -> None:
    assert [line.model for line in board([scores(), scores(task="gqa")], []).lines] == ["ours"]


def test_verdicts_are_one_row_per_question(tmp_path: Path) -> None:
    from tests.toys import ToyTask, write_toy_data

    data = write_toy_data(tmp_path / "data")
    outcome = evaluate(ToyAdapter(), [load_dataset(ToyTask(), str(data))], tmp_path)[0]
    frame = vlmamba_eval.load_verdicts(outcome.folder)
    assert len(frame) == 24
    first = frame.iloc[0]
    assert (first["model"], first["id"], first["gold"], first["answer"], first["credit"]) == (
        "toy-model", "0-0", "red", "red", 1.0,
    )  # fmt: skip
    assert 100 * frame["credit"].mean() == outcome.scores.scores[0].value


def test_samples_never_stand_above_published_numbers_as_if_comparable() -> None:
    samples, real = scores("tiny", marks=("SAMPLES",)), scores("real")
    quoted = choose(["llava-1.5-7b"])
    alone = board([samples], quoted).sections
    assert [[line.model for line in section.lines] for section in alone] == [["tiny"], ["LLaVA-1.5-7B"]]
    assert all(section.title for section in alone)
    mixed = board([samples, real], quoted).sections
    assert [[line.model for line in section.lines] for section in mixed] == [["real", "LLaVA-1.5-7B"], ["tiny"]]
    page = markdown([samples, real], quoted)
    assert page.index("**real**") < page.index("LLaVA-1.5-7B (published)") < page.index("## On the bundled samples")
    [only] = board([real], quoted).sections
    assert only.title == ""


def test_columns_are_in_the_order_of_the_papers_and_the_others_follow() -> None:
    tasks = ("mme", "coco_caption", "pope", "seed_image", "gqa", "vqav2", "pope_9000")
    table = board([scores(task=task) for task in tasks], [])
    assert table.tasks == ("vqav2", "gqa", "pope", "pope_9000", "mme", "seed_image", "coco_caption")
    heads = [line for line in markdown([scores(task=task) for task in tasks], []).splitlines() if "| model |" in line]
    assert len(heads) == 2  # Table 1, then the rest


def test_numbers_are_on_the_right_and_have_one_decimal() -> None:
    page = markdown([scores(), with_row(scores(task="mme"), value=1531.319, ci_low=1490.0, ci_high=1570.25)], [])
    assert "| --- | ---: | ---: |" in page
    assert "1,531.3 [1,490.0, 1,570.2]" in page


def test_a_paper_gets_booktabs_best_bold_second_underlined_and_footnotes() -> None:
    runs = [
        scores("a_b", marks=("PARTIAL",)), with_row(scores("c"), value=80.0), with_row(scores("d"), value=70.0),
        with_row(scores("toy", marks=("SAMPLES",)), value=100.0),
    ]  # fmt: skip
    table = formats.write("latex", runs, choose(["llava-1.5-7b"]), intervals=True)
    assert r"a\_b$^{a}$ & \textbf{85.5} \\" in table
    assert r"c & \underline{80.0} \\" in table
    assert r"d & 70.0 \\" in table
    assert r"toy$^{b}$ & 100.0 \\" in table  # best of all, and comparable with none
    assert r"LLaVA-1.5-7B & 85.9$^\dagger$ \\" in table
    assert r"{\scriptsize [84.0, 86.5]}" in table
    assert r"$^{a}$ PARTIAL: not the benchmark's whole list of questions." in table
    assert table.count(r"\begin") == table.count(r"\end") == 1
    assert r"\scriptsize" not in formats.write("latex", runs, [])


def test_latex_says_what_is_wrong_with_answers_and_marks_what_has_no_value() -> None:
    loud = with_row(scores(n_missing=100), n_unparsed=8_910)
    unscored = replace(loud.scores, task="gqa", title="GQA", scores=(), marks=("UNSCORED",), n_missing=0)
    table = formats.write("latex", [loud, replace(loud, scores=unscored)], [])
    assert r"ours, POPE: 8,910 of 8,910 answers hold no readable answer, and the official rule" in table
    assert r"ours, POPE: 100 of 8,910 answers are missing and count as wrong." in table
    assert "--$^{" in table, table
    assert table.count("UNSCORED: there are no gold labels") == 1


def test_latex_prints_foreign_names_as_they_are() -> None:
    assert formats.escaped(r"50% & \input{x} #1_2^3~") == (
        r"50\% \& \textbackslash{}input\{x\} \#1\_2\textasciicircum{}3\textasciitilde{}"
    )


def test_json_holds_the_rows_of_the_csv() -> None:
    import json

    rows = json.loads(formats.write("json", [scores()], choose(["llava-1.5-7b"])))
    assert [list(row) for row in rows] == [COLUMNS, COLUMNS]
    assert (rows[0]["value"], rows[0]["n"], rows[1]["ci_low"]) == (85.5, 8910, None)


def test_what_is_wrong_with_many_answers_is_said_beside_the_headline() -> None:
    quiet = scores()  # 3 of 8,910 answers are unparsed
    assert not [note for note in board([quiet], []).notes if "answers" in note]
    loud = with_row(scores(n_missing=100, n_error=0), n_unparsed=8_910, n_truncated=90)
    notes = board([loud], []).notes
    assert any(note.startswith("ours, POPE: 8,910 of 8,910 answers hold no readable answer") for note in notes)
    assert "ours, POPE: 90 of 8,910 answers were cut off at the limit of tokens." in notes
    assert "ours, POPE: 100 of 8,910 answers are missing and count as wrong." in notes


def test_one_foreign_answer_is_said_and_stands_in_a_column_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    run = with_row(scores(n_foreign=1), n_foreign=1)
    found = board([run], [])
    assert "ours, POPE: 1 of 8,910 answers is to another question (foreign) and counts as wrong." in found.notes
    show(found)
    [header] = [line for line in capsys.readouterr().out.splitlines() if "foreign" in line and "truncated" in line]
    assert header.split().index("foreign") > header.split().index("unreadable")
    assert "| n | images | unparsed | truncated | missing | failed | foreign |" in markdown([run], [])
    assert tidy([run], [])[0]["n_foreign"] == 1
    assert "0 missing, 0 failed, 1 foreign" in markdown([run], [])


def test_answers_without_a_flaw_need_no_table_of_flaws() -> None:
    assert not board([with_row(scores(), n_unparsed=0)], []).flaws


def test_another_runs_damage_leaves_it_out_and_is_told(tmp_path: Path) -> None:
    from tests.toys import ToyTask, write_toy_data

    data = write_toy_data(tmp_path / "data")
    good = evaluate(ToyAdapter(), [load_dataset(ToyTask(), str(data))], tmp_path)[0].folder
    bad = tmp_path / "runs" / "other" / "toy" / "0123456789ab"
    bad.mkdir(parents=True)
    (bad / "scores.json").write_text("{")
    (bad / "manifest.json").write_text("{}")
    told: list[str] = []
    assert len(load_runs([bad, good], tmp_path, told.append)) == 1
    assert told[0].startswith(f"Left out of the tables: {bad}")
    with pytest.raises(StoreError, match="is damaged"):
        load_runs([bad, good], tmp_path)
