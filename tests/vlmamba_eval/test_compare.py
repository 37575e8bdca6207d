"""Runs are joined by question, unlike ones are refused, and what differs is named."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.answered import answered, gold, other, samples
from vlmamba_eval.cli import cli
from vlmamba_eval.compare import Comparison, compare, judge_gate, open_sides, read_gates, refuse_unlike
from vlmamba_eval.paired import holm, mcnemar
from vlmamba_eval.report import comparison as shown
from vlmamba_eval.types import DataError, UsageError

POPE = len(samples("pope").samples)


def wrong_at(*places: int):
    """Right answers but for some."""
    return lambda i, sample: other(sample) if i in places else gold(sample)


def between(*runs: Path | str) -> Comparison:
    return compare(open_sides([str(run) for run in runs]))


def test_the_questions_that_only_one_gets_right_are_exactly_those(tmp_path: Path) -> None:
    a, b = answered(tmp_path, "a", wrong_at(3)), answered(tmp_path, "b", wrong_at(5, 7, 11))
    pair = between(a, b).pairs[0]
    ids = [sample.id for sample in samples("pope").samples]
    assert [example.id for example in pair.questions_a] == [ids[5], ids[7], ids[11]]
    assert [example.id for example in pair.questions_b] == [ids[3]]
    assert (pair.only_a, pair.only_b, pair.both, pair.neither) == (3, 1, POPE - 4, 0)
    assert pair.p_mcnemar == mcnemar(3, 1)
    assert pair.questions_b[0].answer_a.lower() != pair.questions_b[0].answer_b.lower()


def test_the_difference_is_that_of_the_two_scores(tmp_path: Path) -> None:
    a, b = answered(tmp_path, "a", wrong_at(3, 4)), answered(tmp_path, "b", wrong_at(*range(0, POPE, 5)))
    sides = open_sides([str(a), str(b)])
    pair = compare(sides).pairs[0]
    for difference in pair.differences:
        row = [
            next(
                s.value
                for s in side.members["pope"][0].scores.scores
                if (s.metric, s.split, s.category) == (difference.metric, difference.split, difference.category)
            )
            for side in sides
        ]
        assert (difference.a, difference.b) == (row[0], row[1])
        assert row[0] is not None
        assert row[1] is not None
        assert difference.difference == pytest.approx(row[1] - row[0], abs=1e-8)
    assert pair.headline.ci_high is not None
    assert pair.headline.ci_high < 0


def test_a_run_against_its_copy_shows_nothing(tmp_path: Path) -> None:
    a, b = answered(tmp_path, "a", wrong_at(3)), answered(tmp_path, "b", wrong_at(3))
    pair = between(a, b).pairs[0]
    assert (pair.only_a, pair.only_b, pair.p, pair.n_images_differ) == (0, 0, 1.0, 0)
    assert shown.verdict(pair).startswith("No difference")


def test_other_words_of_equal_worth_are_told(tmp_path: Path) -> None:
    a = answered(tmp_path, "a")
    b = answered(tmp_path, "b", lambda i, sample: gold(sample) + "." * (i < 4))
    pair = between(a, b).pairs[0]
    assert (pair.only_a, pair.only_b, pair.other_text) == (0, 0, 4)
    assert "4 answers have other words" in shown.verdict(pair)


def test_few_differing_images_are_marked(tmp_path: Path) -> None:
    pair = between(answered(tmp_path, "a"), answered(tmp_path, "b", wrong_at(0))).pairs[0]
    assert pair.few
    assert pair.p == 1.0  # one image, swapped or not
    assert "FEW IMAGES" in shown.markdown(Comparison(("a", "b"), (pair,), {}, {}))


def test_incomplete_runs_are_compared_on_what_both_answered_and_marked(tmp_path: Path) -> None:
    a = answered(tmp_path, "a")
    b = answered(tmp_path, "b", lambda i, sample: None if i < 30 else gold(sample))
    pair = between(a, b).pairs[0]
    assert pair.shared
    assert pair.n == POPE - 30
    assert pair.headline.difference == 0  # what is missing is not taken for wrong
    assert "SHARED" in shown.markdown(Comparison(("a", "b"), (pair,), {}, {}))


def test_a_limited_run_is_compared_with_the_whole_list(tmp_path: Path) -> None:
    whole, part = answered(tmp_path, "a"), answered(tmp_path, "b", limit=24)
    pair = between(whole, part).pairs[0]
    assert pair.shared
    assert pair.n == len(samples("pope", 24).samples)


def test_half_a_pair_takes_the_other_half_with_it(tmp_path: Path) -> None:
    # MME counts a picture's two questions together: a picture that one run left half answered is left out whole.
    a = answered(tmp_path, "a", task="mme")
    b = answered(tmp_path, "b", lambda i, sample: None if i == 0 else gold(sample), task="mme")
    pair = between(a, b).pairs[0]
    total = next(d for d in pair.differences if d.metric == "total")
    assert total.difference == 0
    assert pair.shared


def test_several_seeds_are_compared_by_their_mean(tmp_path: Path) -> None:
    one, two = answered(tmp_path, "s1", wrong_at(1)), answered(tmp_path, "s2", wrong_at(1, 2, 3, 4))
    base = answered(tmp_path, "base", wrong_at(*range(0, POPE, 6)))
    pair = between(base, f"mine={one},{two}").pairs[0]
    values = pair.spread_b.values if pair.spread_b else ()
    assert pair.b == "mine"
    assert pair.headline.b == pytest.approx(sum(values) / 2)
    assert pair.spread_b is not None
    assert pair.spread_b.deviation == pytest.approx(np.std(values, ddof=1))
    assert pair.p is None  # no test over seeds is claimed
    assert any("mean of 2 runs" in fact for fact in shown.facts(pair))


def test_holm_is_taken_over_all_pairs(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for task in ("pope", "mme"):
        answered(tmp_path, "a", task=task)
        answered(tmp_path, "b", wrong_at(*range(0, 60, 4 if task == "mme" else 3)), task=task)
    pairs = between(a, b).pairs
    assert [pair.task for pair in pairs] == ["mme", "pope"]
    assert [pair.p_holm for pair in pairs] == pytest.approx(holm([pair.p or 0 for pair in pairs]))


def test_runs_over_other_questions_are_refused_with_the_fields(tmp_path: Path) -> None:
    sides = open_sides([str(answered(tmp_path, "a")), str(answered(tmp_path, "b"))])
    a, b = (side.members["pope"][0] for side in sides)
    moved = replace(
        b.manifest, data=replace(b.manifest.data, sha256="0" * 64), task=replace(a.manifest.task, version=9)
    )
    with pytest.raises(DataError, match=r"task\.version: \d+ in A, 9 in B") as error:
        refuse_unlike(a, replace(b, manifest=moved), ("A", "B"))
    assert "data.sha256" in str(error.value)


def test_another_judge_is_another_scale(tmp_path: Path) -> None:
    a = open_sides([str(answered(tmp_path, "a"))])[0].members["pope"][0]
    with pytest.raises(DataError, match=r"judge: None in A, 'gpt' in B"):
        refuse_unlike(a, replace(a, scores=replace(a.scores, judge="gpt")), ("A", "B"))


def test_a_folder_with_two_runs_of_a_task_must_be_told_apart(tmp_path: Path) -> None:
    answered(tmp_path, "a", wrong_at(1))
    answered(tmp_path, "a", wrong_at(2))
    with pytest.raises(UsageError, match="holds 2 runs of pope"):
        open_sides([str(tmp_path / "a")])


def test_a_missing_run_says_how_an_answer_file_becomes_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="vlmamba-eval score"):
        open_sides([str(tmp_path / "nothing")])


def test_runs_without_a_common_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no task in common"):
        between(answered(tmp_path, "a"), answered(tmp_path, "b", task="mme"))


def test_what_is_not_scored_yet_is_named_and_the_rest_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answered(tmp_path, "a")
    unscored = answered(tmp_path, "a", lambda i, sample: "a dog", task="mmvet")
    found = between(tmp_path / "a", answered(tmp_path, "b", wrong_at(1)))
    assert [pair.task for pair in found.pairs] == ["pope"]
    shown.show(found)
    assert "Not scored, so not compared: mmvet of a." in capsys.readouterr().out
    with pytest.raises(DataError, match="is UNSCORED"):
        between(unscored, tmp_path / "b")


def test_the_gate_fails_only_what_is_worse_and_certain(tmp_path: Path) -> None:
    a = answered(tmp_path, "a")
    much = between(a, answered(tmp_path, "much", wrong_at(*range(0, POPE, 3))))
    gate = read_gates(["POPE:0.5"], much)[0]
    assert judge_gate(gate, much.pairs[0])[0]
    assert not judge_gate(replace(gate, margin=90.0), much.pairs[0])[0]
    one = between(a, answered(tmp_path, "one", wrong_at(0)))
    failed, sentence = judge_gate(read_gates(["pope:0"], one)[0], one.pairs[0])
    assert not failed
    assert "not excluded" in sentence
    better = between(tmp_path / "much", a)
    assert not judge_gate(gate, better.pairs[0])[0]


@pytest.mark.parametrize("text", ["POPE", "POPE:x", "POPE:-1", "gqa:1", "POPE:inf"])
def test_a_gate_that_means_nothing_is_refused(text: str, tmp_path: Path) -> None:
    found = between(answered(tmp_path, "a"), answered(tmp_path, "b"))
    with pytest.raises(UsageError, match="--fail-if-worse"):
        read_gates([text], found)


def test_the_command_prints_every_format(tmp_path: Path) -> None:
    answered(tmp_path, "a")
    answered(tmp_path, "b", wrong_at(*range(0, POPE, 4)))
    runs = [str(tmp_path / name) for name in ("a", "b")]

    def run(*options: str) -> str:
        result = CliRunner().invoke(cli, ["compare", *runs, *options])
        assert result.exit_code == 0, result.output
        return result.output

    text = run()
    assert "POPE mean F1" in text
    assert "published, not tested" in text
    assert max(map(len, text.splitlines())) <= 100
    rows = list(csv.DictReader(io.StringIO(run("--format", "csv"))))
    assert [row["metric"] for row in rows if row["headline"] == "True"] == ["mean_f1"]
    found = json.loads(run("--format", "json"))
    assert len(found["pairs"][0]["questions_a"]) == len(range(0, POPE, 4))
    assert re.search(r"\| POPE mean F1.* \| 100\.00 \| \d+\.\d\d \| -\d+\.\d\d \|", run("--format", "md"))


def test_a_failed_gate_ends_with_its_own_code(tmp_path: Path) -> None:
    a, b = answered(tmp_path, "a"), answered(tmp_path, "b", wrong_at(*range(0, POPE, 3)))
    result = CliRunner().invoke(cli, ["compare", str(a), str(b), "--fail-if-worse", "POPE:0.5"])
    assert result.exit_code == 4
    assert "FAILED: b is" in result.output
    assert not [line for line in result.output.split("\n") if line.endswith(" ")]


def test_names_and_answers_cannot_steer_a_terminal(tmp_path: Path) -> None:
    a = answered(tmp_path, "a")
    b = answered(tmp_path, "b", lambda i, sample: "\x1b[31mNo [red]\u202e" if i % 3 == 0 else gold(sample))
    result = CliRunner().invoke(cli, ["compare", f"\x1b]0;x\x07[bold]={a}", str(b)])
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert "\u202e" not in result.output
