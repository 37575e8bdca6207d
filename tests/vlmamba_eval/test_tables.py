"""Tables tell measured from published, carry every mark, and can be pasted anywhere safely."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.toys import ToyAdapter
from vlmamba_eval.baselines import DEFAULT, choose, published
from vlmamba_eval.dataset import load_dataset
from vlmamba_eval.report.tables import COLUMNS, RunScores, board, escape, markdown, tidy, write_leaderboard
from vlmamba_eval.run import evaluate
from vlmamba_eval.types import UsageError


def scores(model: str = "ours", task: str = "pope", marks: tuple[str, ...] = (), **more: object) -> RunScores:
    row = {
        "metric": "mean_f1", "split": "all", "category": "all", "value": 85.5, "ci_low": 84.0, "ci_high": 86.5,
        "n": 8910, "n_images": 500, "n_unparsed": 3, "n_missing": 0, "n_error": 0, "n_truncated": 0, "headline": True,
    }  # fmt: skip
    values = {
        "model": model, "task": task, "title": "POPE", "split": "all", "headline": "mean_f1", "scoring": "generate",
        "marks": list(marks), "n": 8910, "n_missing": 0, "n_error": 0, "scores": [row],
    }  # fmt: skip
    return RunScores(f"runs/{model}/{task}/0123456789ab", values | more)


def test_measured_and_published_rows_cannot_be_confused() -> None:
    table = board([scores()], choose(["llava-1.5-13b", "vl-mamba"]))
    assert [(row[0], row[2], row[3]) for row in table.rows] == [
        ("ours", False, ("85.50 [84.00, 86.50]",)),
        ("LLaVA-1.5-13B", True, ("85.9†",)),
        ("VL-Mamba (Mamba-2.8B)", True, ("84.4†",)),
    ]
    assert any("LLaVA model zoo" in note for note in table.notes)
    assert any("names no split" in note for note in table.notes)


def test_every_mark_stands_in_every_table_and_is_explained() -> None:
    runs = [scores(marks=("SAMPLES", "UNTRAINED")), scores(task="gqa", marks=("SAMPLES", "UNTRAINED", "PARTIAL"))]
    table = board(runs, [])
    assert table.rows[0][1] == ("SAMPLES", "UNTRAINED")
    assert table.rows[0][3][1].endswith(" PARTIAL")
    text = markdown(runs, [])
    assert "**ours** SAMPLES UNTRAINED" in text
    assert text.count("**UNTRAINED**: random weights") == 2
    assert set(tidy(runs, [])["status"]) == {"measured SAMPLES UNTRAINED", "measured SAMPLES UNTRAINED PARTIAL"}


def test_the_tidy_table_has_one_row_a_metric_and_the_documented_columns() -> None:
    frame = tidy([scores()], choose(["llava-1.5-7b"]))
    assert list(frame.columns) == COLUMNS
    ours, theirs = frame.to_dict("records")
    assert (ours["value"], ours["n"], ours["status"], ours["source"]) == (
        85.5, 8910, "measured", "runs/ours/pope/0123456789ab",
    )  # fmt: skip
    assert (theirs["model"], theirs["status"], theirs["value"]) == ("llava-1.5-7b", "published", 85.9)


def test_likelihood_scores_stand_under_their_own_name() -> None:
    table = board([scores(), scores(scoring="likelihood")], choose(["llava-1.5-7b"]))
    assert table.tasks == ("pope", "pope (likelihood)")
    assert table.rows[1][3] == ("85.9†", "")  # the published number is of generated answers


def test_two_runs_of_one_task_are_two_rows_named_by_their_key() -> None:
    other = scores()
    table = board([scores(), RunScores("runs/ours/pope/fedcba987654", other.values)], [])
    assert [row[0] for row in table.rows] == ["ours", "ours #fedcba"]


def test_an_unscored_run_has_a_row_without_a_value() -> None:
    run = scores(marks=("UNSCORED",), scores=[])
    assert board([run], []).rows[0][3] == ("-",)
    [row] = tidy([run], []).to_dict("records")
    assert row["status"] == "measured UNSCORED"
    assert row["value"] != row["value"]


def test_cells_are_harmless_in_a_spreadsheet_and_in_markdown(tmp_path: Path) -> None:
    evil = scores(model="=cmd|'/c calc'!A1\n| x <script>")
    write_leaderboard(tmp_path, [evil], [])
    with open(tmp_path / "leaderboard.csv", newline="") as file:
        assert next(csv.DictReader(file))["model"].startswith("'=cmd")
    text = (tmp_path / "leaderboard.md").read_text()
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "\n| x" not in text
    assert escape("a|b\u202ec") == "a\\|b c"


def test_the_tables_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    runs, quoted = [scores(), scores(task="gqa")], choose(DEFAULT)
    first = [path.read_bytes() for path in write_leaderboard(tmp_path / "a", runs, quoted)]
    assert first == [path.read_bytes() for path in write_leaderboard(tmp_path / "b", runs, quoted)]


def test_a_run_of_the_toy_gives_a_board(tmp_path: Path) -> None:
    from tests.toys import ToyTask, write_toy_data

    data = write_toy_data(tmp_path / "data")
    outcome = evaluate(ToyAdapter(), [load_dataset(ToyTask(), str(data))], tmp_path)[0]
    table = board([RunScores("r", outcome.scores)], [])
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
    vqa.values["scores"][0].update(metric="accuracy", split="val2014")
    assert board([vqa], choose(["llava-1.5-7b"])).rows[1][3] == ("78.5† (test-dev2015)",)
