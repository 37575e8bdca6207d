"""Pictures show every run with its marks, in every format, the same bytes each time."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.answered import answered, gold, other
from vlmamba_eval.baselines import choose
from vlmamba_eval.cli import cli
from vlmamba_eval.report import plots
from vlmamba_eval.report.tables import RunScores, load_runs
from vlmamba_eval.types import DataError, UsageError

pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "results" / "bench"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunScores]:
    out = tmp_path_factory.mktemp("runs")
    folders = [
        answered(out, "right"),
        answered(out, "$x^2$ <b>", lambda i, sample: other(sample) if i % 5 == 0 else gold(sample)),
        answered(out, "right", task="mme"),
    ]
    return load_runs(folders, out)


def words(path: Path) -> str:
    """The text of an SVG picture."""
    return "\n".join(re.findall(r">([^<>]+)</text>", path.read_text(encoding="utf-8")))


def test_a_forest_names_every_run_its_marks_and_its_interval(runs: list[RunScores], tmp_path: Path) -> None:
    text = words(plots.forest(runs, choose(["llava-1.5-7b"]), tmp_path / "forest.svg"))
    assert "POPE, mean F1" in text
    assert "MME, perception" in text
    assert "right SAMPLES" in text
    assert "$x^2$ &lt;b&gt; SAMPLES" in text
    assert "LLaVA" not in text  # nothing here is comparable with a published number
    head = runs[0].headline
    assert head is not None
    assert f"{head.value:,.1f}" in text


def test_bars_have_a_row_for_each_group(runs: list[RunScores], tmp_path: Path) -> None:
    text = words(plots.bars(runs, "pope", tmp_path / "bars.svg"))
    assert "POPE: F1 by group of questions" in text
    assert all(split in text for split in ("adversarial", "random", "popular"))
    with pytest.raises(UsageError, match="have pope, mme"):
        plots.bars(runs, "gqa", tmp_path / "bars.svg")


@pytest.mark.parametrize("name", ["cpu/lengths", "cpu/images", "cpu/uniform-1"])
def test_speed_is_drawn_from_a_measurements_csv(name: str, tmp_path: Path) -> None:
    path = BENCH / f"{name}.csv"
    text = words(plots.speed(plots.read_speed(path), plots.machine_of(path), tmp_path / "speed.svg"))
    assert "Seconds" in text
    assert "AMD EPYC" in text
    assert "mathdefault" not in text  # a number as LaTeX source


@pytest.mark.parametrize("kind", plots.KINDS)
def test_every_kind_is_the_same_bytes_each_time(kind: str, runs: list[RunScores], tmp_path: Path) -> None:
    first, again = (plots.forest(runs, [], tmp_path / f"{name}{kind}").read_bytes() for name in ("a", "b"))
    assert first == again
    assert first[:4] in (b"\x89PNG", b"<?xm", b"%PDF")


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "\xff"])
def test_another_csv_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"x\.csv"):
        plots.read_speed(path)


def test_the_command_draws_and_says_what_it_lacks(tmp_path: Path) -> None:
    answered(tmp_path, "ours")
    answered(tmp_path, "ours", task="mme")

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["plot", *arguments])
        return result.exit_code, result.output + str(result.exception or "")

    place = str(tmp_path / "ours")
    assert run("forest", place, "--out", str(tmp_path / "deep/f.pdf"))[0] == 0
    assert (tmp_path / "deep/f.pdf").is_file()
    refusals: list[tuple[tuple[str, ...], str]] = [
        (("bars", place, "--out", "x.png"), "choose one with --task"),
        (("forest", place, "--out", "x.gif"), "ends in .png, .svg, .pdf"),
        (("speed", place, place, "--out", "x.png"), "one CSV file"),
    ]
    for arguments, said in refusals:
        code, output = run(*arguments)
        assert code != 0
        assert said in output


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'vlmamba-eval\[bench\]'"), plots.style():
        pass
